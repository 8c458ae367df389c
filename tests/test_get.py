"""Readers of a fit: tables with the numbers of the fit, and errors that name the fits there are."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import dynapath as dp
from dynapath.models import Training

DAYS = {0: 2.0, 0.5: 4.0, 1: 6.0}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit has not converged:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*restarts reach a likelihood within:UserWarning"),
    pytest.mark.filterwarnings("ignore:Only one of .* restarts reached:UserWarning"),
    pytest.mark.filterwarnings("ignore:Groups with less than:UserWarning"),
    pytest.mark.filterwarnings("ignore:3 times are fewer than:UserWarning"),
]


@pytest.fixture(scope="module")
def fitted():
    cells = dp.datasets.simulate_snapshots("rotating", n_cells=20, n_genes=30, times=tuple(DAYS))
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    cells.obs["day"] = cells.obs["time"].map(DAYS)
    quick = Training(static_epochs=2, joint_epochs=3, n_restarts=3, prior_steps=20, n_hidden=16, progress=False)
    dp.tl.fit_dynamic_vae(cells, time_key="day", training=quick)
    dp.tl.fit_dynamic_vae(cells, time_key="day", training=quick, use_rep="Z_true", key_added="rep")
    return cells


# --- trajectories ------------------------------------------------------------------------------------------------------------


def test_trajectories_have_a_row_for_each_group_time_and_dimension(fitted):
    table = dp.get.trajectories(fitted, n_grid=7)
    assert list(table.columns) == [
        *("group", "time", "dimension", "mean", "sd", "lower", "upper", "mean_lower", "mean_upper"),
        *("velocity", "velocity_lower", "velocity_upper", "proportion", "proportion_lower", "proportion_upper"),
        "extrapolated",
    ]
    assert len(table) == 3 * 7 * 2
    assert not table.duplicated(["group", "time", "dimension"]).any()
    assert table["group"].cat.categories.tolist() == ["0", "1", "2"]
    assert sorted(table["dimension"].unique()) == [1, 2]
    np.testing.assert_allclose(sorted(table["time"].unique()), np.linspace(2, 6, 7))


@pytest.mark.parametrize("key", ["dynvae", "rep"])
def test_trajectories_are_the_moments_of_the_dynamics(fitted, key):
    times = [2.0, 3.1, 6.0]
    table = dp.get.trajectories(fitted, key, times=times)
    path = dp.get.dynamics(fitted, key).trajectories(times)
    for row in table.itertuples():
        k, t, j = int(row.group), times.index(row.time), row.dimension - 1
        assert row.mean == pytest.approx(path.mean[k, t, j])
        assert row.sd == pytest.approx(np.sqrt(path.cov[k, t, j, j]))
        assert row.velocity == pytest.approx(path.velocity[k, t, j])
        assert row.proportion == pytest.approx(path.proportions[k, t])


def test_proportions_sum_to_one_at_each_time(fitted):
    table = dp.get.trajectories(fitted).query("dimension == 1")
    np.testing.assert_allclose(table.groupby("time")["proportion"].sum(), 1)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_band_holds_cells_with_its_probability(fitted, level):
    table = dp.get.trajectories(fitted, level=level)
    inside = norm.cdf(table["upper"], table["mean"], table["sd"]) - norm.cdf(table["lower"], table["mean"], table["sd"])
    np.testing.assert_allclose(inside, level)


def test_times_after_the_last_snapshot_are_marked(fitted):
    table = dp.get.trajectories(fitted, times=[5, 6, 7])
    assert set(table.loc[table["extrapolated"], "time"]) == {7.0}


def test_times_before_the_first_snapshot_raise(fitted):
    with pytest.raises(ValueError, match=r"before the first snapshot \(2\); asked for 1"):
        dp.get.trajectories(fitted, times=[1, 3])


def test_a_single_time_may_be_a_number(fitted):
    assert len(dp.get.trajectories(fitted, times=3)) == 6


# --- history, restarts ---------------------------------------------------------------------------------------------------------


def test_history_has_a_row_for_each_epoch(fitted):
    history = dp.get.history(fitted)
    assert history["phase"].tolist() == ["static"] * 2 + ["joint"] * 3
    assert {"loss", "elbo", "reconstruction", "kl"} <= set(history.columns)


def test_history_is_a_copy(fitted):
    history = dp.get.history(fitted)
    history["loss"] = 0
    assert (dp.get.history(fitted)["loss"] != 0).all()


def test_without_epochs_the_history_has_a_row_for_each_step_of_the_mixture(fitted):
    history = dp.get.history(fitted, "rep")
    assert set(history["phase"]) == {"mixture"}
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


@pytest.mark.parametrize("key", ["dynvae", "rep"])
def test_restarts_come_best_first(fitted, key):
    restarts = dp.get.restarts(fitted, key)
    assert list(restarts.columns) == ["log_likelihood", "agreement"]
    assert len(restarts) == 3
    assert restarts["log_likelihood"].is_monotonic_decreasing
    assert restarts["agreement"][0] == 1


# --- models ----------------------------------------------------------------------------------------------------------------------


def test_each_kind_of_fit_gives_its_model(fitted):
    assert isinstance(dp.get.model(fitted), dp.models.DynamicVAE)
    assert isinstance(dp.get.model(fitted, "rep"), dp.dynamics.GroupDynamics)
    assert isinstance(dp.get.dynamics(fitted), dp.dynamics.GroupDynamics)


def test_the_model_knows_times_in_their_unit(fitted):
    assert dp.get.model(fitted).observed_times.tolist() == [2, 4, 6]
    assert dp.get.dynamics(fitted, "rep").observed_times.tolist() == [2, 4, 6]


def test_the_model_gives_the_responsibilities_of_the_fit(fitted):
    model = dp.get.model(fitted)
    resp = model.dynamics.responsibilities(model.get_latent_representation(), fitted.obs["day"])
    np.testing.assert_allclose(resp, fitted.obsm["dynvae_groups"], rtol=1e-4, atol=1e-6)


def test_dynamics_need_no_counts(fitted):
    alone = ad.AnnData(obs=fitted.obs, uns=fitted.uns)
    pd.testing.assert_frame_equal(dp.get.trajectories(alone), dp.get.trajectories(fitted))


def test_the_model_needs_the_genes_of_the_fit(fitted):
    with pytest.raises(ValueError, match=r"genes; 1 of them are missing, such as 'gene"):
        dp.get.model(fitted[:, 1:].copy())


def test_counts_that_are_no_longer_counts_raise(fitted):
    cells = fitted.copy()
    cells.X = cells.X.log1p()
    with pytest.raises(ValueError, match="looks log-normalised"):
        dp.get.model(cells)


def test_a_time_column_that_has_gone_raises(fitted):
    cells = fitted.copy()
    del cells.obs["day"]
    with pytest.raises(KeyError, match=r"no column 'day' \(time_key\)"):
        dp.get.model(cells)


# --- fits that are not there -----------------------------------------------------------------------------------------------------


READERS = [dp.get.model, dp.get.dynamics, dp.get.trajectories, dp.get.history, dp.get.restarts]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_missing_fit_raises_and_names_those_there_are(fitted, reader):
    with pytest.raises(
        KeyError, match=r"uns has no fit under 'other'; fits present: dynvae, rep\. Run dp\.tl\.fit_dynamic_vae"
    ):
        reader(fitted, "other")


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_without_any_fit_the_error_says_so(reader):
    with pytest.raises(KeyError, match="there is no fit in this AnnData"):
        reader(ad.AnnData(np.ones((2, 2))))


def test_what_is_not_a_fit_is_not_taken_for_one(fitted):
    cells = fitted.copy()
    cells.uns["mine"] = {"kind": "of my own"}
    with pytest.raises(KeyError, match="fits present: dynvae, rep"):
        dp.get.dynamics(cells, "mine")


def test_convergence_says_what_moved_and_how_far_it_may(fitted):
    table = dp.get.convergence(fitted, "dynvae")
    assert list(table.columns) == ["what", "change", "limit"]
    assert list(table["what"]) == ["groups", "paths", "states", "predictions"]
    # So few epochs say nothing.
    assert table["change"].isna().all()
    pd.testing.assert_frame_equal(dp.get.convergence(fitted), table)


def test_a_fit_of_an_earlier_version_has_no_convergence(fitted):
    old = fitted.copy()
    del old.uns["dynvae"]["convergence"]
    with pytest.raises(KeyError, match="earlier version"):
        dp.get.convergence(old, "dynvae")
