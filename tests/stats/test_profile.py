"""dp.stats.profile_loss: the loss over one coefficient, the others at their best."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

import dynapath as dp
from dynapath.stats.profile import profile_loss


@pytest.fixture(scope="module")
def panel():
    return dp.datasets.simulate_reports(6, 60, family="normal", silent=0, p_start=0.1)


def loss(b, y, z):
    """The recursion, written out."""
    s, total, n = np.nan, 0.0, 0
    for t in range(len(y)):
        if np.isnan(s):
            s = y[t]
            continue
        s = s + b[0] + b[1] * s + b[2] * z[t - 1]
        if not np.isnan(y[t]):
            total, n, s = total + (y[t] - s) ** 2, n + 1, y[t]
    return total / n


@pytest.mark.parametrize(("coefficient", "at"), [("intercept", 0), ("state", 1), ("incidence", 2)])
def test_each_point_is_the_smallest_loss_with_that_value(panel, coefficient, at):
    values = [-0.3, -0.05]
    table = profile_loss(panel, units="0002", coefficient=coefficient, values=values, covariates="incidence")
    y, z = panel["0002"].X[0], panel["0002"].layers["incidence"][0]
    for value, found in zip(values, table["loss"], strict=True):
        others = minimize(lambda free, v=value: loss(np.insert(free, at, v), y, z), np.zeros(2), tol=1e-12)
        np.testing.assert_allclose(found, others.fun, rtol=1e-7)


def test_without_gaps_the_profile_is_a_parabola():
    panel = dp.datasets.simulate_reports(1, 40, family="normal", silent=0, p_start=0)
    table = profile_loss(panel, units="0001", covariates="incidence", values=np.linspace(-1, 0, 9))
    np.testing.assert_allclose(np.diff(table["loss"], 3), 0, atol=1e-9 * table["loss"].max())


def test_the_threshold_is_that_of_the_likelihood_ratio(panel):
    table = profile_loss(panel, units="0003", coefficient="incidence", covariates="incidence", level=0.95)
    n = (~np.isnan(panel["0003"].X)).sum() - 1
    assert (table["n"] == n).all()
    np.testing.assert_allclose(n * np.log(table["threshold"] / table["loss"].min()), 3.8415, rtol=1e-3)
    assert table["loss"].iloc[[0, -1]].min() > table["threshold"].iloc[0]  # the grid is wide enough


def test_the_profile_interval_is_that_of_least_squares_without_gaps():
    """Profile likelihood against t statistics of statsmodels: the same up to chi2 for F, 1 % at n = 400."""
    sm = pytest.importorskip("statsmodels.api")
    panel = dp.datasets.simulate_reports(1, 401, family="normal", silent=0, p_start=0)
    y, z = panel.X[0], panel.layers["incidence"][0]
    fit = sm.OLS(np.diff(y), np.column_stack([np.ones(400), y[:-1], z[:-1]])).fit()
    low, high = fit.conf_int(0.1)[1]
    table = profile_loss(panel, units="0001", covariates="incidence", values=np.linspace(low - 0.02, high + 0.02, 801))
    inside = table.loc[table["loss"] <= table["threshold"], "value"]
    np.testing.assert_allclose([inside.min(), inside.max()], [low, high], atol=0.015 * (high - low) + 1e-4)


def test_units_with_too_few_reports_have_no_profile(panel):
    short = panel.copy()
    short.X[0, 3:] = np.nan
    assert profile_loss(short, units="0001", covariates="incidence").empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": "999"}, "'999' is no unit"),
        ({"units": []}, "units is empty"),
        ({"units": "0001", "coefficient": "cases"}, "no coefficient 'cases'; there are intercept, state, incidence"),
        ({"units": "0001", "values": [np.nan]}, "must be finite"),
        ({"units": "0001", "values": [(-0.5, 0.0)]}, "in one list"),
    ],
)
def test_what_does_not_exist_is_refused(panel, options, message):
    with pytest.raises(ValueError, match=message):
        profile_loss(panel, covariates="incidence", **options)
