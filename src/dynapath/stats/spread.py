r"""How well the data tell how much coefficients differ between units.

An empirical Bayes estimate takes the covariance Sigma over units for known. Where units hardly show a coefficient, that
makes its intervals too narrow when Sigma happens to be estimated as small, and too wide when as large. Averaged over the
posterior of Sigma they are right (Morris 1983, doi:10.1080/01621459.1983.10477920; Kass and Steffey 1989,
doi:10.1080/01621459.1989.10478825):

    p(Sigma | data)  ~  restricted likelihood  x  prior,   prior flat in standard deviations and correlations

Few units would leave standard deviations without an upper end, so the prior of each falls off like a half-Cauchy
distribution, far above its estimate (Gelman 2006, doi:10.1214/06-BA117A). The posterior is sampled with weights, from a
t distribution around its mode, in logarithms of the standard deviations and Fisher's z of the partial correlations of
which a correlation matrix can be made (Lewandowski, Kurowicka and Joe 2009, doi:10.1016/j.jmva.2009.04.008).
Low-discrepancy points make it reproducible without a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import chi2, norm, qmc

from .pooling import Pooled, RestrictedLikelihood, scale_of

# Points of two searches for the proposal, and of the sample; a power of two for the low-discrepancy sequence.
_POINTS = (256, 256, 512)
_LEVEL = 0.25  # share of the points that must count in a search
_DF = 5.0  # of the proposal: heavier tails than the posterior, whose logarithm falls off linearly
# The proposal's standard deviation in a direction without curvature.
_WIDEST = 1.5
_FAR = 10.0  # how far above estimate and typical error the prior of a standard deviation begins to fall off
# scipy's name for a generator of random numbers: `seed` until 1.14, where `rng` is not known.
_SEED = "rng" if "rng" in signature(qmc.Sobol).parameters else "seed"
_LARGEST = 50.0  # logarithm of a standard deviation beyond which numbers overflow; nothing has weight there


def possible_spreads(
    H: Float[NDArray, "unit coefficient coefficient"],
    rho: Float[NDArray, "unit coefficient"],
    squares: Float[NDArray, " unit"],
    n: Float[NDArray, " unit"],
    *,
    varies: Bool[NDArray, " coefficient"],
    sigma2: Float[NDArray, " unit"],
    found: Pooled,
    n_spreads: int = 100,
) -> list[Float[NDArray, "coefficient coefficient"]]:
    """Covariances over units, all as likely, that the data of :func:`dynapath.stats.pooling.pool` leave possible."""
    scale = scale_of(H, n)
    held = np.diag(found.mean_covariance) == 0.0
    model = RestrictedLikelihood(
        H * scale[:, None] * scale, rho * scale, squares, n, sigma2, np.where(held, found.mean / scale, np.nan)
    )
    places = np.flatnonzero(varies)
    k = len(places)
    typical = np.sqrt(np.median(sigma2) / max(np.median(n), 1.0))

    def root(x: NDArray) -> NDArray:
        L = np.zeros((len(varies), len(varies)))
        L[np.ix_(places, places)] = root_from(x, k)
        return L

    def minus_log(x: NDArray) -> tuple[float, NDArray]:
        L = root(x)
        value, score, _ = model.restricted_likelihood(L, 0.0)
        slope = 2.0 * score @ L
        gradient = np.array([(slope * moved).sum() for moved in _slopes(root, x)])
        prior, prior_slope = _log_prior(x, k, widest)
        return -value - prior, -gradient - prior_slope

    estimated = found.covariance[np.ix_(places, places)] / scale[places, None] / scale[places]
    widest = _FAR * (np.sqrt(np.diag(estimated)) + typical)
    start = _start(estimated, typical)
    mode = minimize(minus_log, start, jac=True, method="BFGS", options={"maxiter": 200, "gtol": 1e-4}).x
    center, factor = mode, _factor(lambda x: minus_log(x)[1], mode)
    for n_points in _POINTS:
        x, log_proposal = _proposed(center, factor, n_points)
        log_weight = model.values(np.array([root(one) for one in x])) - log_proposal
        log_weight += [_log_prior(one, k, widest)[0] for one in x]
        center, factor = _moments(x, log_weight)
    weight = _weights(log_weight)
    chosen = np.searchsorted(np.cumsum(weight), (np.arange(n_spreads) + 0.5) / n_spreads).clip(max=len(x) - 1)
    square = scale[:, None] * scale
    return [square * (L @ L.T) for L in map(root, x[chosen])]


def root_from(x: Float[NDArray, " parameter"], k: int) -> Float[NDArray, "k k"]:
    """Lower triangular root of the covariance with logarithms of k standard deviations, then Fisher's z."""
    L = np.zeros((k, k))
    z = np.zeros((k, k))
    z[np.tril_indices(k, -1)] = np.tanh(x[k:])
    left = np.ones(k)
    for j in range(k):
        L[j:, j] = np.where(np.arange(j, k) == j, 1.0, z[j:, j]) * np.sqrt(left[j:])
        left = left * (1.0 - z[:, j] ** 2)
    return np.exp(np.minimum(x[:k], _LARGEST))[:, None] * L


