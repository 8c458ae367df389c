"""AnnData -> checked cells for count VAEs, without times. All messages about bad cells are here or in `counts`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from dynapath._columns import column_of
from dynapath._names import as_text

from .counts import read_counts, to_register

COUNTS = ("nb", "zinb", "poisson")


@dataclass(frozen=True)
class Cells:
    """Values of cells and what goes with them."""

    values: sparse.csr_matrix | NDArray[np.float32]  # (cell, gene)
    batch: pd.Categorical | None
    labels: pd.Categorical | None
    size_factor: NDArray[np.float64] | None
    cells: pd.Index
    genes: pd.Index

    def to_anndata(self, like: AnnData | None = None) -> tuple[AnnData, dict[str, str]]:
        """An AnnData of its own for scvi-tools to register, sharing the values, and where in it is what.

        The user's AnnData stays untouched. With `like`, see :func:`dynapath.read.counts.to_register`.
        """
        columns = {"batch_key": self.batch, "labels_key": self.labels, "size_factor_key": self.size_factor}
        return to_register(self.values, self.cells, self.genes, columns, like)


def read_cells(
    adata: AnnData,
    *,
    likelihood: str = "nb",
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    needs_library: bool = True,
    batches: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> Cells:
    """Values that the likelihood can describe, with batches, labels and size factors, checked.

    Parameters
    ----------
    needs_library
        Whether cells are scaled by their total, which must then be positive.
    batches, labels
        Categories that a fit remembers; others are refused.

    Raises
    ------
    KeyError : for a missing column or layer, naming what there is.
    ValueError : for values that the likelihood cannot describe, naming the value and what to do.
    """
    if likelihood in COUNTS:
        values = read_counts(adata, layer)
    else:
        values = _read_values(adata, layer, binary=likelihood == "bernoulli")
        if needs_library:
            _check_totals(values, adata)
    return Cells(
        values,
        _categories(adata, batch_key, "batch_key", batches),
        _categories(adata, labels_key, "labels_key", labels),
        _size_factors(adata, size_factor_key),
        as_text(adata.obs_names),
        as_text(adata.var_names),
    )


def read_target(
    adata: AnnData, target: str | pd.DataFrame | ArrayLike, n_latent: int
) -> tuple[str, NDArray[np.float64]]:
    """Name of the target, "" if it is not in `obsm`, and its coordinates (cell, dimension).

    Raises
    ------
    KeyError : if `obsm` has no such entry.
    ValueError : if cells have no coordinates, or there are more of them than latent dimensions.
    """
    if isinstance(target, str):
        if target not in adata.obsm:
            msg = f"obsm has no {target!r} (target); present: {_listed(adata.obsm)}. Compute it first, e.g. with sc.tl.umap."
            raise KeyError(msg)
        name, values = target, adata.obsm[target]
    else:
        name, values = "", target
    place = f"obsm[{name!r}]" if name else "target"
    if isinstance(values, pd.DataFrame):
        values, cells = values.set_axis(as_text(values.index)), as_text(adata.obs_names)
        missing = cells.difference(values.index)
        if len(missing):
            msg = (
                f"{place} has no row for {len(missing)} of {adata.n_obs} cells, such as {missing[0]!r}. Give every cell "
                "coordinates, or fit the cells that have them: adata[target.index]."
            )
            raise ValueError(msg)
        values = values.loc[cells]
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or len(values) != adata.n_obs:
        msg = f"{place} must have one row for each of {adata.n_obs} cells; its shape is {values.shape}."
        raise ValueError(msg)
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        msg = (
            f"{place} has NaN or infinite values in {int(bad.sum())} of {adata.n_obs} cells, the first is "
            f"{adata.obs_names[bad][0]!r}. Fill them in or drop these cells."
        )
        raise ValueError(msg)
    if values.shape[1] > n_latent:
        msg = f"{place} has {values.shape[1]} dimensions, more than n_latent={n_latent}. Raise n_latent."
        raise ValueError(msg)
    return name, values


def read_representation(adata: AnnData, use_rep: str) -> NDArray[np.float64]:
    """Points in which neighbours are sought (cell, dimension)."""
    if use_rep not in adata.obsm:
        msg = f"obsm has no {use_rep!r} (LatentPenalty(use_rep=...)); present: {_listed(adata.obsm)}."
        raise KeyError(msg)
    points = np.asarray(adata.obsm[use_rep], dtype=float)
    if not np.isfinite(points).all():
        bad = adata.obs_names[~np.isfinite(points).all(1)][0]
        msg = f"obsm[{use_rep!r}] has NaN or infinite values, first in cell {bad!r}. Recompute it or drop the cell."
        raise ValueError(msg)
    return points


def warn_about_penalty(kind: str, n_latent: int, in_batch: float, *, stacklevel: int = 3) -> list[str]:
    """Say where a penalty does little good, as a warning, and return it.

    Parameters
    ----------
    in_batch
        Expected number of neighbours of a cell within a minibatch.
    """
    said = []
    name = {"tsne": "t-SNE", "umap": "UMAP"}[kind]
    if n_latent > 3:
        said.append(
            f"The {name} penalty is made for two or three dimensions, for looking at; n_latent={n_latent}. In more, its heavy "
            "tails only spread cells. Leave latent_penalty out, or lower n_latent."
        )
    if in_batch < 0.25:
        said.append(
            f"A cell has {in_batch:.2g} of its neighbours within a minibatch on average, so the {name} penalty sees little of "
            "the neighbourhoods. Raise train_kwargs={'batch_size': ...}."
        )
    for message in said:
        warnings.warn(message, UserWarning, stacklevel=stacklevel)
    return said


def _read_values(adata: AnnData, layer: str | None, *, binary: bool) -> sparse.csr_matrix | NDArray[np.float32]:
    """A layer as float32, sparse or dense as it is."""
    names = [name for name in adata.layers if name is not None]
    if layer is not None and layer not in names:
        msg = f"layers has no {layer!r}; present: {_listed(names)}."
        raise KeyError(msg)
    where = "X" if layer is None else f"layers[{layer!r}]"
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = f"{where} is empty; layers: {_listed(names)}. Say where the values are with layer=."
        raise ValueError(msg)
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    if hasattr(matrix, "compute"):
        matrix = matrix.compute()
    if sparse.issparse(matrix):
        matrix = sparse.csr_matrix(matrix, dtype=np.float32)
        values = matrix.data
    else:
        matrix = np.asarray(matrix[:] if not isinstance(matrix, np.ndarray) else matrix, dtype=np.float32)
        values = matrix.ravel()
    if not np.isfinite(values).all():
        dense = np.asarray(matrix.sum(1)).ravel()
        bad = adata.obs_names[~np.isfinite(dense)][0]
        msg = f"{where} has NaN or infinite values, first in cell {bad!r}. Fill them in or drop the cell."
        raise ValueError(msg)
    if binary:
        other = values[(values != 0) & (values != 1)]
        if len(other):
            msg = (
                f"{where} has values other than 0 and 1 (such as {other[0]:g}), which likelihood='bernoulli' cannot describe. "
                "Binarise them, e.g. adata.layers['on'] = (adata.X > 0).astype('float32') and layer='on'; or use "
                "likelihood='nb' for counts."
            )
            raise ValueError(msg)
    return matrix


def _check_totals(values: sparse.csr_matrix | NDArray[np.float32], adata: AnnData) -> None:
    totals = np.asarray(values.sum(1)).ravel()
    if (totals <= 0).any():
        bad = adata.obs_names[totals <= 0][0]
        msg = f"With a library, every cell needs a positive total; that of cell {bad!r} is not. Use library='none'."
        raise ValueError(msg)


def _categories(
    adata: AnnData, key: str | None, argument: str, remembered: Sequence[str] | None
) -> pd.Categorical | None:
    if key is None:
        return None
    given = column_of(adata.obs, key, argument=argument)
    if given.isna().any():
        msg = f"obs[{key!r}] is missing for {int(given.isna().sum())} cells. Fill it in or drop these cells."
        raise ValueError(msg)
    values = pd.Categorical(given.astype(str))
    if remembered is None:
        return values
    unknown = set(values.categories) - set(remembered)
    if unknown:
        msg = f"obs[{key!r}] has values the fit has not seen: {_listed(unknown)}; it knows {_listed(remembered)}."
        raise ValueError(msg)
    return values.set_categories(list(remembered))


def _size_factors(adata: AnnData, key: str | None) -> NDArray[np.float64] | None:
    if key is None:
        return None
    factors = column_of(adata.obs, key, argument="size_factor_key").to_numpy(dtype=float)
    good = np.isfinite(factors) & (factors > 0)
    if not good.all():
        bad = adata.obs_names[~good][0]
        msg = f"obs[{key!r}] must be positive and finite; cell {bad!r} has not. Recompute it or drop the cell."
        raise ValueError(msg)
    return factors


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
