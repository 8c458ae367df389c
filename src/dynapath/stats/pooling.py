r"""Coefficients of many units: their own, shared, or drawn from a normal distribution that is estimated too.

Unit u has the log-likelihood -(b' A b - 2 r' b) / 2 up to a constant, exactly so for a linear model with known variance
and locally otherwise, with A = H / sigma^2. Its coefficients are b_u ~ N(mu, Sigma). Integrated out, with
V = (A + Sigma^-1)^-1:

    mu   = (sum W)^-1 sum (r - A V r),  W = A - A V A          generalised least squares
    b_u  = mu + V (r - A mu)                                   empirical Bayes
    score of Sigma = sum (q q' - W + W C W) / 2,  q = r - A b_u,  C = (sum W)^-1

Sigma = L L' maximises the restricted likelihood (REML; Laird & Ware 1982, doi:10.2307/2529876). Coefficients whose rows
of L are held at 0 are shared by all units, so "global" is the limit of no variance, as "individual" is that of an
infinite one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from numba import njit
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import digamma, polygamma


@dataclass(frozen=True)
class Pooled:
    """Distribution of the units' coefficients, and the coefficients themselves."""

    mean: Float[NDArray, " coefficient"]
    covariance: Float[NDArray, "coefficient coefficient"]  # Sigma; 0 where shared
    mean_covariance: Float[NDArray, "coefficient coefficient"]  # of the estimated mean
    sigma2: Float[NDArray, " unit"]
    unit_mean: Float[NDArray, "unit coefficient"]
    score: Float[NDArray, "unit coefficient"]  # of the mean, unit by unit: q
    spent: Float[NDArray, " unit"]  # degrees of freedom that a unit's own deviations take: trace of V A


def pool(
    H: Float[NDArray, "unit coefficient coefficient"],
    rho: Float[NDArray, "unit coefficient"],
    squares: Float[NDArray, " unit"],
    n: Float[NDArray, " unit"],
    *,
    varies: Bool[NDArray, " coefficient"],
    sigma2: Float[NDArray, " unit"] | None,
    covariance: Float[NDArray, "coefficient coefficient"] | None = None,
    fixed: Float[NDArray, " coefficient"] | None = None,
    near: Pooled | None = None,
) -> Pooled:
    """Estimate mean and covariance of coefficients from each unit's sum of squares b' H b - 2 rho' b + squares.

    Parameters
    ----------
    n
        Number of residuals of each unit, less the coefficients that were eliminated beforehand.
    varies
        Coefficients that differ between units; the others are shared.
    sigma2
        Residual variance of each unit; None estimates one for all.
    covariance
        Sigma, if known.
    fixed
        Means that are known; NaN where estimated.
    near
        An earlier result, near which the search starts.
    """
    p = H.shape[1]
    known = np.full(p, np.nan) if fixed is None else fixed
    scale = scale_of(H, n)
    H, rho = H * scale[:, None] * scale, rho * scale
    model = RestrictedLikelihood(H, rho, squares, n, sigma2, known / scale)
    lower = np.tril_indices(p)
    searched = varies[lower[0]] & varies[lower[1]]
    L = np.zeros((p, p))
    log_sigma2 = 0.0
    if sigma2 is None:
        left = squares - (rho * _times(np.linalg.pinv(H, hermitian=True), rho)).sum(1)
        log_sigma2 = float(np.log(max(left.sum() / n.sum(), 1e-12))) if near is None else float(np.log(near.sigma2[0]))
    if covariance is not None:
        values, vectors = np.linalg.eigh(covariance / scale[:, None] / scale)
        L = vectors * np.sqrt(np.maximum(values, 0.0))
        searched[:] = False
    else:
        # The scale of estimates around their mean is an upper bound of L; the search starts below it.
        typical = np.median(sigma2) if sigma2 is not None else np.exp(log_sigma2)
        spread = np.sqrt(typical / max(np.median(n), 1.0))
        L[np.diag_indices(p)] = np.where(varies, spread, 0.0)
        if near is not None:
            L = _root(near.covariance / scale[:, None] / scale, spread * varies)

    def unpack(x: NDArray) -> tuple[NDArray, float]:
        full = L.copy()
        if searched.any():
            full[lower[0][searched], lower[1][searched]] = x[: searched.sum()]
        return full, float(x[-1]) if sigma2 is None else log_sigma2

    def loss(x: NDArray) -> tuple[float, NDArray]:
        full, log_s = unpack(x)
        value, score_sigma, score_log_s = model.restricted_likelihood(full, log_s)
        gradient = (2.0 * score_sigma @ full)[lower[0][searched], lower[1][searched]]
        if sigma2 is None:
            gradient = np.append(gradient, score_log_s)
        return -value / len(H), -gradient / len(H)

    x = np.append(L[lower[0][searched], lower[1][searched]], [log_sigma2] if sigma2 is None else [])
    if len(x):
        x = minimize(loss, x, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-9}).x
    full, log_s = unpack(x)
    pooled = model.pooled(full, log_s, scale)
    # What is known comes back as it was given, without the rounding of scales.
    return pooled if fixed is None else replace(pooled, mean=np.where(np.isnan(fixed), pooled.mean, fixed))


