"""Restarts that diverge, and fits of few steps."""

import numpy as np
import pytest
import torch

from dynapath.dynamics.systems import LinearSystem
from dynapath.models.state_space import StateSpace
from dynapath.models.visit_forecast import batch_of, state_space_tensors
from dynapath.models.visit_scale import Scale
from dynapath.models.visit_vae import VisitVAE
from dynapath.stats import Schedule
from dynapath.stats.registry import state_space, training, visit_vae
from dynapath.stats.registry.state_space import StateSpaceForecaster
from dynapath.stats.registry.visit_vae import VisitVAEForecaster
from dynapath.stats.registry.visits import from_rows


@pytest.fixture(scope="module")
def visits():
    """20 subjects with 3 visits of 2 items and one covariate."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 5, (20, 3)), axis=1).ravel()
    items = rng.normal(size=(60, 2)) + times[:, None] * [0.3, -0.2]
    return from_rows(np.repeat(np.arange(20), 3), times, items, rng.normal(size=(20, 1)), items=("x1", "x2"))[0]


class Decay(torch.nn.Module):
    """dz/dt = -s theta z, with one s for all subjects and restarts."""

    n_latent, n_params = 2, 1

    def __init__(self):
        super().__init__()
        self.s = torch.nn.Parameter(torch.ones(()))

    def flow(self, dt, z, theta):
        return torch.exp(-self.s * theta * dt[..., None]) * z


def trained_vae(visits, dynamics, spoil=None):
    """Restarts 0 and 2, their losses and shared parameters, beside a restart 1 that `spoil` may have ruined."""
    scale = Scale.by_span(visits, centred=True)
    batch = batch_of(scale.apply(visits), scale)
    model = VisitVAE(2, 1, dynamics, n_members=3, generator=torch.Generator().manual_seed(0))
    if spoil is not None:
        with torch.no_grad():
            spoil(model)
    generator = torch.Generator().manual_seed(1)
    history, losses = training.train(model, batch, training.WEIGHTS, Schedule(n_epochs=4), generator)
    survivors = {name: p.detach()[[0, 2]] for name, p in model.named_parameters() if not name.startswith("dynamics")}
    return model, history, losses, survivors


def nan_encoder(model):
    model.encoder.mean.weight[1, 0, 0] = torch.nan


def fast_growth(model):
    # All entries of A are 60: carried over ten units of time, what visits say is beyond all numbers.
    model.network.out.weight[1] = 0.0
    model.network.shift[1] = 60.0


@pytest.mark.parametrize("spoil", [nan_encoder, fast_growth])
def test_a_restart_that_diverges_leaves_the_others_of_a_visit_vae_as_they_are(visits, spoil):
    _, curve, losses, alone = trained_vae(visits, LinearSystem(2))
    _, curve_spoilt, losses_spoilt, beside = trained_vae(visits, LinearSystem(2), spoil)
    assert losses_spoilt[1] == np.inf
    assert np.isnan(curve_spoilt[:, :, 1]).all()
    np.testing.assert_array_equal(losses_spoilt[[0, 2]], losses[[0, 2]])
    np.testing.assert_array_equal(curve_spoilt[:, :, [0, 2]], curve[:, :, [0, 2]])
    for name, value in alone.items():
        torch.testing.assert_close(beside[name], value, rtol=0, atol=0)


def test_what_restarts_share_is_trained_by_those_that_have_not_diverged(visits):
    model, _, losses, _ = trained_vae(visits, Decay(), nan_encoder)
    assert np.isfinite(losses[[0, 2]]).all()
    assert torch.isfinite(model.dynamics.s)
    assert model.dynamics.s != 1


def trained_state_space(visits, spoil=None, n_steps=6):
    model = StateSpace(2, 1, 4, n_members=3, jitter=0.1, generator=torch.Generator().manual_seed(0))
    if spoil is not None:
        with torch.no_grad():
            spoil(model)
    data = state_space_tensors(Scale.of(visits).apply(visits))
    forecaster = StateSpaceForecaster(n_restarts=3, n_steps=n_steps)
    history, losses = forecaster._train(model, data, torch.Generator().manual_seed(1))
    return history, losses, {name: p.detach()[[0, 2]] for name, p in model.named_parameters()}


def nan_loadings(model):
    model.loadings[1, 0, 0] = torch.nan


def no_covariance(model):
    # Their squares are infinite: no Cholesky factor.
    model.spread_root[1] = 1e200


@pytest.mark.parametrize("spoil", [nan_loadings, no_covariance])
def test_a_restart_that_diverges_leaves_the_others_of_a_state_space_model_as_they_are(visits, spoil):
    curve, losses, alone = trained_state_space(visits)
    curve_spoilt, losses_spoilt, beside = trained_state_space(visits, spoil)
    assert losses_spoilt[1] == np.inf
    assert np.isnan(curve_spoilt[:, 1]).all()
    np.testing.assert_array_equal(losses_spoilt[[0, 2]], losses[[0, 2]])
    np.testing.assert_array_equal(curve_spoilt[:, [0, 2]], curve[:, [0, 2]])
    for name, value in alone.items():
        torch.testing.assert_close(beside[name], value, rtol=0, atol=0)


def spoilt(model, spoil):
    """A class of models whose restart 1 is ruined."""

    class Spoilt(model):
        def __init__(self, *args, n_members=1, **options):
            super().__init__(*args, n_members=n_members, **options)
            if n_members > 1:
                with torch.no_grad():
                    spoil(self)

    return Spoilt


@pytest.mark.parametrize(
    ("module", "name", "spoil", "forecaster"),
    [
        (visit_vae, "VisitVAE", nan_encoder, VisitVAEForecaster(n_restarts=3, schedule=Schedule(n_epochs=4))),
        (visit_vae, "VisitVAE", fast_growth, VisitVAEForecaster(n_restarts=3, schedule=Schedule(n_epochs=4))),
        (state_space, "StateSpace", nan_loadings, StateSpaceForecaster(n_restarts=3, n_steps=6)),
    ],
    ids=["vae, NaN", "vae, fast growth", "state space"],
)
@pytest.mark.filterwarnings("ignore:.*sign of a rate")
def test_a_fit_keeps_the_best_of_the_restarts_that_are_left(visits, module, name, spoil, forecaster, monkeypatch):
    whole = forecaster.fit(visits)
    monkeypatch.setattr(module, name, spoilt(getattr(module, name), spoil))
    fitted = forecaster.fit(visits)
    assert fitted.losses[1] == np.inf
    left = [0, 2]
    np.testing.assert_array_equal(fitted.losses[left], whole.losses[left])
    ahead = visits.times[:, -1:] + 1
    mean, sd = fitted.predict(visits, ahead)
    assert np.isfinite(mean).all()
    assert np.isfinite(sd).all()
    monkeypatch.undo()
    if int(np.argmin(whole.losses)) in left:
        np.testing.assert_array_equal(mean, whole.predict(visits, ahead)[0])


def test_a_state_space_model_is_chosen_by_its_loss_on_all_subjects(visits):
    fitted = StateSpaceForecaster(n_restarts=3, n_steps=5, batch_size=7).fit(visits)
    data = state_space_tensors(fitted.scale.apply(visits))
    with torch.no_grad():
        log_prob, _ = fitted.model.filter(*data[:3], fitted.model.system(data[3]))
        loss = (fitted.model.penalty() - log_prob.sum(1)) / torch.isfinite(data[1]).sum()
    np.testing.assert_allclose(loss.numpy(), fitted.losses.min())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 10])
def test_fits_of_few_steps_learn_something(visits, n):
    for forecaster in (
        StateSpaceForecaster(n_steps=n, n_restarts=2),
        VisitVAEForecaster(n_restarts=2, schedule=Schedule(n_epochs=n, batch_size=20)),
    ):
        model, data, loss = untrained(forecaster, visits)
        fitted = forecaster.fit(visits)
        assert (fitted.losses < loss(model, data)).all(), forecaster


def untrained(forecaster, visits):
    """The model as it starts, its data, and its loss."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(forecaster, StateSpaceForecaster):
        model = StateSpace(2, 1, 4, n_members=2, jitter=0.1, generator=generator)
        data = state_space_tensors(Scale.of(visits).apply(visits))
        return model, data, lambda model, data: state_space._loss(model, data).detach().numpy()
    scale = Scale.by_span(visits, centred=False)
    model = VisitVAE(2, 1, LinearSystem(2), n_members=2, generator=generator)
    batch = batch_of(scale.apply(visits), scale)
    return model, batch, lambda model, batch: training.final_loss(model, batch, training.WEIGHTS)


