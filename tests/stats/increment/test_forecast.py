"""Forecasts and imputed values are those of a Kalman filter and smoother; intervals cover."""

import numpy as np
import pytest
from scipy.stats import norm

from dynapath.stats.increment.fit import fit
from dynapath.stats.increment.forecast import bounds, forecast
from dynapath.stats.increment.impute import impute

from .conftest import make_panel
from .test_recursion import ExactARX


def smoothed_by_statsmodels(panel, dynamics, u):
    start = int(np.argmax(~np.isnan(panel.y[u])))
    model = ExactARX(panel.y[u, start:], panel.z[0, u, start:], dynamics.params[u], dynamics.sigma2[u])
    return start, model.ssm.smooth()


def test_forecasts_are_those_of_a_kalman_filter(panel):
    panel.y[3, -5:] = np.nan
    dynamics = fit(panel).dynamics
    future = np.abs(np.random.default_rng(0).normal(2, 1, (1, panel.n_units, 4)))
    ahead = forecast(dynamics, panel, horizon=4, future=future)
    for u in range(panel.n_units):
        longer = panel.y[u].tolist() + [np.nan] * 4
        start = int(np.argmax(~np.isnan(panel.y[u])))
        z = np.concatenate([panel.z[0, u], future[0, u]])
        kalman = ExactARX(np.array(longer[start:]), z[start:], dynamics.params[u], dynamics.sigma2[u]).ssm.filter()
        np.testing.assert_allclose(ahead.mean[u], kalman.filtered_state[0, -4:], rtol=1e-10)
        np.testing.assert_allclose(ahead.sd[u] ** 2, kalman.filtered_state_cov[0, 0, -4:], rtol=1e-10)


def test_the_bridge_is_a_kalman_smoother():
    panel, _ = make_panel(missing=0.5, seed=5)
    dynamics = fit(panel).dynamics
    filled = impute(dynamics, panel, mode="smooth")
    for u in range(panel.n_units):
        start, peer = smoothed_by_statsmodels(panel, dynamics, u)
        np.testing.assert_allclose(filled.mean[u, start:], peer.smoothed_state[0], atol=1e-10)
        np.testing.assert_allclose(filled.sd[u, start:] ** 2, peer.smoothed_state_cov[0, 0], atol=1e-10)
        assert np.isnan(filled.mean[u, :start]).all()


def test_the_filter_is_the_state_and_equals_the_smoother_after_the_last_report(panel):
    panel.y[:, -4:] = np.nan
    found = fit(panel)
    forward, both = (impute(found.dynamics, panel, mode=mode) for mode in ("filter", "smooth"))
    np.testing.assert_array_equal(forward.mean, found.state)
    np.testing.assert_array_equal(forward.mean[:, -4:], both.mean[:, -4:])
    np.testing.assert_array_equal(both.mean[panel.observed], panel.y[panel.observed])


def test_smoothing_is_closer_to_the_truth_than_the_filter():
    whole, _ = make_panel(n_units=60, n_days=120, missing=0.0, seed=8)
    mask = np.zeros(whole.y.shape, bool)
    mask[:, 20:26] = mask[:, 60:66] = True
    panel = whole.with_y(np.where(mask, np.nan, whole.y))
    dynamics = fit(panel).dynamics
    error = {m: ((impute(dynamics, panel, mode=m).mean - whole.y)[mask] ** 2).mean() for m in ("filter", "smooth")}
    assert error["smooth"] < 0.85 * error["filter"]


@pytest.mark.parametrize("mode", ["filter", "smooth"])
def test_intervals_of_imputed_values_cover(mode):
    whole, _ = make_panel(n_units=100, n_days=200, missing=0.0, seed=9)
    mask = np.random.default_rng(0).random(whole.y.shape) < 0.3
    mask[:, 0] = False
    panel = whole.with_y(np.where(mask, np.nan, whole.y))
    filled = impute(fit(panel).dynamics, panel, mode=mode, interval=0.9)
    inside = ((filled.lower <= whole.y) & (whole.y <= filled.upper))[mask].mean()
    assert 0.88 < inside < 0.92
    np.testing.assert_array_equal(filled.lower[~mask], whole.y[~mask])