def _log_prior(x: NDArray, k: int, widest: NDArray) -> tuple[float, NDArray]:
    """Flat in standard deviations far below `widest` and over correlation matrices, in the coordinates x; its slope."""
    z = np.tanh(x[k:])
    power = 0.5 * (k - np.tril_indices(k, -1)[1])
    wide = (np.exp(np.minimum(x[:k], _LARGEST)) / widest) ** 2
    value = x[:k].sum() - np.log1p(wide).sum() + (power * np.log(np.maximum(1.0 - z**2, 1e-300))).sum()
    return float(value), np.concatenate([1.0 - 2.0 * wide / (1.0 + wide), -2.0 * power * z])


def _slopes(root: Callable[[NDArray], NDArray], x: NDArray) -> list[NDArray]:
    step = 1e-5
    return [(root(x + step * e) - root(x - step * e)) / (2.0 * step) for e in np.eye(len(x))]


def _start(covariance: NDArray, typical: float) -> NDArray:
    """Coordinates near a covariance, away from bounds."""
    k = len(covariance)
    sd = np.maximum(np.sqrt(np.diag(covariance)), 0.3 * typical)
    correlation = covariance / sd[:, None] / sd
    L = np.linalg.cholesky(0.9 * correlation + np.diag(1.0 - 0.9 * np.diag(correlation)))
    left = 1.0 - np.concatenate([np.zeros((k, 1)), np.cumsum(L**2, axis=1)[:, :-1]], axis=1)
    z = (L / np.sqrt(np.maximum(left, 1e-12)))[np.tril_indices(k, -1)]
    return np.concatenate([np.log(sd), np.arctanh(np.clip(z, -0.9, 0.9))])


def _factor(gradient: Callable[[NDArray], NDArray], mode: NDArray) -> NDArray:
    """Root of the inverse curvature; directions without curvature get a bounded width."""
    step = 1e-3
    H = np.array([(gradient(mode + step * e) - gradient(mode - step * e)) / (2.0 * step) for e in np.eye(len(mode))])
    values, vectors = np.linalg.eigh(0.5 * (H + H.T))
    return vectors / np.sqrt(np.maximum(values, _WIDEST**-2))


def _weights(log_weight: NDArray) -> NDArray:
    return np.exp(log_weight - logsumexp(log_weight))


def _moments(x: NDArray, log_weight: NDArray) -> tuple[NDArray, NDArray]:
    """Mean and root of the covariance for the next proposal; weights are levelled so that no few points decide."""
    for power in (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.0):
        weight = _weights(power * log_weight)
        if 1.0 / (weight**2).sum() >= _LEVEL * len(x):
            break
    center = weight @ x
    covariance = (weight[:, None] * (x - center)).T @ (x - center)
    return center, np.linalg.cholesky(covariance + 1e-6 * np.eye(x.shape[1]))


def _proposed(center: NDArray, factor: NDArray, n_points: int) -> tuple[NDArray, NDArray]:
    """Points of a multivariate t distribution and its log density up to a constant."""
    d = len(center)
    u = np.clip(qmc.Sobol(d + 1, **{_SEED: np.random.default_rng(0)}).random(n_points), 1e-9, 1.0 - 1e-9)
    normal, mixing = norm.ppf(u[:, :d]), chi2.ppf(u[:, d], _DF) / _DF
    t = normal / np.sqrt(mixing)[:, None]
    return center + t @ factor.T, -0.5 * (_DF + d) * np.log1p((t**2).sum(1) / _DF)
