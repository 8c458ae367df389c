import warnings

import matplotlib.pyplot as plt
import pytest

import dynapath as dp


@pytest.fixture(scope="session")
def fitted():
    """A cheap fit; tests that may change it take a copy."""
    adata = dp.datasets.simulate_snapshots("crossing", n_cells=20, n_genes=10)
    quick = dp.models.Training(n_restarts=2, prior_steps=30, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a fit has something to say, which is not the point here
        dp.tl.fit_dynamic_vae(adata, time_key="time", n_groups=3, use_rep="Z_true", training=quick)
    return adata


@pytest.fixture
def adata(fitted):
    return fitted.copy()


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")
