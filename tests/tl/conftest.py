"""Small snapshots and quick settings, shared by the tests of the verbs."""

import numpy as np
import pandas as pd
import pytest

from dynapath.datasets import simulate_snapshots
from dynapath.models import Training

QUICK = Training(static_epochs=2, joint_epochs=2, n_restarts=2, prior_steps=20, n_hidden=16, progress=False)


@pytest.fixture(scope="session")
def quick():
    return QUICK


@pytest.fixture(scope="session")
def simulated():
    """Three groups at four times, 300 cells, two batches at each time, every gene seen in each half."""
    cells = simulate_snapshots("rotating", n_cells=25, n_genes=40, times=(0, 0.25, 0.5, 1), batch_effect=True)
    seen = [np.asarray(half.X.sum(0)).ravel() > 0 for half in (cells[::2], cells[cells.obs["time"].isin([0, 0.5])])]
    cells = cells[:, seen[0] & seen[1]].copy()
    cells.obs["type"] = pd.Categorical(
        np.where(np.arange(cells.n_obs) % 4, None, "t" + cells.obs["group"].astype(str)), categories=["t0", "t1", "t2"]
    )
    cells.obs["size"] = cells.obs["library"] / cells.obs["library"].mean()
    return cells


@pytest.fixture
def cells(simulated):
    return simulated.copy()
