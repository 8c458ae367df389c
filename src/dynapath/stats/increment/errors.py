"""Covariance of the coefficients, unit by unit.

With H the curvature of the loss and M the variance of its gradient, an estimate has covariance H^-1 M H^-1. For
`hessian`, M is that of the model: innovations of variance v sigma^2, with sigma^2 from the residuals (so that weights
"equal" are not taken for efficient where reports are missing). For `sandwich`, M sums the observed squared scores of
reports, or of units where coefficients are shared. Partially pooled coefficients have the variance of empirical Bayes
estimates given the estimated covariance over units; refits of simulated panels tell how uncertain that is, and add how
much the estimates depend on it (Laird and Louis 1987, doi:10.1080/01621459.1987.10478490). A coefficient at its bound has no standard error; the others are given it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath.stats.pooling import pool, unit_covariance

from .estimate import Estimate, eliminated
from .problem import CLIPPED, CONSTANT, NO_DATA, RANK_DEFICIENT, Problem
from .recursion import COUNT, CURVATURE, DLOG_V, DLOG_V2, LOSSES, MODEL_SCORES, OBSERVED_SCORES, follow

Kind = Literal["hessian", "sandwich"]


def covariance_of(
    problem: Problem,
    modes: NDArray[np.str_],
    found: Estimate,
    kind: Kind,
    *,
    parts: tuple[NDArray, NDArray] | None = None,
    spreads: list[NDArray] | None = None,
) -> tuple[Float[NDArray, "unit coefficient coefficient"], Float[NDArray, "pooled pooled"] | None]:
    """Of every unit's coefficients, and of the pooled means; NaN where there are not enough reports for it.

    `parts` are H and M, for a loss of one's own; `spreads` are covariances over units that the data leave possible.
    """
    H, M = parts or _curvature_and_scores(problem, np.nan_to_num(found.params), found.sigma2, kind)
    fixed = found.status == CLIPPED
    for matrix, diagonal in ((H, 1.0), (M, 0.0)):
        matrix[fixed, 1, :] = matrix[fixed, :, 1] = 0.0
        matrix[fixed, 1, 1] = diagonal
    if found.pooled is None:
        inverse = _inverse(H)
        out, of_means = inverse @ M @ inverse, None
    else:
        between = None if spreads is None else _given_each(problem, modes, found, spreads)
        out, of_means = _pooled_covariance(modes, found, H, M, kind, between)
    own = modes != "global"
    out[fixed, 1, :] = out[fixed, :, 1] = np.nan
    for status, unknown in ((CONSTANT, own), (NO_DATA, modes == "individual"), (RANK_DEFICIENT, modes == "individual")):
        for k in np.flatnonzero(unknown):
            rows = found.status == status
            out[rows, k, :] = out[rows, :, k] = np.nan
    return out, of_means


def _given_each(problem: Problem, modes: NDArray[np.str_], found: Estimate, spreads: list[NDArray]) -> NDArray:
    """Variance of the pooled coefficients S: the mean of that given each covariance, and that of their estimates."""
    params, sigma2 = np.nan_to_num(found.params), 1.0 / found.weight
    H, rho, squares, n = eliminated(problem, modes, params, sigma2, found.used)
    A, n_S = H / sigma2[found.used][:, None, None], H.shape[1]
    A_all = np.zeros((len(params), n_S, n_S))
    A_all[found.used] = A
    within = np.zeros_like(A_all)
    estimates = []
    for spread in spreads:
        varies = modes[modes != "individual"] == "partial"
        given = pool(H, rho, squares, n, varies=varies, sigma2=sigma2[found.used], covariance=spread)
        within += unit_covariance(A_all, spread, given.mean_covariance) / len(spreads)
        every = np.tile(given.mean, (len(params), 1))
        every[found.used] = given.unit_mean
        estimates.append(every)
    away = np.array(estimates) - np.mean(estimates, axis=0)
    return within + np.einsum("rui,ruj->uij", away, away) / max(len(spreads) - 1, 1)


def _pooled_covariance(
    modes: NDArray[np.str_], found: Estimate, H: NDArray, M: NDArray, kind: Kind, of_S: NDArray | None
) -> tuple[NDArray, NDArray]:
    """Pooled coefficients S, then a unit's own coefficients I given these."""
    pooled, used, weight = found.pooled, found.used, found.weight[:, None, None]
    A, M = weight * H, weight**2 * M
    I, S = np.flatnonzero(modes == "individual"), np.flatnonzero(modes != "individual")
    inverse = _inverse(A[:, I[:, None], I])
    P = np.nan_to_num(A[:, S[:, None], I] @ inverse)
    A_S = A[:, S[:, None], S] - P @ A[:, I[:, None], S]
    C = pooled.mean_covariance
    if kind == "sandwich":
        n_used = max(int(used.sum()), 2)
        C = C @ (pooled.score.T @ pooled.score) @ C * n_used / (n_used - 1)
    elif not found.by_likelihood:
        T = np.concatenate([np.broadcast_to(np.eye(len(S)), A_S.shape), -P], axis=2)
        order = np.concatenate([S, I])
        C = C @ np.nansum((T @ M[:, order[:, None], order] @ np.swapaxes(T, 1, 2))[used], axis=0) @ C
    out = np.full_like(A, np.nan)
    of_S = unit_covariance(A_S, pooled.covariance, C) if of_S is None else of_S
    cross = -np.swapaxes(P, 1, 2) @ of_S
    out[:, S[:, None], S] = of_S
    out[:, I[:, None], S] = cross
    out[:, S[:, None], I] = np.swapaxes(cross, 1, 2)
    out[:, I[:, None], I] = inverse @ M[:, I[:, None], I] @ inverse - cross @ P
    return out, C


