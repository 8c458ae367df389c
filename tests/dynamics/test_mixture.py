"""The mixture of group dynamics against densities, solvers and samples of other makes."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from dynapath.dynamics import LinearMixture, flow, marginal_log_prob

EXACT = {"rtol": 1e-10, "atol": 1e-10}
TIMES = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)


def some_mixture(n_groups=3, n_latent=2, seed=0, **structure):
    mixture = LinearMixture(n_groups, n_latent, **structure).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return mixture


def some_cells(n=40, n_latent=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (
        2 * torch.randn(n, n_latent, generator=generator, dtype=torch.float64),
        torch.randint(len(TIMES), (n,), generator=generator),
    )


@pytest.fixture
def mixture():
    return some_mixture()


@pytest.fixture
def cells():
    return some_cells()


def values(tensor):
    return tensor.detach().numpy()


# --- density -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_latent", [1, 2, 4])
def test_joint_density_is_that_of_weighted_normals(n_latent):
    mixture, (z, index) = some_mixture(n_latent=n_latent), some_cells(n_latent=n_latent)
    now = mixture.at(TIMES)
    joint = values(now.joint_log_prob(z, index))
    for i, t in enumerate(index.tolist()):
        for k in range(3):
            normal = multivariate_normal(values(now.mean)[k, t], values(now.cov)[k, t])
            expected = values(now.log_weight)[k, t] + normal.logpdf(z[i].numpy())
            assert joint[i, k] == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_moments_and_weights_are_those_of_the_equations(mixture):
    now = mixture.at(TIMES)
    A, b, m, L, Q = map(values, (mixture.A, mixture.b, mixture.initial_mean, mixture.initial_tril, mixture.Q))
    a, r = values(mixture._a), values(mixture._r)
    for j, t in enumerate(TIMES.tolist()):
        weight = np.exp(a + r * t) / np.exp(a + r * t).sum()
        np.testing.assert_allclose(np.exp(values(now.log_weight)[:, j]), weight, rtol=1e-12)
        for k in range(3):
            grown = expm(np.block([[A[k], b[k][:, None]], [np.zeros((1, 3))]]) * t)
            Phi, c = grown[:2, :2], grown[:2, 2]
            np.testing.assert_allclose(values(now.mean)[k, j], Phi @ m[k] + c, rtol=1e-10)
            s, weights = np.polynomial.legendre.leggauss(20)
            steps = [expm(A[k] * t * (x + 1) / 2) for x in s]
            noise = sum(w * step @ Q[k] @ step.T for w, step in zip(weights, steps, strict=True)) * t / 2
            expected = Phi @ L[k] @ L[k].T @ Phi.T + noise + mixture.floor * np.eye(2)
            np.testing.assert_allclose(values(now.cov)[k, j], expected, rtol=1e-9, atol=1e-12)


def test_a_group_that_decays_fast_keeps_a_positive_variance():
    # Along one diagonal of the plane the rate is -45, along the other -.1; start and noise are the same everywhere.
    mixture = LinearMixture(1, 2, floor=1e-3).double()
    with torch.no_grad():
        mixture._A.copy_(torch.tensor([[-45.1, 44.9], [44.9, -45.1]], dtype=torch.float64) / 2)
    variance = np.linalg.eigvalsh(values(mixture.at(torch.tensor([0.0, 1.0])).cov)[0, 1])
    decay = np.exp(-0.2)
    expected = [np.exp(-2) / 90 + 1e-3, decay + np.exp(-2) * (1 - decay) / 0.2 + 1e-3]
    np.testing.assert_allclose(variance, expected, rtol=1e-10)


def test_the_order_of_cells_does_not_matter(mixture, cells):
    z, index = cells
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(3))
    now = mixture.at(TIMES)
    torch.testing.assert_close(now.joint_log_prob(z[order], index[order]), now.joint_log_prob(z, index)[order], **EXACT)


def test_a_cell_does_not_know_of_the_others(mixture, cells):
    z, index = cells
    now = mixture.at(TIMES)
    one_by_one = torch.cat([now.joint_log_prob(z[i : i + 1], index[i : i + 1]) for i in range(len(z))])
    torch.testing.assert_close(one_by_one, now.joint_log_prob(z, index), **EXACT)


def test_copies_are_evaluated_side_by_side(mixture, cells):
    copies = mixture.like(n_copies=2).double()
    other = some_mixture(seed=5)
    with torch.no_grad():
        for both, one, two in zip(copies.parameters(), mixture.parameters(), other.parameters(), strict=True):
            both.copy_(torch.stack([one, two]))
    joint = copies.at(TIMES).joint_log_prob(*cells)
    torch.testing.assert_close(joint[0], mixture.at(TIMES).joint_log_prob(*cells), **EXACT)
    torch.testing.assert_close(joint[1], other.at(TIMES).joint_log_prob(*cells), **EXACT)


def test_a_copy_that_has_diverged_leaves_the_others_alone(mixture, cells):
    copies = mixture.like(n_copies=2).double()
    with torch.no_grad():
        for both, one in zip(copies.parameters(), mixture.parameters(), strict=True):
            both.copy_(one.expand_as(both))
        copies._A[1, 0, 0, 0] = torch.nan
    joint = copies.at(TIMES).joint_log_prob(*cells)
    marginal_log_prob(joint).mean(-1).sum().backward()
    assert joint[1].isnan().any()
    torch.testing.assert_close(joint[0], mixture.at(TIMES).joint_log_prob(*cells), **EXACT)
    marginal_log_prob(mixture.at(TIMES).joint_log_prob(*cells)).mean().backward()
    for both, one in zip(copies.parameters(), mixture.parameters(), strict=True):
        torch.testing.assert_close(both.grad[0], one.grad, **EXACT)


def test_single_precision_costs_single_precision(mixture, cells):
    z, index = cells
    double = values(mixture.at(TIMES).joint_log_prob(z, index))
    single = values(mixture.float().at(TIMES).joint_log_prob(z.float(), index))
    assert single.dtype == np.float32
    # Parameters and states are rounded at 6e-8; squared distances reach some hundred standard deviations.
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-4)


def test_marginal_sums_out_the_group(mixture, cells):
    joint = mixture.at(TIMES).joint_log_prob(*cells)
    np.testing.assert_allclose(values(marginal_log_prob(joint)), logsumexp(values(joint), axis=1), rtol=1e-12)


def test_known_labels_take_the_place_of_the_sum(mixture, cells):
    joint = mixture.at(TIMES).joint_log_prob(*cells)
    labels = torch.arange(len(joint)) % 4 - 1  # -1, 0, 1, 2, ...
    marginal = marginal_log_prob(joint, labels)
    for i, label in enumerate(labels.tolist()):
        expected = logsumexp(values(joint)[i]) if label < 0 else values(joint)[i, label]
        assert marginal[i].item() == pytest.approx(expected, rel=1e-12)


def test_temperature_shares_cells_between_groups(mixture, cells):
    joint = mixture.at(TIMES).joint_log_prob(*cells)
    np.testing.assert_allclose(
        values(marginal_log_prob(joint, temperature=3.0)), 3 * logsumexp(values(joint) / 3, axis=1), rtol=1e-12
    )
    # The gradient with respect to the joint is what pulls a group towards a cell: responsibilities at that temperature.
    leaf = joint.detach().requires_grad_()
    marginal_log_prob(leaf, temperature=3.0).sum().backward()
    torch.testing.assert_close(leaf.grad, (joint.detach() / 3).softmax(-1), **EXACT)


# --- responsibilities, velocity, motion --------------------------------------------------------------------------


def test_responsibilities_are_posterior_probabilities(mixture, cells):
    resp = values(mixture.responsibilities(*cells, TIMES))
    np.testing.assert_allclose(resp.sum(1), 1, rtol=1e-12)
    joint = values(mixture.at(TIMES).joint_log_prob(*cells))
    np.testing.assert_allclose(resp, np.exp(joint - logsumexp(joint, axis=1, keepdims=True)), rtol=1e-10)


def test_velocity_averages_the_fields_of_the_groups(mixture, cells):
    z, _ = cells
    resp = torch.rand(len(z), 3, generator=torch.Generator().manual_seed(2)).double().softmax(-1)
    expected = sum(resp[:, k, None] * (z @ mixture.A[k].mT + mixture.b[k]) for k in range(3))
    torch.testing.assert_close(mixture.velocity(z, resp), expected, **EXACT)


def test_pushing_is_the_flow_of_the_group_there_and_back(mixture, cells):
    z, _ = cells
    generator = torch.Generator().manual_seed(4)
    group = torch.randint(3, (len(z),), generator=generator)
    dt = torch.tensor([-0.6, 0.0, 0.25, 1.0]).double()[torch.randint(4, (len(z),), generator=generator)]
    there = mixture.push(z, group, dt)
    torch.testing.assert_close(there, flow(z, mixture.A[group], mixture.b[group], dt), **EXACT)
    torch.testing.assert_close(mixture.push(there, group, -dt), z, **EXACT)


def test_group_means_are_pushed_onto_each_other(mixture):
    now = mixture.at(TIMES)
    pushed = mixture.push(now.mean[:, 0], torch.arange(3), TIMES[[2, 2, 2]])
    torch.testing.assert_close(pushed, now.mean[:, 2], **EXACT)


def test_samples_have_the_moments_of_the_mixture(mixture):
    n = 40_000
    z, group = mixture.sample(TIMES, n, torch.Generator().manual_seed(0))
    assert z.shape == (3, n, 2)
    assert group.shape == (3, n)
    now = mixture.at(TIMES)
    for t in range(3):
        for k in range(3):
            own = values(z[t][group[t] == k])
            weight = np.exp(values(now.log_weight)[k, t])
            mean, cov = values(now.mean)[k, t], values(now.cov)[k, t]
            # Four standard errors: of a proportion, of a mean, and of a (co)variance, which is at most sqrt(2 S_ii S_jj / n).
            assert len(own) / n == pytest.approx(weight, abs=4 * np.sqrt(weight * (1 - weight) / n))
            sd = np.sqrt(np.diag(cov))
            assert (np.abs(own.mean(0) - mean) < 4 * sd / np.sqrt(len(own))).all()
            assert (np.abs(np.cov(own.T) - cov) < 4 * np.sqrt(2 / len(own)) * np.outer(sd, sd)).all()


def test_the_same_generator_gives_the_same_samples(mixture):
    one, two = (mixture.sample(TIMES, 50, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_the_covariance_before_the_start_raises(mixture):
    with pytest.raises(ValueError, match=r"dt = -0\.5"):
        mixture.at(torch.tensor([-0.5]))


# --- growth ------------------------------------------------------------------------------------------------------


def test_without_growth_proportions_are_constant():
    mixture = some_mixture(growth="off")
    assert not mixture.growth_rate.any()
    weight = mixture.log_proportions(TIMES)
    torch.testing.assert_close(weight, weight[:, :1].expand_as(weight), **EXACT)
    assert not mixture._r.requires_grad


@pytest.mark.parametrize("growth", ["shrunk", "free"])
def test_log_odds_change_linearly_with_growth(growth):
    mixture = some_mixture(growth=growth)
    weight = values(mixture.log_proportions(TIMES))
    np.testing.assert_allclose(np.exp(weight).sum(0), 1, rtol=1e-12)
    odds, rate = weight - weight[0], values(mixture._r) - values(mixture._r)[0]
    np.testing.assert_allclose(odds - odds[:, :1], rate[:, None] * TIMES.numpy(), atol=1e-12)


def test_only_differences_of_growth_rates_count():
    mixture = some_mixture(growth="shrunk")
    before = mixture.log_proportions(TIMES), mixture.growth_penalty(), mixture.growth_rate
    with torch.no_grad():
        mixture._r.add_(5.0)
        mixture._a.sub_(2.0)
    after = mixture.log_proportions(TIMES), mixture.growth_penalty(), mixture.growth_rate
    torch.testing.assert_close(after, before, **EXACT)
    centred = values(mixture._r) - values(mixture._r).mean()
    assert mixture.growth_penalty().item() == pytest.approx((centred**2).sum())


@pytest.mark.parametrize("growth", ["free", "off"])
def test_growth_is_penalised_only_when_shrunk(growth):
    assert some_mixture(growth=growth).growth_penalty().item() == 0


def test_ridge_is_the_mean_squared_norm_of_the_rates(mixture):
    expected = np.mean([np.linalg.norm(A) ** 2 for A in values(mixture.A)])
    assert mixture.ridge_penalty().item() == pytest.approx(expected)


# --- structure ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["A", "A,b"])
def test_shared_rates_are_the_same_numbers(share):
    mixture = some_mixture(share=share)
    assert (mixture.A == mixture.A[0]).all()
    assert (mixture.b == mixture.b[0]).all() == (share == "A,b")
    assert mixture.A.shape == (3, 2, 2)
    assert mixture.b.shape == (3, 2)


def test_tied_groups_start_as_one_cloud():
    mixture = some_mixture(tie_initial=True)
    now = mixture.at(TIMES)
    torch.testing.assert_close(now.mean[:, 0], now.mean[:1, 0].expand(3, 2), **EXACT)
    torch.testing.assert_close(now.cov[:, 0], now.cov[:1, 0].expand(3, 2, 2), **EXACT)
    assert not torch.allclose(now.mean[0, 2], now.mean[1, 2])


@pytest.mark.parametrize(("k", "d"), [(1, 1), (3, 2), (5, 10)])
def test_parameters_of_the_full_model_are_counted_by_the_formula(k, d):
    full = LinearMixture(k, d, growth="free")
    assert full.n_parameters() == k * (d**2 + 2 * d + d * (d + 1) // 2 + 2) - 2
    assert LinearMixture(k, d, growth="shrunk").n_parameters() == full.n_parameters()


def test_structure_saves_parameters():
    k, d = 3, 2
    full = LinearMixture(k, d).n_parameters()
    assert full - LinearMixture(k, d, growth="off").n_parameters() == k - 1
    assert full - LinearMixture(k, d, share="A").n_parameters() == (k - 1) * d**2
    assert full - LinearMixture(k, d, share="A,b").n_parameters() == (k - 1) * (d**2 + d)
    assert full - LinearMixture(k, d, tie_initial=True).n_parameters() == (k - 1) * (d + d * (d + 1) // 2)


def test_the_count_is_the_rank_of_what_the_parameters_can_do():
    # Directions in parameter space that change no marginal (adding to all a, or to all r) are not counted; Q is held.
    mixture = some_mixture()
    kept = [name for name, _ in mixture.named_parameters() if name != "_log_q"]
    times = torch.linspace(0, 1, 6).double()

    def marginals(*given):
        now = torch.func.functional_call(
            _Marginals(mixture), {f"mixture.{name}": value for name, value in zip(kept, given, strict=True)}, (times,)
        )
        return torch.cat([part.flatten() for part in now])

    given = tuple(mixture.get_parameter(name).detach() for name in kept)
    jacobian = torch.cat([J.flatten(1) for J in torch.autograd.functional.jacobian(marginals, given)], dim=1)
    assert torch.linalg.matrix_rank(jacobian, rtol=1e-9) == mixture.n_parameters()


class _Marginals(torch.nn.Module):
    def __init__(self, mixture):
        super().__init__()
        self.mixture = mixture

    def forward(self, times):
        now = self.mixture.at(times)
        return now.log_weight, now.mean, now.cov


def test_select_takes_one_copy_out():
    copies = some_mixture(share="A", tie_initial=True, growth="off").like(n_copies=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copies.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    one = copies.select(2)
    assert (one.share, one.tie_initial, one.growth, one.n_copies) == ("A", True, "off", None)
    for mine, theirs in zip(one.parameters(), copies.parameters(), strict=True):
        assert torch.equal(mine, theirs[2])
    with torch.no_grad():
        one._m.zero_()
    assert copies._m[2].any()


@pytest.mark.parametrize(
    "structure", [{}, {"share": "A"}, {"share": "A,b"}, {"tie_initial": True}, {"growth": "off"}], ids=str
)
def test_naming_the_groups_leaves_the_density_alone(structure, cells):
    mixture = some_mixture(**structure)
    before = marginal_log_prob(mixture.at(TIMES).joint_log_prob(*cells))
    mixture.reorder_by_start()
    torch.testing.assert_close(marginal_log_prob(mixture.at(TIMES).joint_log_prob(*cells)), before, **EXACT)


def test_groups_are_named_by_falling_proportion_then_by_start():
    mixture = some_mixture()
    with torch.no_grad():
        mixture._a.copy_(torch.tensor([0.0, 2.0, 0.0]))
        mixture._m.copy_(torch.tensor([[1.0, 0.0], [5.0, 0.0], [-1.0, 0.0]]))
    mixture.reorder_by_start()
    assert values(mixture.initial_mean)[:, 0].tolist() == [5.0, -1.0, 1.0]


def test_the_names_do_not_depend_on_the_order_before():
    one, two = some_mixture(), some_mixture()
    with torch.no_grad():
        for parameter in two.parameters():
            parameter.copy_(parameter[[2, 0, 1]].clone())
    one.reorder_by_start()
    two.reorder_by_start()
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)
