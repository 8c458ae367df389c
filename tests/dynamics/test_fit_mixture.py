"""Fitting group dynamics to points of known groups: recovery, independence of restarts, proportions."""

from importlib import import_module
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from dynapath.datasets._simulate_snapshots import SCENARIOS
from dynapath.dynamics import LinearMixture, fit_mixture, marginal_log_prob, refit_proportions

module = import_module("dynapath.dynamics.fit_mixture")  # the package has a function of the same name
QUICK = {"n_restarts": 3, "n_steps": 30}


def tensors(snapshots):
    """Points, time index and times as `fit_mixture` takes them, and the factor that brings them to unit spread."""
    scale = snapshots.z.std()
    z = torch.as_tensor(snapshots.z / scale, dtype=torch.float32)
    return z, torch.as_tensor(snapshots.index), torch.as_tensor(snapshots.grid), scale


def best_match(mean, truth):
    """RMSE of group paths under the best naming of the groups."""
    return min(np.sqrt(((mean[list(order)] - truth) ** 2).mean()) for order in permutations(range(len(truth))))


def true_mixture(scenario, proportions=None):
    """The truth as a mixture, without process noise or floor."""
    system = SCENARIOS[scenario]
    mixture = LinearMixture(3, 2, growth="free", floor=0.0).double()
    with torch.no_grad():
        mixture._A.copy_(torch.as_tensor(system.A))
        mixture._b.copy_(torch.as_tensor(system.b))
        mixture._m.copy_(torch.as_tensor(system.m))
        mixture._L.copy_(torch.eye(2) * np.log(system.s0))
        mixture._log_q.fill_(-30.0)
    return mixture


# --- recovery ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["rotating", "crossing"])
def test_restarts_find_the_truth(scenario, latent_snapshots):
    snapshots = latent_snapshots(scenario, n_cells=100)
    z, index, times, scale = tensors(snapshots)
    fit = fit_mixture(LinearMixture(3, 2), z, index, times, ridge=1e-4, n_restarts=8, n_steps=300)

    groups = fit.mixture.responsibilities(z, index, times).argmax(-1)
    reached = adjusted_rand_score(snapshots.group, groups)
    # The Bayes rule errs on about 8 % of cells where groups cross; estimated boundaries cost little beside that.
    assert reached > adjusted_rand_score(snapshots.group, snapshots.bayes_groups()) - 0.03

    # A mean of 100 cells with a spread of .35 to .39 is known to .04. The path of a group has 8 parameters for its 10
    # means, so its error is below that where groups are apart; where they overlap, variances add: factor 2 in all.
    mean = fit.mixture.at(times).mean.detach().numpy() * scale
    assert best_match(mean, snapshots.mean) < 2 * 0.04


def test_the_chosen_restart_has_the_best_likelihood(latent_snapshots):
    z, index, times, _ = tensors(latent_snapshots("rotating", n_cells=30))
    fit = fit_mixture(LinearMixture(3, 2), z, index, times, n_restarts=5, n_steps=60)
    assert fit.log_likelihood.shape == fit.agreement.shape == (5,)
    assert fit.best == np.argmax(fit.log_likelihood)
    assert fit.agreement[fit.best] == 1
    joint = fit.mixture.at(times).joint_log_prob(z, index)
    assert marginal_log_prob(joint).mean().item() == pytest.approx(fit.log_likelihood.max(), rel=1e-5)


# --- restarts are independent --------------------------------------------------------------------------------------


@pytest.fixture
def chosen_starts(monkeypatch):
    """Let restart i start from `first + i` of a fixed list of starts, whatever the batch is."""
    starts = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0))
    drifts = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(1))

    def begin_at(chosen):
        @torch.no_grad()
        def start(copies, *_):
            copies._m.copy_(starts[chosen])
            copies._b.copy_(drifts[chosen])
            copies._L.copy_(torch.diag_embed(torch.full((2,), np.log(0.5))).expand_as(copies._L))

        monkeypatch.setattr(module, "_start", start)

    begin_at.starts = starts
    return begin_at


