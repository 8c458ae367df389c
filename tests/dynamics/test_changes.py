"""What counts as a change between two moments of a training, and when it has ended."""

import numpy as np
import pytest
import torch

from dynapath.dynamics import LinearMixture
from dynapath.dynamics.changes import LIMITS, Convergence, group_change, path_change
from dynapath.dynamics.fit_mixture import fit_mixture


def test_cells_that_change_groups_count_over_those_whose_group_is_uncertain():
    after = np.tile([0.8, 0.2], (100, 1))
    before = after.copy()
    before[:10] = [0.2, 0.8]
    # Six tenths of ten cells changed sides, and a fifth of all cells is uncertain.
    assert group_change(before, after) == pytest.approx(0.06 / 0.2)


def test_certain_groups_allow_for_a_cell_in_a_hundred():
    after = np.tile([1.0, 0.0], (1000, 1))
    before = after.copy()
    before[:5] = [0.0, 1.0]
    assert group_change(before, after) == pytest.approx(0.005 / 0.01)


def test_paths_count_in_standard_errors_of_means():
    cov = np.array([[4.0, 1.0], [1.0, 2.0]])
    rng = np.random.default_rng(0)
    n = 25
    draws = rng.multivariate_normal([0, 0], cov / n, size=4000)
    # Means of n cells are one standard error away from the truth, by their root mean square.
    one = path_change(draws[None], np.zeros((1, 4000, 2)), np.tile(cov, (1, 4000, 1, 1)), np.full((1, 4000), n))
    assert one == pytest.approx(1.0, abs=0.03)


def test_paths_do_not_depend_on_the_coordinates():
    rng = np.random.default_rng(1)
    before, after, B = rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 2))
    root = rng.normal(size=(2, 3, 2, 2))
    cov, n = root @ root.swapaxes(-1, -2), rng.uniform(5, 50, size=(2, 3))
    assert path_change(before @ B.T, after @ B.T, B @ cov @ B.T, n) == pytest.approx(path_change(before, after, cov, n))


def test_empty_groups_have_no_path():
    cov = np.tile(np.eye(2), (2, 1, 1, 1))
    moved = np.array([[[0.0, 0.0]], [[9.0, 9.0]]])
    assert path_change(moved, np.zeros((2, 1, 2)), cov, np.array([[50.0], [0.2]])) == 0
    assert path_change(moved, np.zeros((2, 1, 2)), cov, np.zeros((2, 1))) == 0


def of(reach=1.0, n_steps=1000, *, risen=False, **change):
    return Convergence(change, n_steps, reach, 0.25, risen=risen)


def test_small_changes_after_enough_steps_are_converged():
    assert of(groups=0.1, paths=1.2, states=0.3, predictions=0.2).converged


@pytest.mark.parametrize("name", LIMITS)
def test_any_large_change_is_not_converged_and_named(name):
    one = of(**{**dict.fromkeys(LIMITS, 0.1), name: 2.5})
    assert not one.converged
    assert one.moving == (name,)
    assert one.message("Go on.").startswith("The fit has not converged")
    assert one.message("Go on.").endswith(f"by 2.5 (limit {LIMITS[name]:g}). Go on.")


def test_numbers_that_are_not_finite_are_not_converged():
    assert not of(paths=np.nan).converged
    assert not of(paths=np.inf).converged


def test_too_few_steps_are_never_converged_however_little_they_change():
    one = of(reach=0.01, n_steps=10, paths=0.0, states=0.0)
    assert not one.converged
    assert one.factor == 50
    assert "10 steps of the optimiser" in one.message("")
    assert all(np.isnan(value) for value in one.to_arrays()["change"].values())


def test_steps_that_never_arrive_call_for_larger_ones():
    one = of(reach=1e-9, n_steps=1000)
    assert one.factor is None
    assert one.message("Raise max_epochs.").endswith("Raise the step size.")


def test_a_loss_that_has_risen_is_not_converged():
    one = of(risen=True, states=0.1)
    assert not one.converged
    assert "its loss ended above its start" in one.message("")


def test_no_training_at_all_is_not_converged():
    assert not Convergence().converged


def test_of_several_trainings_the_one_furthest_from_its_end_counts():
    near, far, short = of(paths=1.0, states=0.1), of(paths=0.1, states=0.4), of(reach=0.0)
    assert Convergence.worst([near, far]) is far
    assert Convergence.worst([near, short, far]) is short


@pytest.fixture(scope="module")
def snapshots():
    rng = np.random.default_rng(0)
    times = np.repeat(np.arange(4), 100)
    side = rng.choice([-1.0, 1.0], size=400)
    z = np.column_stack([side * (0.5 + 0.4 * times), 0.3 * times]) + 0.2 * rng.normal(size=(400, 2))
    return torch.as_tensor(z, dtype=torch.float32), torch.as_tensor(times), torch.linspace(0, 1, 4).double()


def test_a_mixture_fitted_long_enough_has_converged(snapshots):
    fit = fit_mixture(LinearMixture(2, 2), *snapshots, n_restarts=2, n_steps=300)
    assert fit.convergence.converged
    assert fit.convergence.change["groups"] < 0.1


def test_a_mixture_fitted_for_a_few_steps_or_with_tiny_ones_has_not(snapshots):
    one = LinearMixture(2, 2)
    assert not fit_mixture(one, *snapshots, n_restarts=1, n_steps=1).convergence.converged
    assert not fit_mixture(one, *snapshots, n_restarts=1, n_steps=40, lr=1e-12).convergence.converged
