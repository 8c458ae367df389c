"""AnnData -> checked counts with times. All messages about bad snapshots are here; nothing is written."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from dynapath._columns import column_of
from dynapath._names import as_text
from dynapath._time_column import Place, numbers_of

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Remembered:
    """What a fit knows of its categories."""

    batches: Sequence[str] = ()
    group_labels: Sequence[str] = ()


@dataclass(frozen=True)
class Snapshots:
    """Cells with times and, where counts were asked for, their counts."""

    times: NDArray[np.float64]  # (cell,)
    counts: sparse.csr_matrix | None  # (cell, gene), float32
    batch: pd.Categorical | None
    labels: pd.Categorical | None  # UNLABELLED where unknown
    size_factor: NDArray[np.float64] | None
    cells: pd.Index
    genes: pd.Index

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.times)

    @property
    def distinct_times(self) -> NDArray[np.float64]:
        """Times of the snapshots, increasing."""
        return np.unique(self.times)

    @property
    def library(self) -> NDArray[np.float64]:
        """What the decoder scales by: size factors if given, else total counts."""
        if self.size_factor is not None:
            return self.size_factor
        assert self.counts is not None
        return np.asarray(self.counts.sum(1), dtype=float).ravel()

    def to_anndata(self, like: AnnData | None = None) -> tuple[AnnData, dict[str, str]]:
        """An AnnData of its own for scvi-tools to register, sharing the counts, and where in it is what.

        The user's AnnData stays untouched. With `like`, see :func:`to_register`.
        """
        columns = {
            "time_key": self.times,
            "batch_key": self.batch,
            "labels_key": self.labels,
            "size_factor_key": self.size_factor,
        }
        return to_register(self.counts, self.cells, self.genes, columns, like)


def to_register(
    values: Any, cells: pd.Index, genes: pd.Index, columns: Mapping[str, Any], like: AnnData | None = None
) -> tuple[AnnData, dict[str, str]]:
    """What was read as an AnnData for scvi-tools to register, and the arguments that say where in it is what.

    Parameters
    ----------
    columns
        What was read for each argument, such as `batch_key`; None is left out.
    like
        The AnnData that was read, whose `obs` is kept beside: methods of the model group cells by its columns.
    """
    if like is None:
        obs, prefix = pd.DataFrame(index=cells), ""
    else:
        # What scvi-tools wrote for other models is not about this one.
        obs = like.obs.loc[:, [not str(name).startswith("_scvi") for name in like.obs]].set_axis(cells)
        prefix = "_dynapath_"
    where = {name: prefix + name.removesuffix("_key") for name, column in columns.items() if column is not None}
    for argument, name in where.items():
        obs[name] = columns[argument]
    return AnnData(X=values, obs=obs, var=pd.DataFrame(index=genes)), where


def read_snapshots(
    adata: AnnData,
    *,
    time_key: str,
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    remembered: Remembered | None = None,
) -> Snapshots:
    """Counts of single-cell snapshots, checked.

    Parameters
    ----------
    remembered
        Of a fit whose model is built again: categories are coded as they were, and any number of times will do.

    Raises
    ------
    KeyError : for a missing column or layer, naming what there is.
    ValueError : for times or counts that no snapshot model can use, naming the value and what to do.
    """
    times = read_times(adata, time_key, at_least=2 if remembered is None else 1)
    batch = None if batch_key is None else column_of(adata.obs, batch_key, argument="batch_key")
    size_factor = None
    if size_factor_key is not None:
        size_factor = column_of(adata.obs, size_factor_key, argument="size_factor_key")
    labels = read_labels(adata, labels_key, names=None if remembered is None else remembered.group_labels)
    counts = read_counts(adata, layer)
    if batch is not None:
        if batch.isna().any():
            msg = f"obs[{batch_key!r}] is missing for {int(batch.isna().sum())} cells. Fill it in or drop these cells."
            raise ValueError(msg)
        batch = pd.Categorical(batch.astype(str))
        if remembered is None:
            _check_batches_overlap(batch, times, batch_key, time_key)
        else:
            unknown = set(batch.categories) - set(remembered.batches)
            if unknown:
                msg = f"obs[{batch_key!r}] has batches the fit has not seen: {_listed(unknown)}; it knows {_listed(remembered.batches)}."
                raise ValueError(msg)
            batch = batch.set_categories(list(remembered.batches))
    if size_factor is not None:
        size_factor = size_factor.to_numpy(dtype=float)
        if not (np.isfinite(size_factor) & (size_factor > 0)).all():
            bad = adata.obs_names[~(np.isfinite(size_factor) & (size_factor > 0))][0]
            msg = f"obs[{size_factor_key!r}] must be positive and finite; cell {bad!r} has not. Recompute it or drop the cell."
            raise ValueError(msg)
    return Snapshots(times, counts, batch, labels, size_factor, as_text(adata.obs_names), as_text(adata.var_names))


def read_points(adata: AnnData, *, time_key: str, use_rep: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A representation (cell, dimension) and times (cell,), checked."""
    times = read_times(adata, time_key)
    if use_rep not in adata.obsm:
        msg = f"obsm has no {use_rep!r}; present: {_listed(adata.obsm)}. Compute it first, e.g. with sc.pp.pca."
        raise KeyError(msg)
    points = np.asarray(adata.obsm[use_rep], dtype=float)
    if points.ndim != 2:
        msg = f"obsm[{use_rep!r}] must have one row a cell and one column a dimension; its shape is {points.shape}."
        raise ValueError(msg)
    if not np.isfinite(points).all():
        bad = adata.obs_names[~np.isfinite(points).all(1)][0]
        msg = f"obsm[{use_rep!r}] has NaN or infinite values, first in cell {bad!r}. Recompute it or drop the cell."
        raise ValueError(msg)
    return points, times


