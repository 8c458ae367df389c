"""Loaders: where files are looked for, the download of an original, its conversion, and the real data where present."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import anndata as ad
import numpy as np
import pandas as pd
import pooch
import pytest
from scipy import sparse

from dynapath.datasets import _fetch, _loaders, larry, pbmc8k
from dynapath.datasets._loaders import recover_counts

N_CELLS, N_GENES = 12, 8


def made_up_counts(seed=0):
    """Counts in which every cell has a gene with one molecule, as recovery needs."""
    counts = np.random.default_rng(seed).poisson(4, (N_CELLS, N_GENES)).astype(float)
    counts[:, 0] = 1
    return counts


def made_up_cospar_original():
    """A file like CoSpar's: scaled to equal depth in float32, times as strings, clones as a sparse membership matrix."""
    counts = made_up_counts()
    clone = sparse.lil_matrix((N_CELLS, 5))
    for cell in range(N_CELLS - 2):  # the last two have no barcode
        clone[cell, cell % 5] = 1
    return ad.AnnData(
        X=sparse.csr_matrix(counts / counts.sum(axis=1, keepdims=True) * 1234.5, dtype=np.float32),
        obs=pd.DataFrame(
            {"time_info": pd.Categorical(["2", "4", "6"] * 4), "state_info": ["undiff", "Baso"] * 6},
            index=[f"cell{i}" for i in range(N_CELLS)],
        ),
        var=pd.DataFrame({"highly_variable": [True, False] * 4}, index=[f"Gene{g}" for g in range(N_GENES)]),
        obsm={"X_clone": clone.tocsr(), "X_emb": np.ones((N_CELLS, 2)), "X_pca": np.ones((N_CELLS, 3))},
        uns={"data_des": ["test"]},
    )


