"""Standard errors, by theory and by refits, are those seen over simulated panels; refits take out the known bias."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from dynapath.read.panel import Panel
from dynapath.stats.increment.bootstrap import Bootstrap, _standardised
from dynapath.stats.increment.fit import fit
from dynapath.stats.increment.problem import Problem

from .conftest import make_panel


def test_robust_errors_are_those_of_statsmodels_where_nothing_is_missing(complete):
    found = fit(complete, se="sandwich")
    for u in range(3):
        y, z = complete.y[u], complete.z[0, u]
        X = np.column_stack([np.ones(len(y) - 1), y[:-1], z[:-1]])
        np.testing.assert_allclose(found.se[u], sm.OLS(np.diff(y), X).fit(cov_type="HC1").bse, rtol=1e-8)


def test_errors_of_shared_coefficients_are_clustered_by_unit(complete):
    found = fit(complete, pooling="global", se="sandwich", stable=False)
    y, z = complete.y, complete.z[0]
    X = np.column_stack([np.ones(y[:, 1:].size), y[:, :-1].ravel(), z[:, :-1].ravel()])
    units = np.repeat(range(complete.n_units), complete.n_days - 1)
    peer = sm.OLS(np.diff(y).ravel(), X)
    np.testing.assert_allclose(found.params[0], peer.fit().params, rtol=1e-8)
    clustered = peer.fit(cov_type="cluster", cov_kwds={"groups": units, "use_correction": False})
    n = complete.n_units
    np.testing.assert_allclose(found.se[0], clustered.bse * np.sqrt(n / (n - 1)), rtol=1e-8)


def test_a_shared_coefficient_among_individual_ones_is_a_dummy_regression(complete):
    found = fit(complete, pooling={"z": "global"}, se="hessian", stable=False)
    n = complete.n_units
    y, z = complete.y, complete.z[0]
    own = [np.kron(np.eye(n), np.ones((complete.n_days - 1, 1)))]
    own.append(own[0] * y[:, :-1].reshape(-1, 1))
    X = np.column_stack([*own, z[:, :-1].ravel()])
    peer = sm.OLS(np.diff(y).ravel(), X).fit()
    np.testing.assert_allclose(found.params[:, 0], peer.params[:n], rtol=1e-7)
    np.testing.assert_allclose(found.params[:, 1], peer.params[n : 2 * n], rtol=1e-7)
    np.testing.assert_allclose(found.params[:, 2], peer.params[-1], rtol=1e-8)
    # Units have variances of their own here, and one in the regression.
    np.testing.assert_allclose(found.se[0, 2], peer.bse[-1], rtol=0.15)


@pytest.mark.parametrize("weights", ["equal", "gap"])
def test_errors_with_missing_reports_are_those_seen_between_simulated_panels(weights):
    panel, _ = make_panel(n_units=400, n_days=300, missing=0.4, seed=1, spread=0.0)
    for se in ("hessian", "sandwich"):
        found = fit(panel, weights=weights, se=se)
        # Four hundred units with the same truth: the spread of their estimates is known to 4 %.
        np.testing.assert_allclose(np.sqrt((found.se**2).mean(0)), found.params.std(0), rtol=0.12)


def test_weights_by_gap_are_more_efficient_when_gaps_are_long():
    panel, truth = make_panel(n_units=300, n_days=300, missing=0.6, seed=2, spread=0.0)
    error = {w: ((fit(panel, weights=w).params - truth) ** 2).mean(0) for w in ("equal", "gap")}
    assert (error["gap"][[0, 2]] < error["equal"][[0, 2]]).all()


def test_refits_agree_with_theory_in_long_series():
    panel, _ = make_panel(n_units=6, n_days=300, missing=0.1)
    theory = fit(panel, se="hessian").se
    for kind in ("parametric", "residual"):
        found = fit(panel, se="bootstrap", bootstrap=Bootstrap(200, kind), progress=False)
        # 200 refits give a standard error to 5 %.
        np.testing.assert_allclose(found.se, theory, rtol=0.2)


def test_the_known_bias_of_short_autoregressions_is_found_and_removed():
    """Kendall's -(1 + 3 a) / T of an autoregression with a mean; the covariate plays no part in it."""
    rng = np.random.default_rng(0)
    n_units, n_days, a = 400, 40, 0.7
    y = np.zeros((n_units, n_days + 50))
    for t in range(1, n_days + 50):
        y[:, t] = 2.0 + a * y[:, t - 1] + rng.standard_normal(n_units)
    units, days = pd.Index(map(str, range(n_units))), pd.Index(map(str, range(n_days)))
    none = np.array([], dtype=int)
    panel = Panel(y[:, 50:].copy(), np.empty((0, n_units, n_days)), (), none, none, units, days)
    plain = fit(panel, stable=False)
    corrected = fit(panel, stable=False, bias_correction=True, bootstrap=Bootstrap(60), progress=False)
    kendall = -(1 + 3 * a) / n_days
    assert np.mean(plain.params[:, 1]) - (a - 1) == pytest.approx(kendall, abs=0.02)
    assert abs(np.mean(corrected.params[:, 1]) - (a - 1)) < 0.3 * abs(kendall)


