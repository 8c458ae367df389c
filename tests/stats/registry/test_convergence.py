"""Whether a fit of visits has ended."""

import warnings

import numpy as np
import pytest

import dynapath as dp
from dynapath.dynamics.changes import Convergence
from dynapath.models.visit_forecast import Described
from dynapath.models.weight_trace import WeightTrace
from dynapath.stats.registry.convergence import convergence_of, judge, prediction_change


@pytest.fixture(scope="module")
def registry():
    return dp.datasets.simulate_registry("linear2", n_subjects=40, random_state=0)


def fit(registry, **options):
    """The fitted copy, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = dp.stats.fit_latent_dynamics(
            registry, **{"subject_key": "patient", "time_key": "time", "n_restarts": 1, "copy": True, **options}
        )
    return fitted, [str(w.message) for w in caught if "has not converged" in str(w.message)]


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize(
    ("schedule", "advice"),
    [
        ({"n_epochs": 1}, "Schedule(n_epochs="),
        ({"n_epochs": 8, "lr": 1e-12}, "Raise the step size."),
    ],
)
def test_an_untrained_fit_is_never_ok(registry, noisy, schedule, advice):
    fitted, said = fit(registry, process_noise=noisy, schedule=dp.stats.Schedule(**schedule))
    stored = fitted.uns["latent_dynamics"]
    assert stored["status"] == "not_converged"
    assert len(said) == 1
    assert advice in said[0]
    assert said == list(stored["messages"])
    assert dp.get.convergence(fitted, "latent_dynamics")["change"].isna().all()


def test_a_loss_that_ends_above_its_start_has_not_converged(registry):
    fitted, said = fit(registry, process_noise=True, schedule=dp.stats.Schedule(n_epochs=12, lr=3.0))
    assert fitted.uns["latent_dynamics"]["status"] == "not_converged"
    model = dp.get.visit_model(fitted)
    trace = WeightTrace()
    for _ in range(10):
        trace.add([0.1], {})
    visits = model.read(registry).visits
    at = lambda start: convergence_of(model.fitted, model.fitted, visits, trace, start=start)
    best = model.fitted.losses.min()
    assert at(best + 1).converged
    assert at(best - 1).risen
    assert not at(best - 1).converged


def test_a_state_space_fit_with_its_defaults_has_converged():
    registry = dp.datasets.simulate_registry("visits", n_subjects=40, random_state=0)
    fitted, said = fit(registry, process_noise=True, n_latent=4, baseline="~ y1 + y2")
    table = dp.get.convergence(fitted, "latent_dynamics")
    assert list(table["what"]) == ["predictions"]
    assert (table["change"] <= table["limit"]).all(), table
    assert fitted.uns["latent_dynamics"]["status"] == "ok"
    assert not said


def test_restarts_that_diverged_are_said():
    good = Convergence({"predictions": 0.1}, 100, 1.0, 0.25)
    assert judge(good, np.array([1.0, 2.0]), 10) == ("ok", [])
    status, said = judge(good, np.array([1.0, np.inf, np.inf]), 10)
    assert status == "restarts_diverged"
    assert said[0].startswith("2 of 3 restarts diverged")
    moving = Convergence({"predictions": 0.9}, 100, 1.0, 0.25)
    status, said = judge(moving, np.array([1.0, np.inf]), 10)
    assert status == "not_converged"
    assert len(said) == 2
    assert "Schedule(n_epochs=20)" in said[1]


def test_fitted_values_count_against_what_the_visits_leave_open():
    rng = np.random.default_rng(0)
    n, m, d = 50, 8, 2
    items = rng.normal(size=(n, m, 3))
    noise = np.array([1.0, 5.0, 0.1])
    states = rng.normal(size=(n, m, d))
    one = lambda fitted: Described(states, states, np.full_like(states, 0.3), np.zeros((n, 1)), fitted)
    visits = type("Of", (), {})()
    visits.values = items + noise * rng.normal(size=items.shape)
    visits.n_visits = np.full(n, m)
    moved = one(items + noise * rng.normal(size=items.shape) * np.sqrt(d / m))
    # As far as d numbers of a subject are known from m visits, whatever the unit of an item.
    assert prediction_change(moved, one(items), visits) == pytest.approx(1.0, abs=0.08)
