"""The recursion is that of the publication, and a Kalman filter; its derivatives are exact."""

import numpy as np
import pytest
from statsmodels.tsa.statespace.mlemodel import MLEModel

from dynapath.read.panel import Panel
from dynapath.stats.increment.recursion import (
    COUNT,
    CURVATURE,
    DLOG_V,
    LOG_V,
    LOSS,
    LOSS_DLOG_V,
    LOSSES,
    SECOND_0,
    accumulate_all,
    derivatives,
    follow,
)

from .conftest import make_panel


def loss_of(panel, params, kind="squared", tuning=0.0, gap=False):
    return accumulate_all(
        panel.y, panel.z, panel.source, panel.lag, panel.first_day, params, LOSSES[kind],
        np.full(panel.n_units, tuning), gap, CURVATURE,
    )  # fmt: skip


def as_published(y, z, b):
    """The recursion written out for one unit and one covariate, as in the paper."""
    seen, s, squares, n = False, 0.0, 0.0, 0
    for t in range(len(y)):
        if not seen:
            if not np.isnan(y[t]):
                s, seen = y[t], True
            continue
        d = b[0] + b[1] * s + b[2] * z[t - 1]
        if np.isnan(y[t]):
            s = s + d
        else:
            squares, n, s = squares + (y[t] - s - d) ** 2, n + 1, y[t]
    return squares, n


class ExactARX(MLEModel):
    """y[t] = (1 + b2) y[t-1] + b1 + b3 z[t-1] + noise, observed without error or not at all."""

    def __init__(self, y, z, b, sigma2):
        super().__init__(y, k_states=1, initialization="known", constant=[y[0]], stationary_cov=[[0.0]])
        self["design", 0, 0] = 1.0
        self["transition", 0, 0] = 1.0 + b[1]
        self["selection", 0, 0] = 1.0
        self["state_cov", 0, 0] = sigma2
        self.ssm["state_intercept"] = (b[0] + b[2] * z)[None, :]


def test_the_loss_is_that_of_the_published_loop(panel):
    params = np.random.default_rng(1).normal([0.2, -0.2, 0.2], 0.05, (panel.n_units, 3))
    sums, _, _ = loss_of(panel, params)
    for u in range(panel.n_units):
        squares, n = as_published(panel.y[u], panel.z[0, u], params[u])
        assert 2 * sums[u, LOSS] == pytest.approx(squares, rel=1e-13)
        assert sums[u, COUNT] == n


def test_innovations_and_likelihood_are_those_of_a_kalman_filter(panel):
    params = np.random.default_rng(1).normal([0.2, -0.2, 0.2], 0.05, (panel.n_units, 3))
    state, resid, variance = follow(panel.y, panel.z, panel.source, panel.lag, params)
    sums, _, _ = loss_of(panel, params, gap=True)
    for u in range(panel.n_units):
        start = int(np.argmax(~np.isnan(panel.y[u])))
        y, z, b = panel.y[u, start:], panel.z[0, u, start:], params[u]
        kalman = ExactARX(y, z, b, sigma2=0.8).ssm.filter()
        seen = ~np.isnan(y)
        seen[0] = False
        np.testing.assert_allclose(resid[u, start:][seen], kalman.forecasts_error[0][seen], atol=1e-12, rtol=0)
        np.testing.assert_allclose(state[u, start:], kalman.filtered_state[0], atol=1e-12, rtol=1e-13)
        np.testing.assert_allclose(0.8 * variance[u, start:], kalman.filtered_state_cov[0, 0], atol=1e-12)
        # Normal log-likelihood of the innovations, from the sums: the start is known and has none.
        n = sums[u, COUNT]
        log = -0.5 * (n * np.log(2 * np.pi * 0.8) + sums[u, LOG_V]) - sums[u, LOSS] / 0.8
        assert log == pytest.approx(kalman.llf_obs[seen].sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "tuning"), [("squared", 0.0), ("huber", 0.5), ("poisson", 0.0), ("negative_binomial", 0.3)]
)
def test_the_gradient_is_exact(kind, tuning):
    panel, _ = make_panel(n_units=6, n_covariates=2, lags=((0, 1), (0, 2), (1, 0)), missing=0.4)
    panel = panel.with_y(np.abs(np.round(panel.y)))
    params = np.random.default_rng(1).normal([0.3, -0.2, 0.2, 0.1, 0.1], 0.03, (6, 5))
    _, gradient, _ = loss_of(panel, params, kind, tuning)
    for k in range(5):
        step = np.zeros(5)
        step[k] = 1e-6
        up, down = (loss_of(panel, params + sign * step, kind, tuning)[0][:, LOSS] for sign in (1, -1))
        numeric = (up - down) / 2e-6
        np.testing.assert_allclose(gradient[:, k], numeric, rtol=1e-7, atol=1e-7 * np.abs(gradient).max())


