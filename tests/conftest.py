"""Settings and fixtures of all tests."""

import os
from pathlib import Path

import pytest

# Read by torch, BLAS, numba and matplotlib when they are loaded, so this must come before any of them is. One thread each:
# the tests run in several processes. The first parallel function of numba, such as those of UMAP, otherwise raises the
# number of threads of torch as well, and all fits after it take many times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with real data: `DYNAPATH_DATA`, else `../shared/data` beside the checkout."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DYNAPATH_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; DYNAPATH_DATA names the folder")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is no CUDA device; torch is loaded only if there are such tests."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
