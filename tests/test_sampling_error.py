"""Sampling errors of shares and weighted means, against the textbook where membership is certain."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from statsmodels.stats.proportion import proportion_confint

from dynapath._sampling_error import share_interval, weighted_mean


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("count", [0, 3, 50, 100])
def test_the_interval_of_a_share_is_wilsons(count):
    ours = share_interval(count / 100, 100, 0.9)
    np.testing.assert_allclose(ours, proportion_confint(count, 100, alpha=0.1, method="wilson"), atol=1e-12)


def test_for_certain_members_the_interval_of_a_mean_is_students(rng):
    values, member = rng.gamma(1.0, size=(60, 2)), rng.integers(2, size=60)
    mean, lower, upper = weighted_mean(values, np.eye(2)[member], 0.9)
    for k in range(2):
        expected = ttest_1samp(values[member == k], 0).confidence_interval(0.9)
        np.testing.assert_allclose(mean[k], values[member == k].mean(0))
        np.testing.assert_allclose(lower[k], expected.low)
        np.testing.assert_allclose(upper[k], expected.high)


def test_the_scale_of_the_weights_and_cells_without_weight_do_not_matter(rng):
    values, weights = rng.normal(size=(40, 3)), rng.uniform(size=(40, 2))
    once = weighted_mean(values, weights, 0.9)
    np.testing.assert_allclose(weighted_mean(values, 3 * weights, 0.9), once)
    more = weighted_mean(np.vstack([values, 100 + values]), np.vstack([weights, np.zeros_like(weights)]), 0.9)
    np.testing.assert_allclose(more, once)


def test_the_interval_of_a_weighted_mean_covers_the_truth(rng):
    """2,000 samples of 30 cells: the standard error of their coverage is .007."""
    inside = []
    for _ in range(2000):
        weights = rng.beta(0.5, 0.5, size=(30, 1))
        _, lower, upper = weighted_mean(rng.normal(size=(30, 1)), weights, 0.9)
        inside.append(lower <= 0 <= upper)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)


def test_too_few_cells_have_no_mean_and_a_single_one_has_no_interval(rng):
    weights = np.array([[0.4, 1.0, 1.0], [0.5, 0.0, 1.0]])
    mean, lower, upper = weighted_mean(rng.normal(size=(2, 1)), weights, 0.9)
    np.testing.assert_array_equal(np.isnan(mean[:, 0]), [True, False, False])
    for bound in (lower, upper):
        np.testing.assert_array_equal(np.isnan(bound[1:, 0]), [True, False])
