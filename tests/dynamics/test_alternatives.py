"""Alternative explanations: where the data cannot decide, where they can, and what is dropped."""

from importlib import import_module

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from dynapath.dynamics import LinearMixture, fit_mixture, refit_alternatives

module = import_module("dynapath.dynamics.fit_mixture")  # the package has a function of the same name


def two_groups_at_two_times(n=60, seed=0, third=False):
    """Two clouds that may have stayed or swapped; at a third time in between, they are seen on their ways."""
    rng = np.random.default_rng(seed)
    times = [0.0, 0.5, 1.0] if third else [0.0, 1.0]
    z, index, group = [], [], []
    for t, time in enumerate(times):
        for k, side in enumerate((-1, 1)):
            # They swap, passing each other above and below the origin.
            centre = np.array([side * 4 * (1 - 2 * time), side * 8 * time * (1 - time)])
            z.append(centre + rng.normal(scale=0.4, size=(n, 2)))
            index += [t] * n
            group += [k] * n
    scale = np.concatenate(z).std()
    z = torch.as_tensor(np.concatenate(z) / scale, dtype=torch.float32)
    return z, torch.as_tensor(index), torch.tensor(times), np.array(group)


def started_at(z, index, groups, times):
    """A mixture with constant drifts between the clouds of each group at the first and last time."""
    mixture = LinearMixture(2, 2)
    last = int(index.max())
    with torch.no_grad():
        for k in (0, 1):
            start, end = (z[torch.as_tensor((groups == k) & (index.numpy() == t))].mean(0) for t in (0, last))
            mixture._m[k], mixture._b[k] = start, (end - start) / times[-1]
        mixture._L.copy_(torch.diag_embed(torch.full((2, 2), -2.0)))
    return mixture


def stayed_and_swapped(z, index, times, group):
    last = index.numpy() == int(index.max())
    stayed = np.where(last, 1 - group, group)
    return started_at(z, index, group, times), started_at(z, index, stayed, times)


def test_with_two_snapshots_staying_and_swapping_are_equally_good():
    z, index, times, group = two_groups_at_two_times()
    swapped, stayed = stayed_and_swapped(z, index, times, group)
    found = refit_alternatives(swapped, LinearMixture.stack([stayed]), z, index, times, ridge=1e-3, n_steps=150)
    assert found.mixture.n_copies == 1
    assert abs(found.log_likelihood[0]) < 2
    assert found.agreement[0] < 0.1


def test_a_third_snapshot_decides():
    z, index, times, group = two_groups_at_two_times(third=True)
    swapped, stayed = stayed_and_swapped(z, index, times, group)
    found = refit_alternatives(swapped, LinearMixture.stack([stayed]), z, index, times, ridge=1e-3, n_steps=150)
    assert found is None or found.log_likelihood[0] < -10


def test_the_likelihood_counts_all_cells_even_where_some_are_left_out():
    z, index, times, group = two_groups_at_two_times(n=120, third=True)
    swapped, stayed = stayed_and_swapped(z, index, times, group)
    # Not run: both stand where they are, and differ by as much for each cell.
    full, part = (
        refit_alternatives(swapped, LinearMixture.stack([stayed]), z, index, times, max_cells=m, n_steps=1, lr=1e-9)
        for m in (5000, 360)
    )
    assert full.log_likelihood[0] < -100
    assert part.log_likelihood[0] == pytest.approx(full.log_likelihood[0], rel=0.2)


def test_copies_of_the_fit_and_of_each_other_are_dropped():
    z, index, times, group = two_groups_at_two_times()
    swapped, stayed = stayed_and_swapped(z, index, times, group)
    assert refit_alternatives(swapped, LinearMixture.stack([swapped]), z, index, times, n_steps=30) is None
    found = refit_alternatives(swapped, LinearMixture.stack([stayed, swapped, stayed]), z, index, times, n_steps=30)
    assert found.mixture.n_copies == 1


def test_what_diverges_is_dropped():
    z, index, times, group = two_groups_at_two_times()
    swapped, broken = stayed_and_swapped(z, index, times, group)
    with torch.no_grad():
        broken._m.fill_(torch.nan)
    assert refit_alternatives(swapped, LinearMixture.stack([broken]), z, index, times, n_steps=5) is None


def test_groups_are_named_after_those_of_the_fit():
    z, index, times, group = two_groups_at_two_times()
    swapped, stayed = stayed_and_swapped(z, index, times, group)
    stayed.reorder([1, 0])
    found = refit_alternatives(swapped, LinearMixture.stack([stayed]), z, index, times, n_steps=50)
    one = found.mixture.select(0).responsibilities(z, index, times).argmax(-1).numpy()
    fit = swapped.responsibilities(z, index, times).argmax(-1).numpy()
    assert (one == fit).mean() >= 0.5


def test_the_fit_is_not_changed():
    z, index, times, group = two_groups_at_two_times()
    swapped, stayed = stayed_and_swapped(z, index, times, group)
    before = [p.detach().clone() for p in swapped.parameters()]
    refit_alternatives(swapped, LinearMixture.stack([stayed]), z, index, times, n_steps=5)
    assert all(torch.equal(p, q) for p, q in zip(swapped.parameters(), before, strict=True))


def test_of_close_restarts_one_of_each_other_grouping_is_kept():
    one, two, three = np.arange(30) % 2, np.arange(30) // 15, np.arange(30) // 10
    groups = np.array([two, one, 1 - one, two, three, three])
    likelihood = np.array([-1.005, -1.0, -1.001, -1.004, -1.01, -1.5])
    # Best first: `one` under another name is the best again, of `two` the better is kept, and the last is far below.
    assert module._rivals(likelihood, groups) == [3, 4]
    assert module._rivals(np.array([-1.0, -1.03]), np.array([one, two])) == []
    assert module._rivals(np.array([-1.0, -np.inf]), np.array([one, two])) == []


def test_the_fit_carries_the_restarts_that_it_counts_as_alternatives(monkeypatch):
    z, index, times, _ = two_groups_at_two_times(n=20)
    monkeypatch.setattr(module, "AS_GOOD", np.inf)
    monkeypatch.setattr(module, "SAME_GROUPS", 0.999)
    fit = fit_mixture(LinearMixture(2, 2), z, index, times, n_restarts=6, n_steps=5)
    assert fit.alternatives is not None
    groups = fit.alternatives.responsibilities(z, index, times).argmax(-1).numpy()
    best = fit.mixture.responsibilities(z, index, times).argmax(-1).numpy()
    assert all(adjusted_rand_score(best, other) < 0.999 for other in groups)
