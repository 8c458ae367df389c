"""dp.stats.fit_increment, predict_increment, impute_increment: slots, files, subsets and messages."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dynapath as dp
from dynapath.read.panel import read_panel
from dynapath.stats.increment.fit import fit

COLUMNS = ["intercept", "state", "incidence"]


@pytest.fixture
def reports():
    return dp.datasets.simulate_reports(n_units=25, n_days=40, random_state=1)


@pytest.fixture
def fitted(reports):
    dp.stats.fit_increment(reports, covariates="incidence", train_until=-4)
    return reports


def test_everything_lies_in_its_slot(fitted):
    found = fit(read_panel(fitted, covariates="incidence", train_until=-4), se="hessian")
    assert fitted.obsm["increment_params"].columns.tolist() == COLUMNS
    np.testing.assert_array_equal(fitted.obsm["increment_params"], found.params)
    np.testing.assert_array_equal(fitted.obsm["increment_se"], found.se)
    statuses = ["ok", "clipped", "constant", "no_data", "rank_deficient", "max_iter"]
    assert fitted.obs["increment_status"].cat.categories.tolist() == statuses
    np.testing.assert_array_equal(fitted.obs["increment_loss"], found.loss)
    np.testing.assert_array_equal(fitted.obs["increment_n"], found.n)
    np.testing.assert_array_equal(fitted.layers["increment_state"][:, :37], found.state)
    np.testing.assert_array_equal(fitted.layers["increment_resid"][:, :37], found.resid)
    assert np.isnan(fitted.layers["increment_state"][:, 37:]).all()
    assert {"kind", "params", "state", "history", "versions", "schema"} <= set(fitted.uns["increment"])
    assert fitted.uns["increment"]["kind"] == "increment"


def test_the_reports_are_never_changed(reports):
    reports.X = reports.X.astype(np.float32)
    before = reports.X.copy()
    dp.stats.fit_increment(reports, covariates="incidence")
    dp.stats.impute_increment(reports, interval=0.9)
    np.testing.assert_array_equal(reports.X, before)
    assert reports.X.dtype == np.float32


def test_a_copy_leaves_the_original_alone(reports):
    names = set(reports.layers), set(reports.obsm), set(reports.uns)
    copied = dp.stats.fit_increment(reports, covariates="incidence", copy=True)
    assert (set(reports.layers), set(reports.obsm), set(reports.uns)) == names
    assert "increment_params" in copied.obsm
    assert "increment_imputed" in dp.stats.impute_increment(copied, copy=True).layers
    assert "increment_imputed" not in copied.layers


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("pooling", ["individual", "partial"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_files_keep_the_fit(reports, kind, pooling, tmp_path):
    settings = {"pooling": pooling, "stable": False, "loss": "squared", "train_until": -4}
    dp.stats.fit_increment(reports, covariates="incidence", observed=~np.isnan(reports.X), **settings)
    dp.stats.impute_increment(reports)
    path = tmp_path / f"panel.{kind}"
    getattr(reports, f"write_{kind}")(path)
    again = getattr(ad, f"read_{kind}")(path)
    one, two = dp.get.model(reports, "increment"), dp.get.model(again, "increment")
    np.testing.assert_array_equal(one.params, two.params)
    np.testing.assert_array_equal(one.covariance, two.covariance)
    assert one.coefficients == two.coefficients
    pd.testing.assert_frame_equal(dp.stats.predict_increment(reports), dp.stats.predict_increment(again))
    pd.testing.assert_frame_equal(dp.get.increment_params(reports), dp.get.increment_params(again))


def test_results_follow_a_subset_of_units_in_any_order(fitted):
    some = fitted[[7, 2, 11]].copy()
    whole = dp.stats.predict_increment(fitted).set_index("unit")
    part = dp.stats.predict_increment(some).set_index("unit")
    pd.testing.assert_frame_equal(part, whole.loc[list(some.obs_names)])
    np.testing.assert_array_equal(dp.get.model(some, "increment").params, some.obsm["increment_params"])


def test_units_that_the_fit_does_not_know_are_named(fitted):
    fitted.obs_names = [f"new{i}" for i in range(fitted.n_obs)]
    with pytest.raises(ValueError, match="does not know unit 'new0'"):
        dp.stats.predict_increment(fitted)


def test_a_new_fit_replaces_the_old_one_as_a_whole(fitted):
    dp.stats.impute_increment(fitted, interval=0.9)
    dp.stats.fit_increment(fitted, se=None)
    assert "increment_se" not in fitted.obsm
    assert not any(name.startswith("increment_imputed") for name in fitted.layers if name is not None)
    assert fitted.obsm["increment_params"].columns.tolist() == ["intercept", "state"]


def test_what_is_no_fit_is_not_overwritten(reports):
    reports.layers["increment_state"] = reports.X
    with pytest.raises(ValueError, match=r"layers\['increment_state'\].*another key_added"):
        dp.stats.fit_increment(reports)


def test_nothing_is_written_when_the_input_is_bad(reports):
    reports.layers["incidence"][3, 10] = np.nan
    before = set(reports.obsm), set(reports.layers), set(reports.uns), set(reports.obs)
    with pytest.raises(ValueError, match="'incidence'"):
        dp.stats.fit_increment(reports, covariates="incidence")
    assert (set(reports.obsm), set(reports.layers), set(reports.uns), set(reports.obs)) == before


def test_other_questions_answer_that_there_is_no_fit(reports):
    for ask in (dp.stats.predict_increment, dp.stats.impute_increment, dp.get.increment_params, dp.get.increment_fit):
        with pytest.raises(KeyError, match="fit_increment"):
            ask(reports)


def test_forecasts_are_a_table_of_units_and_days(fitted):
    table = dp.stats.predict_increment(fitted, horizon=3, future_covariates=fitted)
    columns = ["unit", "horizon", "date", "origin", "predicted", "sd", "lower", "upper", "status"]
    assert table.columns.tolist() == columns
    assert len(table) == 3 * fitted.n_obs
    assert table["date"].iloc[:3].tolist() == pd.to_datetime(fitted.var["date"].iloc[37:]).tolist()
    ok = table[(table["status"] == "ok") & table["sd"].notna()]
    assert ok["unit"].nunique() > 10
    assert (ok["lower"] < ok["predicted"]).all()
    assert (ok["sd"].groupby(ok["unit"]).diff().dropna() > 0).all()


def test_future_covariates_may_come_as_a_panel_as_tables_or_be_carried_on(fitted):
    later = fitted.layers["incidence"][:, 37:39]
    table = pd.DataFrame(later, index=fitted.obs_names)
    shuffled = table.sample(frac=1, random_state=0)
    expected = dp.stats.predict_increment(fitted, horizon=3, future_covariates=fitted)
    for given in ({"incidence": later}, {"incidence": table}, {"incidence": shuffled}, fitted[:, 30:].copy()):
        pd.testing.assert_frame_equal(dp.stats.predict_increment(fitted, horizon=3, future_covariates=given), expected)
    carried = {"incidence": np.repeat(fitted.layers["incidence"][:, [36]], 2, axis=1)}
    pd.testing.assert_frame_equal(
        dp.stats.predict_increment(fitted, horizon=3, future_covariates="carry"),
        dp.stats.predict_increment(fitted, horizon=3, future_covariates=carried),
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"needs incidence on the 2 day\(s\) after 2020-05-22"),
        ("hold", "'carry'"),
        ({}, "lacks 'incidence'"),
        ({"incidence": np.zeros((25, 1))}, r"shape \(25, 1\).*at least 2 day"),
        ({"incidence": pd.DataFrame(np.zeros((2, 2)), index=["0001", "0002"])}, "no row for unit '0003'"),
    ],
)
def test_future_covariates_that_do_not_reach_are_refused(fitted, given, message):
    with pytest.raises(ValueError, match=message):
        dp.stats.predict_increment(fitted, horizon=3, future_covariates=given)
    assert len(dp.stats.predict_increment(fitted)) == 25  # one day ahead needs none


def test_a_panel_without_the_days_ahead_is_refused(fitted):
    with pytest.raises(ValueError, match="does not have day 2020-05-23"):
        dp.stats.predict_increment(fitted, horizon=3, future_covariates=fitted[:, :30].copy())


@pytest.mark.parametrize("settings", [{"horizon": 0}, {"horizon": 1.5}, {"interval": 0}, {"interval": 90}])
def test_horizons_and_probabilities_are_checked(fitted, settings):
    with pytest.raises(ValueError, match="horizon|interval"):
        dp.stats.predict_increment(fitted, **settings)


def test_days_may_be_numbered():
    rng = np.random.default_rng(0)
    panel = ad.AnnData(rng.poisson(5, (4, 30)).astype(float))
    dp.stats.fit_increment(panel)
    table = dp.stats.predict_increment(panel, horizon=2)
    assert table["day"].tolist() == [30, 31] * 4


def test_imputed_values_fill_the_gaps(fitted):
    dp.stats.impute_increment(fitted, mode="smooth", interval=0.9)
    train = slice(0, 37)
    seen = ~np.isnan(fitted.X[:, train])
    filled = fitted.layers["increment_imputed"][:, train]
    np.testing.assert_array_equal(filled[seen], fitted.X[:, train][seen])
    inside = ~seen & ~np.isnan(fitted.layers["increment_state"][:, train])
    assert np.isfinite(filled[inside]).all()
    known = inside & np.isfinite(fitted.layers["increment_imputed_lower"][:, train])
    assert (fitted.layers["increment_imputed_lower"][:, train] <= filled)[known].all()
    assert fitted.uns["increment"]["imputed"] == {"mode": "smooth", "interval": 0.9}
    dp.stats.impute_increment(fitted, mode="filter")
    assert "increment_imputed_lower" not in fitted.layers
    np.testing.assert_array_equal(fitted.layers["increment_imputed"], fitted.layers["increment_state"])


def test_all_missing_first_and_last_days_are_days_without_reports(reports):
    reports.X[:, :3] = np.nan
    reports.X[:, -3:] = np.nan
    dp.stats.fit_increment(reports, covariates="incidence")
    assert np.isnan(reports.layers["increment_state"][:, :3]).all()
    ok = (reports.obs["increment_status"] == "ok").to_numpy()
    assert np.isfinite(reports.layers["increment_state"][ok][:, -3:]).all()


def test_one_table_holds_estimates_intervals_and_pooled_means(fitted):
    table = dp.get.increment_params(fitted)
    assert table.columns.tolist() == ["unit", "coefficient", "estimate", "se", "lower", "upper", "status"]
    assert len(table) == 3 * fitted.n_obs
    wide = table.pivot(index="unit", columns="coefficient", values="estimate")[COLUMNS]
    np.testing.assert_array_equal(wide.loc[fitted.obs_names], fitted.obsm["increment_params"])
    dp.stats.fit_increment(fitted, covariates="incidence", pooling={"incidence": "partial"}, key_added="pooled")
    pooled = dp.get.increment_params(fitted, "pooled")
    mean = pooled[pooled["unit"].isna()]
    assert mean["coefficient"].tolist() == ["incidence"]
    assert mean["lower"].iloc[0] < mean["estimate"].iloc[0] < mean["upper"].iloc[0]
    wider = dp.get.increment_params(fitted, level=0.99)
    known = table["se"] > 0
    # Intervals that end at a bound of the coefficient end there at any level.
    assert (wider["upper"] >= table["upper"])[known].all()
    assert (wider["upper"] > table["upper"])[known].mean() > 0.5


def test_the_model_of_an_individual_fit_steps_as_the_recursion_does(fitted):
    model = dp.get.model(fitted, "increment")
    assert isinstance(model, dp.dynamics.IncrementDynamics)
    state = fitted.layers["increment_state"][:, 36]
    ahead = dp.stats.predict_increment(fitted)
    step = model.increment(state, fitted.layers["incidence"][:, [36]])
    np.testing.assert_allclose(state + step, ahead["predicted"], rtol=1e-12)


def test_a_fit_that_stops_early_has_no_standard_errors(reports):
    dp.stats.fit_increment(reports, covariates="incidence", method="gd")
    assert "increment_se" not in reports.obsm
    assert dp.get.increment_params(reports)["se"].isna().all()