def _curvature_and_scores(problem: Problem, params: NDArray, sigma2: NDArray, kind: Kind) -> tuple[NDArray, NDArray]:
    """H and M in the units of the loss: of squares, with sigma^2 in M."""
    sums, _, H = problem.sums(params, CURVATURE)
    k = params.shape[1]
    n = sums[:, COUNT]
    if kind == "sandwich":
        _, _, M = problem.sums(params, OBSERVED_SCORES)
        M = M * np.where(n > k, n / np.maximum(n - k, 1.0), np.nan)[:, None, None]
    elif problem.counts:
        M = H.copy()
    elif problem.kind == LOSSES["huber"]:
        return _huber(problem, params, n)
    else:
        _, _, M = problem.sums(params, MODEL_SCORES)
        M = sigma2[:, None, None] * M
    if problem.gap:
        # What log v tells of the state coefficient, sigma^2 being estimated as well.
        known = np.where(np.isfinite(sigma2), sigma2, 0.0)
        extra = np.maximum(0.5 * sums[:, DLOG_V2] - 0.5 * sums[:, DLOG_V] ** 2 / np.maximum(n, 1.0), 0.0)
        H[:, 1, 1] += known * extra
        M[:, 1, 1] += known**2 * extra
    return H, M


def _huber(problem: Problem, params: NDArray, n: NDArray) -> tuple[NDArray, NDArray]:
    """Huber (1981, eq. 7.6.5): the variance of the clipped residuals over the squared share of those not clipped."""
    panel = problem.panel
    _, resid, _ = follow(panel.y, panel.z, panel.source, panel.lag, params, first=panel.first_day)
    clipped = np.clip(resid, -problem.tuning[:, None], problem.tuning[:, None])
    inside = np.nansum(np.abs(resid) <= problem.tuning[:, None], axis=1) / np.maximum(n, 1.0)
    left = n - params.shape[1]
    kappa = np.where(left > 0, np.nansum(clipped**2, axis=1) / np.maximum(left, 1.0), np.nan)
    _, _, X = Problem(panel).sums(params)
    H = inside[:, None, None] * X
    return H, kappa[:, None, None] * X


def _inverse(H: NDArray) -> NDArray:
    """Of matrices whose diagonals differ by many orders of magnitude; NaN where there is none."""
    if not H.shape[1]:
        return H
    root = np.sqrt(np.einsum("ukk->uk", H))
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = H / root[:, :, None] / root[:, None]
    good = np.isfinite(scaled).all((1, 2))
    good[good] = np.linalg.eigvalsh(scaled[good])[:, 0] > 1e-13
    out = np.full_like(H, np.nan)
    out[good] = np.linalg.inv(scaled[good]) / root[good][:, :, None] / root[good][:, None]
    return out
