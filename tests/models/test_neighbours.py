"""Neighbours and their weights: t-SNE's conditional probabilities and UMAP's memberships."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.manifold import _t_sne
from sklearn.manifold._utils import _binary_search_perplexity

from dynapath.models import neighbours as nb


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 6)) * rng.gamma(2.0, size=(300, 1))


def test_conditional_probabilities_are_those_of_scikit_learn(points):
    index, distance = nb.nearest(points, 60)
    theirs = _binary_search_perplexity((distance**2).astype(np.float32), 20.0, 0)
    ours = nb.conditional_probabilities(distance**2, 20.0)
    # Theirs stops at an entropy within 1e-5, in float32.
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_joint_probabilities_are_those_of_scikit_learn(points):
    found = nb.tsne_neighbours(points, 20.0)
    n = len(points)
    rows = np.repeat(np.arange(n), found.index.shape[1])
    directed = sparse.csr_matrix((found.weight.ravel(), (rows, found.index.ravel())), shape=(n, n))
    joint = directed + directed.T
    index, distance = nb.nearest(points, 60)
    squared = sparse.csr_matrix((distance.ravel() ** 2, (rows, index.ravel())), shape=(n, n))
    theirs = _t_sne._joint_probabilities_nn(squared, 20.0, 0)
    np.testing.assert_allclose((joint / joint.sum()).toarray(), theirs.toarray(), atol=1e-7)


@pytest.mark.parametrize("perplexity", [2.0, 5.5, 30.0])
def test_every_row_has_the_entropy_that_was_asked_for(points, perplexity):
    p = nb.tsne_neighbours(points, perplexity).weight
    np.testing.assert_allclose(-(p * np.log(np.where(p > 0, p, 1))).sum(1), np.log(perplexity), atol=1e-8)
    np.testing.assert_allclose(p.sum(1), 1)


def test_the_unit_of_distance_does_not_matter(points):
    small, large = nb.tsne_neighbours(points, 10), nb.tsne_neighbours(1e6 * points, 10)
    np.testing.assert_allclose(small.weight, large.weight, atol=1e-7)


def test_equally_far_neighbours_share_equally():
    p = nb.conditional_probabilities(np.full((2, 30), 7.0), 10.0)
    np.testing.assert_allclose(p, 1 / 30)


@pytest.mark.slow  # umap is compiled when it is imported
def test_memberships_are_those_of_umap(points):
    umap = pytest.importorskip("umap.umap_")
    index, distance = nb.nearest(points, 14)
    with_self = np.hstack([np.zeros((len(points), 1)), distance]).astype(np.float32)
    sigma, rho = umap.smooth_knn_dist(with_self, 15.0)
    theirs = np.exp(-np.maximum(distance - rho[:, None], 0) / sigma[:, None])
    np.testing.assert_allclose(nb.fuzzy_memberships(distance), theirs, atol=1e-4)


def test_memberships_sum_to_the_logarithm_of_the_number_of_neighbours(points):
    w = nb.umap_neighbours(points, 15).weight
    np.testing.assert_allclose(w.sum(1), np.log2(15), atol=1e-6)
    np.testing.assert_allclose(w.max(1), 1)


@pytest.mark.slow
@pytest.mark.parametrize("min_dist", [0.1, 0.5])
def test_the_curve_is_that_of_umap(min_dist):
    umap = pytest.importorskip("umap.umap_")
    np.testing.assert_allclose(nb.curve_parameters(min_dist), umap.find_ab_params(1.0, min_dist), rtol=1e-6)


def test_nearest_leaves_the_cell_itself_out(points):
    twice = np.vstack([points, points])
    index, distance = nb.nearest(twice, 5)
    assert not (index == np.arange(600)[:, None]).any()
    np.testing.assert_allclose(distance[:, 0], 0, atol=1e-6)


def test_the_order_of_cells_does_not_matter(points):
    order = np.random.default_rng(1).permutation(len(points))
    one, other = nb.tsne_neighbours(points, 10), nb.tsne_neighbours(points[order], 10)
    np.testing.assert_allclose(one.weight[order], other.weight, rtol=1e-6)
    np.testing.assert_array_equal(one.index[order], order[other.index])


def test_components_of_sparse_counts_are_those_of_dense_ones():
    counts = np.random.default_rng(0).poisson(2.0, (80, 12)).astype(np.float32)
    from_sparse = nb.principal_components(sparse.csr_matrix(counts), 4, log_normalise=True)
    from_dense = nb.principal_components(counts, 4, log_normalise=True)
    depth = counts.sum(1, keepdims=True)
    logged = np.log1p(counts / depth * np.median(depth))
    logged -= logged.mean(0)
    u, s, _ = np.linalg.svd(logged, full_matrices=False)
    np.testing.assert_allclose(np.abs(from_sparse), np.abs(u[:, :4] * s[:4]), atol=1e-3)
    np.testing.assert_allclose(np.abs(from_sparse), np.abs(from_dense), atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "kwargs", "said"),
    [
        ("tsne", {"perplexity": 30.0}, "perplexity=30 needs 90 neighbours of each of 50 cells; it can be at most 16"),
        ("umap", {"n_neighbors": 60}, "n_neighbors=60 is more than the 50 cells"),
    ],
)
def test_too_many_neighbours_for_the_cells_are_refused(kind, kwargs, said):
    with pytest.raises(ValueError, match=said):
        nb.check_neighbours(kind, 50, **kwargs)
