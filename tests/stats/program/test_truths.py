"""What must hold of any program: derivatives, recovery, coverage, pooling."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import grad

import dynapath as dp
from dynapath.stats.program.constraints import constraint_of
from dynapath.stats.program.parameters import Parameters

A = np.array([[-1.0, 0.0], [0.5, 1.0]])
U0 = torch.tensor([2.0, 1.0], dtype=torch.float64)
TIMES = np.linspace(0.1, 1, 10)


def linear_ode(p, y, t):
    return y - dp.dynamics.solve(p["A"], U0, t)


def true_states():
    return dp.dynamics.solve(torch.from_numpy(A), U0, torch.from_numpy(TIMES)).numpy()


def test_gradients_pass_through_loops_recursion_and_where():
    def loop(x, n=3):
        out = torch.ones(())
        for _ in range(n):
            out = out * x
        return out

    def recursion(x, n=3):
        return torch.ones(()) if n == 0 else x * recursion(x, n - 1)

    def branches(x):
        return torch.where(x > 0, x**3, -x)

    five = torch.tensor(5.0)
    assert grad(loop)(five) == grad(recursion)(five) == grad(branches)(five) == 75
    assert grad(branches)(-five) == -1


def test_programs_with_loops_and_recursion_have_the_same_estimates():
    rng = np.random.default_rng(0)
    y = np.cumprod(rng.uniform(0.8, 1.2, (5, 6)), axis=1)

    def loop(p, y):
        s, out = torch.ones(()), []
        for t in range(6):
            s = p["a"] * s
            out.append(y[t] - s)
        return torch.stack(out)

    def recursion(p, y, t=5):
        power = lambda n: p["a"] if n == 0 else p["a"] * power(n - 1)
        return y - torch.stack([power(n) for n in range(6)])

    fits = [
        dp.stats.estimate(f, {"y": y}, params={"a": 1.0}, kind="residuals")
        for f in (loop, lambda p, y: recursion(p, y))
    ]
    np.testing.assert_allclose(fits[0].params["a"], fits[1].params["a"], rtol=1e-12)


def test_the_workshops_linear_equation_is_recovered_from_exact_data():
    for kind in ("exact", "steps"):
        field = lambda p, y, t: y - dp.dynamics.solve(lambda _, u: p["A"] @ u, U0, t, n_steps=4)
        program = linear_ode if kind == "exact" else field
        fitted = dp.stats.estimate(
            program, {"y": true_states(), "t": TIMES}, params={"A": np.zeros((2, 2))}, per="all", kind="residuals"
        )
        assert fitted.status[0] == "ok"
        np.testing.assert_allclose(fitted.params["A"], A, atol=1e-6)


def test_intervals_of_the_linear_equation_cover_under_noise():
    rng = np.random.default_rng(0)
    y = true_states() + 0.05 * rng.normal(size=(1000, 10, 2))
    fitted = dp.stats.estimate(linear_ode, {"y": y, "t": TIMES}, params={"A": A * 0.5}, kind="residuals", shared="t")
    table = fitted.summary(level=0.9)
    true = np.tile(A.ravel(), 1000)
    inside = (table["lower"] <= true) & (true <= table["upper"])
    # 4,000 intervals, correlated within a unit: the standard error of their share is .005 to .01
    assert 0.87 < inside.mean() < 0.93
    assert (inside.groupby(table["parameter"]).mean().between(0.865, 0.935)).all()


@pytest.mark.parametrize("pooling", ["individual", "global", "partial"])
@pytest.mark.filterwarnings("ignore:.*reports are negative")
def test_the_increment_model_as_a_program_is_fit_increment(pooling):
    def increment(p, y, z):
        observed, state, out = ~torch.isnan(y), torch.nan_to_num(y[0]), []
        for t in range(1, len(y)):
            state = state + p["b"][0] + p["b"][1] * state + p["b"][2] * z[t - 1]
            out.append(dp.stats.where_observed(observed[t], lambda y, s=state: y - s, y[t]))
            state = torch.where(observed[t], torch.nan_to_num(y[t]), state)
        return torch.stack(out)

    # Partially pooled units weigh by their variance, for which fit_increment knows that gaps raise it.
    gaps = {"p_start": 0.0} if pooling == "partial" else {}
    panel = dp.datasets.simulate_reports(n_units=30, n_days=40, family="normal", silent=0.0, **gaps)
    dp.stats.fit_increment(
        panel, covariates="incidence", pooling=pooling, weights="equal", stable=False, progress=False
    )
    slots = {"y": "X", "z": "layers/incidence"}
    fitted = dp.stats.estimate(
        increment, panel, params={"b": np.zeros(3)}, kind="residuals", pooling=pooling, slots=slots
    )
    ok = (panel.obs["increment_status"] == "ok").to_numpy() & (fitted.status == "ok")
    assert ok.mean() > 0.9
    # The spread over units is known to the tolerance of its own search, a hundredth of a standard error.
    close = {"rtol": 1e-6, "atol": 1e-6} if pooling != "partial" else {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(fitted.params["b"][ok], panel.obsm["increment_params"].to_numpy()[ok], **close)
    np.testing.assert_array_equal(fitted.n, panel.obs["increment_n"])
    # sigma^2 (J'J)^-1 is not quite what equal weights have over gaps; units without gaps agree.
    whole = ok & ~np.isnan(panel.X).any(1)
    if pooling == "individual" or whole.all():
        close = {"rtol": 1e-5 if pooling == "individual" else 1e-3}
        np.testing.assert_allclose(fitted.se["b"][whole], panel.obsm["increment_se"].to_numpy()[whole], **close)


def test_partially_pooled_means_are_those_of_a_mixed_model():
    import statsmodels.api as sm

    rng = np.random.default_rng(3)
    x = np.tile(np.linspace(-1, 1, 8), (40, 1))
    b = rng.multivariate_normal([1.0, -0.5], [[0.3, 0.1], [0.1, 0.2]], 40)
    y = b[:, :1] + b[:, 1:] * x + 0.4 * rng.normal(size=x.shape)

    def nll(p, x, y):
        return 0.5 * ((y - p["a"] - p["b"] * x) / 0.4) ** 2

    fitted = dp.stats.estimate(nll, {"x": x, "y": y}, params=["a", "b"], pooling="partial")
    # The same with known variance: weight the random-effects model so that sigma^2 is 1.
    groups, design = np.repeat(np.arange(40), 8), sm.add_constant(x.ravel())
    mixed = sm.MixedLM(y.ravel(), design, groups, exog_re=design).fit(reml=True)
    np.testing.assert_allclose(fitted.shared.mean, mixed.fe_params, atol=0.01)
    np.testing.assert_allclose(fitted.shared.spread, mixed.cov_re, atol=0.02)
    table = fitted.summary()
    assert table["unit"].isna().sum() == 2
    assert (table.loc[table["unit"].isna(), "status"] == "pooled").all()


def test_shared_parameters_are_those_of_one_likelihood():
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(12, 20)), rng.normal(size=(12, 1))
    y = rng.poisson(np.exp(0.3 * group + 0.7 * x)).astype(float)
    program = lambda p, x, y: torch.exp(p["a"] + p["b"] * x) - y * (p["a"] + p["b"] * x)
    alone = dp.stats.estimate(
        lambda p, x, y: torch.exp(p["a"][:, None] + p["b"] * x) .sum(1) - (y * (p["a"][:, None] + p["b"] * x)).sum(1),
        {"x": x, "y": y}, params={"a": np.zeros(12), "b": 0.0}, per="all",
    )  # fmt: skip
    mixed = dp.stats.estimate(program, {"x": x, "y": y}, params=["a", "b"], pooling={"b": "global"})
    np.testing.assert_allclose(mixed.params["b"], alone.params["b"], rtol=1e-7)
    np.testing.assert_allclose(mixed.params["a"], alone.params["a"], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(mixed.se["b"], alone.se["b"], rtol=1e-5)
    np.testing.assert_allclose(mixed.se["a"], alone.se["a"], rtol=1e-5)
    both = dp.stats.estimate(program, {"x": x, "y": y}, params=["a", "b"], pooling="global")
    once = dp.stats.estimate(
        lambda p, x, y: program(p, x, y).reshape(-1), {"x": x, "y": y}, params=["a", "b"], per="all"
    )
    np.testing.assert_allclose(both.estimates[0], once.estimates[0], rtol=1e-8)
    np.testing.assert_allclose(both.standard_errors[0], once.standard_errors[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "theta"),
    [
        ("positive", np.array([0.2, 3.0])),
        ("unit", np.array([0.2, 0.9])),
        ((-1, 4), np.array([-0.5, 3.0])),
        ((2, None), np.array([2.5, 8.0])),
        ((None, 2), np.array([1.5, -8.0])),
        ("simplex", np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])),
        ("ordered", np.array([-1.0, 0.5, 0.7])),
    ],
)
def test_constraints_go_there_and_back(given, theta):
    constraint = constraint_of("a", given)
    u = torch.from_numpy(constraint.invert(theta))
    assert u.shape == constraint.free_shape(theta.shape)
    np.testing.assert_allclose(constraint.apply(u), theta, rtol=1e-12)
    anywhere = constraint.apply(torch.randn(u.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert constraint.holds(anywhere.numpy())


def test_a_constrained_estimate_is_the_free_one_where_it_lies_inside():
    rng = np.random.default_rng(0)
    counts = rng.multinomial(200, [0.2, 0.3, 0.5], size=4).astype(float)
    nll = lambda p, counts: -(counts * torch.log(p["share"]))
    fitted = dp.stats.estimate(
        nll, {"counts": counts}, params={"share": np.ones(3) / 3}, constraints={"share": "simplex"}
    )
    share = counts / 200
    np.testing.assert_allclose(fitted.params["share"], share, rtol=1e-6)
    np.testing.assert_allclose(fitted.se["share"], np.sqrt(share * (1 - share) / 200), rtol=1e-6)


def test_delta_method_and_prediction_agree_with_each_other():
    rng = np.random.default_rng(0)
    y = rng.gamma(2.0, 1.0, (5, 50))
    nll = lambda p, y: p["rate"] * y - torch.log(p["rate"])
    free = dp.stats.estimate(nll, {"y": y}, params={"rate": 1.0})
    positive = dp.stats.estimate(nll, {"y": y}, params={"rate": 1.0}, constraints={"rate": "positive"})
    np.testing.assert_allclose(free.se["rate"], 1 / y.mean(1) / np.sqrt(50), rtol=1e-6)
    np.testing.assert_allclose(positive.se["rate"], free.se["rate"], rtol=1e-6)
    half_life = positive.predict(lambda p: np.log(2) / p["rate"])
    np.testing.assert_allclose(half_life.mean, np.log(2) * y.mean(1), rtol=1e-8)
    np.testing.assert_allclose(half_life.se, np.log(2) * y.mean(1) / np.sqrt(50), rtol=1e-6)
    assert (positive.summary()["lower"] > 0).all()


def test_what_was_not_observed_cannot_matter_and_a_plain_where_loses_the_gradient():
    y = torch.tensor([2.0, float("nan"), 3.0])
    seen = ~torch.isnan(y)
    plain = lambda a: torch.where(seen, (y / a - 1) ** 2, 0.0).sum()
    safe = lambda a: dp.stats.where_observed(seen, lambda y: (y / a - 1) ** 2, y).sum()
    only = lambda a: ((y[seen] / a - 1) ** 2).sum()
    a = torch.tensor(1.5)
    assert plain(a) == safe(a) == only(a)
    assert torch.isnan(grad(plain)(a))
    assert grad(safe)(a) == grad(only)(a)
    # As data alone it is torch.where.
    torch.testing.assert_close(dp.stats.where_observed(seen, y), torch.tensor([2.0, 0.0, 3.0]))
    with pytest.raises(TypeError, match="True and False"):
        dp.stats.where_observed(y, y)


def test_the_profile_of_a_normal_mean_is_a_parabola_with_the_threshold_of_the_likelihood_ratio():
    rng = np.random.default_rng(0)
    y = rng.normal(1.0, 2.0, (2, 30))
    program = lambda p, y: y - p["mean"]
    fitted = dp.stats.estimate(program, {"y": y}, params={"mean": 0.0}, kind="residuals")
    table = fitted.profile("mean", values=[0.0, 1.0, 2.0], units="1")
    np.testing.assert_allclose(table["loss"], [((y[1] - m) ** 2).mean() for m in (0, 1, 2)], rtol=1e-10)
    smooth = fitted.profile("mean", n_grid=2001)
    for unit, part in smooth.groupby("unit", sort=False):
        inside = part.loc[part["loss"] <= part["threshold"], "value"]
        # min * exp(chi2 / n) against t: the same to about 1/n
        row = fitted.summary().set_index("unit").loc[unit]
        assert inside.min() == pytest.approx(row["lower"], abs=0.05)
        assert inside.max() == pytest.approx(row["upper"], abs=0.05)
    axes = dp.pl.loss_profile(smooth, show=False)
    assert len(axes) == 2
    assert axes[0].get_ylabel() == "mean squared residual"


def test_the_bootstrap_has_the_errors_of_the_theory():
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, 25)
    y = 0.5 + 0.8 * x + 0.3 * rng.normal(size=(3, 25))
    line = lambda p, x, y: y - p["a"] - p["b"] * x
    data = {"x": x, "y": y}
    theory = dp.stats.estimate(line, data, params=["a", "b"], kind="residuals", shared="x")
    boot = dp.stats.estimate(
        line, data, params=["a", "b"], kind="residuals", shared="x", se="bootstrap", n_bootstrap=800
    )
    np.testing.assert_allclose(boot.standard_errors, theory.standard_errors, rtol=0.1)
    draws = theory.bootstrap(50, random_state=1)
    assert list(draws.columns) == ["replicate", "unit", "parameter", "estimate", "status"]
    pd.testing.assert_frame_equal(draws, theory.bootstrap(50, random_state=1))

    counts = rng.poisson(3.0, (3, 40)).astype(float)
    poisson = lambda p, y: torch.exp(p["log_mean"]) - y * p["log_mean"]
    simulate = lambda p, y: {"y": torch.poisson(torch.exp(p["log_mean"]).expand(y.shape))}
    state = torch.random.get_rng_state()
    fits = [
        dp.stats.estimate(poisson, {"y": counts}, params="log_mean", se=se, simulate=simulate, n_bootstrap=n)
        for se, n in (("hessian", None), ("bootstrap", 800))
    ]
    np.testing.assert_allclose(fits[1].se["log_mean"], fits[0].se["log_mean"], rtol=0.1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_restarts_leave_a_local_minimum_and_say_how_many_did():
    t = np.linspace(0, 6, 60)
    y = np.sin(2.0 * t)[None]
    wave = lambda p, t, y: y - torch.sin(p["w"] * t)
    one = dp.stats.estimate(wave, {"t": t[None], "y": y}, params={"w": 3.3}, kind="residuals")
    many = dp.stats.estimate(wave, {"t": t[None], "y": y}, params={"w": 3.3}, kind="residuals", n_restarts=30)
    assert one.loss[0] > 1
    assert many.loss[0] < 1e-12
    assert 0 < many.agreement[0] < 1


def test_a_program_that_draws_random_numbers_is_estimated_by_adam():
    rng = np.random.default_rng(0)
    y = rng.normal(1.5, 0.5, (2, 200))

    def noisy(p, y):
        z = p["m"] + 0.1 * torch.randn(y.shape)
        return 0.5 * (y - z) ** 2

    state = torch.random.get_rng_state()
    fitted = dp.stats.estimate(noisy, {"y": y}, params="m", max_iter=800)
    assert fitted.settings["method"] == "adam"
    np.testing.assert_allclose(fitted.params["m"], y.mean(1), atol=0.02)
    assert fitted.se is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_lbfgs_and_newton_find_the_same_minimum():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 60, 5)), rng.binomial(1, 0.4, (4, 60)).astype(float)
    program = lambda p, x, y: torch.nn.functional.softplus(x @ p["beta"]) - y * (x @ p["beta"])
    fits = [
        dp.stats.estimate(program, {"x": x, "y": y}, params={"beta": np.zeros(5)}, method=m)
        for m in ("newton", "lbfgs")
    ]
    np.testing.assert_allclose(fits[1].params["beta"], fits[0].params["beta"], atol=2e-5)
    np.testing.assert_allclose(fits[1].se["beta"], fits[0].se["beta"], rtol=1e-4)


def test_an_estimate_does_not_depend_on_the_other_units():
    rng = np.random.default_rng(0)
    t = np.linspace(0, 4, 12)
    y = rng.uniform(0.5, 1.5, (40, 1)) * np.exp(-rng.uniform(0.5, 1.5, (40, 1)) * t) + 0.02 * rng.normal(size=(40, 12))
    y[3] = rng.normal(size=12) * 100  # a unit that takes many steps
    program = lambda p, t, y: y - p["a"] * torch.exp(-p["b"] * t)
    fit = lambda y: dp.stats.estimate(
        program, {"t": t, "y": y}, params={"a": 1.0, "b": 1.0}, kind="residuals", shared="t", max_iter=30
    )
    few = np.r_[0:3, 4:40]
    np.testing.assert_allclose(fit(y).estimates[few], fit(y[few]).estimates, rtol=1e-9)


def test_named_parameters_of_any_shape_are_unpacked_in_order():
    p = Parameters.of({"a": 1.0, "B": np.arange(6.0).reshape(2, 3), "w": np.ones(3) / 3}, {"w": "simplex"})
    assert p.k == 1 + 6 + 2
    assert p.elements[:3] == ["a", "B[0,0]", "B[0,1]"]
    values = p.unpack(p.free_start())
    np.testing.assert_allclose(values["B"], np.arange(6.0).reshape(2, 3))
    np.testing.assert_allclose(values["w"], np.ones(3) / 3)
