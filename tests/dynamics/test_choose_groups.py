"""The number of groups: the criterion in closed form, what it finds, and what it must not depend on."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from dynapath.dynamics import GroupChoice, LinearMixture, MixtureFit, choose_n_groups, fit_mixture
from dynapath.dynamics.choose_groups import candidate_groups

QUICK = {"n_restarts": 4, "n_steps": 150}


def tensors(snapshots, order=None):
    """Points of unit spread, time index and times."""
    z, index = snapshots.z / snapshots.z.std(), snapshots.index
    if order is not None:
        z, index = z[order], index[order]
    return torch.as_tensor(z, dtype=torch.float32), torch.as_tensor(index), torch.as_tensor(snapshots.grid)


@pytest.fixture(scope="module")
def rotating(latent_snapshots):
    return latent_snapshots("rotating", n_cells=40)


@pytest.fixture(scope="module")
def choice(rotating):
    return choose_n_groups(*tensors(rotating), **QUICK)


def made_up(bic, n_groups=None, n_cells=100, share=0.2):
    """A choice whose criterion takes these values, with restarts at -1, -1.5 and -2 nats per cell."""
    n_groups = np.arange(1, len(bic) + 1) if n_groups is None else np.asarray(n_groups)
    n_parameters = 9 * n_groups
    likelihood = -(np.asarray(bic) - n_parameters * np.log(n_cells)) / 2
    fits = tuple(
        MixtureFit(LinearMixture(int(k), 2), np.array([-1.5, -1.0, -2.0]), np.array([0.4, 1.0, 0.6]), np.zeros(1))
        for k in n_groups
    )
    return GroupChoice(n_groups, likelihood, n_parameters, np.broadcast_to(share, len(bic)), n_cells, fits)


# --- what it finds -------------------------------------------------------------------------------------------------


def test_three_rotating_groups_are_three(choice):
    assert choice.chosen == 3
    assert choice.fit.mixture.n_groups == 3


def test_one_moving_cloud_is_one_group():
    rng = np.random.default_rng(0)
    times = np.repeat(np.linspace(0, 1, 5), 80)
    z = 0.4 * rng.standard_normal((400, 2)) + np.column_stack([3 * times, -times])
    index = torch.as_tensor(np.repeat(np.arange(5), 80))
    choice = choose_n_groups(torch.as_tensor(z, dtype=torch.float32), index, torch.linspace(0, 1, 5).double(), **QUICK)
    assert choice.chosen == 1
    # Both others were tried and found wanting, and then it stopped.
    assert choice.n_groups.tolist() == [1, 2, 3]


# --- the criterion ---------------------------------------------------------------------------------------------------


def test_the_criterion_of_one_group_is_that_of_a_gaussian_at_each_time(choice, rotating):
    """BIC = -2 log L + p log n with 4 rates, 2 drifts, 2 means and 3 covariances, all of it computed by scipy."""
    z, index, times = tensors(rotating)
    now = choice.fits[0].mixture.at(times)
    gaussians = [multivariate_normal(now.mean[0, t].detach(), now.cov[0, t].detach()) for t in range(5)]
    likelihood = sum(gaussians[t].logpdf(z[index == t].double().numpy()).sum() for t in range(5))
    assert choice.bic[0] == pytest.approx(-2 * likelihood + 11 * np.log(600), rel=1e-6)


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        ({}, [11, 24, 37]),
        ({"growth": "free"}, [11, 24, 37]),
        ({"growth": "off"}, [11, 23, 35]),
        ({"share": "A"}, [11, 20, 29]),
        ({"share": "A,b"}, [11, 18, 25]),
        ({"tie_initial": True}, [11, 19, 27]),
    ],
)
def test_parameters_are_those_of_the_structure(rotating, structure, expected):
    """For d = 2, A, b, m, L have 4, 2, 2, 3 numbers a group, a and r one each for all groups but one."""
    given = LinearMixture(1, 2, **structure)
    choice = choose_n_groups(*tensors(rotating), candidates=(1, 2, 3), structure=given, n_restarts=1, n_steps=3)
    assert choice.n_parameters.tolist() == expected
    assert all(fit.mixture.share == given.share for fit in choice.fits)


def test_more_groups_never_fit_worse(choice):
    assert (np.diff(choice.log_likelihood) > 0).all()


def test_growth_is_judged_without_its_penalty(latent_snapshots):
    """The penalty holds r near zero during the fit; the likelihood that is compared has r at its maximum."""
    snapshots = latent_snapshots("separated", n_cells=60, growth=(0, 1.5, -1.5))
    held, free = (
        choose_n_groups(*tensors(snapshots), candidates=(3,), growth_penalty=weight, **QUICK) for weight in (100.0, 0.0)
    )
    assert held.fit.mixture.growth_rate.abs().max() < 0.1
    # r is worth many nats here, of which the penalty must not have cost more than a few.
    assert free.log_likelihood[0] - 900 * held.fit.log_likelihood.max() > 50
    assert held.log_likelihood[0] == pytest.approx(free.log_likelihood[0], abs=3)


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bic", "chosen"),
    [([50, 10, 30, 40], 2), ([50, 11.9, 10, 40], 2), ([50, 12.1, 10, 40], 3), ([11, 50, 9.5, 10], 1), ([7], 1)],
)
def test_the_smallest_number_within_two_of_the_lowest_is_taken(bic, chosen):
    choice = made_up(bic)
    assert choice.chosen == chosen
    assert choice.fit.mixture.n_groups == chosen


@pytest.mark.parametrize(
    ("share", "chosen", "eligible"),
    [
        ([1, 0.3, 0.02, 0.019], 3, [True, True, True, False]),
        ([1, 0.3, 0.01, 0.3], 4, [True, True, False, True]),
        # A label may name a rare group: then all numbers have one.
        ([0.01, 0.01, 0.01, 0.01], 4, [True] * 4),
    ],
)
def test_a_number_with_a_tiny_group_is_not_chosen_unless_all_have_one(share, chosen, eligible):
    choice = made_up([80, 50, 20, 10], share=share)
    assert choice.chosen == chosen
    assert choice.eligible.tolist() == eligible
    # Differences stay those from the lowest of all.
    np.testing.assert_allclose(choice.table()["delta_bic"], [70, 40, 10, 0])


def test_the_table_has_one_row_per_candidate():
    table = made_up([50, 10, 30], n_groups=[2, 3, 5]).table()
    assert table["n_groups"].tolist() == [2, 3, 5]
    np.testing.assert_allclose(table["bic"], [50, 10, 30])
    np.testing.assert_allclose(table["delta_bic"], [40, 0, 20])
    assert table["chosen"].tolist() == [False, True, False]
    # Restarts at -1 and -1.5 nats per cell, of 100 cells: 100 in units of the criterion.
    np.testing.assert_allclose(table["restart_gap"], 100)
    np.testing.assert_allclose(table["agreement"], 0.5)


def test_the_search_stops_when_two_in_a_row_do_not_lower_the_criterion(choice):
    assert choice.n_groups.tolist() == [1, 2, 3, 4, 5]


def test_shares_are_those_of_the_smallest_group(choice):
    assert choice.smallest_share[0] == 1
    assert choice.smallest_share[2] == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(
    ("n_groups", "labels", "tried"),
    [
        ("auto", "", (1, 2, 3, 4, 5, 6)),
        ("auto", "abcd", (4, 5, 6)),
        ("auto", "abcdefgh", (8,)),
        (3, "", (3,)),
        (range(2, 5), "abc", (3, 4)),
        (np.array([4, 2, 4]), "", (2, 4)),
    ],
)
def test_numbers_to_try_rise_and_are_not_below_the_number_of_labels(n_groups, labels, tried):
    assert candidate_groups(n_groups, list(labels)) == tried


# --- what it does not depend on ----------------------------------------------------------------------------------------


def test_each_fit_is_the_one_that_would_have_been_made_alone(choice, rotating):
    z, index, times = tensors(rotating)
    alone = fit_mixture(LinearMixture(3, 2), z, index, times, **QUICK)
    for one, other in zip(choice.fit.mixture.parameters(), alone.mixture.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_order_of_the_cells_changes_nothing(choice, rotating):
    order = np.random.default_rng(1).permutation(len(rotating.z))
    other = choose_n_groups(*tensors(rotating, order), candidates=(2, 3), **QUICK)
    assert other.chosen == choice.chosen
    # Restarts begin elsewhere, so the optimum is reached only about as closely.
    assert other.bic[1] == pytest.approx(choice.bic[2], abs=1)


def test_the_names_of_the_labels_change_nothing(latent_snapshots):
    snapshots = latent_snapshots("branching", n_cells=40)
    known = np.where(np.arange(len(snapshots.z)) % 5, -1, snapshots.group)
    renamed = np.where(known < 0, -1, np.array([2, 0, 1])[known])
    one, two = (
        choose_n_groups(*tensors(snapshots), candidates=(3, 4), labels=torch.as_tensor(labels), **QUICK)
        for labels in (known, renamed)
    )
    assert one.chosen == two.chosen == 3
    assert one.bic[0] == pytest.approx(two.bic[0], abs=1)


def test_all_candidates_see_the_same_points_however_many_are_left_out(latent_snapshots):
    snapshots = latent_snapshots("rotating", n_cells=120)
    choice = choose_n_groups(*tensors(snapshots), candidates=(3, 4), max_cells=600, **QUICK)
    assert choice.n_cells == 600
    # The mean log-likelihood of the very points that were fitted, but for the proportions.
    reached = np.array([600 * fit.log_likelihood.max() for fit in choice.fits])
    np.testing.assert_allclose(choice.log_likelihood, reached, atol=5)
    assert choice.chosen == 3


def test_global_random_states_are_left_alone(rotating):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    choose_n_groups(*tensors(rotating), candidates=(1, 2), n_restarts=2, n_steps=3, random_state=None)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
