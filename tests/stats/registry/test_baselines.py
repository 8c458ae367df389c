"""Baselines: rules by hand, regressions on data they describe exactly, the mixed model against dense matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from statsmodels.regression.mixed_linear_model import MixedLM

from dynapath.stats.registry.baselines import Autoregression, Rule
from dynapath.stats.registry.combine import stacking_weights
from dynapath.stats.registry.history import landmarks, summarise
from dynapath.stats.registry.mixed import MixedModel
from dynapath.stats.registry.visits import from_rows

MODELS = {
    "locf": Rule("locf"),
    "mean": Rule("mean"),
    "ols_shift": Rule("ols_shift"),
    "ar_ridge": Autoregression(),
    "ar_ridge_all": Autoregression("all"),
    "ar_boosted": Autoregression(boosted=True),
    "lmm": MixedModel(),
}


def by_hand():
    times = np.array([0.0, 1.0, 3.0, 0.0])
    values = np.array([[1.0, 5.0], [2.0, np.nan], [6.0, np.nan], [7.0, np.nan]])
    return from_rows(np.array([0, 0, 0, 1]), times, values, np.zeros((2, 0)), items=("a", "b"))[0]


@pytest.mark.parametrize(("rule", "expected"), [("locf", 6.0), ("mean", 3.0), ("ols_shift", 6 + 2 * 12 / 7)])
def test_rules_do_what_they_say(rule, expected):
    mean, sd = Rule(rule).fit(by_hand()).predict(by_hand(), np.array([[5.0], [1.0]]))
    np.testing.assert_allclose(mean[0, 0], [expected, 5.0])
    np.testing.assert_allclose(mean[1, 0], [7.0, np.nan])
    assert np.isnan(sd).all()


def test_a_history_is_what_was_measured():
    past = summarise(by_hand())
    np.testing.assert_array_equal(past.seen, [[True, True], [True, False]])
    np.testing.assert_array_equal(past.time, [3, 0])
    np.testing.assert_array_equal(past.last, [[6, 5], [7, np.nan]])


def test_landmarks_hold_only_the_first_visits(made_up_visits):
    visits = made_up_visits()
    for cut in landmarks(visits, "all", (1, 3)):
        assert cut.history.times.shape[1] == cut.k
        assert (visits.n_visits[cut.subjects] > cut.k).all()
        assert (np.nan_to_num(cut.times, nan=np.inf) > cut.history.last_time()[:, None]).all()
    cases = sum(int(np.isfinite(cut.times).sum()) for cut in landmarks(visits))
    assert cases == (visits.n_visits - 1).sum()


def test_an_autoregression_without_shrinkage_finds_an_exact_one():
    rng = np.random.default_rng(0)
    baseline, times = rng.normal(size=(50, 1)), np.cumsum(rng.uniform(0.5, 2, (50, 4)), axis=1)
    values = np.empty((50, 4, 2))
    values[:, 0] = rng.normal(size=(50, 2))
    B = np.array([[0.8, 0.3], [-0.2, 0.9]])
    for k in range(1, 4):
        dt = (times[:, k] - times[:, k - 1])[:, None]
        values[:, k] = values[:, k - 1] @ B + 0.3 * baseline + 0.1 * dt * baseline + 0.2 * dt * values[:, k - 1, :1]
    subject = np.repeat(np.arange(50), 4)
    visits, _ = from_rows(subject, times.ravel(), values.reshape(-1, 2), baseline, items=("a", "b"))
    fitted = Autoregression(ridge=1e-8).fit(visits.take(np.arange(40)))
    for cut in landmarks(visits.take(np.arange(40, 50))):
        np.testing.assert_allclose(fitted.predict(cut.history, cut.times)[0], cut.values, atol=1e-5)


def test_the_mixed_model_of_a_new_patient_is_the_conditional_normal_distribution(made_up_visits):
    visits = made_up_visits(n_items=1)
    fitted = MixedModel().fit(visits.take(np.arange(60)))
    new = visits.take(np.arange(60, 80))
    mean, sd = fitted.predict(new.first(2), times := new.first(2).last_time()[:, None] + [[1.0, 2.0]])
    effects, design = fitted.effects[0], fitted.design
    for i in range(new.n_subjects):
        known = new.observed[i, :2, 0]
        if not known.any():
            continue
        X = design.fixed(np.tile(new.baseline[i], (2, 1)), new.times[i, :2])[known]
        X_new = design.fixed(np.tile(new.baseline[i], (2, 1)), times[i])
        Z, Z_new = X[:, :2], X_new[:, :2]
        V = Z @ effects.G @ Z.T + effects.variance * np.eye(len(Z))
        C = Z_new @ effects.G @ Z.T
        expected = X_new @ effects.beta + C @ np.linalg.solve(V, new.values[i, :2, 0][known] - X @ effects.beta)
        variance = np.diag(Z_new @ effects.G @ Z_new.T - C @ np.linalg.solve(V, C.T)) + effects.variance
        np.testing.assert_allclose(mean[i, :, 0], expected, atol=1e-8)
        np.testing.assert_allclose(sd[i, :, 0] ** 2, variance, atol=1e-8)


def test_for_patients_of_the_fit_the_mixed_model_is_that_of_statsmodels(made_up_visits):
    visits = made_up_visits(n_items=1, missing=0.0)
    fitted = MixedModel().fit(visits)
    subject, visit = np.nonzero(visits.present)
    x = fitted.design.fixed(visits.baseline[subject], visits.times[subject, visit])
    result = MixedLM(visits.values[subject, visit, 0], x, groups=subject, exog_re=x[:, :2]).fit(reml=True)
    effects = result.random_effects
    ours, _ = fitted.predict(visits, visits.times)
    theirs = result.fittedvalues
    assert len(effects) == visits.n_subjects
    np.testing.assert_allclose(ours[subject, visit, 0], theirs, atol=2e-3)


def test_the_mixed_model_recovers_its_parameters(made_up_visits):
    visits = made_up_visits(n_subjects=400, n_items=1, seed=1)
    fitted = MixedModel().fit(visits)
    # Slopes are per standard deviation of time and covariate; 400 subjects give the residual variance to some 5 %.
    assert fitted.effects[0].variance == pytest.approx(0.16, rel=0.12)
    np.testing.assert_allclose(
        fitted.effects[0].beta[3] / (fitted.design.scale * fitted.design.covariate_sd[0]), -0.4, atol=0.1
    )


@pytest.mark.parametrize("name", MODELS)
def test_unit_and_origin_of_time_change_nothing(name, made_up_visits):
    visits = made_up_visits()
    other = replace(visits, times=visits.times * 12 + 100)
    first, second = (MODELS[name].fit(v.take(np.arange(60))) for v in (visits, other))
    held = np.arange(60, 80)
    for cut, moved in zip(landmarks(visits.take(held)), landmarks(other.take(held)), strict=True):
        one, two = (fit.predict(c.history, c.times)[0] for fit, c in ((first, cut), (second, moved)))
        np.testing.assert_allclose(one, two, atol=2e-3 if name == "lmm" else 1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_a_subject_alone_gives_what_it_gives_in_the_cohort(name, made_up_visits):
    visits = made_up_visits()
    fitted = MODELS[name].fit(visits.take(np.arange(60)))
    for cut in landmarks(visits.take(np.arange(60, 80))):
        together = fitted.predict(cut.history, cut.times)
        for i in range(0, cut.history.n_subjects, 5):
            alone = fitted.predict(cut.history.take(np.array([i])), cut.times[[i]])
            for a, b in zip(alone, together, strict=True):
                np.testing.assert_allclose(a[0], b[i], atol=1e-6)


def test_weights_are_those_of_the_mixture_that_made_the_data():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(4000, 3))
    observed = predicted @ [0.7, 0.3, 0.0] + 0.1 * rng.normal(size=4000)
    weights = stacking_weights(observed, predicted)
    np.testing.assert_allclose(weights, [0.7, 0.3, 0.0], atol=0.01)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()


def on_a_grid(n_subjects=150, seed=0):
    """Visits at multiples of .1 from different starts, so that gaps tie but for rounding; some values repeat."""
    rng = np.random.default_rng(seed)
    n = rng.integers(2, 7, n_subjects)
    subject = np.repeat(np.arange(n_subjects), n)
    steps = np.concatenate([rng.integers(0, 9) + np.cumsum(rng.integers(1, 4, one)) for one in n])
    level = rng.normal(size=(n_subjects, 2))[subject]
    values = np.round(level + np.sin(steps / 3)[:, None] * level[:, ::-1] + 0.3 * rng.normal(size=level.shape), 1)
    baseline = rng.normal(size=(n_subjects, 1))
    return from_rows(subject, steps / 10, values, baseline, items=("a", "b"))[0]


@pytest.mark.parametrize("horizon", ["next", "all"])
@pytest.mark.parametrize("unit", [12.0, 365.25, 1 / 7, 1e-6])
def test_trees_do_not_depend_on_the_unit_of_time_where_gaps_tie(unit, horizon):
    visits = on_a_grid()
    model = Autoregression(horizon, boosted=True)
    first, second = (model.fit(v.take(np.arange(110))) for v in (visits, replace(visits, times=visits.times * unit)))
    for cut in landmarks(visits.take(np.arange(110, 150)), horizon):
        moved = replace(cut.history, times=cut.history.times * unit)
        one, two = first.predict(cut.history, cut.times)[0], second.predict(moved, cut.times * unit)[0]
        np.testing.assert_array_equal(one, two)


def test_a_shift_of_time_changes_no_split_where_gaps_tie():
    visits = on_a_grid()
    first, second = (
        Autoregression(boosted=True).fit(v.take(np.arange(110)))
        for v in (visits, replace(visits, times=visits.times + 2020))
    )
    for cut in landmarks(visits.take(np.arange(110, 150))):
        moved = replace(cut.history, times=cut.history.times + 2020)
        one, two = first.predict(cut.history, cut.times)[0], second.predict(moved, cut.times + 2020)[0]
        np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e6])
def test_visits_a_moment_apart_do_not_send_a_forecast_to_infinity(name, unit, made_up_visits):
    visits = made_up_visits(missing=0.0)
    times = visits.times.copy()
    twice = visits.n_visits > 2
    times[twice, 1] = times[twice, 0] + 1e-9
    visits = replace(visits, times=times * unit)
    fitted = MODELS[name].fit(visits.take(np.arange(60)))
    for cut in landmarks(visits.take(np.arange(60, 80)), "all", (2,)):
        predicted = fitted.predict(cut.history, cut.times)[0]
        # Values are within some 10; the slope between the two was 1e9.
        assert np.nanmax(np.abs(predicted)) < 50


def test_the_slope_of_visits_that_are_apart_stays_as_it_was():
    visits = by_hand()
    close = replace(visits, times=np.where(visits.times == 1, 1e-4, visits.times))
    past = summarise(close.first(2), shortest=3e-6)
    np.testing.assert_allclose(past.slope[0, 0], 1e4)
    assert summarise(close.first(2), shortest=3e-4).slope[0, 0] == 0
