"""The parts of the gamma-Poisson model against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dynapath.datasets import _splatter as splatter
from dynapath.datasets._splatter import Splat


def test_log_factors_are_folded_normals_with_random_signs():
    n = 200_000
    log_factor = splatter.log_factors(np.random.default_rng(0), (n,), prob=0.3, down_prob=0.25, loc=0.1, scale=0.4)
    affected = log_factor != 0
    # Binomial standard errors; five of them.
    assert abs(affected.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / n)
    assert abs((log_factor[affected] < 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / affected.sum())
    for sign in (-1, 1):
        sizes = np.abs(log_factor[np.sign(log_factor) == sign])
        assert stats.kstest(sizes, stats.foldnorm(c=0.1 / 0.4, scale=0.4).cdf).pvalue > 1e-4


def test_base_means_are_gamma_and_outliers_are_multiples_of_the_median():
    n, splat = 100_000, Splat()
    mean, outlier = splatter.base_means(np.random.default_rng(1), n, splat)
    assert stats.kstest(mean[~outlier], stats.gamma(0.6, scale=1 / 0.3).cdf).pvalue > 1e-4
    assert abs(outlier.mean() - 0.05) < 5 * np.sqrt(0.05 * 0.95 / n)
    # log outlier = log median + N(4, .5); the median of 100,000 gamma means has a relative error of below 2 %.
    expected = np.log(stats.gamma(0.6, scale=1 / 0.3).median()) + 4
    assert abs(np.log(mean[outlier]).mean() - expected) < 0.02 + 5 * 0.5 / np.sqrt(outlier.sum())


@pytest.mark.parametrize("lam0", [0.05, 1.0, 30.0])
def test_counts_have_mean_lambda_and_variance_lambda_plus_squared_lambda_bcv(lam0):
    n, factor = 400_000, np.array([1.2])
    expected = np.full((n, 1), lam0)
    bcv2 = splatter.squared_bcv(expected, factor, 0.1)
    np.testing.assert_allclose(bcv2, (0.1 + lam0**-0.5) ** 2 * 1.2)
    counts, rate = splatter.draw_counts(np.random.default_rng(2), expected, bcv2)
    variance = lam0 + lam0**2 * bcv2[0, 0]
    # Gamma-Poisson counts have excess kurtosis 6 BCV^2 + 1/variance, hence var(s^2) = variance^2 (2 + excess)/n.
    excess = 6 * bcv2[0, 0] + 1 / variance
    assert abs(counts.mean() - lam0) < 5 * np.sqrt(variance / n)
    assert abs(counts.var() - variance) < 5 * variance * np.sqrt((2 + excess) / n)
    assert abs(rate.mean() - lam0) < 5 * np.sqrt(lam0**2 * bcv2[0, 0] / n)


def test_counts_are_negative_binomial():
    lam0, bcv2 = 3.0, 0.4
    counts, _ = splatter.draw_counts(np.random.default_rng(3), np.full((100_000, 1), lam0), np.full((100_000, 1), bcv2))
    law = stats.nbinom(1 / bcv2, 1 / (1 + lam0 * bcv2))
    cells = np.arange(15)
    observed = np.append(np.bincount(counts.ravel(), minlength=15)[:15], (counts >= 15).sum())
    expected = np.append(law.pmf(cells), law.sf(14)) * counts.size
    assert stats.chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize(("mid", "shape"), [(0.0, -1.0), (1.5, -3.0), (0.5, 0.0), (0.0, 2.0)])
def test_keep_probability_is_the_logistic_of_the_log_rate(mid, shape):
    rate = np.geomspace(1e-6, 1e6, 25)
    logistic = 1 - 1 / (1 + np.exp(-shape * (np.log(rate) - mid)))
    np.testing.assert_allclose(splatter.keep_probability(rate, mid=mid, shape=shape), logistic, atol=1e-12)


def test_a_rate_of_zero_is_never_kept_under_the_default_dropout():
    assert splatter.keep_probability(np.array([0.0]), mid=0.0, shape=-1.0) == 0


def test_few_genes_see_a_small_library():
    assert Splat().log_library_mean(10_000) == 11
    np.testing.assert_allclose(np.exp(Splat().log_library_mean(200)), np.exp(11) / 50)
