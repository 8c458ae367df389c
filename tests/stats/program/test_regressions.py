"""Programs that are known models give what the libraries for these models give."""

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy.optimize import curve_fit, least_squares

import dynapath as dp

CLOSE = {"rtol": 1e-5, "atol": 1e-8}


@pytest.fixture(scope="module")
def design():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(150), rng.normal(size=150), rng.uniform(-1, 1, 150)])
    return rng, x, x @ [0.3, -0.5, 0.8]


def check(fitted, reference, *, se=True):
    table = fitted.summary()
    assert (table["status"] == "ok").all()
    np.testing.assert_allclose(table["estimate"], reference.params, **CLOSE)
    if se:
        np.testing.assert_allclose(table["se"], reference.bse, **CLOSE)


def test_linear_regression(design):
    rng, x, mean = design
    y = mean + rng.normal(size=150)
    program = lambda p, x, y: y - x @ p["beta"]
    fit = lambda se: dp.stats.estimate(
        program, {"x": x, "y": y}, params={"beta": np.zeros(3)}, per="all", kind="residuals", se=se
    )
    reference = sm.OLS(y, x)
    check(fit("hessian"), reference.fit())
    check(fit("sandwich"), reference.fit(cov_type="HC1"))
    table, ends = fit("hessian").summary(level=0.9), reference.fit().conf_int(0.1)
    np.testing.assert_allclose(table[["lower", "upper"]], ends, **CLOSE)
    assert fit("hessian").sigma2[0] == pytest.approx(reference.fit().mse_resid)


def test_logistic_regression(design):
    rng, x, mean = design
    y = rng.binomial(1, 1 / (1 + np.exp(-mean))).astype(float)

    def program(p, x, y):
        eta = x @ p["beta"]
        return torch.nn.functional.softplus(eta) - y * eta

    for se, settings in (("hessian", {}), ("sandwich", {"cov_type": "HC1"})):
        fitted = dp.stats.estimate(program, {"x": x, "y": y}, params={"beta": np.zeros(3)}, per="all", se=se)
        check(fitted, sm.Logit(y, x).fit(disp=0, tol=1e-12, **settings))
    assert fitted.loss[0] == pytest.approx(-sm.Logit(y, x).fit(disp=0).llf)


def test_poisson_regression(design):
    rng, x, mean = design
    y = rng.poisson(np.exp(mean))

    def program(p, x, y):
        eta = x @ p["beta"]
        return y * eta - torch.exp(eta) - torch.lgamma(y + 1.0)

    data = {"x": x, "y": y}
    for method in ("auto", "lbfgs"):
        fitted = dp.stats.estimate(program, data, params={"beta": np.zeros(3)}, per="all", kind="loglik", method=method)
        check(fitted, sm.Poisson(y, x).fit(disp=0, tol=1e-12))


def test_negative_binomial_regression(design):
    rng, x, mean = design
    y = rng.negative_binomial(2, 2 / (2 + np.exp(mean)))

    def program(p, x, y):
        mu, r = torch.exp(x @ p["beta"]), 1 / p["alpha"]
        return -(
            torch.lgamma(y + r) - torch.lgamma(r) - torch.lgamma(y + 1.0)
            + r * torch.log(r / (r + mu)) + y * torch.log(mu / (r + mu))
        )  # fmt: skip

    reference = sm.NegativeBinomial(y, x).fit(disp=0, maxiter=500, gtol=1e-10)
    start = {"beta": np.zeros(3), "alpha": 1.0}
    fitted = dp.stats.estimate(program, {"x": x, "y": y}, params=start, per="all", constraints={"alpha": "positive"})
    check(fitted, reference)
    # The number of the same shape in free form has the same error; so the delta method was right.
    check(dp.stats.estimate(program, {"x": x, "y": y}, params=start, per="all"), reference)


def test_many_regressions_at_once_are_those_of_each_unit(design):
    rng, x, _ = design
    x = x[:30]
    y = rng.poisson(np.exp(rng.normal(0.5, 0.3, (6, 1)) + 0.4 * x[:, 1]))
    program = lambda p, x, y: torch.exp(x @ p["beta"]) - y * (x @ p["beta"])
    fitted = dp.stats.estimate(program, {"x": x, "y": y}, params={"beta": np.zeros(3)}, shared="x")
    for unit in range(6):
        reference = sm.Poisson(y[unit], x).fit(disp=0, tol=1e-12)
        np.testing.assert_allclose(fitted.params["beta"][unit], reference.params, **CLOSE)
        np.testing.assert_allclose(fitted.se["beta"][unit], reference.bse, **CLOSE)


def test_nonlinear_least_squares_is_that_of_scipy():
    rng = np.random.default_rng(1)
    t = np.linspace(0, 4, 15)
    curve = lambda t, a, b, c: a * np.exp(-b * t) + c
    y = curve(t, *rng.uniform(0.5, 1.5, (3, 8, 1))) + 0.02 * rng.normal(size=(8, 15))
    program = lambda p, t, y: y - (p["a"] * torch.exp(-p["b"] * t) + p["c"])
    start = {"a": 1.0, "b": 1.0, "c": 1.0}
    fitted = dp.stats.estimate(program, {"t": t, "y": y}, params=start, kind="residuals", shared=["t"])
    for unit in range(8):
        found = least_squares(lambda x, y=y[unit]: y - curve(t, *x), np.ones(3), xtol=1e-14, ftol=1e-14, gtol=1e-14)
        np.testing.assert_allclose(fitted.estimates[unit], found.x, rtol=1e-6)
        _, covariance = curve_fit(curve, t, y[unit], p0=found.x)
        np.testing.assert_allclose(fitted.standard_errors[unit], np.sqrt(np.diag(covariance)), rtol=1e-5)
    assert fitted.loss == pytest.approx([((y[u] - curve(t, *fitted.estimates[u])) ** 2).sum() for u in range(8)])
