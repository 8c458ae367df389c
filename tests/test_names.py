"""Names are compared as text: pandas' string type, with which files are read, changes nothing."""

import numpy as np
import pandas as pd
import pytest

import dynapath as dp
from dynapath.datasets import simulate_reports, simulate_snapshots
from dynapath.models import Training

QUICK = Training(static_epochs=1, joint_epochs=1, n_restarts=1, prior_steps=5, n_hidden=8, progress=False)


def with_strings(adata):
    """A copy with names of pandas' string type, also in the tables that are bound to them."""
    tables = {slot: adata.obsm[slot] for slot in adata.obsm if isinstance(adata.obsm[slot], pd.DataFrame)}
    adata = adata.copy()
    for slot in tables:
        del adata.obsm[slot]
    adata.obs.index, adata.var.index = adata.obs_names.astype("string"), adata.var_names.astype("string")
    for slot, table in tables.items():
        adata.obsm[slot] = table.set_axis(adata.obs_names)
    assert adata.obs_names.dtype == adata.var_names.dtype == "string"
    return adata


@pytest.fixture(scope="module")
def plain():
    cells = simulate_snapshots("rotating", n_cells=15, n_genes=15, times=(0, 0.3, 0.6, 1))
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    dp.tl.fit_dynamic_vae(cells, time_key="time", training=QUICK)
    dp.tl.fit_vae(cells, n_latent=2, max_epochs=1, train_kwargs={"progress": False})
    return cells


@pytest.fixture(scope="module")
def strings(plain):
    return with_strings(plain)


def test_a_fit_of_cells_whose_names_are_strings_is_that_of_the_same_text(plain, strings):
    again = strings.copy()
    dp.tl.fit_dynamic_vae(again, time_key="time", training=QUICK)
    np.testing.assert_array_equal(again.obsm["X_dynvae"], plain.obsm["X_dynvae"])
    np.testing.assert_array_equal(
        dp.tl.predict_cells(again, times=0.5, n_cells=9).X.toarray(),
        dp.tl.predict_cells(plain, times=0.5, n_cells=9).X.toarray(),
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda cells: dp.tl.predict_cells(cells, times=0.5, n_cells=9).X.toarray(),
        lambda cells: dp.tl.predict_cells(cells, times=0.5, n_cells=9, source=cells.obs_names[:20]).X.toarray(),
        lambda cells: dp.get.model(cells, "dynvae").get_latent_representation(),
        lambda cells: dp.get.model(cells, "vae").get_latent_representation(),
        lambda cells: dp.get.gene_trajectories(cells, cells.var_names[:2])["mean"],
        lambda cells: dp.get.observed_genes(cells, list(cells.var_names[:2]))["mean"],
        lambda cells: dp.tl.rank_dynamic_genes(cells)["log2fc"],
        lambda cells: dp.tl.sample_prior(cells, n_cells=9).X.toarray(),
    ],
    ids=["predict", "from names", "model", "vae", "trajectories", "observed", "rank", "sample"],
)
def test_a_fit_is_read_by_names_of_either_type(plain, strings, ask):
    np.testing.assert_array_equal(ask(strings), ask(plain))


def test_cells_are_held_out_whatever_the_type_of_their_names(strings):
    def resampled(train, time, n_cells, rng):
        renamed = train[rng.choice(train.n_obs, n_cells)].copy()
        renamed.var.index = renamed.var_names.astype(str)[::-1]
        return renamed[:, ::-1].copy()

    kwargs = {"n_pcs": 3, "methods": {"dynvae": "dynvae", "resampled": resampled}, "fit_kwargs": {"training": QUICK}}
    table = dp.tl.evaluate_heldout(strings, time_key="time", holdout=0.3, **kwargs)
    assert set(table["method"]) >= {"dynvae", "resampled"}


def test_target_coordinates_are_found_by_text(strings):
    target = pd.DataFrame(np.random.default_rng(0).normal(size=(strings.n_obs, 2)), index=map(str, strings.obs_names))
    for given in (target, target.set_axis(target.index.astype("string"))):
        kwargs = {"n_latent": 2, "max_epochs": 1, "train_kwargs": {"progress": False}, "key_added": "tied"}
        dp.tl.fit_vae(strings, target=given.iloc[::-1], **kwargs)
        assert strings.uns["tied"]["params"]["target"] == ""


def test_units_of_a_panel_are_known_by_text():
    reports = simulate_reports(n_units=6, n_days=25, random_state=1)
    dp.stats.fit_increment(reports, covariates="incidence", train_until=-3)
    other = with_strings(reports)
    expected = dp.get.increment_params(reports)
    pd.testing.assert_frame_equal(dp.get.increment_params(other), expected)
    again = with_strings(simulate_reports(n_units=6, n_days=25, random_state=1))
    dp.stats.fit_increment(again, covariates="incidence", train_until=-3)
    pd.testing.assert_frame_equal(dp.get.increment_params(again), expected)
    ahead = pd.DataFrame(np.zeros((6, 2)), index=again.obs_names)
    for table in (ahead, ahead.set_axis(ahead.index.astype(object))):
        for panel in (reports, again):
            forecast = dp.stats.predict_increment(panel, horizon=2, future_covariates={"incidence": table})
            assert len(forecast) == 12


def test_units_of_a_program_are_known_by_text():
    reports = with_strings(simulate_reports(n_units=4, n_days=10, p_start=0.0, silent=0.0, random_state=1))
    found = dp.stats.estimate(lambda params, X: X - params["m"], reports, params={"m": 0.0}, kind="residuals")
    assert found.summary()["unit"].tolist() == list(map(str, reports.obs_names))
    assert len(found.profile("m", units=list(reports.obs_names[:1]), n_grid=3)) == 3
