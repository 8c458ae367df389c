"""Pooled coefficients are those of a mixed model, with the right limits."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from dynapath.stats.pooling import VariancePrior, pool, unit_covariance

MEAN = np.array([0.3, -0.2, 0.5])
SPREAD = np.array([[0.1, -0.02, 0.0], [-0.02, 0.02, 0.01], [0.0, 0.01, 0.2]])


@pytest.fixture(scope="module")
def sample():
    """Linear models of 60 units with 40 reports each."""
    rng = np.random.default_rng(0)
    b = rng.multivariate_normal(MEAN, SPREAD, 60)
    X = np.stack([np.ones((60, 40)), rng.normal(3, 1, (60, 40)), rng.normal(0, 1, (60, 40))], axis=-1)
    y = np.einsum("unk,uk->un", X, b) + 0.7 * rng.standard_normal((60, 40))
    return X, y


def sums(X, y):
    return (
        np.einsum("uni,unj->uij", X, X),
        np.einsum("uni,un->ui", X, y),
        (y**2).sum(1),
        np.full(len(y), float(y.shape[1])),
    )


@pytest.mark.filterwarnings("ignore:The MLE may be on the boundary")
def test_it_is_the_mixed_model_of_statsmodels(sample):
    X, y = sample
    found = pool(*sums(X, y), varies=np.ones(3, bool), sigma2=None)
    table = pd.DataFrame(
        {"y": y.ravel(), "s": X[..., 1].ravel(), "z": X[..., 2].ravel(), "u": np.repeat(range(60), 40)}
    )
    peer = smf.mixedlm("y ~ s + z", table, groups="u", re_formula="~ s + z").fit(reml=True)
    # The tolerances are those to which statsmodels' own search converges.
    np.testing.assert_allclose(found.mean, peer.fe_params, atol=2e-5)
    np.testing.assert_allclose(found.covariance, peer.cov_re, atol=2e-4)
    np.testing.assert_allclose(found.sigma2[0], peer.scale, rtol=1e-4)
    np.testing.assert_allclose(np.sqrt(np.diag(found.mean_covariance)), peer.bse_fe, rtol=5e-3)
    effects = np.array([peer.random_effects[u] for u in range(60)]) + peer.fe_params.to_numpy()
    np.testing.assert_allclose(found.unit_mean, effects, atol=5e-4)


def test_the_restricted_likelihood_has_no_slope_left_at_the_estimate(sample):
    X, y = sample
    found = pool(*sums(X, y), varies=np.ones(3, bool), sigma2=None)

    def restricted(covariance, sigma2):
        """Written out with the covariance matrix of all reports of a unit."""
        value, information, right, parts = 0.0, np.zeros((3, 3)), np.zeros(3), []
        for x, one in zip(X, y, strict=True):
            V = sigma2 * np.eye(len(one)) + x @ covariance @ x.T
            inverse = np.linalg.inv(V)
            information += x.T @ inverse @ x
            right += x.T @ inverse @ one
            value -= 0.5 * np.linalg.slogdet(V)[1]
            parts.append((x, one, inverse))
        mean = np.linalg.solve(information, right)
        value -= 0.5 * sum((one - x @ mean) @ inverse @ (one - x @ mean) for x, one, inverse in parts)
        return value - 0.5 * np.linalg.slogdet(information)[1]

    best = restricted(found.covariance, found.sigma2[0])
    for i in range(3):
        for j in range(i + 1):
            for sign in (-1, 1):
                away = found.covariance.copy()
                away[i, j] = away[j, i] = away[i, j] + sign * 2e-3
                assert restricted(away, found.sigma2[0]) < best
    for factor in (0.98, 1.02):
        assert restricted(found.covariance, factor * found.sigma2[0]) < best


def test_without_variance_all_units_share_the_pooled_least_squares(sample):
    X, y = sample
    for covariance in (np.zeros((3, 3)), 1e-14 * np.eye(3)):
        found = pool(*sums(X, y), varies=np.ones(3, bool), sigma2=np.ones(60), covariance=covariance)
        together = np.linalg.lstsq(X.reshape(-1, 3), y.ravel(), rcond=None)[0]
        np.testing.assert_allclose(found.mean, together, rtol=1e-9)
        np.testing.assert_allclose(found.unit_mean, np.tile(together, (60, 1)), rtol=1e-8)


def test_with_infinite_variance_every_unit_has_its_own_least_squares(sample):
    X, y = sample
    found = pool(*sums(X, y), varies=np.ones(3, bool), sigma2=np.ones(60), covariance=1e8 * np.eye(3))
    own = np.array([np.linalg.lstsq(x, one, rcond=None)[0] for x, one in zip(X, y, strict=True)])
    np.testing.assert_allclose(found.unit_mean, own, rtol=1e-5, atol=1e-6)


def test_coefficients_that_do_not_vary_are_shared(sample):
    X, y = sample
    found = pool(*sums(X, y), varies=np.array([True, False, True]), sigma2=None)
    np.testing.assert_array_equal(found.covariance[1], 0.0)
    assert np.ptp(found.unit_mean[:, 1]) == 0.0
    assert np.ptp(found.unit_mean[:, 0]) > 0.1


def test_units_of_a_covariate_change_its_coefficient_alone(sample):
    X, y = sample
    one = pool(*sums(X, y), varies=np.ones(3, bool), sigma2=None)
    scaled = pool(*sums(X * [1.0, 1.0, 1e4], y), varies=np.ones(3, bool), sigma2=None)
    np.testing.assert_allclose(scaled.mean * [1, 1, 1e4], one.mean, rtol=1e-5)
    np.testing.assert_allclose(
        np.sqrt(np.diag(scaled.covariance)) * [1, 1, 1e4], np.sqrt(np.diag(one.covariance)), rtol=1e-3
    )


def test_a_mean_that_is_known_is_kept(sample):
    X, y = sample
    found = pool(*sums(X, y), varies=np.ones(3, bool), sigma2=None, fixed=np.array([np.nan, -0.1, np.nan]))
    assert found.mean[1] == pytest.approx(-0.1)
    assert found.mean_covariance[1, 1] == 0.0


def test_a_unit_without_data_is_as_uncertain_as_the_distribution(sample):
    X, y = sample
    found = pool(*sums(X, y), varies=np.ones(3, bool), sigma2=None)
    alone = unit_covariance(np.zeros((1, 3, 3)), found.covariance, found.mean_covariance)[0]
    np.testing.assert_allclose(alone, found.covariance + found.mean_covariance, rtol=1e-10)


def test_the_distribution_of_variances_is_recovered():
    rng = np.random.default_rng(0)
    true = 6.0 * 0.5 / rng.chisquare(6.0, 20_000)
    seen = true * rng.chisquare(20, 20_000) / 20
    prior = VariancePrior.fit(seen, np.full(20_000, 20.0))
    assert prior.df == pytest.approx(6.0, rel=0.05)
    assert prior.scale == pytest.approx(0.5, rel=0.03)
    squeezed = prior.squeeze(20 * seen, np.full(20_000, 20.0))
    assert np.mean((np.log(squeezed) - np.log(true)) ** 2) < np.mean((np.log(seen) - np.log(true)) ** 2)
    assert prior.squeeze(np.zeros(1), np.ones(1))[0] > 0


def test_equal_variances_are_squeezed_together():
    seen = np.random.default_rng(1).chisquare(20, 500) / 20
    prior = VariancePrior.fit(seen, np.full(500, 20.0))
    assert prior.df > 100
