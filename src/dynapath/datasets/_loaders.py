"""Public single-cell data as counts: LARRY haematopoiesis (a time series) and PBMC 8k (one snapshot)."""

from __future__ import annotations

import os
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from dynapath.datasets._fetch import Source, find

LARRY = Source(
    name="LARRY haematopoiesis, the sub-sample that CoSpar tests with",
    filename="larry_hematopoiesis_small.h5ad",
    folder="single_cell",
    url="https://github.com/AllonKleinLab/cospar/raw/aaabd04e4790a85357695c4f8ac3fbf3a26374f8/"
    "tests/data/test_adata_preprocessed.h5ad",
    origin="Weinreb et al. 2020, doi:10.1126/science.aaw3381, GEO GSE140802",
    licence="MIT (CoSpar repository); the data are public at GEO, cite Weinreb et al.",
    shape=(781, 2481),
)
PBMC8K = Source(
    name="PBMC 8k, 200 variable genes",
    filename="pbmc8k_hvg200.h5ad",
    folder="single_cell",
    url="https://github.com/maren-ha/scVI.jl/raw/1093ea842b3ab17114f81e11326872d74d5d000b/data/pbmc.h5ad",
    origin="10x Genomics PBMC 8k (Zheng et al. 2017, doi:10.1038/ncomms14049), selected and labelled in scVI.jl",
    licence="BSD-3-Clause (scVI.jl repository); 10x Genomics data CC-BY 4.0",
    shape=(7480, 200),
)
INTEGER_TOLERANCE = 1e-2  # float32 keeps counts of a thousand to 1e-4; a wrong unit is off by fractions


def larry(*, path: str | os.PathLike[str] | None = None) -> AnnData:
    """Mouse haematopoiesis in vitro with lineage barcodes, days 2, 4 and 6: 781 cells, 2,481 genes.

    Parameters
    ----------
    path
        The file, or a folder that holds `larry_hematopoiesis_small.h5ad` (or the same in `single_cell/`). The public
        original is accepted too. By default the folder named by the environment variable DYNAPATH_DATA, then a
        `shared/data` folder beside the checkout, then a download of the original, kept in the user's cache.

    Returns
    -------
    AnnData with

    - `X` molecule counts, CSR, float32.
    - `obs["time"]` float, days: 34 cells on day 2, 316 on day 4, 431 on day 6.
    - `obs["cell_type"]` categorical, the published state; `undiff` is not yet differentiated.
    - `obs["clone"]` categorical, lineage barcode, "" for none. Cells of a clone have one common ancestor.
    - `obsm["X_published_emb"]` (cell, 2) the published layout, where the file has it; `uns["time_unit"]` "day".

    Raises
    ------
    FileNotFoundError
        If the file is nowhere and cannot be downloaded; the message names source, licence and what to do.
    ValueError
        If the file has another shape, lacks a column, or does not hold counts.

    Notes
    -----
    The published matrix is scaled to equal depth, not logged. Every value is thus a whole multiple of the smallest
    positive value of its cell, which stands for one molecule, and dividing by it gives the counts back (to 6e-5).
    The genes are a subset, so that row sums are less than the depth of the cells.

    The cells are a sample of those of [1]_. The original is the CoSpar repository's (MIT) test file; the data are public
    at GEO as GSE140802.

    References
    ----------
    .. [1] C. Weinreb, A. Rodriguez-Fraticelli, F. D. Camargo, A. M. Klein. Lineage tracing on transcriptional
       landscapes links state to fate during differentiation. Science 367:eaaw3381, 2020. doi:10.1126/science.aaw3381

    Examples
    --------
    >>> import dynapath as dp
    >>> cells = dp.datasets.larry()  # doctest: +SKIP
    >>> cells.obs["time"].value_counts(sort=False)  # doctest: +SKIP
    """
    cells = ad.read_h5ad(find(LARRY, path))
    if "time_info" in cells.obs:
        cells = _convert_larry(cells)
    _require_columns(cells, LARRY, "time", "cell_type", "clone")
    cells.obs["time"] = cells.obs["time"].astype(float)
    return _checked(cells, LARRY, labels=("cell_type", "clone"))