@pytest.mark.parametrize("warm_up", [0.2, 0.3])
def test_a_cycle_of_ten_steps_or_more_is_that_of_torch(warm_up):
    for n in (10, 11, 35, 100):
        sizes = []
        for make in (
            lambda optimizer, n=n: training.one_cycle(optimizer, 0.05, n, warm_up=warm_up),
            lambda optimizer, n=n: torch.optim.lr_scheduler.OneCycleLR(
                optimizer, 0.05, total_steps=n, pct_start=warm_up
            ),
        ):
            optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], 0.05)
            cycle = make(optimizer)
            sizes.append([])
            for _ in range(n):
                sizes[-1].append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                cycle.step()
        assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_epochs": 0}, ValueError, "n_epochs of a Schedule must be at least 1; it is 0"),
        ({"n_epochs": -3}, ValueError, "at least 1; it is -3"),
        ({"n_epochs": 2.5}, TypeError, "n_epochs of a Schedule is a whole number; it is 2.5"),
        ({"batch_size": 0}, ValueError, "batch_size of a Schedule must be at least 1; it is 0"),
        ({"lr": 0.0}, ValueError, "lr of a Schedule must be a finite number, positive; it is 0.0"),
        ({"lr": np.nan}, ValueError, "it is nan"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay of a Schedule .*at least 0; it is -1.0"),
    ],
)
def test_schedules_that_no_fit_can_use_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        Schedule(**options)
