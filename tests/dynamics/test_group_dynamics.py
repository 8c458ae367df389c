"""Fitted dynamics in the user's units, and the fit to a representation of any scale."""

import numpy as np
import pytest
import torch

from dynapath.dynamics import GroupDynamics, LinearMixture, TimeScale
from dynapath.dynamics.fit_representation import fit_representation

OBSERVED = np.array([2.0, 4.0, 6.0])
QUICK = {"n_groups": 3, "n_restarts": 2, "n_steps": 40}


def some_dynamics(observed=OBSERVED, centre=np.array([5.0, -3.0]), scale=2.5, **structure):
    mixture = LinearMixture(3, 2, **structure)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return GroupDynamics(mixture, observed, centre, scale)


@pytest.fixture
def dynamics():
    return some_dynamics()


@pytest.fixture
def states():
    return np.random.default_rng(0).normal([5, -3], 2.5, size=(30, 2))


@pytest.fixture
def cell_times():
    return OBSERVED[np.random.default_rng(1).integers(3, size=30)]


# --- units of time -------------------------------------------------------------------------------------------------


def test_the_time_scale_runs_from_zero_to_one():
    scale = TimeScale.of([10, 4, 7])
    np.testing.assert_array_equal(scale.scaled([4, 7, 10, 13]), [0, 0.5, 1, 1.5])


