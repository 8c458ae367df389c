"""Cells at a time without any, made from the observed times next to it by rules that know no dynamics. Arrays only.

With t between the observed t0 and t1, s = (t - t0)/(t1 - t0) in real time, not in the order of times:

    forward           cells of t0 as they are
    backward          cells of t1 as they are
    mixture           cells of t0 and t1 in proportions 1 - s and s
    mean_shift        cells of the nearer of both (t1 if both are as near), moved by (m1 - m0)(t - t_near)/(t1 - t0) with
                      the means m in PCs; beyond the first or last time, its cells, moved on by the displacement between
                      the two times next to it
    ot_interpolation  pairs from the optimal coupling of t0 with t1 in PCs, at the fraction s of their way

Cells are used once: a random part of them where there are more than wanted, all of them, which is fewer than wanted, where
not. For a cell that is there twice is too close to itself, and distances would punish that. Pairs may share a cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial.distance import cdist

from dynapath._times import same_within

FloatArray = NDArray[np.float64]

# An exact coupling takes time cubic in the number of cells.
_MOST_COUPLED = 2000
_BLOCK = 1024


def neighbouring_times(times: FloatArray, time: float) -> tuple[float | None, float | None]:
    """The nearest of `times` before and after `time`; None where there is none."""
    within = same_within(times)
    before, after = times[times < time - within], times[times > time + within]
    return (float(before.max()) if len(before) else None), (float(after.min()) if len(after) else None)


def forward(
    counts: sparse.csr_matrix, times: FloatArray, time: float, n_cells: int, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Cells of the time before."""
    before, _ = _sides(times, time, "before")
    return counts[_some(np.flatnonzero(times == before), n_cells, rng)]


def backward(
    counts: sparse.csr_matrix, times: FloatArray, time: float, n_cells: int, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Cells of the time after."""
    _, after = _sides(times, time, "after")
    return counts[_some(np.flatnonzero(times == after), n_cells, rng)]


def mixture(
    counts: sparse.csr_matrix, times: FloatArray, time: float, n_cells: int, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Cells of both neighbouring times, in proportion to their closeness in real time."""
    before, after = _sides(times, time, "both")
    s = (time - before) / (after - before)
    rows = [np.flatnonzero(times == side) for side in (before, after)]
    # The proportions hold, so the side with too few cells limits the other.
    n_cells = int(min(n_cells, len(rows[0]) / (1 - s), len(rows[1]) / s))
    n_after = round(s * n_cells)
    return counts[np.concatenate([_some(rows[0], n_cells - n_after, rng), _some(rows[1], n_after, rng)])]


def mean_shift(pcs: FloatArray, times: FloatArray, time: float, n_cells: int, rng: np.random.Generator) -> FloatArray:
    """Cells of the nearest time, moved by the mean displacement in real time, as coordinates `pcs` (cell, component).

    Shifted cells have coordinates but no counts.
    """
    observed = np.unique(times)
    # Beyond the range these are the last, or the first, two times.
    at = int(np.clip(np.searchsorted(observed, time), 1, len(observed) - 1))
    t0, t1 = observed[at - 1], observed[at]
    m0, m1 = (pcs[times == t].mean(0) for t in (t0, t1))
    nearest = t0 if time - t0 < t1 - time else t1
    rows = _some(np.flatnonzero(times == nearest), n_cells, rng)
    return pcs[rows] + (m1 - m0) * ((time - nearest) / (t1 - t0))


def ot_interpolation(
    counts: sparse.csr_matrix,
    pcs: FloatArray,
    times: FloatArray,
    time: float,
    n_cells: int,
    rng: np.random.Generator,
) -> sparse.csr_matrix:
    """Pairs of cells of the neighbouring times, coupled with least squared distance in `pcs`, at their place on the way.

    The count of each gene is that of the later cell of the pair with probability s, else that of the earlier, by a coin
    for each gene and cell. So a count is on average what lies at s between the two cells', and has the noise of a real
    count, whatever its distribution: averaged counts would have too little, and drawing anew around the average, with the
    noise of both cells still in it, gives too much. Half way between two parts of one snapshot lies that snapshot again.
    Over many genes the coins average out, so that cells are on their way in `pcs`, not at its ends.

    At most 2,000 cells of each time are coupled; pairs are drawn by their mass.
    """
    from ot import emd

    before, after = _sides(times, time, "both")
    s = (time - before) / (after - before)
    one, other = (_some(np.flatnonzero(times == side), _MOST_COUPLED, rng) for side in (before, after))
    # POT stops after 100,000 steps unless told otherwise, which is too few for thousands of cells.
    plan = emd([], [], cdist(pcs[one], pcs[other], "sqeuclidean"), numItermax=10_000_000)
    earlier, later = np.nonzero(plan)
    # Systematic resampling: each pair as often as its mass says, up to one.
    mass = np.cumsum(plan[earlier, later])
    position = (rng.random() + np.arange(n_cells)) / n_cells * mass[-1]
    pair = np.minimum(np.searchsorted(mass, position, side="right"), len(mass) - 1)
    one, other = one[earlier[pair]], other[later[pair]]
    mixed = []
    for start in range(0, n_cells, _BLOCK):
        block = slice(start, start + _BLOCK)
        from_later = rng.random((len(one[block]), counts.shape[1])) < s
        mixed.append(counts[one[block]].multiply(~from_later) + counts[other[block]].multiply(from_later))
    return sparse.vstack(mixed, format="csr")


def _sides(times: FloatArray, time: float, needed: str) -> tuple[float, float]:
    before, after = neighbouring_times(times, time)
    if (before is None and needed != "after") or (after is None and needed != "before"):
        which = "earlier" if before is None else "later"
        msg = f"There is no {which} time than {time:g} to take cells from; times are {', '.join(f'{t:g}' for t in np.unique(times))}."
        raise ValueError(msg)
    return (np.nan if before is None else before), (np.nan if after is None else after)


def _some(rows: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`n` of the rows at random, or all of them if there are fewer."""
    return rng.permutation(rows)[:n]
