"""Covariance of the coefficients, unit by unit.

With H the curvature of the loss and M the variance of its gradient, an estimate has covariance H^-1 M H^-1. For
`hessian`, M is that of the model: innovations of variance v sigma^2, with sigma^2 from the residuals (so that weights
"equal" are not taken for efficient where reports are missing). For `sandwich`, M sums the observed squared scores of
reports, or of units where coefficients are shared. Partially pooled coefficients have the variance of empirical Bayes
estimates given a covariance over units, averaged over those that are possible, and how much the estimates depend on it:
those of its posterior (stats/spread.py), or of refits of simulated panels (Laird and Louis 1987,
doi:10.1080/01621459.1987.10478490). A coefficient at its bound has no standard error; the others are given it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath.stats.pooling import Pooled, pool, unit_covariance
from dynapath.stats.spread import possible_spreads

from .estimate import Estimate, eliminated
from .problem import CLIPPED, CONSTANT, NO_DATA, RANK_DEFICIENT, Problem
from .recursion import COUNT, CURVATURE, DLOG_V, DLOG_V2, LOSSES, MODEL_SCORES, OBSERVED_SCORES, follow

Kind = Literal["hessian", "sandwich"]
# Column of the one coefficient of the increment model that has bounds; a program may have a single number.
_STATE = 1


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

    `parts` are H and M, for a loss of one's own; `spreads` are covariances over units that the data leave possible,
    without which the estimated one counts as known.
    """
    H, M = parts or _curvature_and_scores(problem, np.nan_to_num(found.params), found.sigma2, kind)
    fixed = np.flatnonzero(found.status == CLIPPED)
    if len(fixed):
        for matrix, diagonal in ((H, 1.0), (M, 0.0)):
            matrix[fixed, _STATE, :] = matrix[fixed, :, _STATE] = 0.0
            matrix[fixed, _STATE, _STATE] = diagonal
    if found.pooled is None:
        inverse = _inverse(H)
        out, of_means = inverse @ M @ inverse, None
    else:
        averaged = None if spreads is None else _given_each(problem, modes, found, kind, spreads)
        out, of_means = _pooled_covariance(modes, found, H, M, kind, averaged)
    own = modes != "global"
    if len(fixed):
        out[fixed, _STATE, :] = out[fixed, :, _STATE] = np.nan
    for status, unknown in ((CONSTANT, own), (NO_DATA, modes == "individual"), (RANK_DEFICIENT, modes == "individual")):
        for k in np.flatnonzero(unknown):
            rows = found.status == status
            out[rows, k, :] = out[rows, :, k] = np.nan
    return out, of_means


def spreads_of(problem: Problem, modes: NDArray[np.str_], found: Estimate) -> list[NDArray]:
    """Covariances of the pooled coefficients over units that the data leave possible."""
    parts, sigma2 = _expanded(problem, modes, found)
    varies = modes[modes != "individual"] == "partial"
    return possible_spreads(*parts, varies=varies, sigma2=sigma2[found.used], found=found.pooled)


def _expanded(problem: Problem, modes: NDArray[np.str_], found: Estimate) -> tuple[tuple[NDArray, ...], NDArray]:
    sigma2 = 1.0 / found.weight
    return eliminated(problem, modes, np.nan_to_num(found.params), sigma2, found.used), sigma2


def _given_each(
    problem: Problem, modes: NDArray[np.str_], found: Estimate, kind: Kind, spreads: list[NDArray]
) -> tuple[NDArray, NDArray]:
    """Mean squared errors of the pooled coefficients S and of their means over covariances that are as likely.

    The variance given each covariance, and how far the estimates given it are from those that were made.
    """
    parts, sigma2 = _expanded(problem, modes, found)
    varies = modes[modes != "individual"] == "partial"
    known = np.where(np.diag(found.pooled.mean_covariance) == 0.0, found.pooled.mean, np.nan)
    n_units, n_S = len(found.params), len(varies)
    A = np.zeros((n_units, n_S, n_S))
    A[found.used] = parts[0] / sigma2[found.used][:, None, None]

    def given(spread: NDArray) -> tuple[NDArray, Pooled]:
        pooled = pool(*parts, varies=varies, sigma2=sigma2[found.used], covariance=spread, fixed=known)
        units = np.tile(pooled.mean, (n_units, 1))
        units[found.used] = pooled.unit_mean
        return units, pooled

    made, _ = given(found.pooled.covariance)
    of_units, of_means = np.zeros_like(A), np.zeros((n_S, n_S))
    for spread in spreads:
        units, pooled = given(spread)
        C = _of_mean(pooled, kind)
        away, moved = units - made, pooled.mean - found.pooled.mean
        of_units += unit_covariance(A, spread, C) + away[:, :, None] * away[:, None]
        of_means += C + np.outer(moved, moved)
    return of_units / len(spreads), of_means / len(spreads)


def _of_mean(pooled: Pooled, kind: Kind) -> NDArray:
    """Covariance of the pooled means: of the model, or with observed squared scores of units."""
    C = pooled.mean_covariance
    if kind == "hessian":
        return C
    n_used = max(len(pooled.score), 2)
    return C @ (pooled.score.T @ pooled.score) @ C * n_used / (n_used - 1)


def _pooled_covariance(
    modes: NDArray[np.str_],
    found: Estimate,
    H: NDArray,
    M: NDArray,
    kind: Kind,
    averaged: tuple[NDArray, NDArray] | None,
) -> tuple[NDArray, NDArray]:
    """Pooled coefficients S, then a unit's own coefficients I given these."""
    pooled, used, weight = found.pooled, found.used, found.weight[:, None, None]
    A, M = weight * H, weight**2 * M
    I, S = np.flatnonzero(modes == "individual"), np.flatnonzero(modes != "individual")
    inverse = _inverse(A[:, I[:, None], I])
    P = np.nan_to_num(A[:, S[:, None], I] @ inverse)
    A_S = A[:, S[:, None], S] - P @ A[:, I[:, None], S]
    C = _of_mean(pooled, kind)
    if kind == "hessian" and not found.by_likelihood:
        T = np.concatenate([np.broadcast_to(np.eye(len(S)), A_S.shape), -P], axis=2)
        order = np.concatenate([S, I])
        C = C @ np.nansum((T @ M[:, order[:, None], order] @ np.swapaxes(T, 1, 2))[used], axis=0) @ C
    out = np.full_like(A, np.nan)
    of_S, C = (unit_covariance(A_S, pooled.covariance, C), C) if averaged is None else averaged
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
