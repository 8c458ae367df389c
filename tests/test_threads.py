"""Fits of small data compute on one thread, and leave the numbers of threads as they found them."""

import numpy as np
import pytest
import threadpoolctl
import torch
from lightning.pytorch.callbacks import Callback

import dynapath as dp
from dynapath._threads import LARGE, few_threads, one_thread, threads_for

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit has not converged:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*restarts reach a likelihood within:UserWarning"),
    pytest.mark.filterwarnings("ignore:Only one of .* restarts reached:UserWarning"),
    pytest.mark.filterwarnings("ignore:Groups with less than:UserWarning"),
]


@pytest.fixture(autouse=True)
def two_threads():
    """A session that asked for two threads."""
    before = torch.get_num_threads()
    with threadpoolctl.threadpool_limits(limits=2):
        torch.set_num_threads(2)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def simulated():
    return dp.datasets.simulate_snapshots("rotating", n_cells=15, n_genes=30, times=(0, 0.25, 0.5, 1))


@pytest.fixture(scope="module")
def quick():
    return dp.models.Training(
        static_epochs=1, joint_epochs=1, n_restarts=2, prior_steps=5, finish_steps=2, progress=False
    )


def pools() -> dict[str, int]:
    return {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}


class Seen(Callback):
    """Number of threads while a network is trained."""

    def __init__(self):
        self.threads = set()

    def on_train_batch_end(self, *_):
        self.threads |= {torch.get_num_threads(), *pools().values()}


def test_one_thread_holds_inside_and_ends_outside():
    before = pools()
    with one_thread():
        assert torch.get_num_threads() == 1
        assert set(pools().values()) == {1}
    assert torch.get_num_threads() == 2
    assert pools() == before


def test_an_error_puts_the_numbers_back():
    before = pools()
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
    assert pools() == before


def test_nested_limits_end_one_after_the_other():
    with one_thread():
        with one_thread():
            pass
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_large_steps_keep_the_threads_of_the_session():
    with threads_for(LARGE):
        assert torch.get_num_threads() == 2
    with threads_for(LARGE - 1):
        assert torch.get_num_threads() == 1


def test_a_dynamic_vae_trains_on_one_thread(simulated, quick):
    seen = Seen()
    dp.tl.fit_dynamic_vae(simulated, time_key="time", training=quick, copy=True, train_kwargs={"callbacks": [seen]})
    assert seen.threads == {1}
    assert torch.get_num_threads() == 2


def test_a_count_vae_trains_on_one_thread(simulated):
    seen = Seen()
    dp.tl.fit_vae(simulated, max_epochs=1, copy=True, train_kwargs={"callbacks": [seen], "progress": False})
    assert seen.threads == {1}
    assert torch.get_num_threads() == 2


def test_a_model_of_its_own_trains_on_one_thread(simulated):
    seen = Seen()
    data = simulated.copy()
    dp.models.CountVAE.setup_anndata(data)
    dp.models.CountVAE(data).train(1, progress=False, callbacks=[seen])
    assert seen.threads == {1}


def test_a_fit_that_diverges_puts_the_number_back(simulated):
    training = dp.models.Training(lr=1e6, static_epochs=2, joint_epochs=2, progress=False)
    with pytest.raises(FloatingPointError):
        dp.tl.fit_dynamic_vae(simulated, time_key="time", training=training, copy=True)
    assert torch.get_num_threads() == 2


def test_a_fit_of_coordinates_computes_on_one_thread(simulated, quick, monkeypatch):
    from dynapath.dynamics import fit_representation as module

    seen = []
    choose = module.choose_n_groups
    monkeypatch.setattr(
        module, "choose_n_groups", lambda *a, **k: seen.append(set(pools().values())) or choose(*a, **k)
    )
    dp.tl.fit_dynamic_vae(simulated, time_key="time", use_rep="Z_true", training=quick, copy=True)
    assert seen == [{1}]
    assert np.isfinite(simulated.obsm["Z_true"]).all()
    assert torch.get_num_threads() == 2


def test_a_program_is_fitted_on_one_thread():
    seen = set()

    def decay(params, t, y):
        seen.add(torch.get_num_threads())
        return y - params["start"] * torch.exp(-params["rate"] * t)

    t = np.linspace(0, 2, 9)
    data = {"t": np.tile(t, (3, 1)), "y": np.exp(-np.outer([0.5, 1.0, 2.0], t))}
    dp.stats.estimate(decay, data, params={"start": 0.8, "rate": 0.8}, kind="residuals", se="bootstrap", n_bootstrap=2)
    # Checks before the fit may use what there is.
    assert 1 in seen
    assert torch.get_num_threads() == 2


def test_an_increment_model_with_a_loss_of_its_own_is_fitted_on_one_thread():
    seen = set()

    def loss(predicted, reported):
        seen.add(torch.get_num_threads())
        return (predicted - reported) ** 2

    reports = dp.datasets.simulate_reports(n_units=4, n_days=20, random_state=0)
    dp.stats.fit_increment(reports, method="lbfgs", loss=loss, se=None)
    assert 1 in seen
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("noisy", [True, False])
def test_visits_are_fitted_on_one_thread(noisy, monkeypatch):
    seen = set()
    step = torch.optim.Optimizer.zero_grad
    monkeypatch.setattr(
        torch.optim.Optimizer, "zero_grad", lambda self: seen.add(torch.get_num_threads()) or step(self)
    )
    registry = dp.datasets.simulate_registry("linear2", n_subjects=12, random_state=0)
    schedule = dp.stats.Schedule(n_epochs=2)
    dp.stats.fit_latent_dynamics(
        registry, subject_key="patient", time_key="time", process_noise=noisy, n_restarts=1, schedule=schedule
    )
    assert seen == {1}
    assert torch.get_num_threads() == 2


def test_a_function_is_limited_by_the_size_of_its_steps():
    limited = few_threads(lambda size: size)(lambda size: torch.get_num_threads())
    assert [limited(10), limited(LARGE)] == [1, 2]
