"""dp.tl.rank_dynamic_genes: which genes change along the path of each group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dynapath import get
from dynapath._names import as_text
from dynapath._times import in_decimals
from dynapath.models.draws import check_level, half_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from dynapath.models.gene_paths import FoundGenes

# Times of the course at which peaks and troughs are looked for.
_GRID = 15


def rank_dynamic_genes(
    adata: AnnData,
    *,
    key: str = "dynvae",
    times: ArrayLike | None = None,
    groups: str | int | Sequence[str | int] | None = None,
    level: float = 0.9,
    n_genes: int | None = None,
) -> pd.DataFrame:
    """Genes in the order of how much they surely change within each group.

    Where :func:`scanpy.tl.rank_genes_groups` compares groups with each other, this compares a group with itself over time.
    A gene's rank follows from the end of its band that is nearer to no change, so a small change that is known well can go
    before a large one that may be noise.

    Parameters
    ----------
    adata
        With a fit of counts under `key`, best with a bootstrap (:func:`dynapath.tl.bootstrap`) or several members.
    key
        `key_added` of the fit.
    times
        None ranks by the largest change over the observed course. Times, in the unit of the data, rank by the relative rate
        of change at each of them.
    groups
        Names of the groups, such as `["0", "2"]`; all by default.
    level
        Probability of the bands.
    n_genes
        Number of genes per group (and time); all by default.

    Returns
    -------
    One row per group and gene, and time if `times` is given, sorted by group (and time) and `rank`, which counts from 1:

    `group`, `rank`, `gene`;
    `log2fc`, the log2 ratio of the means at `to_time` and `from_time`, between which the gene changes most (peak and trough,
    in the order of time), `log2fc_lower`, `log2fc_upper`;
    `time`, that of the fastest relative change, or the one asked for; there the `mean` (as in
    :func:`dynapath.get.gene_trajectories`) and its `velocity` per unit of time, `velocity_lower`, `velocity_upper`;
    `extrapolated`, whether that time is after the last snapshot.

    Without bootstrap and members the bounds are NaN and the order is that of the changes themselves.

    Raises
    ------
    KeyError : without a fit under `key`.
    ValueError : for a fit with `use_rep`, groups that do not exist, and times before the first snapshot.

    Notes
    -----
    Peaks and troughs are chosen on the same data, so a gene that does not change has a `log2fc` that is not quite zero; its
    band still tells. Bands are gene by gene, not corrected for the number of genes.

    Examples
    --------
    >>> import dynapath as dp
    >>> dp.tl.bootstrap(adata)  # doctest: +SKIP
    >>> dp.tl.rank_dynamic_genes(adata, n_genes=10)  # doctest: +SKIP
    """
    check_level(level)
    if n_genes is not None and n_genes < 1:
        msg = f"n_genes must be at least 1, or None; it is {n_genes!r}."
        raise ValueError(msg)
    fitted = get.dynamics(adata, key)
    chosen = _chosen_groups(groups, fitted.n_groups)
    first, last = fitted.observed_times[[0, -1]]
    asked = np.empty(0) if times is None else np.unique(in_decimals(times))
    course = np.linspace(first, last, _GRID)
    found = get.gene_paths(adata, key, np.concatenate([course, asked]), np.arange(adata.n_vars))
    if times is None:
        rows = [_over_the_course(found, k, course, level) for k in chosen]
    else:
        rows = [_at_a_time(found, k, course, t, i + _GRID, level) for k in chosen for i, t in enumerate(asked)]
    tables = []
    for k, table in zip(np.repeat(chosen, max(1, len(asked))), rows, strict=True):
        table = table.assign(
            group=pd.Categorical([str(k)] * len(table), categories=[str(g) for g in range(fitted.n_groups)]),
            gene=as_text(adata.var_names),
            extrapolated=fitted.is_after(table["time"]),
        ).sort_values("score", ascending=False, kind="stable")
        table["rank"] = np.arange(1, len(table) + 1)
        tables.append(table.head(n_genes) if n_genes is not None else table)
    return pd.concat(tables, ignore_index=True)[_COLUMNS]


_COLUMNS = [
    *("group", "rank", "gene", "log2fc", "log2fc_lower", "log2fc_upper", "from_time", "to_time"),
    *("time", "mean", "velocity", "velocity_lower", "velocity_upper", "extrapolated"),
]


def _chosen_groups(groups: str | int | Sequence[str | int] | None, n_groups: int) -> list[int]:
    names = [str(k) for k in range(n_groups)]
    asked = names if groups is None else [groups] if isinstance(groups, str | int) else list(groups)
    unknown = [group for group in asked if str(group) not in names]
    if unknown or not asked:
        msg = (
            f"groups must name some of {', '.join(names)}; {unknown[0] if unknown else 'nothing'!r} is not among them."
        )
        raise ValueError(msg)
    return [names.index(str(group)) for group in asked]


def _over_the_course(found: FoundGenes, k: int, course: NDArray[np.float64], level: float) -> pd.DataFrame:
    change = _largest_change(found, k, course, level)
    rate = np.abs(found.velocity[k, :_GRID] / found.mean[k, :_GRID])
    fastest = rate.argmax(0)
    half = (change["log2fc_upper"] - change["log2fc_lower"]) / 2
    score = np.abs(change["log2fc"]) - half.fillna(0)
    return change.assign(time=course[fastest], score=score, **_velocity(found, k, fastest, level))


def _at_a_time(
    found: FoundGenes, k: int, course: NDArray[np.float64], time: float, index: int, level: float
) -> pd.DataFrame:
    at = np.full(found.mean.shape[-1], index)
    relative = [paths.velocity[:, k, index] / paths.mean[:, k, index] for paths in found.draws]
    half = np.nan_to_num(half_width(relative, level))
    score = np.abs(found.velocity[k, index] / found.mean[k, index]) - half
    return _largest_change(found, k, course, level).assign(time=time, score=score, **_velocity(found, k, at, level))


def _largest_change(found: FoundGenes, k: int, course: NDArray[np.float64], level: float) -> pd.DataFrame:
    """From trough to peak or from peak to trough, whichever comes first."""
    level_of = found.mean[k, :_GRID]
    ends = np.sort(np.stack([level_of.argmin(0), level_of.argmax(0)]), axis=0)
    genes = np.arange(level_of.shape[1])
    ratio = lambda means: np.log2(means[..., ends[1], genes] / means[..., ends[0], genes])
    estimate, half = ratio(level_of), half_width([ratio(paths.mean[:, k]) for paths in found.draws], level)
    return pd.DataFrame(
        {
            "log2fc": estimate,
            "log2fc_lower": estimate - half,
            "log2fc_upper": estimate + half,
            "from_time": course[ends[0]],
            "to_time": course[ends[1]],
        }
    )


def _velocity(found: FoundGenes, k: int, index: NDArray[np.intp], level: float) -> dict[str, NDArray[np.float64]]:
    """Mean and velocity of each gene at its own time, with the band of the latter."""
    genes = np.arange(len(index))
    velocity = found.velocity[k, index, genes]
    half = half_width([paths.velocity[:, k, index, genes] for paths in found.draws], level)
    return {
        "mean": found.mean[k, index, genes],
        "velocity": velocity,
        "velocity_lower": velocity - half,
        "velocity_upper": velocity + half,
    }