@pytest.mark.parametrize("pooling", ["individual", "partial"])
def test_intervals_of_forecasts_cover_with_the_uncertainty_of_the_coefficients(pooling):
    whole, _ = make_panel(n_units=800, n_days=46, missing=0.1, seed=10)
    panel = whole.until(39)
    found = fit(panel, pooling=pooling, se="hessian")
    ahead = forecast(found.dynamics, panel, horizon=6, future=whole.z[:, :, 40:])
    seen = whole.observed[:, 40:]
    inside = ((ahead.lower <= whole.y[:, 40:]) & (whole.y[:, 40:] <= ahead.upper))[seen].mean()
    assert 0.87 < inside < 0.93
    plain = forecast(fit(panel, pooling=pooling).dynamics, panel, horizon=6, future=whole.z[:, :, 40:])
    assert (ahead.sd >= plain.sd).all()


def test_forecasts_start_from_the_state_or_from_the_last_report(panel):
    panel.y[0, -3:] = np.nan
    found = fit(panel)
    last = panel.y[0, -4]
    b, z = found.params[0], panel.z[0, 0, -1]
    carried = forecast(found.dynamics, panel, start="locf")
    assert carried.origin[0] == last
    assert carried.mean[0, 0] == pytest.approx(last + b[0] + b[1] * last + b[2] * z)
    state = forecast(found.dynamics, panel, start="state")
    assert state.origin[0] == found.state[0, -1]
    with pytest.raises(ValueError, match="'state' or 'locf'"):
        forecast(found.dynamics, panel, start="last")


def test_constant_units_are_forecast_by_their_last_report_and_silent_ones_not_at_all(panel):
    y = panel.y.copy()
    y[0], y[1] = 3.0, np.nan
    quiet = panel.with_y(y)
    ahead = forecast(fit(quiet).dynamics, quiet)
    assert ahead.mean[0, 0] == 3.0
    assert np.isnan(ahead.sd[0, 0])
    assert np.isnan(ahead.mean[1, 0])
    assert np.isfinite(ahead.mean[2:]).all()
    assert np.isfinite(ahead.sd[2:]).all()


def test_a_covariate_that_the_forecast_needs_is_named(panel):
    panel.z[0, 4, -1] = np.nan
    with pytest.raises(ValueError, match="'unit4' on 59"):
        forecast(fit(panel).dynamics, panel)


def test_intervals_of_counts_are_whole_and_never_negative():
    mean, sd = np.array([0.05, 2.0, 40.0]), np.array([0.3, 1.8, 9.0])
    lower, upper = bounds(mean, sd, 0.9, counts=True)
    assert (lower >= 0).all()
    np.testing.assert_array_equal(lower, np.round(lower))
    np.testing.assert_allclose(upper[2], mean[2] + norm.ppf(0.95) * sd[2], rtol=0.05)


def test_forecasts_of_counts_cover():
    rng = np.random.default_rng(0)
    whole, _ = make_panel(n_units=300, n_days=81, missing=0.0, seed=3)
    y = np.full(whole.y.shape, 3.0)
    for t in range(1, 81):
        y[:, t] = rng.poisson(0.8 * y[:, t - 1] + 0.2 + 0.3 * whole.z[0, :, t - 1])
    panel = whole.with_y(y).until(79)
    found = fit(panel, loss="poisson", se="hessian")
    ahead = forecast(found.dynamics, panel)
    inside = (ahead.lower[:, 0] <= y[:, 80]) & (y[:, 80] <= ahead.upper[:, 0])
    assert 0.88 < inside.mean() <= 0.98  # discrete intervals hold at least what they promise


def test_an_unknown_mode_of_imputation_is_refused(panel):
    with pytest.raises(ValueError, match="'filter'.*'smooth'"):
        impute(fit(panel).dynamics, panel, mode="both")