def pbmc8k(*, path: str | os.PathLike[str] | None = None) -> AnnData:
    """Human blood cells, one snapshot: 7,480 cells, the 200 most variable genes, with cell types.

    Parameters
    ----------
    path
        The file, or a folder that holds `pbmc8k_hvg200.h5ad` (or the same in `single_cell/`). The public original is
        accepted too. By default the folder named by the environment variable DYNAPATH_DATA, then a `shared/data` folder
        beside the checkout, then a download of the original, kept in the user's cache.

    Returns
    -------
    AnnData with `X` molecule counts (CSR, float32) and `obs["cell_type"]` categorical, by SingleR; "NA" is a label of
    its own (32 cells were not assigned).

    Raises
    ------
    FileNotFoundError
        If the file is nowhere and cannot be downloaded; the message names source, licence and what to do.
    ValueError
        If the file has another shape, lacks a column, or does not hold counts.

    Notes
    -----
    The cells are described in [1]_.

    The original is `data/pbmc.h5ad` of scVI.jl (BSD-3-Clause); the data are 10x Genomics' (CC-BY 4.0).

    References
    ----------
    .. [1] G. X. Y. Zheng et al. Massively parallel digital transcriptional profiling of single cells.
       Nature Communications 8:14049, 2017. doi:10.1038/ncomms14049

    Examples
    --------
    >>> import dynapath as dp
    >>> cells = dp.datasets.pbmc8k()  # doctest: +SKIP
    >>> cells.shape  # doctest: +SKIP
    (7480, 200)
    """
    cells = ad.read_h5ad(find(PBMC8K, path))
    if "counts" in cells.layers:
        cells.X = cells.layers.pop("counts")
    _require_columns(cells, PBMC8K, "cell_type")
    return _checked(cells, PBMC8K, labels=("cell_type",))


def recover_counts(scaled: sparse.spmatrix | np.ndarray) -> sparse.csr_matrix:
    """Counts (cell, gene) from a matrix whose cells were scaled, not logged.

    Exact if every cell has a gene with one molecule: then the smallest positive value of a cell is the unit of which
    all its values are multiples.

    Raises
    ------
    ValueError
        If a value is negative or not finite, or is no whole multiple of that unit.
    """
    scaled = sparse.csr_matrix(scaled, dtype=np.float64, copy=True)
    scaled.eliminate_zeros()
    if not (np.isfinite(scaled.data) & (scaled.data > 0)).all():
        raise ValueError("Counts cannot be recovered from negative or missing values.")
    n_stored = np.diff(scaled.indptr)
    filled = np.flatnonzero(n_stored)
    if filled.size:
        unit = np.minimum.reduceat(scaled.data, scaled.indptr[filled])
        scaled.data /= np.repeat(unit, n_stored[filled])
    counts = np.round(scaled.data)
    off = np.abs(scaled.data - counts)
    if off.size and off.max() > INTEGER_TOLERANCE:
        cell = int(np.searchsorted(scaled.indptr, off.argmax(), side="right") - 1)
        raise ValueError(
            f"Counts cannot be recovered: cell {cell} has a value {scaled.data[off.argmax()]:g} times its smallest "
            "positive one, which is no whole number. Is the matrix logged, or smoothed?"
        )
    scaled.data = counts
    return scaled.astype(np.float32)


def _convert_larry(original: AnnData) -> AnnData:
    """Counts and our column names from CoSpar's file (`time_info`, `state_info`, `X_clone`, `X_emb`)."""
    _require_columns(original, LARRY, "time_info", "state_info")
    if "X_clone" not in original.obsm:
        raise ValueError(f"The file has no obsm['X_clone'], so that it is not the expected one. {LARRY}")
    cells = AnnData(
        X=recover_counts(original.X),
        obs=pd.DataFrame(
            {
                "time": original.obs["time_info"].astype(str).astype(float).to_numpy(),
                "cell_type": original.obs["state_info"].astype(str).to_numpy(),
                "clone": _clone_labels(original.obsm["X_clone"]),
            },
            index=original.obs_names.astype(str),
        ),
        var=pd.DataFrame(index=original.var_names.astype(str)),
        uns={"time_unit": "day"},
    )
    if "highly_variable" in original.var:
        cells.var["highly_variable"] = original.var["highly_variable"].to_numpy(dtype=bool)
    if "X_emb" in original.obsm:
        cells.obsm["X_published_emb"] = np.asarray(original.obsm["X_emb"], dtype=float)
    return cells


def _clone_labels(membership: Any) -> np.ndarray:
    """Column of the barcode that a cell holds most of, as a string; "" for a cell without one."""
    membership = sparse.csr_matrix(membership)
    labels = np.asarray(membership.argmax(axis=1)).ravel().astype(str).astype(object)
    labels[np.asarray(membership.sum(axis=1)).ravel() == 0] = ""
    return labels


def _require_columns(cells: AnnData, source: Source, *columns: str) -> None:
    for column in columns:
        if column not in cells.obs:
            present = ", ".join(cells.obs.columns) or "none"
            raise ValueError(f"The file has no obs[{column!r}]; present: {present}. {source}")


def _checked(cells: AnnData, source: Source, *, labels: tuple[str, ...]) -> AnnData:
    """The same cells with X as CSR float32 and labels as categories, once shape and counts are what they should be."""
    if cells.shape != source.shape:
        raise ValueError(f"Expected {source.shape} cells and genes, the file has {cells.shape}. {source}")
    X = sparse.csr_matrix(cells.X, dtype=np.float32)
    if not (np.isfinite(X.data) & (X.data >= 0) & (X.data == np.round(X.data))).all():
        raise ValueError(f"X should hold counts, but has values that are negative or not whole. {source}")
    cells.X = X
    for column in labels:
        cells.obs[column] = pd.Categorical(cells.obs[column].astype(str))
    return cells
