"""Costs of a latent minibatch: against dense formulas, their gradients, and what they must not depend on."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from dynapath.models import neighbours as nb
from dynapath.models._count_module import Shape
from dynapath.models.latent_cost import tsne_cost, umap_cost, undirected
from dynapath.models.vae_options import LatentPenalty

A, B = 0.58, 1.33


def directed(n=12, seed=0, density=0.4):
    """Weights w_{j|i} (cell, cell) with an empty diagonal."""
    rng = np.random.default_rng(seed)
    w = rng.random((n, n)) * (rng.random((n, n)) < density)
    np.fill_diagonal(w, 0)
    return torch.as_tensor(w)


def edges_of(w):
    row, column = torch.nonzero(w, as_tuple=True)
    return undirected(row, column, w[row, column])


@pytest.fixture
def z():
    return torch.as_tensor(np.random.default_rng(1).normal(size=(12, 2)))


def test_tsne_is_the_divergence_of_the_dense_formula(z):
    w = directed()
    p = (w + w.T) / (w + w.T).sum()
    kernel = 1 / (1 + torch.cdist(z, z) ** 2)
    kernel.fill_diagonal_(0)
    q = kernel / kernel.sum()
    inside = p > 0
    expected = (p[inside] * (p[inside] / q[inside]).log()).sum()
    torch.testing.assert_close(tsne_cost(z, edges_of(w)), expected)


def test_tsne_is_the_divergence_that_scikit_learn_minimises(z):
    from scipy.spatial.distance import squareform
    from sklearn.manifold import _t_sne

    w = directed().numpy()
    p = squareform((w + w.T) / (w + w.T).sum())
    theirs, gradient = _t_sne._kl_divergence(z.numpy().ravel(), p, 1.0, 12, 2)
    points = z.clone().requires_grad_()
    cost = tsne_cost(points, edges_of(torch.as_tensor(w)))
    cost.backward()
    np.testing.assert_allclose(cost.item(), theirs, rtol=1e-6)
    np.testing.assert_allclose(points.grad.numpy().ravel(), gradient, rtol=1e-5, atol=1e-8)


def test_umap_is_the_cross_entropy_of_the_dense_formula(z):
    w = directed()
    union = w + w.T - w * w.T
    d2 = (z[:, None] - z[None]).square().sum(-1) + 1e-3
    q = 1 / (1 + A * d2**B)
    pairs = ~torch.eye(12, dtype=torch.bool)
    attraction = -(union * q.log())[pairs].sum() / union[pairs].sum()
    repulsion = -((1 - union) * (1 - q).log())[pairs].mean()
    torch.testing.assert_close(umap_cost(z, edges_of(w), A, B), attraction + 5 * repulsion)


@pytest.mark.parametrize("exaggeration", [1.0, 12.0])
def test_tsne_gradients(z, exaggeration):
    edges = edges_of(directed())
    assert gradcheck(lambda at: tsne_cost(at, edges, exaggeration), z.requires_grad_())


def test_umap_gradients(z):
    edges = edges_of(directed())
    assert gradcheck(lambda at: umap_cost(at, edges, A, B), z.requires_grad_())


def test_gradients_with_respect_to_the_scale(z):
    edges = edges_of(directed())
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda s: tsne_cost(s * z, edges), scale)


def test_tsne_is_zero_when_p_is_q(z):
    kernel = 1 / (1 + torch.cdist(z, z) ** 2)
    kernel.fill_diagonal_(0)
    assert abs(tsne_cost(z, edges_of(kernel))) < 1e-12


def test_tsne_is_never_negative():
    for seed in range(20):
        points = torch.as_tensor(np.random.default_rng(seed).normal(size=(12, 2)))
        assert tsne_cost(points, edges_of(directed(seed=seed))) >= 0


def test_while_exaggerated_it_is_a_cross_entropy(z):
    w = directed()
    p = torch.triu(w + w.T) / torch.triu(w + w.T).sum()
    entropy = -torch.xlogy(p, p).sum()
    torch.testing.assert_close(tsne_cost(z, edges_of(w), 12.0), 12 * (tsne_cost(z, edges_of(w)) + entropy))


@pytest.mark.parametrize("cost", [tsne_cost, lambda z, edges: umap_cost(z, edges, A, B)], ids=["tsne", "umap"])
class TestBoth:
    def test_turning_shifting_and_reordering_change_nothing(self, z, cost):
        w = directed()
        turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
        order = torch.as_tensor(np.random.default_rng(2).permutation(12))
        expected = cost(z, edges_of(w))
        torch.testing.assert_close(cost(z @ turn + 3, edges_of(w)), expected)
        torch.testing.assert_close(cost(z[order], edges_of(w[order][:, order])), expected)

    def test_a_minibatch_without_neighbours_contributes_nothing(self, z, cost):
        z.requires_grad_()
        cost(z, edges_of(torch.zeros(12, 12, dtype=torch.float64))).backward()
        assert (z.grad == 0).all()

    def test_coinciding_points_have_finite_gradients(self, cost):
        z = torch.zeros(12, 2, dtype=torch.float64, requires_grad=True)
        cost(z, edges_of(directed())).backward()
        assert torch.isfinite(z.grad).all()

    def test_points_far_apart_have_finite_costs_and_gradients(self, z, cost):
        z = (1e6 * z).requires_grad_()
        value = cost(z, edges_of(directed()))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(z.grad).all()


def test_a_minibatch_has_the_weights_of_its_cells_and_no_others():
    points = np.random.default_rng(0).normal(size=(60, 3))
    shape = Shape(LatentPenalty("tsne", perplexity=5), None)
    found = nb.tsne_neighbours(points, 5)
    shape.set_neighbours(found)
    whole = np.zeros((60, 60))
    whole[np.arange(60)[:, None], found.index] = found.weight
    cells = np.random.default_rng(1).permutation(60)[:20]
    edges = shape.among(torch.as_tensor(cells))
    dense = np.zeros((20, 20))
    dense[edges.i, edges.j], dense[edges.j, edges.i] = edges.there, edges.back
    np.testing.assert_allclose(dense, whole[cells][:, cells], rtol=1e-6)