def test_each_restart_ends_where_it_would_end_alone(chosen_starts, latent_snapshots):
    z, index, times, _ = tensors(latent_snapshots("crossing", n_cells=20))
    chosen_starts(list(range(4)))
    together = fit_mixture(LinearMixture(3, 2), z, index, times, n_restarts=4, n_steps=80)
    for i in range(4):
        # Twice the same start: restarts are annealed in turn, so its twin at place i % 2 is treated as in the batch.
        chosen_starts([i, i])
        alone = fit_mixture(LinearMixture(3, 2), z, index, times, n_restarts=2, n_steps=80)
        # Batched products round differently, and 80 steps amplify single precision.
        assert alone.log_likelihood[i % 2] == pytest.approx(together.log_likelihood[i], abs=1e-4)
        if i == together.best and alone.best == i % 2:
            for one, other in zip(alone.mixture.parameters(), together.mixture.parameters(), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_restart_that_diverges_loses_and_harms_no_other(chosen_starts, latent_snapshots):
    z, index, times, _ = tensors(latent_snapshots("crossing", n_cells=20))
    chosen_starts([0, 1, 2])
    healthy = fit_mixture(LinearMixture(3, 2), z, index, times, n_restarts=3, n_steps=40)
    chosen_starts.starts[1] = torch.nan
    chosen_starts([0, 1, 2])
    fit = fit_mixture(LinearMixture(3, 2), z, index, times, n_restarts=3, n_steps=40)
    assert fit.log_likelihood[1] == -np.inf
    np.testing.assert_allclose(fit.log_likelihood[[0, 2]], healthy.log_likelihood[[0, 2]], atol=1e-5)
    assert fit.best != 1


def test_when_all_restarts_diverge_the_error_says_so(chosen_starts, latent_snapshots):
    z, index, times, _ = tensors(latent_snapshots("crossing", n_cells=20))
    chosen_starts.starts.fill_(torch.nan)
    chosen_starts([0, 1])
    with pytest.raises(FloatingPointError, match="All 2 restarts.*lr="):
        fit_mixture(LinearMixture(3, 2), z, index, times, n_restarts=2, n_steps=5)


def test_gradients_are_clipped_one_restart_at_a_time():
    weights = torch.zeros(3, 4, requires_grad=True), torch.zeros(3, 2, 2, requires_grad=True)
    for parameter in weights:
        parameter.grad = torch.ones_like(parameter) * torch.tensor([1e-3, 1.0, 1e6]).view(
            -1, *[1] * (parameter.dim() - 1)
        )
    module._clip_each(list(weights), max_norm=10.0)
    norms = sum(p.grad.flatten(1).square().sum(1) for p in weights).sqrt()
    torch.testing.assert_close(norms, torch.tensor([1e-3 * 8**0.5, 8**0.5, 10.0]))


# --- seeds, side effects -------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(latent_snapshots):
    z, index, times, _ = tensors(latent_snapshots("rotating", n_cells=20))
    one, two, other = (
        fit_mixture(LinearMixture(3, 2), z, index, times, random_state=seed, **QUICK) for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(one.log_likelihood, two.log_likelihood)
    for a, b in zip(one.mixture.parameters(), two.mixture.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not np.array_equal(one.log_likelihood, other.log_likelihood)


def test_global_random_states_are_left_alone(latent_snapshots):
    z, index, times, _ = tensors(latent_snapshots("rotating", n_cells=20))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()  # noqa: NPY002
    fit_mixture(LinearMixture(3, 2), z, index, times, **QUICK)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.get_num_threads() == before[2]


def test_the_given_mixture_is_only_a_pattern(latent_snapshots):
    z, index, times, _ = tensors(latent_snapshots("rotating", n_cells=20))
    pattern = LinearMixture(3, 2, share="A", tie_initial=True, growth="off", floor=0.01)
    fit = fit_mixture(pattern, z, index, times, **QUICK)
    assert not any(parameter.any() for name, parameter in pattern.named_parameters() if name != "_log_q")
    assert (fit.mixture.share, fit.mixture.tie_initial, fit.mixture.growth) == ("A", True, "off")
    assert fit.mixture.floor == 0.01
    assert not fit.mixture.growth_rate.any()


def test_every_step_is_reported(latent_snapshots):
    z, index, times, _ = tensors(latent_snapshots("rotating", n_cells=20))
    steps = []
    fit_mixture(LinearMixture(3, 2), z, index, times, n_restarts=1, n_steps=7, on_step=steps.append)
    assert steps == list(range(7))


# --- penalties and labels --------------------------------------------------------------------------------------------


def test_ridge_and_growth_penalty_shrink_what_they_penalise(latent_snapshots):
    snapshots = latent_snapshots("separated", n_cells=40, growth=(0, 1.5, -1.5))
    z, index, times, _ = tensors(snapshots)

    def fitted(**penalties):
        return fit_mixture(LinearMixture(3, 2), z, index, times, n_restarts=2, n_steps=150, **penalties).mixture

    loose, tight = fitted(ridge=1e-4, growth_penalty=1e-3), fitted(ridge=10.0, growth_penalty=100.0)
    assert tight.ridge_penalty() < 0.1 * loose.ridge_penalty()
    assert tight.growth_penalty() < 0.01 * loose.growth_penalty()


def test_known_labels_are_honoured(latent_snapshots):
    # Branching groups start as one cloud, so only labels can say which group is which.
    snapshots = latent_snapshots("branching", n_cells=60)
    z, index, times, scale = tensors(snapshots)
    named = np.array([2, 0, 1])[snapshots.group]
    fit = fit_mixture(
        LinearMixture(3, 2), z, index, times, labels=torch.as_tensor(named), n_restarts=2, n_steps=200, ridge=1e-4
    )
    mean = fit.mixture.at(times).mean.detach().numpy()[[2, 0, 1]] * scale
    # In the given order, without matching: the standard error of 60 cells is .35 e^{.2}/sqrt(60) = .055.
    assert np.sqrt(((mean - snapshots.mean) ** 2).mean()) < 2 * 0.055


def test_a_few_labels_name_the_groups(latent_snapshots):
    snapshots = latent_snapshots("rotating", n_cells=60)
    z, index, times, _ = tensors(snapshots)
    named = np.array([2, 0, 1])[snapshots.group]
    known = np.where(np.random.default_rng(0).random(len(named)) < 0.1, named, -1)
    fit = fit_mixture(LinearMixture(3, 2), z, index, times, labels=torch.as_tensor(known), n_restarts=6, n_steps=250)
    groups = fit.mixture.responsibilities(z, index, times).argmax(-1).numpy()
    # The groups are eight standard deviations apart, so there is no Bayes error to speak of.
    assert (groups == named).mean() > 0.98


# --- thinning ------------------------------------------------------------------------------------------------------


def test_thinning_keeps_every_time_and_its_share():
    time_index = torch.tensor([0] * 10 + [1] * 900 + [2] * 3000 + [3] * 6090)
    kept = module.thin(time_index, 1000, np.random.default_rng(0))
    assert len(kept.unique()) == len(kept)
    # A tenth of each, but not fewer than a hundred where there are as many.
    assert torch.bincount(time_index[kept]).tolist() == [10, 100, 300, 609]


def test_few_points_are_not_thinned():
    assert torch.equal(module.thin(torch.arange(7) % 3, 7, np.random.default_rng(0)), torch.arange(7))


def test_a_small_first_snapshot_survives_the_thinning_of_large_ones(latent_snapshots):
    snapshots = latent_snapshots("rotating", n_cells=200, times=(0, 0.5, 1))
    z, index, times, _ = tensors(snapshots)
    kept = torch.cat([(index == 0).nonzero()[::75, 0], (index > 0).nonzero()[:, 0]])  # 8 cells, then 1,200
    fit = fit_mixture(LinearMixture(3, 2), z[kept], index[kept], times, max_cells=100, n_restarts=2, n_steps=20)
    assert np.isfinite(fit.log_likelihood).all()


# --- proportions -----------------------------------------------------------------------------------------------------


def test_refitted_proportions_recover_growth_to_sampling_error(latent_snapshots):
    rates = np.array([0, 1.5, -1.5])
    snapshots = latent_snapshots("separated", n_cells=200, growth=rates)
    mixture = true_mixture("separated")
    z, index, times = map(torch.as_tensor, (snapshots.z, snapshots.index, snapshots.grid))
    refit_proportions(mixture, z, index, times)
    # 600 cells at each of 5 times: a log-odds slope has the standard error 1/sqrt(sum n p_j p_k/(p_j+p_k) (t - mean)^2).
    p = snapshots.proportions
    for j, k in ((0, 1), (0, 2), (1, 2)):
        weight = 600 * p[j] * p[k] / (p[j] + p[k])
        centre = (weight * snapshots.grid).sum() / weight.sum()
        se = (weight * (snapshots.grid - centre) ** 2).sum() ** -0.5
        difference = (mixture.growth_rate[j] - mixture.growth_rate[k]).item()
        assert difference == pytest.approx(rates[j] - rates[k], abs=4 * se)
    error = mixture.log_proportions(times).exp().detach().numpy() - p
    assert (np.abs(error) < 4 * np.sqrt(p * (1 - p) / 600)).all()


@pytest.mark.parametrize("scenario", ["separated", "crossing"])
def test_refitted_proportions_maximise_the_likelihood(scenario, latent_snapshots):
    snapshots = latent_snapshots(scenario, n_cells=100, growth=(0, 1.5, -1.5))
    mixture = true_mixture(scenario)
    z, index, times = map(torch.as_tensor, (snapshots.z, snapshots.index, snapshots.grid))
    refit_proportions(mixture, z, index, times)
    likelihood = marginal_log_prob(mixture.at(times).joint_log_prob(z, index)).mean()
    gradient = torch.autograd.grad(likelihood, (mixture._a, mixture._r))
    # The pseudo-count alone leaves 1e-3 |beta| / n < 1e-5; a step along this gradient gains less than its square.
    assert torch.cat(gradient).abs().max() < 1e-4


def test_refitting_with_all_labels_counts_them(latent_snapshots):
    # Two times and a slope: the log-linear model is saturated, so its proportions are the frequencies.
    snapshots = latent_snapshots("crossing", n_cells=100, times=(0, 1), growth=(0, 1, -1))
    mixture = true_mixture("crossing")
    z, index, times = map(torch.as_tensor, (snapshots.z, snapshots.index, snapshots.grid))
    refit_proportions(mixture, z, index, times, labels=torch.as_tensor(snapshots.group))
    counts = np.array(
        [[((snapshots.group == k) & (snapshots.index == t)).mean() * 2 for t in (0, 1)] for k in range(3)]
    )
    # Up to the pseudo-count.
    np.testing.assert_allclose(mixture.log_proportions(times).exp().detach(), counts, atol=1e-4)


def test_refitting_moves_nothing_but_proportions(latent_snapshots):
    snapshots = latent_snapshots("separated", n_cells=30)
    mixture = true_mixture("separated")
    before = {name: value.detach().clone() for name, value in mixture.named_parameters()}
    refit_proportions(mixture, *map(torch.as_tensor, (snapshots.z, snapshots.index, snapshots.grid)))
    for name, value in mixture.named_parameters():
        assert torch.equal(value, before[name]) == (name not in ("_a", "_r"))


def test_without_growth_the_refit_keeps_proportions_constant(latent_snapshots):
    snapshots = latent_snapshots("separated", n_cells=50, growth=(0, 1.5, -1.5))
    mixture = true_mixture("separated")
    mixture.growth = "off"
    z, index, times = map(torch.as_tensor, (snapshots.z, snapshots.index, snapshots.grid))
    refit_proportions(mixture, z, index, times)
    weight = mixture.log_proportions(times).exp().detach().numpy()
    assert np.ptp(weight, axis=1).max() == 0
    np.testing.assert_allclose(weight[:, 0], np.bincount(snapshots.group) / len(snapshots.group), atol=1e-3)
