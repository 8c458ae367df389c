"""Alternative explanations of a fit: exactly tied with two snapshots, none where snapshots decide."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

import dynapath as dp
from dynapath.models import Training

pytestmark = [
    pytest.mark.filterwarnings("ignore:There are exactly two times:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*restarts reach a likelihood within:UserWarning"),
    pytest.mark.filterwarnings("ignore:Only one of .* restarts reached:UserWarning"),
    pytest.mark.filterwarnings("ignore:The fit has not converged:UserWarning"),
    pytest.mark.filterwarnings("ignore:Groups with less than:UserWarning"),
]

COLUMNS = ["alternative", "log_likelihood", "agreement", "equivalent"]


@pytest.fixture(scope="module")
def two_snapshots():
    cells = dp.datasets.simulate_snapshots("crossing", n_cells=20, n_genes=30, times=(0, 1))
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    exact = Training(n_restarts=8, prior_steps=200, progress=False)
    dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep="Z_true", training=exact)
    return cells


def test_two_snapshots_allow_every_link_between_groups(two_snapshots):
    table = dp.get.alternatives(two_snapshots)
    assert list(table.columns) == COLUMNS
    # Three pairs of groups may have traded their ends.
    assert len(table) == 3
    assert table["equivalent"].all()
    # As good but for the ridge and the last steps: far below one unit.
    assert table["log_likelihood"].abs().max() < 0.5


def test_an_alternative_has_the_groups_of_each_snapshot_but_links_them_otherwise(two_snapshots):
    z, times = two_snapshots.obsm["Z_true"], two_snapshots.obs["time"].to_numpy()
    fit, other = dp.get.dynamics(two_snapshots), dp.get.dynamics(two_snapshots, alternative=0)
    groups, others = (one.responsibilities(z, times).argmax(1) for one in (fit, other))
    for t in (0, 1):
        assert adjusted_rand_score(groups[times == t], others[times == t]) > 0.95
    assert adjusted_rand_score(groups, others) == pytest.approx(dp.get.alternatives(two_snapshots)["agreement"][0])
    assert adjusted_rand_score(groups, others) < 0.8


def test_where_snapshots_decide_there_is_no_alternative(simulated):
    cells = simulated.copy()
    dp.tl.fit_dynamic_vae(
        cells, time_key="time", use_rep="Z_true", training=Training(n_restarts=6, prior_steps=200, progress=False)
    )
    table = dp.get.alternatives(cells)
    assert list(table.columns) == COLUMNS
    assert not table["equivalent"].any()
    with pytest.raises(KeyError, match="no alternative 7; "):
        dp.get.dynamics(cells, alternative=7)


def test_a_fit_of_counts_has_its_alternatives_too(two_snapshots):
    cells = two_snapshots.copy()
    quick = Training(static_epochs=3, joint_epochs=3, n_restarts=3, prior_steps=60, n_hidden=16, progress=False)
    dp.tl.fit_dynamic_vae(cells, time_key="time", training=quick, key_added="counts")
    table = dp.get.alternatives(cells, "counts")
    assert list(table.columns) == COLUMNS
    assert (table["agreement"] < 0.8).all()
    for i in table["alternative"]:
        assert np.isfinite(dp.get.dynamics(cells, "counts", alternative=i).trajectories([0, 1]).mean).all()


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_alternatives_survive_files(two_snapshots, tmp_path, form):
    path = tmp_path / f"cells.{form}"
    getattr(two_snapshots, f"write_{form}")(path)
    again = getattr(ad, f"read_{form}")(path)
    pd.testing.assert_frame_equal(dp.get.alternatives(again), dp.get.alternatives(two_snapshots))
    np.testing.assert_array_equal(
        dp.get.dynamics(again, alternative=1).trajectories([1]).mean,
        dp.get.dynamics(two_snapshots, alternative=1).trajectories([1]).mean,
    )


def test_an_alternative_that_is_not_there_is_named(two_snapshots):
    with pytest.raises(KeyError, match=r"no alternative 3; they are 0 to 2"):
        dp.get.dynamics(two_snapshots, alternative=3)