def scale_of(
    H: Float[NDArray, "unit coefficient coefficient"], n: Float[NDArray, " unit"]
) -> Float[NDArray, " coefficient"]:
    """Units of the coefficients in which an average unit's information is about 1, which searches for L need."""
    return 1.0 / np.sqrt(np.maximum(np.einsum("ukk->k", H / np.maximum(n, 1.0)[:, None, None]) / len(H), 1e-300))


@dataclass(frozen=True)
class VariancePrior:
    """Scaled inverse chi-square distribution of the units' residual variances: as much as `df` residuals of size `scale`.

    Without it the variance of a unit whose few changes are fitted exactly would go to 0, and its weight to infinity
    (Smyth 2004, doi:10.2202/1544-6115.1027).
    """

    df: float
    scale: float  # a variance

    @classmethod
    def fit(cls, variance: Float[NDArray, " unit"], df: Float[NDArray, " unit"]) -> VariancePrior:
        """From the moments of the log variances."""
        some = (variance > 0) & (df > 0)
        if some.sum() < 2:
            return cls(0.0, 1.0)
        half = df[some] / 2.0
        # A fit that happens to be exact says nothing of how much variances differ (floored as in limma).
        floored = np.maximum(variance[some], 1e-5 * np.median(variance[some]))
        log = np.log(floored) - digamma(half) + np.log(half)
        between = log.var(ddof=1) - polygamma(1, half).mean()
        if between <= polygamma(1, 1e4):  # no more different than by chance
            return cls(2e4, float(np.exp(log.mean())))
        own = brentq(lambda x: polygamma(1, x) - between, 1e-4, 1e4) if between < polygamma(1, 1e-4) else 1e-4
        return cls(2.0 * own, float(np.exp(log.mean() + digamma(own) - np.log(own))))

    def squeeze(self, squares: Float[NDArray, " unit"], df: Float[NDArray, " unit"]) -> Float[NDArray, " unit"]:
        """Variances from sums of squares with `df` degrees of freedom."""
        return (self.df * self.scale + squares) / (self.df + np.maximum(df, 1e-12))


def _root(covariance: NDArray, spread: NDArray) -> NDArray:
    """Lower triangular root; a direction without variance gets a little, from which the search can leave."""
    varies = spread > 0
    root = np.zeros_like(covariance)
    inside = np.ix_(varies, varies)
    root[inside] = np.linalg.cholesky(covariance[inside] + np.diag(1e-4 * spread[varies] ** 2))
    return root


@dataclass
class RestrictedLikelihood:
    """Of coefficients that are integrated out, as a function of the root L of Sigma and of log sigma^2."""

    H: NDArray
    rho: NDArray
    squares: NDArray
    n: NDArray
    sigma2: NDArray | None
    known: NDArray

    def _parts(self, L: NDArray, log_sigma2: float) -> tuple[NDArray, ...]:
        sigma2 = np.full(len(self.H), np.exp(log_sigma2)) if self.sigma2 is None else self.sigma2
        A, r = self.H / sigma2[:, None, None], self.rho / sigma2[:, None]
        AL = A @ L
        inner = np.eye(len(L)) + L.T @ AL
        K = np.linalg.inv(inner)
        V = L @ K @ L.T
        W = A - AL @ K @ np.swapaxes(AL, 1, 2)
        mu, C = self._mean(W.sum(0), (r - _times(AL @ K, r @ L)).sum(0))
        return sigma2, A, r, inner, V, W, mu, C

    def _mean(self, W: NDArray, right: NDArray) -> tuple[NDArray, NDArray]:
        free = np.isnan(self.known)
        mu, C = np.where(free, 0.0, self.known), np.zeros_like(W)
        if free.any():
            inverse = np.linalg.pinv(W[np.ix_(free, free)], hermitian=True)
            C[np.ix_(free, free)] = inverse
            mu[free] = inverse @ (right[free] - W[np.ix_(free, ~free)] @ self.known[~free])
        return mu, C

    def restricted_likelihood(self, L: NDArray, log_sigma2: float) -> tuple[float, NDArray, float]:
        """Value, score of Sigma and score of log sigma^2."""
        sigma2, A, r, inner, V, W, mu, C = self._parts(L, log_sigma2)
        gap = r - A @ mu
        moved = _times(V, gap)
        free = np.isnan(self.known)
        W_sum = W.sum(0)
        value = -0.5 * (
            (self.n * np.log(sigma2)).sum()
            + np.log(np.linalg.det(inner)).sum()
            + ((self.squares - 2.0 * self.rho @ mu + self.H @ mu @ mu) / sigma2).sum()
            - (gap * moved).sum()
            + (np.linalg.slogdet(W_sum[np.ix_(free, free)])[1] if free.any() else 0.0)
        )
        q = gap - _times(A, moved)
        score = 0.5 * (q.T @ q - W_sum + (W @ C @ W).sum(0))
        if self.sigma2 is not None:
            return float(value), score, 0.0
        b, VA = mu + moved, V @ A
        rest = np.eye(len(L)) - VA
        at_b = self.squares - 2.0 * (self.rho * b).sum(1) + (_times(self.H, b) * b).sum(1)
        shared = (np.swapaxes(rest, 1, 2) @ A @ rest @ C).trace(axis1=1, axis2=2)
        score_log = -0.5 * (self.n - VA.trace(axis1=1, axis2=2) - at_b / sigma2 - shared).sum()
        return float(value), score, float(score_log)

    def values(self, roots: Float[NDArray, "root coefficient coefficient"]) -> Float[NDArray, " root"]:
        """For many roots L and known sigma^2, up to a constant: without scores, which takes a tenth of the time."""
        A, r = self.H / self.sigma2[:, None, None], self.rho / self.sigma2[:, None]
        out = np.empty(len(roots))
        free = np.isnan(self.known)
        A_sum, r_sum = A.sum(0), r.sum(0)
        for i, L in enumerate(roots):
            log_det, rVr, AVr, AVA = _integrated(A, r, np.ascontiguousarray(L))
            W, right = A_sum - AVA, r_sum - AVr
            mu, _ = self._mean(W, right)
            log_det += np.linalg.slogdet(W[np.ix_(free, free)])[1] if free.any() else 0.0
            out[i] = -0.5 * (log_det - rVr - 2.0 * mu @ right + mu @ W @ mu)
        return out

    def pooled(self, L: NDArray, log_sigma2: float, scale: NDArray) -> Pooled:
        """What follows for the units, with coefficients divided by `scale` in here."""
        sigma2, A, r, _, V, _, mu, C = self._parts(L, log_sigma2)
        moved = _times(V, r - A @ mu)
        square = scale[:, None] * scale
        return Pooled(
            mean=mu * scale,
            covariance=L @ L.T * square,
            mean_covariance=C * square,
            sigma2=sigma2,
            unit_mean=(mu + moved) * scale,
            score=(r - _times(A, mu + moved)) / scale,
            spent=(V @ A).trace(axis1=1, axis2=2),
        )


