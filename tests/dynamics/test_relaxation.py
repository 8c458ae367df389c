"""The pull towards A = -kappa I: what it assumes, and that only silence of the data lets it rule."""

import numpy as np
import pytest
import torch

from dynapath.dynamics import GroupDynamics, LinearMixture, fit_mixture, flow
from dynapath.dynamics.fit_mixture import _drift_between


def snapshots(times, mean, n_cells=300, sd=0.2):
    rng = np.random.default_rng(0)
    z = np.concatenate([mean(t) + sd * rng.standard_normal((n_cells, 2)) for t in times])
    index = torch.arange(len(times)).repeat_interleave(n_cells)
    return torch.tensor(z, dtype=torch.float32), index, torch.tensor(times)


def fitted(z, index, times, relaxation):
    pattern = LinearMixture(1, 2, relaxation=relaxation)
    return fit_mixture(pattern, z, index, times, n_restarts=2, n_steps=300).mixture


@pytest.mark.parametrize("relaxation", [0.0, 1.0, 3.0])
def test_between_two_snapshots_the_way_is_that_of_the_assumed_rate(relaxation):
    start, end = np.array([-1.0, 0.0]), np.array([1.0, 0.5])
    z, index, times = snapshots([0.0, 1.0], lambda t: start + t * (end - start))
    halfway = fitted(z, index, times, relaxation).at(torch.tensor([0.5])).mean[0, 0].detach().numpy()
    share = -np.expm1(-relaxation / 2) / -np.expm1(-relaxation) if relaxation else 0.5
    np.testing.assert_allclose(halfway, start + share * (end - start), atol=0.1)


def test_where_snapshots_tell_the_rate_the_assumption_gives_way():
    z, index, times = snapshots([0.0, 0.25, 0.5, 0.75, 1.0], lambda t: np.array([-1.0 + 2 * t, 0.5 * t]))
    for relaxation in (0.0, 2.0):
        halfway = fitted(z, index, times, relaxation).at(torch.tensor([0.4])).mean[0, 0].detach().numpy()
        np.testing.assert_allclose(halfway, [-0.2, 0.2], atol=0.06)


def test_the_ridge_vanishes_at_the_assumed_rate_only():
    relaxing = LinearMixture(3, 2, relaxation=1.5)
    assert relaxing.ridge_penalty().item() == 0
    still = LinearMixture(3, 2)
    still.load_state_dict(relaxing.state_dict())
    assert still.ridge_penalty().item() == pytest.approx(2 * 1.5**2)


@pytest.mark.parametrize("relaxation", [0.0, 0.7, 4.0])
def test_the_first_drift_leads_to_its_goal(relaxation):
    start, goal = np.array([[0.3, -1.0]]), np.array([[2.0, 0.5]])
    velocity = _drift_between(start, goal, 0.6, relaxation)
    A = torch.tensor(-relaxation * np.eye(2))
    b = torch.tensor(velocity + relaxation * start)
    reached = flow(torch.tensor(start), A[None], b, torch.tensor([0.6], dtype=torch.float64))
    np.testing.assert_allclose(reached, goal, rtol=1e-10)


def test_the_rate_is_kept_with_the_fit():
    fit = GroupDynamics(LinearMixture(2, 2, relaxation=1.5), [0.0, 2.0])
    again = GroupDynamics.from_arrays(fit.to_arrays())
    assert again.mixture.relaxation == 1.5
    assert again.mixture.like().relaxation == 1.5