def read_labels(adata: AnnData, labels_key: str | None, names: Sequence[str] | None = None) -> pd.Categorical | None:
    """Known groups of cells: categories are the groups in sorted order, then UNLABELLED for missing values."""
    if labels_key is None:
        return None
    labels = column_of(adata.obs, labels_key, argument="labels_key")
    present = {str(value) for value in labels.dropna().unique()} - {UNLABELLED}
    if names is None:
        names = sorted(present)
    elif unknown := present - set(names):
        msg = (
            f"obs[{labels_key!r}] has labels the fit has not seen: {_listed(unknown)}; it knows {_listed(names)}. The groups of "
            "these cells are inferred, as of cells without a label."
        )
        warnings.warn(msg, UserWarning, stacklevel=2)
    values = [str(value) if pd.notna(value) and str(value) in names else UNLABELLED for value in labels]
    return pd.Categorical(values, categories=[*names, UNLABELLED])


def known_groups(labels: pd.Categorical, n_groups: int) -> NDArray[np.int64]:
    """Group of each cell by its label, -1 for UNLABELLED cells."""
    names = [name for name in labels.categories if name != UNLABELLED]
    if len(names) > n_groups:
        msg = f"{len(names)} labels ({', '.join(names)}) do not fit into n_groups={n_groups}. Raise n_groups."
        raise ValueError(msg)
    return np.where(np.asarray(labels) == UNLABELLED, -1, labels.codes).astype(np.int64)


def names_of_groups(labels: pd.Categorical | None, n_groups: int) -> list[str]:
    """Of the labels that name them, in the order of the groups; numbers for all others."""
    names = [] if labels is None else [str(name) for name in labels.categories if name != UNLABELLED]
    for k in range(len(names), n_groups):
        names.append(str(k) if str(k) not in names else f"group {k}")
    return names


def read_times(adata: AnnData, time_key: str, *, at_least: int = 2) -> NDArray[np.float64]:
    """Times of cells as numbers: a numeric column, or text or categories that read as numbers."""
    column = column_of(adata.obs, time_key, argument="time_key")
    times = numbers_of(column, Place.in_adata(f"obs[{time_key!r}]")).to_numpy(dtype=float)
    if not np.isfinite(times).all():
        where = np.flatnonzero(~np.isfinite(times))
        msg = (
            f"obs[{time_key!r}] is {times[where[0]]} for cell {adata.obs_names[where[0]]!r} and {len(where) - 1} more. "
            "Drop these cells or fill in their time."
        )
        raise ValueError(msg)
    distinct = np.unique(times)
    if len(distinct) < at_least:
        msg = (
            f"obs[{time_key!r}] has only one distinct time ({distinct[0]:g}); dynamics need snapshots of at least two."
        )
        raise ValueError(msg)
    return times