def test_the_same_seed_gives_the_same_errors_and_the_sessions_state_is_untouched(panel):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two, other = (
        fit(panel, se="bootstrap", bootstrap=Bootstrap(5), random_state=seed, progress=False) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.se, two.se)
    assert not np.array_equal(one.se, other.se)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_refits_leave_units_without_an_estimate_without_errors(panel):
    y = panel.y.copy()
    y[0], y[1] = 3.0, np.nan
    for pooling in ("individual", "global", "partial"):
        found = fit(panel.with_y(y), pooling=pooling, se="bootstrap", bootstrap=Bootstrap(5), progress=False)
        assert np.isfinite(found.se[2:]).all()
        assert np.isfinite(found.se[:2]).all() == (pooling == "global")


def test_residuals_that_are_drawn_again_are_standardised(panel):
    problem = Problem(panel)
    drawn, n = _standardised(problem, fit(panel).params, 3)
    sigma = np.sqrt(fit(panel).sigma2)
    for u in range(panel.n_units):
        assert drawn[u, : n[u]].mean() == pytest.approx(0.0, abs=1e-12)
        assert drawn[u, : n[u]].std() == pytest.approx(sigma[u], rel=0.1)


def test_residuals_of_counts_are_not_drawn_again(panel):
    with pytest.raises(ValueError, match="kind='parametric'"):
        fit(panel.with_y(np.round(panel.y)), loss="poisson", se="bootstrap", bootstrap=Bootstrap(3, "residual"))


def test_settings_of_the_bootstrap_are_checked():
    with pytest.raises(ValueError, match="n_refits=1"):
        Bootstrap(1)
    with pytest.raises(ValueError, match="'wild'"):
        Bootstrap(10, "wild")


@pytest.mark.slow
def test_intervals_cover_in_long_series():
    """90 % intervals of 600 units; a share of 600 has a standard error of .012."""
    long, truth = make_panel(n_units=600, n_days=500, missing=0.06, seed=11)
    for se in ("hessian", "sandwich"):
        found = fit(long, se=se)
        inside = np.abs(found.params - truth) <= 1.645 * found.se
        assert (inside.mean(0) > 0.87).all()
        assert (inside.mean(0) < 0.93).all()


@pytest.mark.slow
def test_intervals_of_shared_coefficients_cover_in_short_series():
    """Three coefficients in 300 panels: a standard error of .01 to .017, as they are correlated."""
    covered = []
    for seed in range(300):
        same, truth = make_panel(n_units=40, n_days=69, missing=0.06, seed=seed, spread=0.0)
        found = fit(same, pooling="global", se="hessian")
        covered.append(np.abs(found.params[0] - truth[0]) <= 1.645 * found.se[0])
    assert 0.87 < np.mean(covered) < 0.93


@pytest.mark.slow
def test_intervals_of_partially_pooled_units_and_of_their_mean_cover_in_short_series():
    """Of units, the shares of a panel depend on what it tells of the spread: by .09 for the intercept, .02 over 24."""
    mean = np.array([1.2, -0.25, 0.3])
    units, means = [], []
    for seed in range(24):
        panel, truth = make_panel(n_units=150, n_days=69, missing=0.06, seed=1000 + seed)
        found = fit(panel, pooling="partial", se="hessian")
        units.append((np.abs(found.params - truth) <= 1.645 * found.se).mean(0))
        of_mean = np.sqrt(np.diag(found.dynamics.mean_covariance))
        means.append(np.abs(found.dynamics.mean - mean) <= 1.645 * of_mean)
    assert (np.mean(units, axis=0) > 0.87).all()
    assert (np.mean(units, axis=0) < 0.93).all()
    assert 0.82 < np.mean(means) < 0.97  # of 72, of which a share has a standard error of .035


@pytest.mark.parametrize("seed", [1, 8, 11])
def test_a_spread_that_is_estimated_as_small_does_not_make_intervals_certain(seed):
    """Intercepts vary by .1, which 30 days of 30 units do not show: a unit may be further from the mean than it seems."""
    panel, _ = make_panel(n_units=30, n_days=30, missing=0.06, seed=seed)
    found = fit(panel, pooling="partial", se="hessian")
    spread, of_mean = found.dynamics.spread[0, 0], found.dynamics.mean_covariance[0, 0]
    assert np.sqrt(spread) < 0.05
    assert (found.se[:, 0] ** 2 > of_mean + spread + 0.1**2).all()


def test_two_units_are_enough_for_errors_of_partially_pooled_coefficients(panel):
    found = fit(panel.take(np.arange(2)), pooling="partial", se="hessian")
    assert np.isfinite(found.se).all()
    assert np.isfinite(found.dynamics.mean_covariance).all()
