"""Distances between clouds against closed forms, and scores of counts."""

from itertools import combinations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse
from scipy.stats import norm

from dynapath import metrics
from dynapath.metrics import clouds

rng = np.random.default_rng(0)
A, B = rng.normal(size=(30, 4)), rng.normal(size=(40, 4)) + 0.3
COUNTS = rng.poisson(rng.gamma(2, 0.5, size=(60, 25)))
OTHER = rng.poisson(rng.gamma(2, 0.6, size=(50, 25)))


# --- energy ----------------------------------------------------------------------------------------------------------------------


def test_energy_by_hand():
    # Between: (1 + 3 + 1 + 1) / 4; within: 2 each.
    assert metrics.energy_distance([[0.0], [2.0]], [[1.0], [3.0]]) == pytest.approx(2 * 1.5 - 2 - 2)
    # Between: (3 + 4 + 4 + 5) / 4 = 4; within: 1 each.
    assert metrics.energy_distance([[0.0], [1.0]], [[4.0], [5.0]]) == pytest.approx(2 * 4 - 1 - 1)


def test_energy_of_shifted_gaussians_is_the_closed_form_on_average():
    shift, n, repeats = 1.0, 30, 400
    # |X - Y| is a folded normal with mean `shift` and variance 2.
    folded = lambda mu: 2 / np.sqrt(np.pi) * np.exp(-(mu**2) / 4) + mu * (1 - 2 * norm.cdf(-mu / np.sqrt(2)))
    expected = 2 * folded(shift) - 2 * folded(0)
    found = [metrics.energy_distance(rng.normal(size=(n, 1)), rng.normal(shift, size=(n, 1))) for _ in range(repeats)]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / np.sqrt(repeats))


@pytest.mark.parametrize(("n", "m"), [(3, 3), (5, 40)])
def test_energy_of_one_distribution_is_zero_on_average_at_any_number_of_cells(n, m):
    found = [metrics.energy_distance(rng.normal(size=(n, 3)), rng.normal(size=(m, 3))) for _ in range(2000)]
    assert np.mean(found) == pytest.approx(0, abs=4 * np.std(found) / np.sqrt(2000))
    assert np.min(found) < 0


def test_energy_over_all_halves_of_a_cloud_is_zero_exactly():
    points = rng.normal(size=(6, 2))
    halves = [list(rows) for rows in combinations(range(6), 3)]
    found = [metrics.energy_distance(points[rows], np.delete(points, rows, axis=0)) for rows in halves]
    assert np.mean(found) == pytest.approx(0, abs=1e-12)


def test_energy_ignores_order_position_and_rotation_and_follows_the_unit():
    reference = metrics.energy_distance(A, B)
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert metrics.energy_distance(B, A) == pytest.approx(reference)
    assert metrics.energy_distance(A[::-1] @ rotation + 5, B @ rotation + 5) == pytest.approx(reference)
    assert metrics.energy_distance(3 * A, 3 * B) == pytest.approx(3 * reference)


def test_energy_in_blocks_is_the_same(monkeypatch):
    reference = metrics.energy_distance(A, B)
    monkeypatch.setattr(clouds, "_BLOCK", 7)
    assert metrics.energy_distance(A, B) == pytest.approx(reference)


# --- W2 --------------------------------------------------------------------------------------------------------------------------


def test_w2_of_a_translation_is_its_length():
    assert metrics.wasserstein2(A, rng.permutation(A) + [3.0, 0, -4.0, 0]) == pytest.approx(5)


def test_w2_on_a_line_pairs_by_rank():
    x, y = rng.normal(size=(2, 20))
    expected = np.sqrt(np.square(np.sort(x) - np.sort(y)).mean())
    assert metrics.wasserstein2(x[:, None], y[:, None]) == pytest.approx(expected)


def test_w2_is_that_of_optimal_transport():
    from ot import dist, emd2

    assert metrics.wasserstein2(A, B[:30]) ** 2 == pytest.approx(emd2([], [], dist(A, B[:30])))