def read_counts(adata: AnnData, layer: str | None = None) -> sparse.csr_matrix:
    """Raw counts as CSR float32, without a dense copy; backed and dask-backed matrices are read into memory sparse."""
    if layer is not None and layer not in adata.layers:
        msg = f"layers has no {layer!r}; present: {_listed(_layers(adata))}."
        raise KeyError(msg)
    where = "X" if layer is None else f"layers[{layer!r}]"
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = f"{where} is empty; layers: {_listed(_layers(adata))}. Say where the counts are with layer=."
        raise ValueError(msg)
    counts = _as_csr(matrix)
    values = counts.data
    if not np.isfinite(values).all():
        cell = adata.obs_names[
            np.searchsorted(counts.indptr, np.flatnonzero(~np.isfinite(values))[0], side="right") - 1
        ]
        msg = (
            f"{where} has NaN or infinite values, first in cell {cell!r}. Counts are needed: "
            f"use {_where_counts_are(adata, layer)}."
        )
        raise ValueError(msg)
    if (values < 0).any():
        msg = (
            f"{where} has negative values (smallest {values.min():g}), so it is no count matrix. "
            f"Use {_where_counts_are(adata, layer)}."
        )
        raise ValueError(msg)
    if (values != np.round(values)).any():
        example = values[values != np.round(values)][0]
        guess = "looks log-normalised" if values.max() < 20 else "looks normalised"
        msg = (
            f"{where} has values that are not integers (such as {example:g}); it {guess}, and the likelihood is one of "
            f"counts. Use {_where_counts_are(adata, layer)}."
        )
        raise ValueError(msg)
    empty = np.flatnonzero(np.asarray(counts.sum(1)).ravel() == 0)
    if len(empty):
        msg = (
            f"{len(empty)} cells have no counts in {where}, the first is {adata.obs_names[empty[0]]!r}. "
            "Drop them: sc.pp.filter_cells(adata, min_counts=1)."
        )
        raise ValueError(msg)
    return counts


def check_groups_fit(times: NDArray[np.float64], n_groups: int) -> None:
    """Raise when a snapshot has too few cells for the number of groups."""
    if int(n_groups) != n_groups or n_groups < 1:
        msg = f"n_groups must be a positive whole number; it is {n_groups!r}."
        raise ValueError(msg)
    distinct, sizes = np.unique(times, return_counts=True)
    smallest = int(np.argmin(sizes))
    if sizes[smallest] < 2 * n_groups:
        msg = (
            f"n_groups={n_groups} is too large for the snapshot at time {distinct[smallest]:g}, which has "
            f"{sizes[smallest]} cells (at least two per group are needed). Lower n_groups, or merge or drop that snapshot."
        )
        raise ValueError(msg)


def limit_groups(
    times: NDArray[np.float64], candidates: Sequence[int], *, stacklevel: int = 3
) -> tuple[tuple[int, ...], list[str]]:
    """Numbers of groups for which every snapshot has cells enough, and what was said of those left out.

    Raises
    ------
    ValueError : if it has not even enough for the first, the smallest.
    """
    check_groups_fit(times, candidates[0])
    distinct, sizes = np.unique(times, return_counts=True)
    smallest = int(np.argmin(sizes))
    kept = tuple(n for n in candidates if sizes[smallest] >= 2 * n)
    said = []
    if len(kept) < len(candidates):
        said.append(
            f"Of the numbers of groups to choose from, {', '.join(map(str, candidates[len(kept) :]))} cannot be tried: the "
            f"snapshot at time {distinct[smallest]:g} has {sizes[smallest]} cells (at least two per group are needed). "
            "Merge or drop that snapshot to try more."
        )
    return kept, _warned(said, stacklevel)


def warn_about_design(n_times: int, n_latent: int, *, stacklevel: int = 3) -> list[str]:
    """Say what the number of snapshots cannot identify, as a warning, and return it."""
    if n_times == 2:
        said = [
            "There are exactly two times: which group of the first became which of the second is not identifiable; the "
            "fit links them by the path of least motion. Read the groups within a time, not the links between them."
        ]
    elif n_times < n_latent + 2:
        said = [
            f"{n_times} times are fewer than n_latent + 2 = {n_latent + 2}: rates are not identified by the data alone and "
            "lean on the ridge prior. Trajectories between the times can still be read; rates and extrapolations less so."
        ]
    else:
        said = []
    return _warned(said, stacklevel)