def test_the_gradient_of_the_variances_after_gaps_is_exact(panel):
    params = np.random.default_rng(1).normal([0.2, -0.2, 0.2], 0.05, (panel.n_units, 3))
    sums, gradient, _ = loss_of(panel, params, gap=True)
    up, down = (loss_of(panel, params + [0, s * 1e-6, 0], gap=True)[0] for s in (1, -1))
    numeric = (up - down) / 2e-6
    np.testing.assert_allclose(sums[:, DLOG_V], numeric[:, LOG_V], rtol=1e-6)
    np.testing.assert_allclose(gradient[:, 1] - sums[:, LOSS_DLOG_V], numeric[:, LOSS], rtol=1e-6)


def test_what_was_not_reported_cannot_matter(panel):
    params = np.full((panel.n_units, 3), [0.3, -0.2, 0.2])
    before = loss_of(panel, params)
    z = panel.z.copy()
    observed = panel.observed
    first, last = observed.argmax(1), panel.n_days - 1 - observed[:, ::-1].argmax(1)
    for u in range(panel.n_units):
        z[:, u, : first[u]] = np.nan
        z[:, u, last[u] :] = np.nan
    again = accumulate_all(panel.y, z, panel.source, panel.lag, 0, params, 0, np.zeros(panel.n_units), False, CURVATURE)
    for a, b in zip(before, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_states_are_nan_before_the_first_report_and_reports_where_there_are_some(panel):
    panel.y[0, :5] = np.nan
    state, resid, _ = follow(panel.y, panel.z, panel.source, panel.lag, np.full((panel.n_units, 3), [0.3, -0.2, 0.2]))
    assert np.isnan(state[0, :5]).all()
    np.testing.assert_array_equal(state[panel.observed], panel.y[panel.observed])
    assert (np.isfinite(resid).sum(1) == panel.observed.sum(1) - 1).all()


def test_derivatives_of_the_last_state_are_exact(panel):
    panel.y[:, -4:] = np.nan
    params = np.full((panel.n_units, 3), [0.3, -0.2, 0.2])
    found = derivatives(panel.y, panel.z, panel.source, panel.lag, params)
    for k in range(3):
        step = np.zeros(3)
        step[k] = 1e-6
        up, down = (follow(panel.y, panel.z, panel.source, panel.lag, params + s * step)[0][:, -1] for s in (1, -1))
        np.testing.assert_allclose(found[:, k], (up - down) / 2e-6, rtol=1e-6)


def test_the_short_way_for_one_covariate_is_the_long_way(panel):
    params = np.random.default_rng(1).normal([0.2, -0.2, 0.2], 0.05, (panel.n_units, 3))
    short = loss_of(panel, params)
    z = np.concatenate([panel.z, np.zeros_like(panel.z)])
    two = Panel(panel.y, z, ("z", "x"), np.array([0, 1]), np.array([1, 1]), panel.units, panel.days)
    long = loss_of(two, np.column_stack([params, np.zeros(panel.n_units)]))
    np.testing.assert_allclose(short[0][:, :SECOND_0], long[0][:, :SECOND_0], rtol=1e-12)
    np.testing.assert_allclose(short[1], long[1][:, :3], rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(short[2], long[2][:, :3, :3], rtol=1e-12)


def test_second_derivatives_are_exact(panel):
    params = np.random.default_rng(1).normal([0.2, -0.2, 0.2], 0.05, (panel.n_units, 3))
    sums, _, H = loss_of(panel, params)
    hessian = H.copy()
    hessian[:, 1, :] -= sums[:, SECOND_0:]
    hessian[:, [0, 2], 1] -= sums[:, [SECOND_0, SECOND_0 + 2]]
    for k in range(3):
        step = np.zeros(3)
        step[k] = 1e-6
        up, down = (loss_of(panel, params + sign * step)[1] for sign in (1, -1))
        np.testing.assert_allclose(hessian[:, k], (up - down) / 2e-6, rtol=1e-6, atol=1e-6 * np.abs(H).max())
