"""Programs of many units: what is pooled, and what needs the marginal likelihood."""

import warnings

import numpy as np
import pytest
import statsmodels.api as sm
import torch

import dynapath as dp

SIGMA = 0.5


def normal(p, y):
    return 0.5 * ((y - p["mu"]) / p["sigma"]) ** 2 + torch.log(p["sigma"])


def normal_line(p, x, y):
    return 0.5 * ((y - p["a"] - p["b"] * x) / p["sigma"]) ** 2 + torch.log(p["sigma"])


def negative_binomial(p, y):
    mean, r = torch.exp(p["mu"]), p["r"]
    return -(torch.lgamma(y + r) - torch.lgamma(r) + r * torch.log(r / (r + mean)) + y * torch.log(mean / (r + mean)))


def intercepts(n_units, n, *, seed=0, **effects):
    """Random intercepts of variance 1, and values around them; `effects` are added."""
    rng = np.random.default_rng(seed)
    return rng.normal(1.0, 1.0, (n_units, 1)) + SIGMA * rng.normal(size=(n_units, n)) + sum(effects.values())


def mixed(y, *columns, slopes=(), reml=True):
    """The mixed model with random intercepts."""
    groups = np.repeat(np.arange(len(y)), y.shape[1])
    flat = lambda values: np.broadcast_to(values, y.shape).ravel()
    design = np.column_stack([np.ones(y.size), *map(flat, columns)])
    random = np.column_stack([np.ones(y.size), *map(flat, slopes)])
    return sm.MixedLM(y.ravel(), design, groups, exog_re=random).fit(reml=reml)


SCALE = {"params": {"mu": 0.0, "sigma": 1.0}, "constraints": {"sigma": "positive"}}


@pytest.mark.parametrize(("sigma", "n_units", "n"), [("global", 200, 4), ("global", 10, 10), ("partial", 60, 4)])
def test_a_scale_beside_partially_pooled_parameters_is_refused(sigma, n_units, n):
    needed = r"'sigma' is .* too small by about .*\('mu'\) needs the marginal likelihood.*kind='residuals'.*per='all'"
    with pytest.raises(ValueError, match=needed):
        dp.stats.estimate(normal, {"y": intercepts(n_units, n)}, pooling={"mu": "partial", "sigma": sigma}, **SCALE)


def test_a_scale_beside_random_slopes_is_refused():
    x = np.linspace(-1, 1, 4)
    y = intercepts(100, 4, slope=np.random.default_rng(1).normal(size=(100, 1)) * x)
    start = {"a": 0.0, "b": 0.0, "sigma": 1.0}
    pooling = {"a": "partial", "b": "partial", "sigma": "global"}
    with pytest.raises(ValueError, match=r"'sigma' is shared by all units.*\('a', 'b'\) needs the marginal"):
        dp.stats.estimate(
            normal_line, {"x": x, "y": y}, params=start, pooling=pooling, shared="x", constraints={"sigma": "positive"}
        )


def test_a_dispersion_beside_partially_pooled_means_is_refused():
    rng = np.random.default_rng(0)
    mean = np.exp(rng.normal(1.5, 0.5, (60, 1)))
    y = rng.negative_binomial(3.0, 3.0 / (3.0 + mean), (60, 4)).astype(float)
    settings = {"params": {"mu": 1.0, "r": 1.0}, "constraints": {"r": "positive"}}
    with pytest.raises(ValueError, match="'r' is shared by all units, and would be too large"):
        dp.stats.estimate(negative_binomial, {"y": y}, pooling={"mu": "partial", "r": "global"}, **settings)


def test_nothing_is_written_when_a_fit_is_refused():
    from anndata import AnnData

    adata = AnnData(intercepts(30, 4))
    with pytest.raises(ValueError, match="'sigma'"):
        dp.stats.estimate(normal, adata, pooling={"mu": "partial", "sigma": "global"}, slots={"y": "X"}, **SCALE)
    assert not adata.uns
    assert not adata.obsm


def test_shared_effects_beside_partially_pooled_parameters_are_those_of_a_mixed_model():
    x = np.random.default_rng(1).normal(size=(60, 5))
    y = intercepts(60, 5, effect=0.7 * x)
    reference = mixed(y, x)
    sigma = float(np.sqrt(reference.scale))
    known = lambda p, x, y: 0.5 * ((y - p["a"] - p["b"] * x) / sigma) ** 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fitted = dp.stats.estimate(known, {"x": x, "y": y}, params=["a", "b"], pooling={"a": "partial", "b": "global"})
    np.testing.assert_allclose(fitted.shared.mean, reference.fe_params, atol=0.002)
    np.testing.assert_allclose(np.sqrt(np.diag(fitted.shared.mean_covariance)), reference.bse_fe, rtol=0.02)