def constant_columns(points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which coordinates are the same for all cells."""
    # A constant that is no sum of powers of two varies in its last digit.
    return np.flatnonzero(np.ptp(points, axis=0) <= 1e-12 * np.abs(points).max(0))


def warn_about_constant(points: NDArray[np.float64], use_rep: str, *, stacklevel: int = 3) -> list[str]:
    """Warn of coordinates that are the same for all cells, and return what was said."""
    constant = constant_columns(points)
    said = []
    if len(constant) == points.shape[1]:
        said.append(
            f"obsm[{use_rep!r}] is the same for all cells: it tells neither groups nor times apart. Compute it again, or choose "
            "another representation."
        )
    elif len(constant):
        which = ", ".join(map(str, constant[:5])) + (", ..." if len(constant) > 5 else "")
        said.append(
            f"Columns of obsm[{use_rep!r}] are the same for all cells and say nothing: {which} (from 0). Drop them."
        )
    return _warned(said, stacklevel)


def warn_about_genes(counts: sparse.csr_matrix, genes: pd.Index, *, stacklevel: int = 3) -> list[str]:
    """Warn of genes without a single count, and return what was said."""
    silent = np.flatnonzero(np.bincount(counts.indices[counts.data != 0], minlength=counts.shape[1]) == 0)
    said = []
    if len(silent):
        which = f"{len(silent)} genes have" if len(silent) > 1 else "One gene has"
        said.append(
            f"{which} no counts at all (such as {genes[silent[0]]!r}); nothing is learned about "
            f"{'them' if len(silent) > 1 else 'it'}. Drop such genes: sc.pp.filter_genes(adata, min_counts=1)."
        )
    return _warned(said, stacklevel)


def _warned(said: list[str], stacklevel: int) -> list[str]:
    for message in said:
        warnings.warn(message, UserWarning, stacklevel=stacklevel + 1)
    return said


def _check_batches_overlap(
    batch: pd.Categorical, times: NDArray[np.float64], batch_key: str | None, time_key: str
) -> None:
    """Batches and times must be connected: otherwise correcting for batch removes the dynamics."""
    if len(batch.categories) < 2:
        return
    table = pd.crosstab(np.asarray(batch), times).to_numpy() > 0
    reached = {0}
    while True:
        linked = {j for i in reached for t in np.flatnonzero(table[i]) for j in np.flatnonzero(table[:, t])}
        if linked <= reached:
            break
        reached |= linked
    if len(reached) == len(table):
        return
    msg = (
        f"obs[{batch_key!r}] is nested in obs[{time_key!r}]: some batches share no time with the others, so correcting for "
        "batch would remove the dynamics. Leave batch_key out, or use a batch column that overlaps between times."
    )
    raise ValueError(msg)


def _where_counts_are(adata: AnnData, layer: str | None) -> str:
    """The first matrix whose first cells look like counts, as the argument that selects it."""
    matrices = {None: adata.X, **{name: adata.layers[name] for name in _layers(adata)}}
    for name, matrix in matrices.items():
        if name == layer or matrix is None:
            continue
        values = _as_csr(matrix[:200]).data
        if ((values >= 0) & (values == np.round(values))).all():
            return "layer=None, which is X" if name is None else f"layer={name!r}"
    return f"the raw counts (layers: {_listed(_layers(adata))})"


def _as_csr(matrix: object) -> sparse.csr_matrix:
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    if type(matrix).__module__.startswith("dask"):
        matrix = _dask_to_csr(matrix)
    if type(matrix).__module__.startswith("h5py") or type(matrix).__module__.startswith("zarr"):
        matrix = sparse.vstack([sparse.csr_matrix(matrix[i : i + 1024]) for i in range(0, matrix.shape[0], 1024)])
    return sparse.csr_matrix(matrix, dtype=np.float32)


def _dask_to_csr(matrix: object) -> sparse.csr_matrix:
    """Row block by row block, so that a dense chunk is never larger than a chunk."""
    whole = matrix.rechunk({1: -1})
    blocks = [sparse.csr_matrix(whole.blocks[i, 0].compute()) for i in range(whole.numblocks[0])]
    return sparse.vstack(blocks, format="csr")


def _layers(adata: AnnData) -> list[str]:
    """Names of the layers; newer versions of anndata list X among them, as None."""
    return [name for name in adata.layers if name is not None]


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
