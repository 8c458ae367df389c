"""Estimates are those of least squares, of other optimisers, of the publication, and of the truth."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import torch
from scipy.optimize import least_squares

from dynapath.read.panel import Panel
from dynapath.stats.increment.bootstrap import Bootstrap
from dynapath.stats.increment.estimate import estimate
from dynapath.stats.increment.fit import fit
from dynapath.stats.increment.problem import Problem
from dynapath.stats.increment.recursion import LOSS, follow
from dynapath.stats.increment.solve import divergence_rule

from .conftest import make_panel


def innovations(panel, params):
    return follow(panel.y, panel.z, panel.source, panel.lag, params, first=panel.first_day)[1]


def one_unit(y, z):
    units, days = pd.Index(["unit"]), pd.Index([str(t) for t in range(len(y))])
    return Panel(y[None].astype(float), z[None, None], ("z",), np.array([0]), np.array([1]), units, days)


def test_with_nothing_missing_it_is_least_squares(complete):
    found = fit(complete, se="hessian")
    assert (found.status == "ok").all()
    for u in range(complete.n_units):
        y, z = complete.y[u], complete.z[0, u]
        X = np.column_stack([np.ones(len(y) - 1), y[:-1], z[:-1]])
        b, squares, *_ = np.linalg.lstsq(X, np.diff(y), rcond=None)
        np.testing.assert_allclose(found.params[u], b, atol=1e-10)
        sigma2 = squares[0] / (len(X) - 3)
        assert found.sigma2[u] == pytest.approx(sigma2, rel=1e-9)
        np.testing.assert_allclose(found.se[u], np.sqrt(sigma2 * np.diag(np.linalg.inv(X.T @ X))), rtol=1e-8)


def test_levels_far_from_zero_and_covariates_of_any_unit_are_solved_as_well(complete):
    y, z = complete.y + 3000.0, 1e-4 * complete.z
    found = fit(Panel(y, z, ("z",), complete.source, complete.lag, complete.units, complete.days))
    np.testing.assert_allclose(found.loss, fit(complete).loss, rtol=1e-9)
    np.testing.assert_allclose(found.params[:, 2] * 1e-4, fit(complete).params[:, 2], rtol=1e-6)


@pytest.mark.parametrize("missing", [0.2, 0.6])
def test_the_optimum_is_that_of_scipy(missing):
    panel, _ = make_panel(n_units=20, missing=missing, seed=3)
    found = fit(panel, stable=False)
    for u in range(panel.n_units):
        one = panel.take(np.array([u]))
        residuals = lambda b, one=one: (lambda e: e[np.isfinite(e)])(innovations(one, b[None])[0])
        peer = least_squares(residuals, np.zeros(3), method="lm", xtol=1e-14, ftol=1e-14, gtol=1e-14)
        assert found.loss[u] * found.n[u] <= 2 * peer.cost * (1 + 1e-8)


@pytest.mark.slow
def test_no_better_optimum_is_found_on_a_grid_of_the_state_coefficient():
    panel, _ = make_panel(n_units=60, missing=0.75, seed=4, sigma=1.0)
    found = fit(panel)
    problem = Problem(panel)
    free = np.array([True, False, True])
    solvable = np.isin(found.status, ("ok", "clipped", "max_iter"))
    best = np.full(panel.n_units, np.inf)
    for b2 in np.linspace(-1, 0, 61):
        start = np.zeros((panel.n_units, 3))
        start[:, 1] = b2
        params, *_ = problem.minimise(start, solvable, free=free)
        best = np.minimum(best, problem.sums(params)[0][:, LOSS])
    mine = problem.sums(np.nan_to_num(found.params))[0][:, LOSS]
    assert (mine[solvable] <= best[solvable] * (1 + 1e-6)).mean() > 0.98


def test_gap_weights_are_maximum_likelihood(panel):
    found = fit(panel, weights="gap", stable=False)
    problem = Problem(panel, gap=True)

    def deviance(params):
        sums = problem.sums(params)[0]
        return sums[:, 1] * np.log(sums[:, LOSS]) + sums[:, 2]

    at = deviance(found.params)
    for k in range(3):
        for step in (-1e-4, 1e-4):
            away = found.params.copy()
            away[:, k] += step
            assert (deviance(away) > at).all()
    assert (deviance(fit(panel, stable=False).params) > at - 1e-12).all()


def test_several_covariates_and_lags_are_least_squares():
    panel, _ = make_panel(n_units=5, n_covariates=2, lags=((0, 1), (0, 3), (1, 0)), missing=0.0)
    found = fit(panel, stable=False)
    for u in range(5):
        y, z = panel.y[u], panel.z[:, u]
        t = np.arange(3, panel.n_days)  # the third lag first reaches into the panel on day 3, after a start on day 2
        X = np.column_stack([np.ones(len(t)), y[t - 1], z[0, t - 1], z[0, t - 3], z[1, t]])
        np.testing.assert_allclose(found.params[u], np.linalg.lstsq(X, y[t] - y[t - 1], rcond=None)[0], atol=1e-9)


def test_a_covariate_of_the_day_itself_shifted_by_a_day_is_one_of_the_day_before(panel):
    shifted = np.concatenate([np.full((*panel.z.shape[:2], 1), np.nan), panel.z[:, :, :-1]], axis=2)
    same = Panel(panel.y, shifted, panel.covariates, panel.source, np.array([0]), panel.units, panel.days)
    np.testing.assert_allclose(fit(same).params, fit(panel).params, atol=1e-12)


def test_order_of_units_changes_nothing(panel):
    order = np.random.default_rng(0).permutation(panel.n_units)
    for pooling, tolerance in (("individual", 0.0), ("global", 1e-9), ("partial", 1e-4)):
        there, back = fit(panel.take(order), pooling=pooling), fit(panel, pooling=pooling)
        np.testing.assert_allclose(there.params, back.params[order], rtol=tolerance)


def test_constant_and_silent_units_change_no_individual_fit(panel):
    y = panel.y.copy()
    y[0], y[1], y[2, 1:] = 3.0, np.nan, np.nan
    y[2, 0] = 4.0
    found = fit(panel.with_y(y))
    assert list(found.status[:3]) == ["constant", "no_data", "no_data"]
    np.testing.assert_array_equal(found.params[0], 0.0)
    assert np.isnan(found.params[1:3]).all()
    np.testing.assert_array_equal(found.params[3:], fit(panel).params[3:])


@pytest.mark.parametrize("pooling", ["global", "partial"])
def test_constant_and_silent_units_change_no_pooled_fit(panel, pooling):
    y = panel.y.copy()
    y[0], y[1] = 3.0, np.nan
    found = fit(panel.with_y(y), pooling=pooling)
    alone = fit(panel.take(np.arange(2, panel.n_units)), pooling=pooling)
    np.testing.assert_allclose(found.params[2:], alone.params, rtol=1e-10)
    np.testing.assert_allclose(found.params[1], alone.dynamics.mean, rtol=1e-10)


def test_too_few_reports_and_collinear_covariates_get_the_smallest_solution(panel):
    y, z = panel.y.copy(), panel.z.copy()
    y[0, 3:] = np.nan
    y[0, :3] = [1.0, 2.0, 5.0]
    z[0, 1] = 0.0
    found = fit(Panel(y, z, ("z",), panel.source, panel.lag, panel.units, panel.days), se="hessian")
    assert list(found.status[:2]) == ["rank_deficient"] * 2
    assert found.loss[0] < 1e-3  # two innovations, three coefficients
    assert np.isfinite(found.params[:2]).all()
    assert found.params[1, 2] == 0.0
    assert np.isnan(found.se[:2]).all()


def test_unstable_units_are_clipped_and_the_other_coefficients_solved_given_that():
    t = np.arange(40)
    y = 1.08**t + np.sin(t)
    z = np.cos(t / 3.0)
    found = fit(one_unit(y, z), se="hessian")
    assert found.status[0] == "clipped"
    assert found.params[0, 1] == 0.0
    X = np.column_stack([np.ones(39), z[:-1]])
    np.testing.assert_allclose(found.params[0, [0, 2]], np.linalg.lstsq(X, np.diff(y), rcond=None)[0], atol=1e-9)
    assert np.isnan(found.se[0, 1])
    assert np.isfinite(found.se[0, [0, 2]]).all()
    free = fit(one_unit(y, z), stable=False)
    assert free.params[0, 1] > 0.05
    assert fit(one_unit(y, z), stable=(-1, 0.05)).params[0, 1] == 0.05


@pytest.mark.parametrize("pooling", ["individual", "global", "partial"])
@pytest.mark.parametrize("weights", ["equal", "gap"])
def test_three_quarters_missing_never_explode(pooling, weights):
    panel, _ = make_panel(n_units=40, missing=0.75, seed=7)
    found = fit(panel, pooling=pooling, weights=weights)
    known = np.isfinite(found.state)
    assert np.abs(found.state[known]).max() < 5 * np.nanmax(panel.y)


def test_one_perfectly_predictable_unit_does_not_take_over_the_pooled_fit(complete):
    y = complete.y.copy()
    y[0, :30], y[0, 30:] = 0.0, 1.0
    z = complete.z.copy()
    z[0, 0] = 0.0
    z[0, 0, 29] = 1.0
    odd = Panel(y, z, ("z",), complete.source, complete.lag, complete.units, complete.days)
    mean = fit(odd, pooling="partial").dynamics.mean
    without = fit(complete.take(np.arange(1, 12)), pooling="partial").dynamics
    assert (np.abs(mean - without.mean) < 3 * np.sqrt(np.diag(without.mean_covariance))).all()


# ---------------------------------------------------------------------------------------------- the publication


def hospital(data_dir, number):
    table = pd.read_csv(data_dir / "icu" / "paper_fixtures" / f"hospital{number}.csv")
    y = table["icu_covid"].where(table["reported"].astype(bool)).to_numpy(float)
    return one_unit(y[:-1], table["z"].to_numpy(float)[:-1])  # the last day was held out


@pytest.mark.parametrize("number", [40, 124])
def test_published_coefficients_are_found(data_dir, number):
    published = pd.read_csv(data_dir / "icu" / "paper_fixtures" / "published_betas_mle.csv.gz")
    b = published.query(f"hospital == {number} and combination == 'iii'")[["b1", "b2", "b3"]].to_numpy()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit(hospital(data_dir, number), method="gd")
    np.testing.assert_allclose(found.params[0], b, atol=5e-4)


@pytest.mark.parametrize(
    ("number", "steps", "loss"), [(40, 1, 1.78046), (40, 150, 1.24709), (40, 1000, 1.0871), (124, 150, 0.3278)]
)
def test_published_losses_are_found(data_dir, number, steps, loss):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit(hospital(data_dir, number), method="gd", max_iter=steps)
    assert found.loss[0] == pytest.approx(loss, rel=3e-3)


def test_gradient_descent_takes_the_published_steps(panel):
    found = fit(panel, method="gd", max_iter=2, stable=True)
    b = np.zeros((panel.n_units, 3))
    for _ in range(2):
        _, gradient, _ = Problem(panel).sums(b)
        b -= np.array([1e-3, 1e-2, 1e-3]) * 2 * gradient / found.n[:, None]
    np.testing.assert_allclose(found.params, b, atol=1e-12)


def test_shared_coefficients_of_gradient_descent_are_equal_and_their_mean_is_taken_once(panel):
    found = fit(panel, method="gd", pooling={"state": "global"}, max_iter=1)
    alone = fit(panel, method="gd", max_iter=1)
    np.testing.assert_allclose(found.params[:, 1], alone.params[:, 1].mean(), rtol=1e-12)
    np.testing.assert_array_equal(found.params[:, 0], alone.params[:, 0])


def test_gradient_descent_says_beforehand_which_units_will_diverge(panel):
    y = panel.y / 3
    y[[2, 5]] *= 60
    big = panel.with_y(y)
    with pytest.warns(UserWarning, match=r"will diverge for 2 of 12 units: 'unit2', 'unit5'\. .*method='lm'"):
        found = fit(big, method="gd", max_iter=1000)
    assert list(found.status[[2, 5]]) == ["max_iter"] * 2
    with np.errstate(invalid="ignore"):
        assert (np.abs(found.params[[2, 5]]).max(1) > 10).all() | np.isnan(found.params[[2, 5]]).any()
    assert (found.status == "max_iter").sum() == 2


def test_the_rule_of_divergence_is_twice_the_curvature_times_the_step():
    steps = np.array([0.1, 0.2])
    H = np.diag([3.0, 7.0])[None]
    assert divergence_rule(H, np.array([1.0]), steps)[0] == pytest.approx(1.4)


# ------------------------------------------------------------------------------------------------------- losses


def test_huber_resists_a_sudden_change_that_moves_least_squares(complete):
    y = complete.y.copy()
    y[:, 30:] += 20.0 * 0.75 ** np.arange(30)  # one innovation, from which the units come back as they do
    clean, squares, huber = fit(complete), fit(complete.with_y(y)), fit(complete.with_y(y), loss="huber")
    far = np.abs(squares.params[:, 2] - clean.params[:, 2]).mean()
    assert np.abs(huber.params[:, 2] - clean.params[:, 2]).mean() < 0.3 * far


@pytest.mark.parametrize("loss", ["poisson", "negative_binomial"])
def test_likelihoods_of_counts_recover_the_truth(loss):
    rng = np.random.default_rng(0)
    n_units, n_days, b, alpha = 30, 800, np.array([0.5, -0.3, 0.6]), 0.4 if loss == "negative_binomial" else 0.0
    z = np.abs(rng.normal(2, 1, (1, n_units, n_days)))
    y = np.full((n_units, n_days), 4.0)
    for t in range(1, n_days):
        mean = y[:, t - 1] + b[0] + b[1] * y[:, t - 1] + b[2] * z[0, :, t - 1]
        y[:, t] = rng.poisson(mean * (rng.gamma(1 / alpha, alpha, n_units) if alpha else 1.0))
    units, days = pd.Index(map(str, range(n_units))), pd.Index(map(str, range(n_days)))
    panel = Panel(y, z, ("z",), np.array([0]), np.array([1]), units, days)
    found = fit(panel, loss=loss, se="hessian")
    np.testing.assert_allclose(found.params.mean(0), b, atol=0.06)
    # Standard errors are those seen between units.
    np.testing.assert_allclose(found.se.mean(0), found.params.std(0), rtol=0.45)
    if alpha:
        assert np.median(found.dynamics.overdispersion) == pytest.approx(alpha, abs=0.06)


def test_means_of_counts_are_never_negative():
    panel, _ = make_panel(missing=0.5, seed=2)
    counts = panel.with_y(np.maximum(np.round(panel.y - 7), 0))
    found = fit(counts, loss="poisson")
    assert np.nanmin(found.state) >= 0.0


def test_negative_reports_are_refused_as_counts_and_noted_otherwise(panel):
    y = panel.y.copy()
    y[3, 4] = -2.0
    with pytest.raises(ValueError, match=r"unit 'unit3', day 4: -2.*loss='squared'"):
        fit(panel.with_y(y), loss="poisson")
    with pytest.warns(UserWarning, match="reports are negative"):
        fit(panel.with_y(y))


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_automatic_differentiation_finds_the_same_minimum(method):
    panel, _ = make_panel(n_units=5, n_days=30)
    for pooling in ("individual", {"state": "global"}):
        peer, found = (fit(panel, pooling=pooling, method=m) for m in ("lm", method))
        np.testing.assert_allclose(found.loss, peer.loss, rtol=1e-6)
        np.testing.assert_allclose(found.params, peer.params, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "bounds"),
    [("lm", (-0.1, 0)), ("lbfgs", (-0.02, 0)), ("lbfgs", (-0.1, 0)), ("lbfgs", (-0.007, 0)), ("adam", (-0.1, 0))],
)
def test_a_unit_is_clipped_exactly_where_its_state_coefficient_is_at_a_bound(method, bounds):
    found = fit(make_panel(n_units=8, n_days=40, seed=1)[0], method=method, stable=bounds)
    state = found.params[:, 1]
    assert ((state >= bounds[0]) & (state <= bounds[1])).all()
    at_bound = np.isclose(state, bounds[0], rtol=1e-12, atol=0)
    assert at_bound.any()
    np.testing.assert_array_equal(found.status == "clipped", at_bound)
    assert (state[at_bound] == bounds[0]).all()


@pytest.mark.parametrize(
    ("method", "pooling"),
    [("lm", "global"), ("lm", {"state": "global", "intercept": "partial"}), ("lbfgs", {"state": "global"})],
)
@pytest.mark.parametrize(("seed", "bounds"), [(0, (-0.1, 0)), (0, (-0.007, 0)), (2, (-0.02, 0))])
def test_a_shared_state_coefficient_at_its_bound_clips_every_unit(method, pooling, seed, bounds):
    found = fit(make_panel(n_units=8, n_days=40, seed=seed)[0], method=method, pooling=pooling, stable=bounds)
    assert (found.status == "clipped").all()
    assert (found.params[:, 1] == bounds[0]).all()


def test_a_correction_that_ends_at_a_bound_clips_the_unit():
    panel, _ = make_panel(n_units=12, n_days=15, seed=1)
    before = fit(panel)
    found = fit(panel, se="hessian", bias_correction=True, bootstrap=Bootstrap(20), progress=False)
    at_bound = np.isin(found.params[:, 1], (-1, 0))
    assert (at_bound & (before.status == "ok")).any()
    np.testing.assert_array_equal(found.status == "clipped", at_bound)
    np.testing.assert_array_equal(np.isnan(found.se[:, 1]), at_bound)


def test_a_loss_of_ones_own_is_minimised():
    panel, _ = make_panel(n_units=5, n_days=40)
    quartic = lambda predicted, reported: (reported - predicted) ** 4
    found = fit(panel, method="lbfgs", loss=quartic, se="sandwich", stable=False)
    e = innovations(panel, found.params)
    np.testing.assert_allclose(found.loss, np.nanmean(e**4, axis=1), rtol=1e-10)
    for k in range(3):
        for step in (-1e-3, 1e-3):
            away = found.params.copy()
            away[:, k] += step
            assert (np.nanmean(innovations(panel, away) ** 4, axis=1) > found.loss).all()
    assert np.isfinite(found.se).all()
    squares = fit(panel, method="lbfgs", loss=lambda p, r: 0.5 * (r - p) ** 2, se="sandwich")
    np.testing.assert_allclose(squares.se, fit(panel, se="sandwich").se, rtol=1e-5)


def test_a_loss_that_is_no_loss_is_refused(panel):
    with pytest.raises(ValueError, match="reduction='none'"):
        fit(panel, method="lbfgs", loss=torch.nn.functional.mse_loss)
    with pytest.raises(ValueError, match="must be finite"):
        fit(panel, method="lbfgs", loss=lambda p, r: torch.log(-torch.abs(p)))


# ------------------------------------------------------------------------------------------------------ choices


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "complete"}, "'individual', 'global', 'partial'"),
        ({"method": "newton"}, "'lm', 'gd', 'adam', 'lbfgs'"),
        ({"loss": "absolute"}, "'squared', 'huber'"),
        ({"se": "jackknife"}, "'hessian', 'sandwich', 'bootstrap'"),
        ({"weights": "reports"}, "'equal', 'gap'"),
        ({"weights": "gap", "loss": "huber"}, "weights='equal'"),
        ({"method": "gd", "loss": "huber"}, "method='lm'"),
        ({"method": "gd", "pooling": "partial"}, "method='lm'"),
        ({"method": "lbfgs", "loss": "huber"}, "method='lm'"),
        ({"loss": torch.nn.functional.mse_loss}, "method='lbfgs'"),
        ({"method": "lbfgs", "loss": torch.nn.functional.mse_loss, "se": "hessian"}, "se='sandwich'"),
        ({"method": "gd", "se": "bootstrap"}, "method='lm'"),
        ({"stable": (0.5, 1.0)}, "around 0"),
        ({"method": "gd", "learning_rate": (1e-3, 1e-2)}, "learning_rate"),
    ],
)
def test_choices_that_do_not_go_together_are_answered_with_those_that_do(panel, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(panel, **settings)


def test_pooling_of_an_unknown_coefficient_is_refused(panel):
    with pytest.raises(KeyError, match="'x'.*intercept, state, z"):
        fit(panel, pooling={"x": "global"})


def test_a_single_unit_is_fitted_alone_and_cannot_be_partially_pooled(panel):
    one = panel.take(np.array([3]))
    np.testing.assert_allclose(fit(one).params[0], fit(panel).params[3], atol=1e-12)
    np.testing.assert_allclose(fit(one, pooling="global").params, fit(one).params, atol=1e-8)
    with pytest.raises(ValueError, match="needs 2 unit"):
        fit(one, pooling="partial")


# ---------------------------------------------------------------------------------------------- one common variance


def with_a_known_spread(panel, covariance):
    """Partial pooling of all coefficients with one variance for all units, and the covariance over units given."""
    return estimate(Problem(panel), np.full(3, "partial"), sigma="common", covariance=covariance)


def test_with_a_common_variance_no_spread_is_global_and_endless_spread_is_individual(complete):
    narrow = with_a_known_spread(complete, 1e-14 * np.eye(3)).params
    np.testing.assert_allclose(narrow, fit(complete, pooling="global").params, rtol=1e-6)
    wide = with_a_known_spread(complete, 1e8 * np.eye(3)).params
    np.testing.assert_allclose(wide, fit(complete).params, rtol=1e-6)


def test_in_between_a_common_variance_lies_between_global_and_individual(complete):
    own, shared = fit(complete).params, fit(complete, pooling="global").params
    partial = fit(complete, pooling="partial", sigma="common").params
    apart = np.abs(own - shared).mean(0)
    assert (np.abs(partial - shared).mean(0) < apart).all()
    assert (np.abs(partial - own).mean(0) < apart).all()


@pytest.mark.filterwarnings("ignore:.*:statsmodels.tools.sm_exceptions.ConvergenceWarning")
def test_partial_pooling_is_the_mixed_model_of_statsmodels():
    panel, _ = make_panel(n_units=40, n_days=120, missing=0.0, seed=3, spread=2.0)
    found = fit(panel, pooling="partial", sigma="common", se="hessian")
    y, z = panel.y, panel.z[0]
    table = pd.DataFrame(
        {
            "d": np.diff(y).ravel(),
            "s": y[:, :-1].ravel(),
            "z": z[:, :-1].ravel(),
            "u": np.repeat(range(40), y.shape[1] - 1),
        }
    )
    peer = smf.mixedlm("d ~ s + z", table, groups="u", re_formula="~ s + z").fit(reml=True)
    # The tolerances are those to which statsmodels' own search converges.
    np.testing.assert_allclose(found.dynamics.mean, peer.fe_params, atol=2e-3)
    np.testing.assert_allclose(found.sigma2, peer.scale, rtol=2e-3)
    np.testing.assert_allclose(found.dynamics.spread, peer.cov_re, atol=2e-3)
    effects = np.array([peer.random_effects[u] for u in range(40)]) + peer.fe_params.to_numpy()
    np.testing.assert_allclose(found.params, effects, atol=5e-3)
