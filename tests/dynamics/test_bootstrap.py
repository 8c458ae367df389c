"""The bootstrap of the mixture: closed forms, independence of draws, invariances."""

import numpy as np
import pytest
import torch

from dynapath.dynamics import LinearMixture, bootstrap_mixture, fit_mixture, refit_proportions


def tensors(snapshots):
    z = torch.as_tensor(snapshots.z / snapshots.z.std(), dtype=torch.float32)
    return z, torch.as_tensor(snapshots.index), torch.as_tensor(snapshots.grid)


def static_group(n=400, seed=0, proportions=None):
    """One Gaussian cloud (or two far apart) that neither moves nor widens, seen at two times."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 2))
    if proportions is not None:
        z[:, 0] += np.where(rng.random(n) < proportions, 20.0, -20.0)
    return torch.as_tensor(z, dtype=torch.float32), torch.as_tensor(np.arange(n) % 2), torch.tensor([0.0, 1.0])


@pytest.fixture(scope="module")
def rotating(latent_snapshots):
    snapshots = latent_snapshots("rotating", n_cells=30)
    z, index, times = tensors(snapshots)
    fit = fit_mixture(LinearMixture(3, 2), z, index, times, n_restarts=2, n_steps=150)
    return fit.mixture, z, index, times


def paths(mixture, times):
    with torch.no_grad():
        return mixture.at(times).mean.numpy()


# --- closed forms ----------------------------------------------------------------------------------------------------


def test_the_mean_of_one_static_group_varies_by_its_standard_error():
    z, index, times = static_group()
    mixture = LinearMixture(1, 2, growth="off", floor=1e-6)
    with torch.no_grad():
        mixture._log_q.fill_(-20.0)
        mixture._m.copy_(z.mean(0))
    # A ridge this strong holds A at zero, and equal clouds at both times leave the drift to the difference of two means.
    draws = bootstrap_mixture(mixture, z, index, times, n_bootstrap=200, n_steps=100, ridge=1e4)
    middle = paths(draws, torch.tensor([0.5]))[:, 0, 0]
    expected = z.std(0).numpy() / np.sqrt(len(z))
    # A standard deviation of 200 draws is known to 1/sqrt(400) = 5 %; three of those.
    np.testing.assert_allclose(middle.std(0), expected, rtol=0.15)
    ends = paths(draws, times)[:, 0]
    np.testing.assert_allclose(ends.std(0), np.sqrt(2) * np.broadcast_to(expected, (2, 2)), rtol=0.15)


def test_proportions_of_groups_far_apart_vary_as_a_binomial():
    n, p = 400, 0.3
    z, index, times = static_group(n, proportions=p)
    mixture = LinearMixture(2, 2, growth="off", floor=1e-6)
    with torch.no_grad():
        mixture._m.copy_(torch.tensor([[20.0, 0.0], [-20.0, 0.0]]))
    refit_proportions(mixture, z, index, times)
    draws = bootstrap_mixture(mixture, z, index, times, n_bootstrap=200, n_steps=20)
    share = draws.log_proportions(times).exp().detach().numpy()[:, 0, 0]
    found = (z[:, 0] > 0).double().mean().item()
    assert share.std() == pytest.approx(np.sqrt(found * (1 - found) / n), rel=0.15)


@pytest.fixture(scope="module")
def many_cells(latent_snapshots):
    """A fit to 1,800 cells that is surely the right one, since the groups are known to it."""
    snapshots = latent_snapshots("rotating", n_cells=120)
    z, index, times = tensors(snapshots)
    known = torch.as_tensor(snapshots.group)
    fit = fit_mixture(LinearMixture(3, 2), z, index, times, labels=known, n_restarts=1, n_steps=150)
    return fit.mixture, z, index, times


def spread(mixture, z, index, times, **kwargs):
    """Standard deviation over draws, averaged over groups, times and dimensions."""
    return paths(bootstrap_mixture(mixture, z, index, times, n_steps=80, **kwargs), times).std(0).mean()


@pytest.fixture(scope="module")
def spread_of_all(many_cells):
    return spread(*many_cells)


def test_draws_spread_more_with_fewer_cells(many_cells, spread_of_all):
    mixture, z, index, times = many_cells
    # A quarter of the cells doubles a standard error.
    assert spread(mixture, z[::4], index[::4], times) / spread_of_all == pytest.approx(2, rel=0.2)


def test_thinning_does_not_widen_the_spread(many_cells, spread_of_all):
    assert spread(*many_cells, max_cells=600) / spread_of_all == pytest.approx(1, rel=0.2)


# --- independence, order, seeds ----------------------------------------------------------------------------------------


def test_draws_in_a_batch_end_where_each_would_end_alone(rotating, monkeypatch):
    from importlib import import_module

    module = import_module("dynapath.dynamics.bootstrap")
    mixture, z, index, times = rotating
    resampled = module._resampled(index, 3, np.random.default_rng(0))
    monkeypatch.setattr(module, "_resampled", lambda *_: resampled)
    together = paths(bootstrap_mixture(mixture, z, index, times, n_bootstrap=3, n_steps=40), times)
    for i in range(3):
        monkeypatch.setattr(module, "_resampled", lambda *_, i=i: resampled[i : i + 1])
        alone = paths(bootstrap_mixture(mixture, z, index, times, n_bootstrap=1, n_steps=40), times)
        # Batched products round differently, in single precision.
        np.testing.assert_allclose(alone[0], together[i], atol=1e-3)


def test_the_same_seed_gives_the_same_bits(rotating):
    mixture, z, index, times = rotating
    one, two, other = (
        paths(bootstrap_mixture(mixture, z, index, times, n_bootstrap=3, n_steps=10, random_state=seed), times)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_the_fit_is_not_changed_and_its_structure_kept(latent_snapshots):
    z, index, times = tensors(latent_snapshots("rotating", n_cells=20))
    pattern = LinearMixture(3, 2, share="A", tie_initial=True, growth="off", floor=0.01)
    mixture = fit_mixture(pattern, z, index, times, n_restarts=2, n_steps=20).mixture
    before = [p.detach().clone() for p in mixture.parameters()]
    draws = bootstrap_mixture(mixture, z, index, times, n_bootstrap=4, n_steps=10)
    assert all(torch.equal(p, q) for p, q in zip(mixture.parameters(), before, strict=True))
    assert (draws.share, draws.tie_initial, draws.growth, draws.floor, draws.n_copies) == ("A", True, "off", 0.01, 4)
    assert not draws.growth_rate.any()


def test_each_time_keeps_its_number_of_cells(rotating):
    from importlib import import_module

    _, _, index, _ = rotating
    weights = import_module("dynapath.dynamics.bootstrap")._resampled(index, 6, np.random.default_rng(0))
    sizes = torch.bincount(index)
    for t, size in enumerate(sizes):
        assert (weights[:, index == t].sum(1) == size).all()


def test_a_draw_that_diverges_is_an_error(rotating):
    mixture, z, index, times = rotating
    with pytest.raises(FloatingPointError, match="3 of 3 bootstrap refits.*lr="):
        bootstrap_mixture(mixture, z * torch.nan, index, times, n_bootstrap=3, n_steps=3)


def test_copies_refit_their_proportions_as_each_would_alone(latent_snapshots):
    snapshots = latent_snapshots("separated", n_cells=60, growth=(0, 1.5, -1.5))
    z, index, times = (torch.as_tensor(x) for x in (snapshots.z, snapshots.index, snapshots.grid))
    copies = LinearMixture(3, 2, growth="free", n_copies=2).double()
    with torch.no_grad():
        copies._m.normal_(generator=torch.Generator().manual_seed(0))
    alone = [copies.select(i).double() for i in range(2)]
    weights = torch.stack([torch.ones(len(z)), (torch.arange(len(z)) % 3).double()]).double()
    refit_proportions(copies, z, index, times, weights=weights)
    for i, one in enumerate(alone):
        if i == 0:
            refit_proportions(one, z, index, times)
        else:
            # A weight of two is a cell that is there twice.
            twice = torch.repeat_interleave(torch.arange(len(z)), weights[1].long())
            refit_proportions(one, z[twice], index[twice], times)
        torch.testing.assert_close(copies.select(i).log_proportions(times), one.log_proportions(times))