@njit(cache=True, error_model="numpy")
def _integrated(A, r, L):
    """Sums over units of log |1 + L'AL|, r'Vr, AVr and AVA, where V = L (1 + L'AL)^-1 L'."""
    k = A.shape[1]
    log_det, rVr, AVr, AVA = 0.0, 0.0, np.zeros(k), np.zeros((k, k))
    inner, B, c = np.empty((k, k)), np.empty((k, k)), np.empty(k)
    for u in range(A.shape[0]):
        # B = L'A and c = L'r, which the Cholesky factor of 1 + L'AL is then divided into.
        for i in range(k):
            c[i] = 0.0
            for m in range(i, k):
                c[i] += L[m, i] * r[u, m]
            for j in range(k):
                B[i, j] = 0.0
                for m in range(i, k):
                    B[i, j] += L[m, i] * A[u, m, j]
        for i in range(k):
            for j in range(i + 1):
                value = 1.0 if i == j else 0.0
                for m in range(j, k):
                    value += B[i, m] * L[m, j]
                for m in range(j):
                    value -= inner[i, m] * inner[j, m]
                inner[i, j] = math.sqrt(value) if i == j else value / inner[j, j]
            for m in range(i):
                c[i] -= inner[i, m] * c[m]
                for j in range(k):
                    B[i, j] -= inner[i, m] * B[m, j]
            c[i] /= inner[i, i]
            for j in range(k):
                B[i, j] /= inner[i, i]
            log_det += 2.0 * math.log(inner[i, i])
            rVr += c[i] * c[i]
            for j in range(k):
                AVr[j] += B[i, j] * c[i]
                for m in range(k):
                    AVA[j, m] += B[i, j] * B[i, m]
    return log_det, rVr, AVr, AVA


def _times(matrices: NDArray, vectors: NDArray) -> NDArray:
    """Each unit's matrix times its vector."""
    return (matrices @ vectors[:, :, None])[:, :, 0]


def unit_covariance(
    A: Float[NDArray, "unit coefficient coefficient"],
    covariance: Float[NDArray, "coefficient coefficient"],
    mean_covariance: Float[NDArray, "coefficient coefficient"],
) -> Float[NDArray, "unit coefficient coefficient"]:
    """Of the errors of empirical Bayes estimates: V, and (1 - V A) C (1 - V A)' for the uncertainty of the mean."""
    values, vectors = np.linalg.eigh(covariance)
    L = vectors * np.sqrt(np.maximum(values, 0.0))
    V = L @ np.linalg.solve(np.eye(len(L)) + L.T @ A @ L, np.broadcast_to(L.T, A.shape))
    rest = np.eye(len(L)) - V @ A
    return V + rest @ mean_covariance @ np.swapaxes(rest, 1, 2)
