"""dp.stats.backtest, temporal_subsets, compare_forecasts: nothing from after the origin, and nobody left out silently."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import dynapath as dp
from dynapath.read.panel import read_panel
from dynapath.stats.backtest import COLUMNS, backtest, compare_forecasts, steps, temporal_subsets

MODELS = ["zero", "mean", "ols", "ols_published", "increment_individual", "increment_global", "increment_partial"]


@pytest.fixture(scope="module")
def panel():
    return dp.datasets.simulate_reports(30, 40, silent=0, p_start=0.1, p_stay=0.6)


def run(adata, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return backtest(adata, **{"models": MODELS, "covariates": "incidence", "origins": [29, 34], **options})


def by(table, model):
    return table[table["model"] == model].reset_index(drop=True)


# --- what a row is -----------------------------------------------------------------------------------------------


def test_a_row_is_one_forecast_of_one_report(panel):
    table = run(panel, horizon=2)
    assert tuple(table.columns) == COLUMNS
    assert not table.duplicated(["model", "origin", "horizon", "unit"]).any()
    y = panel.to_df()
    for row in table.sample(40, random_state=0).itertuples():
        day = panel.var_names[row.origin + row.horizon]
        assert row.date == pd.Timestamp(day)
        assert row.observed == y.loc[row.unit, day]
        assert row.error == row.observed - row.predicted


def test_the_origin_is_the_last_training_day(panel):
    table = by(run(panel, models="zero", covariates=None, origins=29), "zero").set_index("unit")
    filled = panel.to_df().ffill(axis=1).iloc[:, 29]
    np.testing.assert_array_equal(table["predicted"], filled[table.index])


def test_origins_may_be_indices_names_or_dates(panel):
    same = [
        run(panel, models="mean", covariates=None, origins=o)
        for o in (29, [-11], panel.var_names[29], [pd.Timestamp("2020-05-15")])
    ]
    for other in same[1:]:
        pd.testing.assert_frame_equal(same[0], other)


# --- honesty -----------------------------------------------------------------------------------------------------


def test_what_happens_after_the_origin_changes_no_forecast(panel):
    changed = panel.copy()
    changed.X[:, 30:] = np.where(np.isnan(changed.X[:, 30:]), np.nan, 99.0)
    changed.layers["incidence"][:, 30:] = 1e6
    before, after = (run(adata, origins=29, horizon=3) for adata in (panel, changed))
    np.testing.assert_array_equal(before["predicted"], after["predicted"])
    np.testing.assert_array_equal(before["lower"], after["lower"])


def test_covariates_of_later_days_are_the_last_known_ones(panel):
    x, ahead = steps(read_panel(panel, covariates="incidence").until(29), 3)
    z = panel.layers["incidence"]
    np.testing.assert_array_equal(x[0][:, 1:], z[:, :29])
    assert np.isnan(x[0][:, 0]).all()
    np.testing.assert_array_equal(ahead[0], np.repeat(z[:, [29]], 3, axis=1))


def test_a_lag_of_two_days_needs_no_guess_for_tomorrow(panel):
    x, ahead = steps(read_panel(panel, covariates="incidence", lags=[2]).until(29), 2)
    z = panel.layers["incidence"]
    np.testing.assert_array_equal(x[0][:, 2:], z[:, :28])
    np.testing.assert_array_equal(ahead[0], z[:, 28:30])


def test_forecasts_without_a_report_to_compare_with_are_left_out_and_counted(panel):
    holes = panel.copy()
    holes.X[:, 30] = 1.0
    holes.X[3, 30] = holes.X[4, 30] = np.nan
    holes.X[5, :30] = np.nan  # not a single report before
    with pytest.warns(
        UserWarning, match="Left out of 30 forecasts of each model: 2 had no report .* 1 were of units without"
    ):
        table = backtest(holes, models=["zero", "increment_partial"], covariates="incidence", origins=29)
    assert table.attrs["left_out"] == [{"origin": 29, "horizon": 1, "not_reported": 2, "no_report_before": 1}]
    left = set(holes.obs_names[[3, 4, 5]])
    assert table["error"].notna().all()
    for model in ("zero", "increment_partial"):
        assert set(holes.obs_names) - set(by(table, model)["unit"]) >= left
        assert len(by(table, model)) == 27


def test_nothing_is_said_when_all_reported(panel):
    full = panel.copy()
    full.X = full.layers["complete"].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = backtest(full, models=["zero", "mean"], origins=[29])
    assert table.attrs["left_out"][0] == {"origin": 29, "horizon": 1, "not_reported": 0, "no_report_before": 0}
    assert len(table) == 60


def test_all_models_are_scored_on_the_same_forecasts(panel):
    counts = run(panel)["model"].value_counts()
    assert counts.nunique() == 1


def test_a_unit_with_a_single_report_is_forecast_by_it(panel):
    lonely = panel.copy()
    lonely.X[0, :30] = np.nan
    lonely.X[0, 12] = 4.0
    lonely.X[0, 30] = 5.0
    table = run(lonely, origins=29, models=["increment_individual", "zero"])
    assert (table.loc[table["unit"] == lonely.obs_names[0], "predicted"] == 4.0).all()


# --- the models --------------------------------------------------------------------------------------------------


def test_without_gaps_the_individual_model_forecasts_like_aligned_least_squares(panel):
    full = panel.copy()
    full.X = full.layers["complete"].copy()
    table = run(full, models={"ols": "ols", "free": {"stable": False}})
    moving = full.obs_names[full.X[:, :30].std(1) > 0.5]
    keep = table["unit"].isin(moving)
    np.testing.assert_allclose(by(table[keep], "free")["predicted"], by(table[keep], "ols")["predicted"], atol=1e-6)


def test_the_published_start_and_the_state_differ_only_where_the_origin_was_not_reported(panel):
    locf, state = (
        by(run(panel, models="increment_global", start=start), "increment_global") for start in ("locf", "state")
    )
    y = panel.to_df()
    silent = np.array([np.isnan(y.loc[row.unit].iloc[row.origin]) for row in locf.itertuples()])
    assert silent.any()
    np.testing.assert_allclose(locf["predicted"][~silent], state["predicted"][~silent], rtol=1e-12)
    assert (np.abs(locf["predicted"][silent] - state["predicted"][silent]) > 1e-9).any()


def test_settings_of_a_fit_make_a_model_of_its_own(panel):
    models = {"named": "increment_global", "settings": {"pooling": "global"}}
    table = run(panel, models=models)
    np.testing.assert_array_equal(by(table, "named")["predicted"], by(table, "settings")["predicted"])


def test_a_function_sees_the_days_up_to_the_origin_and_returns_levels(panel):
    seen = []

    def twice_the_last(train, horizon):
        seen.append(train.n_vars)
        train.X[:] = 0  # a copy: harms nobody
        return np.full((train.n_obs, horizon), 7.0)

    table = run(panel, models={"mine": twice_the_last, "zero": "zero"}, covariates=None, horizon=2)
    assert seen == [30, 35]
    assert (by(table, "mine")["predicted"] == 7).all()
    pd.testing.assert_frame_equal(
        by(table, "zero"), by(run(panel, models="zero", covariates=None, horizon=2), "zero"), check_categorical=False
    )


def test_a_function_that_returns_nan_is_named(panel):
    models = {"mine": lambda train, horizon: np.full((train.n_obs, horizon), np.nan), "zero": "zero"}
    with pytest.warns(UserWarning, match="Models returned NaN: mine .. times"):
        table = backtest(panel, models=models, origins=29)
    with pytest.raises(ValueError, match="scored on different forecasts.*mine: 0"):
        compare_forecasts(table)


def test_intervals_belong_to_increment_models_and_contain_the_forecast(panel):
    table = run(panel, interval=0.8)
    without = table["model"].isin(["zero", "mean", "ols", "ols_published"])
    assert table.loc[without, ["lower", "upper"]].isna().all(axis=None)
    own = table[~without].dropna(subset="lower")
    assert len(own) > 0.8 * (~without).sum()
    assert ((own["lower"] <= own["predicted"]) & (own["predicted"] <= own["upper"])).all()
    wider = run(panel, interval=0.95)
    assert (wider["upper"] >= table["upper"] - 1e-12)[table["upper"].notna()].all()


def test_taking_days_before_the_first_report_for_zero_changes_baselines_of_late_units_only(panel):
    late = panel.copy()
    late.X[2, :10] = np.nan
    late.X[2, 10] = 20.0
    skipped, zeros = (run(late, models=["mean", "increment_global"], before_first=b) for b in ("skip", "zero"))
    changed = skipped["predicted"] != zeros["predicted"]
    assert set(skipped.loc[changed, "unit"]) <= {late.obs_names[2]}
    assert set(skipped.loc[changed, "model"].astype(str)) == {"mean"}


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"models": "arima"}, ValueError, "no model 'arima'; there are zero, mean"),
        ({"models": []}, ValueError, "models is empty"),
        ({"models": {"mine": 3}}, ValueError, "Model 'mine' must be a name, settings"),
        (
            {"models": {"mine": lambda train, horizon: np.zeros(3), "ols": "ols"}},
            ValueError,
            r"shape \(3,\); expected \(30, 1\)",
        ),
        ({"origins": []}, ValueError, "origins is empty"),
        ({"origins": 39}, ValueError, "Origin 39 .* 0 days after it.*latest possible one is 38"),
        ({"origins": [29, 29]}, ValueError, "more than once"),
        ({"origins": 45}, ValueError, "beyond the panel"),
        ({"origins": 0}, ValueError, "leaves 1 training days"),
        ({"origins": "1999-01-01"}, ValueError, "no day of the panel"),
        ({"horizon": 0}, ValueError, "horizon must be"),
        ({"covariates": "cases"}, KeyError, "'cases'"),
        ({"start": "mean"}, ValueError, "start must be 'state' or 'locf'"),
        ({"before_first": "mean"}, ValueError, "before_first must be"),
    ],
)
def test_what_cannot_be_is_refused(panel, options, error, message):
    with pytest.raises(error, match=message):
        run(panel, **options)


# --- comparison --------------------------------------------------------------------------------------------------


def made_up():
    """Two units: 'good' halves every error of zero."""
    errors = pd.DataFrame({"unit": list("aabb"), "zero": [2.0, -2, 4, 0]})
    parts = [
        pd.DataFrame({"model": model, "unit": errors["unit"], "error": factor * errors["zero"]})
        for model, factor in (("zero", 1), ("good", 0.5))
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(observed=table["error"], predicted=0.0, lower=np.nan, upper=np.nan)


def test_scores_are_sums_and_means_of_errors():
    scores = compare_forecasts(made_up()).set_index("model")
    assert list(scores.loc["zero", ["n", "sse", "mse", "mae", "largest", "relative"]]) == [4, 24, 6, 2, 16, 0]
    assert scores.loc["good", "relative"] == -0.75
    # The same ratio in every unit: resampling units cannot change it.
    np.testing.assert_allclose(scores.loc["good", ["lower", "upper"]].astype(float), -0.75)


def test_the_bootstrap_draws_units_not_forecasts():
    """Unit b alone makes the difference: relative error is 0 without it, -1 with it alone."""
    table = made_up()
    table.loc[table["model"] == "good", "error"] = [2.0, -2, 0, 0]
    scores = compare_forecasts(table, n_bootstrap=4000, level=0.9).set_index("model")
    # With two units each is drawn alone in a quarter of the resamples.
    np.testing.assert_allclose(scores.loc["good", ["lower", "upper"]].astype(float), [-1, 0])


def test_the_bootstrap_interval_has_the_width_of_the_delta_method():
    rng = np.random.default_rng(0)
    n = 400
    zero, model = rng.gamma(2, 1, n), rng.gamma(2, 0.8, n)
    table = pd.DataFrame(
        {
            "model": np.repeat(["zero", "m"], n),
            "unit": np.tile(np.arange(n), 2),
            "error": np.sqrt(np.concatenate([zero, model])),
        }
    ).assign(observed=0.0, lower=np.nan, upper=np.nan)
    scores = compare_forecasts(table, n_bootstrap=4000).set_index("model").loc["m"]
    ratio = model.sum() / zero.sum()
    se = np.std(model - ratio * zero) / zero.mean() / np.sqrt(n)
    np.testing.assert_allclose(scores["upper"] - scores["lower"], 2 * 1.645 * se, rtol=0.08)


def test_coverage_counts_reports_within_the_interval():
    table = made_up().assign(lower=[-3.0] * 4 + [np.nan] * 4, upper=[3.0] * 4 + [np.nan] * 4)
    scores = compare_forecasts(table).set_index("model")["coverage"]
    assert scores["zero"] == 0.75
    assert np.isnan(scores["good"])


def test_infinite_intervals_are_no_coverage():
    table = made_up().assign(lower=[-np.inf] + [-0.1] * 3 + [-np.inf] * 4, upper=np.inf)
    table.loc[1:3, "upper"] = 0.1
    scores = compare_forecasts(table).set_index("model")["coverage"]
    within = table.loc[1:3, "observed"].between(-0.1, 0.1).mean()
    assert scores["zero"] == pytest.approx(within)
    assert within < 0.75
    assert np.isnan(scores["good"])


def test_the_same_seed_gives_the_same_interval(panel):
    table = run(panel, models=["zero", "mean"], covariates=None)
    pd.testing.assert_frame_equal(compare_forecasts(table), compare_forecasts(table))
    with pytest.raises(ValueError, match="'ols' is not in the table; its models are zero, mean"):
        compare_forecasts(table, reference="ols")


# --- windows -----------------------------------------------------------------------------------------------------


def test_a_window_is_a_backtest_of_its_days_alone(panel):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        table = temporal_subsets(
            panel, models=["mean", "increment_global"], covariates="incidence", length=20, starts=[0, 7]
        )
    assert list(table.columns) == ["window", *COLUMNS]
    assert set(table["origin"]) == {18, 25}
    alone = run(panel[:, 7:27], models=["mean", "increment_global"], origins=18)
    inside = table[table["window"] == 7]
    np.testing.assert_array_equal(inside["predicted"], alone["predicted"])
    assert (inside["date"] == pd.Timestamp(panel.var_names[26])).all()


def test_by_default_there_are_all_windows_of_half_the_days():
    panel = dp.datasets.simulate_reports(8, 12, p_start=0)
    table = temporal_subsets(panel, models="zero")
    assert sorted(table["window"].unique()) == list(range(7))
    assert len(table) == 7 * 8


def test_units_with_too_few_reports_are_dropped_from_a_window_and_counted(panel):
    sparse = panel.copy()
    sparse.X[0, 1:19] = np.nan
    sparse.X[0, 19] = 3.0
    with pytest.warns(UserWarning, match="1 were of units with too few reports"):
        table = temporal_subsets(sparse, models="zero", length=20, starts=[0])
    assert sparse.obs_names[0] not in set(table["unit"])
    assert table.attrs["left_out"][0]["too_few_reports"] == 1
    assert table.attrs["left_out"][0]["window"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 2}, "length must be from 3 to the 40 days"),
        ({"length": 41}, "length must be"),
        ({"length": 30, "starts": [11]}, "starts must be from 0 to 10"),
        ({"length": 30, "starts": []}, "none was given"),
        ({"length": 5, "starts": [0], "min_reports": 9}, "No unit has 9 reports"),
    ],
)
def test_windows_that_do_not_fit_are_refused(panel, options, message):
    with pytest.raises(ValueError, match=message):
        temporal_subsets(panel, models="zero", **options)


# --- the published table -----------------------------------------------------------------------------------------

# Sums of squared errors at the origins 38, 41, ..., 68, computed apart from this package.
PUBLISHED_RULES = {
    "spring2020": (4224, {"zero": 1337, "mean": 1396, "modified_mean": 1356, "ols": 6999, "ols_published": 2631}),
    "autumn2020": (4333, {"zero": 6009, "mean": 5586, "modified_mean": 5584, "ols": 5828, "ols_published": 8420}),
    "winter2021": (4343, {"zero": 7231, "mean": 7679, "modified_mean": 7665, "ols": 7545, "ols_published": 10128}),
}


@pytest.mark.parametrize("window", PUBLISHED_RULES)
def test_baselines_have_their_known_errors_on_the_county_reports(data_dir, window):
    n, expected = PUBLISHED_RULES[window]
    counties = dp.datasets.divi_icu(window, path=data_dir)
    options = {"covariates": "cases_7d_mean", "origins": range(38, 69, 3), "before_first": "zero"}
    scores = compare_forecasts(run(counties, models=list(expected), **options)).set_index("model")
    assert (scores["n"] == n).all()
    np.testing.assert_allclose(scores["sse"], list(expected.values()), atol=0.6)


@pytest.mark.slow
def test_partial_pooling_is_not_clearly_worse_than_no_change_in_any_window(data_dir):
    for window in PUBLISHED_RULES:
        counties = dp.datasets.divi_icu(window, path=data_dir)
        models = ["zero", "increment_partial"]
        table = run(counties, models=models, covariates="cases_7d_mean", origins=range(38, 69, 3))
        assert compare_forecasts(table).set_index("model").loc["increment_partial", "upper"] <= 0.05