def test_w2_needs_equal_numbers():
    with pytest.raises(ValueError, match="30 and 40"):
        metrics.wasserstein2(A, B)


@pytest.mark.parametrize("distance", [metrics.energy_distance, metrics.wasserstein2])
def test_what_is_no_cloud_is_refused(distance):
    with pytest.raises(ValueError, match=r"one row a cell.*\(30,\)"):
        distance(A[:, 0], B)
    with pytest.raises(ValueError, match="4 and 3"):
        distance(A, B[:30, :3])
    with pytest.raises(ValueError, match="y has NaN or infinite values, first in row 2"):
        distance(A, np.where(np.arange(30)[:, None] == 2, np.nan, B[:30]))


# --- counts ----------------------------------------------------------------------------------------------------------------------


def test_zero_error_by_hand():
    # Zero fractions (1/2, 0) and (1/4, 1/2).
    predicted, true = np.array([[0, 1], [3, 2]]), np.array([[0, 1], [1, 0], [5, 0], [2, 2]])
    assert metrics.zero_error(predicted, true) == pytest.approx((0.25 + 0.5) / 2)


def test_zeros_that_are_stored_count_as_zeros():
    stored = sparse.csr_matrix(COUNTS + 1.0)
    stored.data -= 1
    assert stored.nnz == COUNTS.size
    assert metrics.zero_error(stored, COUNTS) == 0


def test_variance_ratio_is_the_median_over_genes_of_log_normalised_variances():
    def variances(counts):
        cells = ad.AnnData(counts.astype(float))
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
        return cells.X.var(0)

    expected = np.median(variances(COUNTS) / variances(OTHER))
    assert metrics.variance_ratio(COUNTS, OTHER) == pytest.approx(expected)
    assert metrics.variance_ratio(COUNTS, COUNTS) == pytest.approx(1)
    assert metrics.variance_ratio(sparse.csr_matrix(COUNTS), sparse.csr_array(OTHER)) == pytest.approx(expected)


def test_genes_without_variance_in_the_true_cells_say_nothing():
    silent = np.column_stack([OTHER, np.zeros((50, 30), int)])
    predicted = np.column_stack([COUNTS, np.zeros((60, 30), int)])
    assert metrics.variance_ratio(predicted, silent) == pytest.approx(metrics.variance_ratio(COUNTS, OTHER))
    assert np.isnan(metrics.variance_ratio(COUNTS, np.zeros((5, 25))))


@pytest.mark.filterwarnings("ignore:Some cells have zero counts:UserWarning")
def test_normalisation_is_that_of_scanpy_and_keeps_empty_cells_empty():
    counts = np.vstack([COUNTS, np.zeros(25, int)])
    cells = ad.AnnData(counts.astype(float))
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    np.testing.assert_allclose(clouds.log_normalised(counts).toarray(), cells.X)


# --- space -----------------------------------------------------------------------------------------------------------------------


def test_principal_components_keep_the_most_variance():
    values = clouds.log_normalised(COUNTS).toarray()
    space = clouds.PrincipalSpace.fit(COUNTS, 5)
    np.testing.assert_allclose(space.axes.T @ space.axes, np.eye(5), atol=1e-10)
    spectrum = np.linalg.svd(values - values.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(np.square(space.project(COUNTS)).sum(0), spectrum[:5])
    np.testing.assert_allclose(space.project(COUNTS).mean(0), 0, atol=1e-10)


def test_principal_components_are_the_same_each_time_and_fewer_where_there_are_fewer():
    one, two = (clouds.PrincipalSpace.fit(sparse.csr_matrix(COUNTS), 20) for _ in range(2))
    np.testing.assert_array_equal(one.axes, two.axes)
    assert clouds.PrincipalSpace.fit(COUNTS[:, :4], 20).axes.shape == (4, 3)
    assert clouds.PrincipalSpace.fit(COUNTS[:6], 20).axes.shape == (25, 5)
