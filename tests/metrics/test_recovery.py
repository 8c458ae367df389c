import numpy as np
import pytest

from dynapath import metrics

rng = np.random.default_rng(0)
Z = rng.normal(size=(200, 2))
B, c = np.array([[2.0, -1.0], [0.5, 1.5]]), np.array([3.0, -4.0])
paths = rng.normal(size=(3, 5, 2))
velocities = rng.normal(size=(200, 2))


def test_an_affine_map_of_the_truth_is_aligned_exactly():
    encoded = (Z - c) @ np.linalg.inv(B)
    found = metrics.affine_alignment(encoded, Z)
    np.testing.assert_allclose(found.matrix, B, atol=1e-10)
    np.testing.assert_allclose(found.offset, c, atol=1e-10)


def test_scores_of_the_truth_do_not_depend_on_the_coordinates_or_on_the_names_of_groups():
    encoded, mean, v = Z @ B + c, (paths @ B + c)[[2, 0, 1]], velocities @ B
    assert metrics.trajectory_error(mean, paths, encoded, Z) == pytest.approx(0, abs=1e-10)
    assert metrics.velocity_cosine(v, velocities, encoded, Z) == pytest.approx(1)


def test_trajectory_error_is_in_standard_deviations_of_the_true_states():
    shifted = paths + 0.3
    assert metrics.trajectory_error(shifted, paths, Z, Z) == pytest.approx(0.3 / np.sqrt(Z.var(0).mean()))


def test_match_groups_leaves_the_surplus_out():
    found = np.concatenate([paths[[1]], 100 + paths[[0]], paths[[2]], paths[[0]]])
    assert metrics.match_groups(found, paths).tolist() == [3, 0, 2]


def test_opposite_velocities_have_cosine_minus_one():
    assert metrics.velocity_cosine(-velocities, velocities, Z, Z) == pytest.approx(-1)


def test_gene_r2_is_one_for_the_truth_and_zero_for_the_mean_profile():
    profiles = rng.dirichlet(np.ones(30), size=15)
    assert metrics.gene_r2(profiles, profiles) == pytest.approx(1)
    mean = np.expm1(np.log1p(1e4 * profiles).mean(0)) / 1e4
    assert metrics.gene_r2(np.tile(mean, (15, 1)), profiles) == pytest.approx(0)
