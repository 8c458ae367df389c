"""Covariances over units are drawn from their posterior under a prior that is flat in standard deviations and correlations."""

import numpy as np
import pytest

from dynapath.stats.pooling import RestrictedLikelihood, pool
from dynapath.stats.spread import _log_prior, possible_spreads, root_from


def units(n_units=40, *, k=1, spread=0.5, seed=0):
    """Sums of squares of units that each show k coefficients, with errors of about 1."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_units, 20, k))
    b = spread * rng.standard_normal((n_units, k))
    y = np.einsum("unk,uk->un", X, b) + 4.0 * rng.standard_normal((n_units, 20))
    H, rho = np.einsum("uni,unj->uij", X, X), np.einsum("uni,un->ui", X, y)
    return H, rho, (y**2).sum(1), np.full(n_units, 20.0)


def drawn(parts, k=1, **settings):
    varies, sigma2 = np.ones(k, bool), np.full(len(parts[0]), 16.0)
    found = pool(*parts, varies=varies, sigma2=sigma2)
    return found, np.array(possible_spreads(*parts, varies=varies, sigma2=sigma2, found=found, **settings))


def test_coordinates_are_standard_deviations_and_partial_correlations():
    x = np.array([0.1, -0.4, 0.3, 0.5, -0.2, 0.8])
    L = root_from(x, 3)
    covariance = L @ L.T
    np.testing.assert_allclose(np.triu(L, 1), 0.0)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), np.exp(x[:3]))
    sd = np.sqrt(np.diag(covariance))
    R = covariance / sd[:, None] / sd
    assert R[1, 0] == pytest.approx(np.tanh(0.5))
    assert R[2, 0] == pytest.approx(np.tanh(-0.2))
    partial = (R[2, 1] - R[1, 0] * R[2, 0]) / np.sqrt((1 - R[1, 0] ** 2) * (1 - R[2, 0] ** 2))
    assert partial == pytest.approx(np.tanh(0.8))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_prior_is_flat_in_standard_deviations_and_correlations(k):
    """Its density in the coordinates is the determinant of the Jacobian."""
    rng = np.random.default_rng(k)
    lower = np.tril_indices(k, -1)

    def natural(x):
        covariance = root_from(x, k) @ root_from(x, k).T
        sd = np.sqrt(np.diag(covariance))
        return np.concatenate([sd, (covariance / sd[:, None] / sd)[lower]])

    gaps = []
    for _ in range(4):
        x = 0.5 * rng.standard_normal(k * (k + 1) // 2)
        J = np.array([(natural(x + 1e-5 * e) - natural(x - 1e-5 * e)) / 2e-5 for e in np.eye(len(x))])
        value, _ = _log_prior(x, k, np.full(k, np.inf))
        gaps.append(np.linalg.slogdet(J)[1] - value)
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-7)


def test_the_slope_of_the_prior_is_exact_and_ends_below_the_flat_one():
    x, widest = np.array([0.3, -0.5, 2.0, 0.4, -0.3, 0.2]), np.array([2.0, 1.0, 3.0])
    _, slope = _log_prior(x, 3, widest)
    numeric = [(_log_prior(x + h, 3, widest)[0] - _log_prior(x - h, 3, widest)[0]) / 2e-6 for h in 1e-6 * np.eye(6)]
    np.testing.assert_allclose(slope, numeric, atol=1e-7)
    _, far = _log_prior(x + [40, 40, 40, 0, 0, 0], 3, widest)
    np.testing.assert_allclose(far[:3], -1.0)


@pytest.mark.parametrize("n_units", [2, 3, 4])
def test_few_units_leave_wide_spreads_but_finite_ones(n_units):
    parts = units(n_units, k=3, spread=1.0)
    found, covariances = drawn(parts, k=3)
    assert np.isfinite(covariances).all()
    assert (np.median(covariances[:, [0, 1, 2], [0, 1, 2]], axis=0) > 0.1 * np.diag(found.covariance)).all()


@pytest.mark.parametrize("known", [[np.nan] * 3, [np.nan, 0.2, np.nan], [0.1, 0.2, 0.3]])
def test_the_fast_likelihood_is_the_likelihood(known):
    parts = units(k=3)
    model = RestrictedLikelihood(*parts, np.full(len(parts[0]), 16.0), np.array(known))
    roots = np.array([root_from(x, 3) for x in np.random.default_rng(0).standard_normal((5, 6))])
    roots[0, 1] = 0.0  # a shared coefficient
    gap = model.values(roots) - [model.restricted_likelihood(L, 0.0)[0] for L in roots]
    np.testing.assert_allclose(gap, gap[0], atol=1e-8)


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_one_spread_has_the_posterior_of_numerical_integration(spread):
    parts = units(spread=spread)
    _, covariances = drawn(parts, n_spreads=400)
    sd = np.sqrt(covariances[:, 0, 0])
    model = RestrictedLikelihood(*parts, np.full(len(parts[0]), 16.0), np.array([np.nan]))
    grid = np.linspace(1e-4, 6.0, 4000)
    log = model.values(grid[:, None, None])
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    mean = weight @ grid
    assert sd.mean() == pytest.approx(mean, rel=0.06)
    assert sd.std() == pytest.approx(np.sqrt(weight @ (grid - mean) ** 2), rel=0.15)


def test_many_units_leave_little_doubt():
    found, covariances = drawn(units(4000, k=2, spread=2.0), k=2)
    np.testing.assert_allclose(covariances.mean(0), found.covariance, atol=0.05)
    assert covariances.std(0).max() < 0.15


def test_coefficients_that_are_shared_do_not_vary_in_any_draw():
    parts, sigma2, varies = units(k=3, spread=1.0), np.full(40, 16.0), np.array([True, False, True])
    found = pool(*parts, varies=varies, sigma2=sigma2)
    covariances = np.array(possible_spreads(*parts, varies=varies, sigma2=sigma2, found=found))
    np.testing.assert_array_equal(covariances[:, 1], 0.0)
    assert (covariances[:, 0, 0] > 0).all()


def test_units_of_a_coefficient_change_nothing_else():
    H, rho, squares, n = units(k=2, spread=1.0)
    _, one = drawn((H, rho, squares, n), k=2)
    scale = np.array([1.0, 1e3])
    _, other = drawn((H * scale[:, None] * scale, rho * scale, squares, n), k=2)
    np.testing.assert_allclose((other * scale[:, None] * scale).mean(0), one.mean(0), rtol=0.02, atol=0.02)
