"""The model of an earlier moment, without the noise of minibatches, whatever the schedule; and what a model has changed since."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from dynapath.models import CountVAE
from dynapath.models.convergence import Moment, TraceWeights, cells_to_compare, changes, moment_of
from dynapath.models.weight_trace import WeightTrace


def descent(n_steps, schedule, *, noise=1.0, rate=0.02, seed=0):
    """Noisy gradient descent from 1 towards 0: `rate` of the way for every unit of the step, and noise as large as the step."""
    rng = np.random.default_rng(seed)
    module = torch.nn.Linear(1, 200, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    trace = WeightTrace()
    for step in range(n_steps):
        lr = schedule(step / n_steps)
        with torch.no_grad():
            kick = torch.as_tensor(rng.normal(size=module.weight.shape), dtype=torch.float32)
            module.weight.sub_(lr * (rate * module.weight + noise * rate * kick))
        trace.add([lr], module.state_dict())
    return trace, module.weight.detach()


def constant(_):
    return 1.0


def one_cycle(share):
    """Up to 4 within the first tenth, then down to 0 by a cosine."""
    return 4 * share / 0.1 if share < 0.1 else 2 * (1 + np.cos(np.pi * (share - 0.1) / 0.9))


@pytest.mark.parametrize("schedule", [constant, one_cycle])
def test_halfway_is_where_half_of_the_steps_lengths_were_spent(schedule):
    trace, _ = descent(203, schedule, noise=0.0)
    middle = trace.halfway()["weight"].mean().item()
    # The distance to the optimum falls by the factor exp(-rate) for every unit of length.
    spent = -np.log(middle) / 0.02 / trace.reach[0]
    # Stretches are a sixth of training at most.
    assert 0.33 < spent < 0.67


@pytest.mark.parametrize("schedule", [constant, one_cycle])
def test_the_noise_of_steps_is_averaged_away(schedule):
    trace, last = descent(800, schedule, rate=0.1)
    middle = trace.halfway()["weight"]
    step = 0.1 * schedule(0.4)
    # Of a single iterate there: the standard deviation of x <- (1 - step) x + step e.
    single = step / np.sqrt(1 - (1 - step) ** 2)
    assert middle.std() < 0.6 * single
    assert abs(middle.mean()) < 0.1
    if schedule is one_cycle:
        assert last.std() < 0.3 * single


def test_a_trace_is_a_mean_of_the_weights_that_it_saw():
    trace, _ = descent(36, constant, noise=0.0)
    seen = 0.98 ** np.arange(1, 37)
    # Thirty-six minibatches are nine stretches of four, the fifth of which has the middle.
    assert trace.length == 4
    np.testing.assert_allclose(trace.halfway()["weight"][0, 0].item(), seen[16:20].mean(), rtol=1e-5)


def test_too_few_minibatches_have_no_middle():
    assert descent(5, constant)[0].halfway() is None
    assert descent(6, constant)[0].halfway() is not None


def test_the_steps_of_every_group_of_parameters_are_read_from_the_schedule():
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam([{"params": [module.weight]}, {"params": [module.bias], "lr": 3.0}], 1.0)
    schedule = OneCycleLR(optimizer, [1.0, 3.0], total_steps=101)
    tracer = TraceWeights()
    for _ in range(100):
        optimizer.step()
        tracer.on_train_batch_end(SimpleNamespace(optimizers=[optimizer]), SimpleNamespace(module=module))
        schedule.step()
    assert 40 < tracer.trace.reach[0] < 60
    assert tracer.trace.reach[1] == pytest.approx(3 * tracer.trace.reach[0])


def moment(mean, expected, std=0.5, seed=0):
    rng = np.random.default_rng(seed)
    drawn = expected + np.sqrt(expected) * rng.normal(size=expected.shape)
    return Moment(mean, np.full_like(mean, std), expected, expected, drawn)


@pytest.fixture(scope="module")
def after():
    rng = np.random.default_rng(0)
    return moment(rng.normal(size=(200, 2)), rng.gamma(2.0, size=(200, 30)))


def test_a_latent_space_that_turned_and_stretched_has_not_changed(after):
    turned = moment(after.mean @ np.array([[0.2, -1.5], [1.1, 0.4]]) + 3, after.expected)
    change = changes(turned, after)
    assert change["states"] == pytest.approx(0, abs=1e-9)
    assert change["predictions"] == 0


def test_states_count_in_their_standard_deviations(after):
    away = np.random.default_rng(1).normal(size=after.mean.shape)
    change = changes(moment(after.mean + 0.5 * away, after.expected), after)
    # The best affine map takes a little of it back.
    assert change["states"] == pytest.approx(1.0, abs=0.2)


def test_predictions_count_against_what_the_state_leaves_open(after):
    other = moment(after.mean, after.expected, seed=2)
    before = Moment(after.mean, after.std, other.drawn, other.variance, other.drawn)
    # As far away as another draw, if the genes' own means are known well.
    assert changes(before, after, n_cells=10**9)["predictions"] == pytest.approx(1.0, abs=0.05)
    assert changes(before, after, n_cells=1)["predictions"] == pytest.approx(np.sqrt(0.5), abs=0.05)


def test_cells_are_compared_evenly_and_within_memory():
    assert cells_to_compare(50, 100).tolist() == list(range(50))
    few = cells_to_compare(10**6, 30_000)
    assert len(few) == 133
    assert (few[0], few[-1]) == (0, 999_999)


def test_asking_a_model_leaves_it_and_the_random_numbers_as_they_were():
    import anndata as ad

    rng = np.random.default_rng(0)
    data = ad.AnnData(rng.poisson(2.0, size=(40, 12)).astype(np.float32))
    CountVAE.setup_anndata(data)
    model = CountVAE(data, n_latent=2)
    model.is_trained_ = True
    kept = {name: value.clone() for name, value in model.module.state_dict().items()}
    other = {name: value + 0.1 for name, value in kept.items() if value.is_floating_point()}
    state = torch.get_rng_state()
    rows = np.arange(0, 40, 2)
    now, then = moment_of(model, rows), moment_of(model, rows, other)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, kept[name])
    assert now.mean.shape == (20, 2)
    assert now.expected.shape == (20, 12)
    assert not np.allclose(now.mean, then.mean)
    again = moment_of(model, rows)
    np.testing.assert_array_equal(again.drawn, now.drawn)
    assert changes(again, now)["predictions"] == 0
