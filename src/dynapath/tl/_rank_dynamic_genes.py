"""dp.tl.rank_dynamic_genes: which genes change along the path of each group."""

from __future__ import annotations

from dataclasses import dataclass
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

    from dynapath.get._genes import CountedGenes
    from dynapath.models.gene_paths import FoundGenes

# Times of the course at which peaks and troughs are looked for.
_GRID = 15


def rank_dynamic_genes(
    adata: AnnData,
    *,
    key: str | None = None,
    times: ArrayLike | None = None,
    groups: str | int | Sequence[str | int] | None = None,
    level: float = 0.9,
    n_genes: int | None = None,
    min_cells: int | None = 3,
    min_counts: int | None = None,
    pseudocount: float = 1.0,
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
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    times
        None ranks by the largest change over the observed course. Times, in the unit of the data, rank by the relative rate
        of change at each of them.
    groups
        Names of the groups, such as `["0", "2"]`; all by default.
    level
        Probability of the bands.
    n_genes
        Number of genes per group (and time); all by default.
    min_cells, min_counts
        Genes that were seen in fewer cells, or have fewer counts in all of them, are left out, as
        :func:`scanpy.pp.filter_genes` would do; None for no such limit.
    pseudocount
        Counts that are added to those of a group in a snapshot before changes are taken. A group with 100 cells of 1,000
        counts has 1e5 counts there, so 1 adds 0.1 to a mean of counts per 1e4: whatever is far below one count in all cells
        of the group cannot change much.

    Returns
    -------
    One row per group and gene, and time if `times` is given, sorted by group (and time) and `rank`, which counts from 1:

    `group`, `rank`, `gene`;
    `log2fc`, the log2 ratio of the means at `to_time` and `from_time`, both with the pseudocount, between which the gene
    changes most (peak and trough, in the order of time), `log2fc_lower`, `log2fc_upper`;
    `observed_log2fc`, the same ratio of the measured means (:func:`dynapath.get.observed_genes`) of the snapshots nearest
    to these times, NaN where they are one snapshot or have less than one cell of the group;
    `n_cells`, the number of cells in which the gene was seen, and `n_cells_group`, how many of them are of the group;
    `time`, that of the fastest relative change, or the one asked for; there the `mean` (as in
    :func:`dynapath.get.gene_trajectories`) and its `velocity` per unit of time, `velocity_lower`, `velocity_upper`;
    `extrapolated`, whether that time is after the last snapshot.

    Without bootstrap and members the bounds are NaN and the order is that of the changes themselves.

    Raises
    ------
    KeyError : without a fit under `key`.
    ValueError : for a fit with `use_rep`, groups that do not exist, times before the first snapshot, a negative pseudocount,
    and limits that no gene passes.

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
    if not (np.isfinite(pseudocount) and pseudocount >= 0):
        msg = f"pseudocount must not be negative; it is {pseudocount!r}. 0 adds nothing, 1 is the default."
        raise ValueError(msg)
    key = get.cell_slots(adata, key).key
    fitted = get.dynamics(adata, key)
    chosen, names = get.chosen_groups(adata, key, groups)
    first, last = fitted.observed_times[[0, -1]]
    asked = np.empty(0) if times is None else np.unique(in_decimals(times))
    course = np.linspace(first, last, _GRID)
    # It refuses fits that have no counts.
    found = get.gene_paths(adata, key, np.concatenate([course, asked]), np.arange(adata.n_vars))
    counted = get.counted_genes(adata, key)
    kept = _kept_genes(counted, min_cells, min_counts)
    tables = []
    for k in chosen:
        group = _Group.of(found, counted, k, course, kept, pseudocount, level)
        for at in [None] if times is None else range(len(asked)):
            own = group.over_the_course() if at is None else group.at_a_time(asked[at], _GRID + at)
            table = own.assign(
                group=pd.Categorical([names[k]] * len(own), categories=names),
                gene=np.asarray(as_text(adata.var_names))[kept],
                extrapolated=fitted.is_after(own["time"]),
                n_cells=counted.n_cells[kept],
                n_cells_group=counted.n_cells_group[k, kept],
            ).sort_values("score", ascending=False, kind="stable")
            table["rank"] = np.arange(1, len(table) + 1)
            tables.append(table.head(n_genes) if n_genes is not None else table)
    return pd.concat(tables, ignore_index=True)[_COLUMNS]


_COLUMNS = [
    *("group", "rank", "gene", "log2fc", "log2fc_lower", "log2fc_upper", "observed_log2fc", "n_cells", "n_cells_group"),
    *("from_time", "to_time"),
    *("time", "mean", "velocity", "velocity_lower", "velocity_upper", "extrapolated"),
]


def _kept_genes(counted: CountedGenes, min_cells: int | None, min_counts: int | None) -> NDArray[np.intp]:
    """Columns of the genes that were seen often enough."""
    enough = (counted.n_cells >= (min_cells or 0)) & (counted.n_counts >= (min_counts or 0))
    if not enough.any():
        msg = (
            f"No gene was seen in min_cells={min_cells} cells with min_counts={min_counts} counts; the most are "
            f"{counted.n_cells.max()} cells and {counted.n_counts.max():g} counts. Lower the limits."
        )
        raise ValueError(msg)
    return np.flatnonzero(enough)


@dataclass(frozen=True)
class _Group:
    """Paths of the kept genes in one group, and what was measured of them."""

    mean: NDArray[np.float64]  # (time, gene), of the course and then of the times asked for, as are the next three
    velocity: NDArray[np.float64]
    means: list[NDArray[np.floating]]  # of each member (draw, time, gene)
    velocities: list[NDArray[np.floating]]
    observed: NDArray[np.float64]  # (snapshot, gene)
    snapshots: NDArray[np.float64]
    course: NDArray[np.float64]
    added: float  # the pseudocount, as a mean
    level: float

    @classmethod
    def of(
        cls,
        found: FoundGenes,
        counted: CountedGenes,
        k: int,
        course: NDArray[np.float64],
        kept: NDArray[np.intp],
        pseudocount: float,
        level: float,
    ) -> _Group:
        # A group without cells has nothing that a count could be added to. Relative, as size factors may be in any unit.
        depth = max(counted.depth[k].mean(), 1e-3 * counted.depth.mean())
        return cls(
            mean=found.mean[k][:, kept],
            velocity=found.velocity[k][:, kept],
            means=[paths.mean[:, k][..., kept] for paths in found.draws],
            velocities=[paths.velocity[:, k][..., kept] for paths in found.draws],
            observed=counted.mean[k][:, kept],
            snapshots=counted.times,
            course=course,
            added=1e4 * pseudocount / depth,
            level=level,
        )

    def over_the_course(self) -> pd.DataFrame:
        """Scored by the largest change."""
        change = self._largest_change()
        fastest = np.abs(self._relative(self.velocity[:_GRID], self.mean[:_GRID])).argmax(0)
        half = (change["log2fc_upper"] - change["log2fc_lower"]) / 2
        score = np.abs(change["log2fc"]) - half.fillna(0)
        return change.assign(time=self.course[fastest], score=score, **self._velocity_at(fastest))

    def at_a_time(self, time: float, index: int) -> pd.DataFrame:
        """Scored by the relative rate at a time that was asked for."""
        relative = [self._relative(v[:, index], m[:, index]) for v, m in zip(self.velocities, self.means, strict=True)]
        half = np.nan_to_num(half_width(relative, self.level))
        score = np.abs(self._relative(self.velocity[index], self.mean[index])) - half
        at = np.full(self.mean.shape[1], index)
        return self._largest_change().assign(time=time, score=score, **self._velocity_at(at))

    def _relative(self, velocity: NDArray[np.floating], mean: NDArray[np.floating]) -> NDArray[np.floating]:
        return velocity / (mean + self.added)

    def _largest_change(self) -> pd.DataFrame:
        """From trough to peak or from peak to trough, whichever comes first."""
        level_of = self.mean[:_GRID]
        ends = np.sort(np.stack([level_of.argmin(0), level_of.argmax(0)]), axis=0)
        estimate, half = (
            self._log2_ratio(level_of, ends),
            half_width([self._log2_ratio(means, ends) for means in self.means], self.level),
        )
        nearest = np.abs(self.course[ends][..., None] - self.snapshots).argmin(-1)
        observed = self._log2_ratio(self.observed, nearest)
        return pd.DataFrame(
            {
                "log2fc": estimate,
                "log2fc_lower": estimate - half,
                "log2fc_upper": estimate + half,
                "observed_log2fc": np.where(nearest[0] == nearest[1], np.nan, observed),
                "from_time": self.course[ends[0]],
                "to_time": self.course[ends[1]],
            }
        )

    def _log2_ratio(self, means: NDArray[np.floating], ends: NDArray[np.intp]) -> NDArray[np.floating]:
        genes = np.arange(means.shape[-1])
        # Without a pseudocount a measured mean may be zero.
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log2((means[..., ends[1], genes] + self.added) / (means[..., ends[0], genes] + self.added))

    def _velocity_at(self, index: NDArray[np.intp]) -> dict[str, NDArray[np.float64]]:
        """Mean and velocity of each gene at its own time, with the band of the latter."""
        genes = np.arange(len(index))
        velocity = self.velocity[index, genes]
        half = half_width([draws[:, index, genes] for draws in self.velocities], self.level)
        return {
            "mean": self.mean[index, genes],
            "velocity": velocity,
            "velocity_lower": velocity - half,
            "velocity_upper": velocity + half,
        }
