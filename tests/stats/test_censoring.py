"""dp.stats.mask_reports and censoring_study: hide what is known, and see how well it comes back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import dynapath as dp
from dynapath.stats.censoring import METHODS, censoring_study, mask_reports


@pytest.fixture(scope="module")
def panel():
    return dp.datasets.simulate_reports(40, 50, silent=0, p_start=0.01)


def full(panel):
    adata = panel.copy()
    adata.X = panel.layers["complete"].copy()
    return adata


# --- hiding ------------------------------------------------------------------------------------------------------


def test_a_fraction_of_each_units_reports_is_hidden_and_never_the_first(panel):
    panel = panel.copy()
    panel.X[0, :4] = np.nan
    panel.X[0, 4] = 1.0
    masked = mask_reports(panel, 0.3)
    hidden = masked.layers["hidden"]
    n_reports = (~np.isnan(panel.X)).sum(1)
    np.testing.assert_array_equal(hidden.sum(1), np.floor(0.3 * n_reports + 1e-9))
    first = (~np.isnan(panel.X)).argmax(1)
    assert not hidden[np.arange(40), first].any()
    np.testing.assert_array_equal(np.isnan(masked.X), np.isnan(panel.X) | hidden)
    np.testing.assert_array_equal(masked.layers["unmasked"], panel.X)


def test_seventy_days_lose_seven_and_fifty_two_as_published():
    panel = full(dp.datasets.simulate_reports(3, 70))
    for fraction, n in ((0.1, 7), (0.25, 17), (0.5, 35), (0.75, 52)):
        assert (mask_reports(panel, fraction).layers["hidden"].sum(1) == n).all()


def test_every_day_but_the_first_is_equally_likely_to_be_hidden():
    panel = full(dp.datasets.simulate_reports(4000, 11))
    share = mask_reports(panel, 0.3).layers["hidden"].mean(0)
    assert share[0] == 0
    # 3 of 10 days; four standard errors of a proportion over 4,000 units.
    assert (np.abs(share[1:] - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)).all()


def test_chains_hide_gaps_with_the_given_transitions():
    panel = full(dp.datasets.simulate_reports(1500, 60))
    hidden = mask_reports(panel, p_start=0.05, p_stay=0.8).layers["hidden"]
    before, now = hidden[:, :-1], hidden[:, 1:]
    assert abs(now[~before].mean() - 0.05) < 0.005
    assert abs(now[before].mean() - 0.8) < 0.015


def test_a_fraction_with_lasting_gaps_hides_that_share_in_the_long_run():
    panel = full(dp.datasets.simulate_reports(1500, 90))
    hidden = mask_reports(panel, 0.4, p_stay=0.85).layers["hidden"]
    assert abs(hidden[:, 45:].mean() - 0.4) < 0.02


def test_the_seed_decides_and_neither_the_panel_nor_the_global_state_is_changed(panel):
    before = panel.X.copy()
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, same, other = (mask_reports(panel, 0.2, random_state=seed).X for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other, equal_nan=True)
    np.testing.assert_array_equal(panel.X, before)
    assert set(panel.layers) - {None} == {"incidence", "complete"}
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_reports_may_be_in_a_layer(panel):
    masked = mask_reports(panel, 0.2, layer="complete")
    assert np.isnan(masked.layers["complete"]).sum() == 40 * 10
    np.testing.assert_array_equal(masked.X, panel.X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give fraction"),
        ({"fraction": 0.5, "p_start": 0.1, "p_stay": 0.5}, "Give fraction"),
        ({"p_start": 0.1}, "p_start and p_stay"),
        ({"fraction": 1.0}, "from 0 to below 1; it is 1.0"),
        ({"fraction": -0.1}, "fraction is the share"),
        ({"fraction": 0.75, "p_stay": 0.1}, "cannot hide 75% of the days. Raise p_stay"),
        ({"p_start": 0.1, "p_stay": 1.5}, "p_stay is a probability"),
    ],
)
def test_what_cannot_be_hidden_is_refused(panel, options, message):
    with pytest.raises(ValueError, match=message):
        mask_reports(panel, **options)


# --- recovering --------------------------------------------------------------------------------------------------


def study(adata, **options):
    defaults = {"fractions": 0.5, "n_repeats": 2, "methods": "all"}
    if not {*np.atleast_1d(options.get("methods", "all"))} <= {"locf", "linear"}:
        defaults["covariates"] = "incidence"
    return censoring_study(adata, **defaults | options)


def test_errors_are_those_of_the_hidden_days(panel):
    """The last value carried forward and the straight line, written with pandas."""
    adata = full(panel)
    table = study(adata, fractions=0.3, n_repeats=1, methods=["locf", "linear"], random_state=5)
    hidden = mask_reports(adata, 0.3, random_state=5).layers["hidden"]
    seen = pd.DataFrame(np.where(hidden, np.nan, adata.X))
    for method, values in (("locf", seen.ffill(axis=1)), ("linear", seen.interpolate(axis=1))):
        rows = table[table["method"] == method]
        squares = np.where(hidden, adata.X - values, 0) ** 2
        np.testing.assert_allclose(rows["sse"], squares.sum(1))
        np.testing.assert_allclose(rows["mse"], squares.sum(1) / 15)
        np.testing.assert_allclose(rows["mse_all_days"], squares.sum(1) / 49)


def test_every_method_recovers_every_unit_in_every_repetition(panel):
    adata = full(panel)
    table = study(adata, fractions=[0.1, 0.5])
    assert len(table) == 2 * 2 * len(METHODS) * 40
    assert not table.duplicated(["fraction", "repeat", "method", "unit"]).any()
    assert np.isfinite(table["sse"]).all()
    assert set(table["method"]) == set(METHODS)


def test_all_methods_are_asked_for_the_same_days(panel):
    n_hidden = study(full(panel)).pivot_table(index=["repeat", "unit"], columns="method", values="n_hidden")
    assert (n_hidden.nunique(axis=1) == 1).all()


def test_with_both_sides_known_the_smoother_beats_the_filter_and_the_filter_the_last_value():
    """Where the model is true and shared, this order is a theorem for the expected error; 100 units suffice to see it."""
    adata = dp.datasets.simulate_reports(100, 70, family="normal", silent=0, p_start=0)
    adata.obsm["params_true"][:] = [0.5, -0.2, 0.1]
    rng = np.random.default_rng(0)
    z, y = adata.layers["incidence"], np.empty(adata.shape)
    y[:, 0] = 5
    for t in range(1, 70):
        y[:, t] = y[:, t - 1] * 0.8 + 0.5 + 0.1 * z[:, t - 1] + rng.standard_normal(100)
    adata.X = y
    error = study(adata, methods=["locf", "linear", "filter_global", "smooth_global"]).groupby("method")["sse"].sum()
    assert error["smooth_global"] < error["filter_global"] < error["locf"]
    assert error["smooth_global"] < error["linear"]


def test_intervals_of_a_true_model_cover_what_they_promise():
    adata = dp.datasets.simulate_reports(150, 70, family="normal", silent=0, p_start=0)
    table = study(adata, methods=["locf", "smooth_partial", "filter_partial"], n_repeats=1, interval=0.9)
    covered = table.groupby("method")["covered"].mean()
    assert np.isnan(covered["locf"])
    assert 0.86 < covered["smooth_partial"] < 0.94
    assert 0.86 < covered["filter_partial"] < 0.94


def test_with_three_quarters_hidden_nothing_explodes():
    """Every increment method stays within twice the error of the last value, in every single unit that moves."""
    adata = full(dp.datasets.simulate_reports(150, 70, silent=0, p_start=0))
    table = study(adata, fractions=0.75, n_repeats=3)
    sse = table.pivot_table(index="unit", columns="method", values="sse", aggfunc="sum")
    ours = [name for name in sse if name.startswith(("filter", "smooth"))]
    assert sse[ours].sum().max() < 1.3 * sse["locf"].sum()
    assert (sse[ours].max(axis=1) < 6 * (sse["locf"] + 70)).all()


def test_only_complete_units_are_used_unless_told_otherwise(panel):
    n_complete = (~np.isnan(panel.X)).all(1).sum()
    assert 0 < n_complete < 40
    options = {"methods": "locf", "n_repeats": 1}
    assert study(panel, **options)["unit"].nunique() == n_complete
    assert study(panel, complete_only=False, **options)["unit"].nunique() == 40
    gaps = panel.copy()
    gaps.X[:, 7] = np.nan
    with pytest.raises(ValueError, match="complete_only=False"):
        study(gaps, **options)


def test_lasting_gaps_are_harder_than_single_days(panel):
    adata = full(panel)
    single, lasting = (study(adata, methods="locf", n_repeats=5, p_stay=p)["sse"].sum() for p in (None, 0.9))
    assert lasting > single


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "kriging"}, "no method 'kriging'; there are locf, linear"),
        ({"methods": []}, "methods is empty"),
        ({"fractions": 1.2}, "fraction is the share"),
        ({"n_repeats": 0}, "n_repeats must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(panel, options, message):
    with pytest.raises(ValueError, match=message):
        study(panel, **options)