def test_effects_of_poisson_counts_beside_partially_pooled_means_are_estimated_and_the_mean_is_warned_of():
    rng = np.random.default_rng(0)
    x, a = rng.normal(size=(150, 4)), rng.normal(0.3, 0.5, (150, 1))
    y = rng.poisson(np.exp(a + 0.7 * x)).astype(float)
    nll = lambda p, x, y: torch.exp(p["a"] + p["b"] * x) - y * (p["a"] + p["b"] * x)
    with pytest.warns(UserWarning, match="mean over units of 'a' is too large by about .* marginal"):
        fitted = dp.stats.estimate(nll, {"x": x, "y": y}, params=["a", "b"], pooling={"a": "partial", "b": "global"})
    # Three standard errors
    assert fitted.shared.mean[1] == pytest.approx(0.7, abs=0.1)


def test_what_the_message_says_of_a_bias_is_what_the_marginal_likelihood_gives():
    # The amplitude is linear, so that its marginal likelihood is a normal density.
    rng = np.random.default_rng(2)
    t = torch.linspace(0, 2, 8, dtype=torch.float64)
    y = (1 + 0.15 * rng.normal(size=(200, 1))) * np.exp(-0.8 * t.numpy()) + 0.3 * rng.normal(size=(200, 8))
    residuals = lambda p, t, y: y - p["a"] * torch.exp(-p["k"] * t)

    def marginal(p, t, y):
        curve = torch.exp(-p["k"] * t)
        V = p["sigma"] ** 2 * torch.eye(8, dtype=y.dtype) + p["tau"] ** 2 * torch.outer(curve, curve)
        return -torch.distributions.MultivariateNormal(p["a"] * curve, V, validate_args=False).log_prob(y)

    data, positive = {"t": t, "y": y}, {"k": "positive"}
    with pytest.warns(UserWarning, match="shared parameter 'k' is too small by about 0.8"):
        joint = dp.stats.estimate(
            residuals, data, params={"a": 1.0, "k": 0.5}, pooling={"a": "partial", "k": "global"},
            kind="residuals", shared="t", constraints=positive,
        )  # fmt: skip
    start = {"a": 1.0, "k": 0.5, "tau": 0.2, "sigma": 0.3}
    whole = dp.stats.estimate(marginal, data, params=start, per="all", constraints=positive)
    from dynapath.stats.program.marginal import left_out

    moved, _ = left_out(joint.problem, joint.free, joint.n > 0, joint.shared)
    assert np.log(joint.params["k"][0]) - np.log(whole.params["k"]) == pytest.approx(moved[1], rel=0.2)


def test_the_recipe_of_the_guide_is_the_mixed_model():
    y = intercepts(200, 4)

    def marginal(p, y):
        n = y.shape[1]
        V = p["sigma"] ** 2 * torch.eye(n, dtype=y.dtype) + p["tau"] ** 2
        return -torch.distributions.MultivariateNormal(p["mu"].expand(n), V, validate_args=False).log_prob(y)

    fitted = dp.stats.estimate(
        marginal, {"y": y}, params={"mu": 0.0, "tau": 1.0, "sigma": 1.0}, per="all",
        constraints={"tau": "positive", "sigma": "positive"},
    )  # fmt: skip
    reference = mixed(y, reml=False)
    assert fitted.params["sigma"] == pytest.approx(np.sqrt(reference.scale), rel=1e-4)
    assert fitted.params["tau"] == pytest.approx(np.sqrt(reference.cov_re[0, 0]), rel=1e-4)
    assert fitted.se["mu"] == pytest.approx(reference.bse_fe[0], rel=1e-4)
    assert fitted.se["sigma"] == pytest.approx(SIGMA / np.sqrt(2 * 600), rel=0.1)


def test_residuals_with_random_slopes_have_the_variance_of_a_mixed_model():
    x = np.linspace(-1, 1, 6)
    y = intercepts(150, 6, slope=np.random.default_rng(1).normal(size=(150, 1)) * x)
    line = lambda p, x, y: y - p["a"] - p["b"] * x
    fitted = dp.stats.estimate(
        line, {"x": x, "y": y}, params=["a", "b"], kind="residuals", pooling="partial", shared="x"
    )
    reference = mixed(y, x, slopes=[x])
    np.testing.assert_allclose(fitted.shared.mean, reference.fe_params, atol=0.01)
    # The mean of log variances, of 4 degrees of freedom each, is known to 6 %.
    assert fitted.sigma2.mean() == pytest.approx(reference.scale, rel=0.15)