@pytest.mark.parametrize(("unit", "shift"), [(24.0, 0.0), (1 / 7, 0.0), (24.0, 1000.0), (1e-3, -2e4)])
def test_another_unit_of_time_changes_only_velocities(dynamics, states, cell_times, unit, shift):
    def other(times):
        return np.asarray(times) * unit + shift

    same = some_dynamics(observed=other(OBSERVED))
    asked = [2, 3.3, 6, 7.5]
    one, two = dynamics.trajectories(asked), same.trajectories(other(asked))
    np.testing.assert_allclose(two.mean, one.mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(two.cov, one.cov, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(two.proportions, one.proportions, rtol=1e-6)
    resp = dynamics.responsibilities(states, cell_times)
    np.testing.assert_allclose(same.responsibilities(states, other(cell_times)), resp, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(same.velocity(states, resp) * unit, dynamics.velocity(states, resp), rtol=1e-9)
    group = resp.argmax(1)
    end = np.full(30, 5.0)
    np.testing.assert_allclose(
        same.push(states, group, other(cell_times), other(end)),
        dynamics.push(states, group, cell_times, end),
        rtol=1e-6,
    )


def test_velocity_is_the_speed_of_the_flow(dynamics, states, cell_times):
    group = dynamics.responsibilities(states, cell_times).argmax(1)
    h = 1e-3 * np.ptp(OBSERVED)  # model time is rounded to 1e-6 of the range: a relative error of 1e-3 at most
    ahead, behind = (dynamics.push(states, group, cell_times, cell_times + step) for step in (h, -h))
    certain = np.eye(3)[group]
    np.testing.assert_allclose((ahead - behind) / (2 * h), dynamics.velocity(states, certain), rtol=2e-3, atol=1e-3)


# --- what is asked of it ---------------------------------------------------------------------------------------------


def test_trajectories_before_the_first_snapshot_raise_and_name_both_times(dynamics):
    with pytest.raises(ValueError, match=r"first snapshot \(2\).*asked for 1\.5.*predict_cells"):
        dynamics.trajectories([3, 1.5])


def test_samples_before_the_first_snapshot_raise_in_the_unit_of_the_data(dynamics):
    with pytest.raises(ValueError, match=r"first snapshot \(2\).*asked for 1\.5"):
        dynamics.sample([1.5], 10)


def test_states_can_be_carried_before_the_first_snapshot(dynamics, states):
    start, end = np.full(30, 2.0), np.full(30, 0.0)
    back = dynamics.push(states, np.zeros(30, dtype=int), start, end)
    np.testing.assert_allclose(dynamics.push(back, np.zeros(30, dtype=int), end, start), states, rtol=1e-6)


def test_samples_follow_the_trajectories(dynamics):
    n = 20_000
    z, group = dynamics.sample([4.5], n, random_state=0)
    path = dynamics.trajectories([4.5])
    assert z.shape == (1, n, 2)
    for k in range(3):
        own = z[0, group[0] == k]
        sd = np.sqrt(np.diag(path.cov[k, 0]))
        # Four standard errors of a mean and of a proportion.
        assert (np.abs(own.mean(0) - path.mean[k, 0]) < 4 * sd / np.sqrt(len(own))).all()
        p = path.proportions[k, 0]
        assert len(own) / n == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))


def test_the_same_seed_gives_the_same_samples(dynamics):
    one, two, other = (dynamics.sample([3, 5], 20, random_state=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_proportions_agree_with_trajectories(dynamics):
    np.testing.assert_allclose(dynamics.proportions([2, 5]), dynamics.trajectories([2, 5]).proportions)
    np.testing.assert_allclose(dynamics.proportions([0.0]).sum(0), 1)


@pytest.mark.parametrize(
    "structure", [{}, {"share": "A,b", "tie_initial": True, "growth": "off", "floor": 0.2}], ids=str
)
def test_arrays_hold_everything(structure, states, cell_times):
    dynamics = some_dynamics(**structure)
    arrays = dynamics.to_arrays()
    again = GroupDynamics.from_arrays(arrays)
    np.testing.assert_array_equal(again.observed_times, OBSERVED)
    assert (again.n_groups, again.n_latent) == (3, 2)
    one, two = dynamics.trajectories([2, 5.5]), again.trajectories([2, 5.5])
    np.testing.assert_array_equal(two.mean, one.mean)
    np.testing.assert_array_equal(two.cov, one.cov)
    np.testing.assert_array_equal(
        again.responsibilities(states, cell_times), dynamics.responsibilities(states, cell_times)
    )
    for name, value in arrays["structure"].items():
        assert again.to_arrays()["structure"][name] == value


def test_arrays_are_copies(dynamics):
    arrays = dynamics.to_arrays()
    before = dynamics.trajectories([3]).mean
    arrays["parameters"]["m"][:] = 99
    np.testing.assert_array_equal(dynamics.trajectories([3]).mean, before)


# --- draws ----------------------------------------------------------------------------------------------------------


def test_what_is_asked_of_draws_is_what_each_would_say(states, cell_times):
    draws = some_dynamics(n_copies=4)
    asked = [2, 3.3, 7]
    path = draws.trajectories(asked)
    resp = draws.responsibilities(states, cell_times)
    velocity = draws.velocity(states, resp)
    again = GroupDynamics.from_arrays(draws.to_arrays())
    assert again.n_draws == draws.n_draws == 4
    np.testing.assert_array_equal(again.trajectories(asked).mean, path.mean)
    for i in range(4):
        one = draws.select(i)
        assert one.n_draws is None
        for name in ("mean", "cov", "velocity", "proportions"):
            np.testing.assert_allclose(getattr(path, name)[i], getattr(one.trajectories(asked), name), rtol=1e-6)
        np.testing.assert_allclose(draws.proportions(asked)[i], one.proportions(asked), rtol=1e-6)
        np.testing.assert_allclose(resp[i], one.responsibilities(states, cell_times), rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(velocity[i], one.velocity(states, resp[i]), rtol=1e-6)


def test_moments_change_as_their_rates_say():
    mixture = some_dynamics().mixture
    t, h = torch.tensor([0.3, 0.9], dtype=torch.float64), 1e-3  # steps are rounded to 1e-6
    with torch.no_grad():
        ahead, now, behind = (mixture.at(t + step) for step in (h, 0, -h))
        mean_rate, cov_rate = mixture.rates_at(now)
    torch.testing.assert_close((ahead.mean - behind.mean) / (2 * h), mean_rate, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close((ahead.cov - behind.cov) / (2 * h), cov_rate, rtol=2e-3, atol=2e-3)


def test_the_velocity_of_a_trajectory_is_its_slope(dynamics):
    h = 1e-2
    ahead, now, behind = (dynamics.trajectories([3 + step, 5 + step]) for step in (h, 0, -h))
    np.testing.assert_allclose((ahead.mean - behind.mean) / (2 * h), now.velocity, rtol=2e-3, atol=2e-3)


# --- fit to a representation -------------------------------------------------------------------------------------------


def test_a_representation_is_fitted_to_its_truth(latent_snapshots):
    snapshots = latent_snapshots("rotating", n_cells=60)
    dynamics, choice = fit_representation(
        snapshots.z, snapshots.times, n_groups=3, n_restarts=4, n_steps=250, ridge=1e-4
    )
    resp = dynamics.responsibilities(snapshots.z, snapshots.times)
    velocity = dynamics.velocity(snapshots.z, resp)
    cosine = (velocity * snapshots.velocity).sum(1)
    cosine /= np.linalg.norm(velocity, axis=1) * np.linalg.norm(snapshots.velocity, axis=1)
    # The mean turn of a group is known to .37/sqrt(300)/2 rad and its field to a tenth or so around that.
    assert np.median(cosine) > 0.98
    assert choice.fit.loss.shape == (250,)


@pytest.mark.parametrize(("scale", "shift"), [(100.0, 0.0), (1.0, 50.0), (1e-3, -7.0)])
def test_scale_and_origin_of_a_representation_change_nothing_but_its_units(latent_snapshots, scale, shift):
    snapshots = latent_snapshots("rotating", n_cells=30)
    one, _ = fit_representation(snapshots.z, snapshots.times, **QUICK)
    two, _ = fit_representation(snapshots.z * scale + shift, snapshots.times, **QUICK)
    # The scaled points agree to single precision (times shift/scale for the subtraction), 40 steps amplify that.
    path, other = one.trajectories(snapshots.grid), two.trajectories(snapshots.grid)
    tolerance = 2e-3
    np.testing.assert_allclose((other.mean - shift) / scale, path.mean, atol=tolerance)
    np.testing.assert_allclose(other.cov / scale**2, path.cov, atol=tolerance)
    np.testing.assert_allclose(other.proportions, path.proportions, atol=tolerance)


@pytest.mark.parametrize(("unit", "shift"), [(24.0, 0.0), (24.0, 1000.0)])
def test_another_unit_of_time_gives_the_same_fit(latent_snapshots, unit, shift):
    snapshots = latent_snapshots("rotating", n_cells=30)
    one, first = fit_representation(snapshots.z, snapshots.times, **QUICK)
    two, second = fit_representation(snapshots.z, snapshots.times * unit + shift, **QUICK)
    np.testing.assert_array_equal(first.log_likelihood, second.log_likelihood)
    path, other = one.trajectories(snapshots.grid), two.trajectories(snapshots.grid * unit + shift)
    np.testing.assert_array_equal(other.mean, path.mean)
    resp = one.responsibilities(snapshots.z, snapshots.times)
    np.testing.assert_allclose(two.velocity(snapshots.z, resp) * unit, one.velocity(snapshots.z, resp), rtol=1e-9)


def test_a_representation_without_any_spread_does_not_divide_by_zero():
    times = np.repeat([0.0, 1.0], 20)
    dynamics, _ = fit_representation(np.ones((40, 2)), times, n_groups=1, n_restarts=1, n_steps=5)
    assert np.isfinite(dynamics.trajectories([0, 1]).mean).all()


def test_labels_out_of_range_are_unknown(latent_snapshots):
    snapshots = latent_snapshots("rotating", n_cells=20)
    unknown = np.where(np.arange(len(snapshots.z)) % 2, -1, 7)
    one, _ = fit_representation(snapshots.z, snapshots.times, labels=unknown, **QUICK)
    two, _ = fit_representation(snapshots.z, snapshots.times, labels=np.full(len(unknown), -1), **QUICK)
    np.testing.assert_array_equal(one.trajectories([0.5]).mean, two.trajectories([0.5]).mean)