def made_up_pbmc():
    return ad.AnnData(
        X=made_up_counts(),
        obs=pd.DataFrame({"cell_type": ["NA", "B-cells"] * 6}, index=[f"cell{i}" for i in range(N_CELLS)]),
    )


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The sources, expecting the made-up shape; no data folder but the ones a test sets, and a cache of its own."""
    for source in ("LARRY", "PBMC8K"):
        monkeypatch.setattr(_loaders, source, replace(getattr(_loaders, source), shape=(N_CELLS, N_GENES)))
    monkeypatch.delenv("DYNAPATH_DATA", raising=False)
    monkeypatch.setattr(_fetch, "_folder_beside_checkout", lambda: None)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path


@pytest.fixture
def served(small, monkeypatch):
    """A folder served over HTTP on this machine, and the sources pointing to it; the paths asked for are recorded."""
    folder = small / "served"
    folder.mkdir()
    made_up_cospar_original().write_h5ad(folder / "original_larry.h5ad")
    made_up_pbmc().write_h5ad(folder / "original_pbmc.h5ad")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for source, name in (("LARRY", "larry"), ("PBMC8K", "pbmc")):
        url = f"http://127.0.0.1:{server.server_port}/original_{name}.h5ad"
        monkeypatch.setattr(_loaders, source, replace(getattr(_loaders, source), url=url))
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


# --- recovery of counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_counts_are_recovered_exactly_from_scaled_values(form):
    counts = made_up_counts()
    counts[3] = 0  # an empty cell stays empty
    counts[5, 4] = 900
    scaled = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1100
    recovered = recover_counts(form(scaled.astype(np.float32)))
    assert recovered.format == "csr"
    assert recovered.dtype == np.float32
    np.testing.assert_array_equal(recovered.toarray(), counts)


def test_recovery_does_not_change_its_input():
    scaled = sparse.csr_matrix(made_up_counts() * 0.7)
    before = scaled.copy()
    recover_counts(scaled)
    assert (scaled != before).nnz == 0


def test_logged_values_are_refused_with_the_cell():
    scaled = made_up_counts() * 0.7
    scaled[4] = np.log1p(scaled[4])
    with pytest.raises(ValueError, match="cell 4 has a value .* no whole number"):
        recover_counts(scaled)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_values_that_cannot_be_scaled_counts_are_refused(value):
    scaled = made_up_counts()
    scaled[2, 2] = value
    with pytest.raises(ValueError, match="negative or missing"):
        recover_counts(scaled)


# --- download of the originals -----------------------------------------------------------------------------------


def test_larry_is_downloaded_once_and_converted(served):
    cells = larry()
    np.testing.assert_array_equal(cells.X.toarray(), made_up_counts())
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.float32
    assert cells.obs["time"].dtype == float
    assert set(cells.obs["time"]) == {2, 4, 6}
    assert list(cells.obs["cell_type"][:2]) == ["undiff", "Baso"]
    assert list(cells.obs["clone"]) == [str(i % 5) for i in range(N_CELLS - 2)] + ["", ""]
    assert cells.uns["time_unit"] == "day"
    assert set(cells.obsm) == {"X_published_emb"}
    assert list(cells.var["highly_variable"][:2]) == [True, False]
    again = larry()
    assert (again.X != cells.X).nnz == 0
    assert len(served) == 1


def test_pbmc_is_downloaded(served):
    cells = pbmc8k()
    np.testing.assert_array_equal(cells.X.toarray(), made_up_counts())
    assert cells.X.format == "csr"
    assert set(cells.obs["cell_type"]) == {"NA", "B-cells"}
    assert cells.obs["cell_type"].notna().all()


def test_a_failed_download_names_source_licence_and_what_to_do(served, monkeypatch):
    monkeypatch.setattr(_loaders, "LARRY", replace(_loaders.LARRY, url=_loaders.LARRY.url + ".missing"))
    with pytest.raises(FileNotFoundError, match=r"DYNAPATH_DATA.*GSE140802.*Licence: MIT.*\.missing"):
        larry()


# --- where files are looked for ----------------------------------------------------------------------------------


@pytest.mark.parametrize("subfolder", ["", "single_cell"])
def test_path_may_be_a_file_or_a_folder(small, subfolder):
    folder = small / "data"
    (folder / subfolder).mkdir(parents=True)
    file = folder / subfolder / "pbmc8k_hvg200.h5ad"
    made_up_pbmc().write_h5ad(file)
    assert pbmc8k(path=file).shape == pbmc8k(path=str(folder)).shape == (N_CELLS, N_GENES)


def test_folders_are_asked_in_order_and_before_the_network(served, small, monkeypatch):
    named, beside = small / "named", small / "beside"
    for folder, seed in ((named, 1), (beside, 2)):
        folder.mkdir()
        original = made_up_pbmc()
        original.X = made_up_counts(seed)
        original.write_h5ad(folder / "pbmc8k_hvg200.h5ad")
    monkeypatch.setattr(_fetch, "_folder_beside_checkout", lambda: beside)
    np.testing.assert_array_equal(pbmc8k().X.toarray(), made_up_counts(2))
    monkeypatch.setenv("DYNAPATH_DATA", str(named))
    np.testing.assert_array_equal(pbmc8k().X.toarray(), made_up_counts(1))
    monkeypatch.setenv("DYNAPATH_DATA", str(small / "holds nothing"))
    np.testing.assert_array_equal(pbmc8k().X.toarray(), made_up_counts(2))
    assert served == []


def test_a_given_path_is_binding(served, small):
    with pytest.raises(FileNotFoundError, match="nowhere.*Licence"):
        larry(path=small / "nowhere")
    assert served == []


# --- what is refused ---------------------------------------------------------------------------------------------


def test_files_that_are_not_the_expected_ones_are_refused(small):
    def refused(cells, message, loader=pbmc8k):
        cells.write_h5ad(small / "file.h5ad")
        with pytest.raises(ValueError, match=message):
            loader(path=small / "file.h5ad")

    refused(made_up_pbmc()[:5].copy(), r"Expected \(12, 8\) .* has \(5, 8\)")
    unlabelled = made_up_pbmc()
    del unlabelled.obs["cell_type"]
    refused(unlabelled, r"no obs\['cell_type'\]; present: none")
    logged = made_up_pbmc()
    logged.X = np.log1p(logged.X)
    refused(logged, "not whole")
    refused(made_up_pbmc(), r"no obs\['time'\]; present: cell_type", loader=larry)
    without_clones = made_up_cospar_original()
    del without_clones.obsm["X_clone"]
    refused(without_clones, "X_clone", loader=larry)


def test_counts_in_a_layer_are_preferred(small):
    cells = made_up_pbmc()
    cells.layers["counts"] = cells.X.copy()
    cells.X = np.log1p(cells.X)
    cells.write_h5ad(small / "file.h5ad")
    loaded = pbmc8k(path=small / "file.h5ad")
    np.testing.assert_array_equal(loaded.X.toarray(), made_up_counts())
    assert "counts" not in loaded.layers


# --- the real data -----------------------------------------------------------------------------------------------


def present(source):
    """The file where it lies on this machine, or a skip: tests use no network."""
    folders = _fetch._default_folders()
    file = _fetch._first_file([c for folder in folders for c in _fetch._candidates(source, folder)])
    if file is None:
        pytest.skip(f"{source.filename} is in no data folder (set DYNAPATH_DATA)")
    return file


def test_larry_has_the_published_days_and_clones():
    cells = larry(path=present(_loaders.LARRY))
    assert cells.shape == (781, 2481)
    assert cells.obs["time"].value_counts().to_dict() == {2.0: 34, 4.0: 316, 6.0: 431}
    assert cells.obs["clone"].nunique() == 339
    assert "undiff" in cells.obs["cell_type"].cat.categories
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.float32
    assert (cells.X.data == np.round(cells.X.data)).all()
    assert cells.X.min() == 0
    # Recovery from a depth-normalised copy is what the published file needs.
    depth = np.asarray(cells.X.sum(axis=1)).ravel()
    scaled = sparse.diags(1200 / depth) @ cells.X
    assert (recover_counts(scaled.astype(np.float32)) != cells.X).nnz == 0


def test_pbmc_has_its_cell_types():
    cells = pbmc8k(path=present(_loaders.PBMC8K))
    assert cells.shape == (7480, 200)
    assert cells.obs["cell_type"].value_counts()["Monocytes"] == 1583
    assert cells.X.format == "csr"
    assert (cells.X.data == np.round(cells.X.data)).all()