def test_an_effect_that_is_constant_within_units_is_that_of_the_mixed_model():
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(80, 1)), rng.normal(size=(80, 3))
    y = intercepts(80, 3, between=0.7 * w, within=0.3 * x)
    residuals = lambda p, w, x, y: y - p["a"] - p["b"] * w - p["c"] * x
    data, pooling = {"w": w[:, 0], "x": x, "y": y}, {"a": "partial", "b": "global", "c": "global"}
    fitted = dp.stats.estimate(residuals, data, params=["a", "b", "c"], kind="residuals", pooling=pooling)
    reference = mixed(y, w, x)
    assert (fitted.status == "ok").all()
    np.testing.assert_allclose(fitted.shared.mean, reference.fe_params, atol=0.02)
    np.testing.assert_allclose(np.sqrt(np.diag(fitted.shared.mean_covariance)), reference.bse_fe, rtol=0.06)


def test_two_observations_suffice_for_one_pooled_parameter_and_a_shared_one():
    x = np.random.default_rng(1).normal(size=(80, 2))
    y = intercepts(80, 2, effect=0.3 * x)
    line = lambda p, x, y: y - p["a"] - p["b"] * x
    fit = lambda pooling: dp.stats.estimate(
        line, {"x": x, "y": y}, params=["a", "b"], kind="residuals", pooling=pooling
    )
    with pytest.raises(ValueError, match=r"more residuals \(2\) than parameters .*\(2\).*marginal.*Share some"):
        fit("partial")
    fitted = fit({"a": "partial", "b": "global"})
    reference = mixed(y, x)
    np.testing.assert_allclose(fitted.shared.mean, reference.fe_params, atol=0.02)
    with pytest.raises(ValueError, match=r"more residuals \(1\) than .*\(1\).* Write the marginal"):
        dp.stats.estimate(lambda p, y: y - p["a"], {"y": y[:, :1]}, params=["a"], kind="residuals", pooling="partial")


def test_an_effect_that_is_constant_within_units_cannot_be_told_from_their_own_parameters():
    w = np.random.default_rng(1).normal(size=30)
    y = intercepts(30, 4, between=0.7 * w[:, None])
    residuals = lambda p, w, y: y - p["a"] - p["b"] * w
    for kind, program in (("residuals", residuals), ("nll", lambda p, w, y: residuals(p, w, y) ** 2)):
        with pytest.raises(ValueError, match="leave 'b' open beside 'a'.*Pool 'a' partially"):
            dp.stats.estimate(program, {"w": w, "y": y}, params=["a", "b"], kind=kind, pooling={"b": "global"})
    twice = lambda p, w, y: y - p["a"] - p["b"]
    with pytest.raises(ValueError, match="combination of 'a', 'b' open"):
        dp.stats.estimate(twice, {"w": w, "y": y}, params=["a", "b"], kind="residuals", pooling="global")


def test_a_unit_that_does_not_show_what_is_shared_is_estimated_given_the_others():
    x = np.random.default_rng(1).normal(size=(10, 4))
    x[3] = 1.0
    y = intercepts(10, 4, effect=0.3 * x)
    line = lambda p, x, y: y - p["a"] - p["b"] * x
    fitted = dp.stats.estimate(line, {"x": x, "y": y}, params=["a", "b"], kind="residuals", pooling={"b": "global"})
    assert (fitted.status == "ok").all()
    assert fitted.params["a"][3] == pytest.approx((y[3] - fitted.params["b"][3]).mean())
    assert np.isfinite(fitted.se["a"]).all()


@pytest.mark.parametrize("kind", ["residuals", "nll"])
def test_a_single_number_can_be_pooled(kind):
    y = intercepts(60, 5)
    program = (lambda p, y: y - p["mu"]) if kind == "residuals" else (lambda p, y: 0.5 * ((y - p["mu"]) / SIGMA) ** 2)
    fit = lambda pooling: dp.stats.estimate(program, {"y": y}, params=["mu"], kind=kind, pooling=pooling)
    reference = mixed(y)
    partial = fit("partial")
    assert partial.shared.mean[0] == pytest.approx(reference.fe_params[0], abs=0.005)
    assert np.sqrt(partial.shared.mean_covariance[0, 0]) == pytest.approx(reference.bse_fe[0], rel=0.03)
    np.testing.assert_allclose(fit("global").params["mu"], y.mean(), rtol=1e-6)
