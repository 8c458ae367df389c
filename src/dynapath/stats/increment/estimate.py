"""Estimates with every way of pooling: a unit's own coefficients, shared ones, partially pooled ones.

Own coefficients minimise each unit's loss. Shared ones minimise the mean over units of each unit's mean loss, as in the
publication, so that every unit counts the same. Partially pooled ones are empirical Bayes estimates with a normal
distribution over the units; as soon as there are some, or with likelihoods (gap weights, counts), units are weighted by
likelihood. Pooling alternates between a quadratic expansion of every unit's loss, which is exact where nothing is
missing, the pooled distribution given these (stats/pooling.py), and every unit's estimate given that distribution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from dynapath.stats.pooling import Pooled, VariancePrior, pool

from .problem import CLIPPED, CONSTANT, MAX_ITER, NO_DATA, OK, RANK_DEFICIENT, Problem, data_status
from .recursion import COUNT
from .solve import AT_BOUND, NOT_CONVERGED

# Share of a unit's mean information with which too few reports are pulled towards 0: the smallest solution.
_RIDGE = 1e-6
_MAX_ROUNDS = 50
# A variance this small beside the mean's own uncertainty is none.
_NO_SPREAD = 1e-8
# Share of a unit's information about a shared coefficient that is none.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Estimate:
    """Coefficients of all units, how they were found, and what was pooled."""

    params: Float[NDArray, "unit coefficient"]
    status: NDArray[np.object_]
    n_iter: Int[NDArray, " unit"]
    sigma2: Float[NDArray, " unit"]
    pooled: Pooled | None = None  # of the coefficients that are not individual
    used: Bool[NDArray, " unit"] | None = None  # the units from which it was learned
    weight: Float[NDArray, " unit"] | None = None  # of a unit's loss
    by_likelihood: bool = False  # weight 1 / sigma^2, otherwise 1 / n
    rounds: int = 0


def estimate(
    problem: Problem,
    modes: NDArray[np.str_],
    *,
    sigma: Literal["own", "common"] = "own",
    covariance: Float[NDArray, "partial partial"] | None = None,
    near: Estimate | None = None,
) -> Estimate:
    """Levenberg-Marquardt estimates.

    Parameters
    ----------
    modes
        `individual`, `global` or `partial` for each coefficient.
    sigma
        Whether units have residual variances of their own.
    covariance
        Of the pooled coefficients over units, if it is known.
    near
        An estimate to start from, of the same panel with other reports.
    """
    k = len(modes)
    status = data_status(problem.panel)
    own = _individual(problem, status, None if near is None else near.params)
    estimated = (status == OK) | (status == RANK_DEFICIENT)
    sigma2 = np.where(estimated, problem.residual_variance(own.params, k), np.nan)
    if (modes == "individual").all():
        if sigma == "common":
            sigma2 = np.where(status == NO_DATA, np.nan, _mean_variance(problem, sigma2, k))
        return replace(own, sigma2=sigma2)
    return _pooled(problem, modes, status, replace(own, sigma2=sigma2), sigma, covariance, near)


def _individual(problem: Problem, status: NDArray[np.object_], near: NDArray | None) -> Estimate:
    n_units, k = problem.panel.n_units, len(problem.panel.coefficients)
    ok, weak = status == OK, status == RANK_DEFICIENT
    params = np.zeros((n_units, k))
    if near is not None:
        params = np.where(ok[:, None] & np.isfinite(near), near, 0.0)
    params, n_iter, how = problem.minimise(params, ok)
    if weak.any():
        precision = _ridge(problem, weak)[:, None, None] * np.eye(k)
        params, more, _ = problem.minimise(params, weak, precision=precision)
        n_iter += more
    params[status == NO_DATA] = np.nan
    return Estimate(params, _outcome(status, how), n_iter, np.full(n_units, np.nan))


def _ridge(problem: Problem, rows: Bool[NDArray, " unit"]) -> Float[NDArray, " unit"]:
    """How strongly the units `rows` are pulled towards 0; 0 for the others."""
    k = len(problem.panel.coefficients)
    some = replace(problem, panel=problem.panel.take(rows), tuning=problem.tuning[rows])
    _, _, H = some.sums(np.zeros((int(rows.sum()), k)))
    pull = np.zeros(len(rows))
    pull[rows] = _RIDGE * np.maximum(np.einsum("ukk->u", H) / k, 1.0)
    return pull


def _outcome(status: NDArray[np.object_], how: NDArray[np.int64]) -> NDArray[np.object_]:
    ended = status.copy()
    ended[(status == OK) & (how == AT_BOUND)] = CLIPPED
    ended[(status == OK) & (how == NOT_CONVERGED)] = MAX_ITER
    return ended


def _mean_variance(problem: Problem, sigma2: NDArray, lost: float) -> float:
    """Of all units, weighted by their degrees of freedom."""
    left = np.where(
        np.isfinite(sigma2),
        problem.sums(np.zeros((len(sigma2), len(problem.panel.coefficients))))[0][:, COUNT] - lost,
        0.0,
    )
    return float((np.nan_to_num(sigma2) * left).sum() / left.sum()) if left.sum() > 0 else np.nan


def _pooled(
    problem: Problem,
    modes: NDArray[np.str_],
    status: NDArray[np.object_],
    own: Estimate,
    sigma: str,
    covariance: NDArray | None,
    near: Estimate | None,
) -> Estimate:
    k, single = len(modes), modes == "individual"
    used = status == OK
    _check_enough(modes, used)
    by_likelihood = (modes == "partial").any() or problem.gap or problem.counts
    common = by_likelihood and sigma == "common" and not problem.counts
    n = problem.sums(np.zeros((len(used), k)))[0][:, COUNT]
    prior = VariancePrior.fit(own.sigma2[used], n[used] - k)
    if problem.counts:
        sigma2 = np.ones(len(used))
    elif common:
        sigma2 = np.full(len(used), _mean_variance(problem, np.where(used, own.sigma2, np.nan), k))
    elif by_likelihood:
        left = np.maximum(n - k, 0.0)
        sigma2 = prior.squeeze(np.nan_to_num(own.sigma2) * left, left)
    else:
        # A variance proportional to the number of reports gives each unit's mean loss the same weight.
        sigma2 = np.maximum(n, 1.0)

    params, n_iter, rounds = np.nan_to_num(own.params), own.n_iter.copy(), 0
    before = None
    if near is not None and near.pooled is not None:
        params, before = np.where(np.isfinite(near.params), near.params, params), near.pooled
    while rounds < _MAX_ROUNDS:
        rounds += 1
        pooled, at_bound = _pool_expansions(
            problem, modes, params, sigma2, used, common=common, covariance=covariance, before=before
        )
        if common:
            sigma2 = np.full(len(used), pooled.sigma2[0])
        params, steps, how = _given_pooled(problem, modes, params, pooled, sigma2, status)
        n_iter += steps
        if by_likelihood and not common and not problem.counts:
            # The expected sum of squares is that at the estimate plus sigma^2 times the degrees of freedom it spent.
            left = n.copy()
            left[used] -= pooled.spent + single.sum()
            sigma2 = prior.squeeze(np.nan_to_num(problem.residual_variance(params, 0.0)) * n, left)
        if before is not None and _unchanged(pooled, before):
            break
        before = pooled

    ended = _outcome(status, how)
    if at_bound:
        ended[status == OK] = CLIPPED
    params[np.ix_(status == CONSTANT, modes != "global")] = 0.0
    params[np.ix_(status == NO_DATA, single)] = np.nan
    weight = 1.0 / sigma2
    if not by_likelihood:
        sigma2 = problem.residual_variance(params, single.sum() + (k - single.sum()) / used.sum())
        # Where a variance is each unit's own, units without changes have none to show.
        sigma2 = np.where(np.isin(status, (NO_DATA, CONSTANT)), np.nan, sigma2)
    by_likelihood = bool(by_likelihood)
    return Estimate(params, ended, n_iter, sigma2, pooled, used, weight, by_likelihood, rounds)


def _check_enough(modes: NDArray[np.str_], used: NDArray[np.bool_]) -> None:
    needed = 2 if (modes == "partial").any() else 1
    if used.sum() < needed:
        msg = (
            f"Pooling needs {needed} unit(s) with enough reports, and changes among them; {int(used.sum())} of {len(used)} "
            "have that. Use pooling='individual', or add units."
        )
        raise ValueError(msg)


def eliminated(
    problem: Problem, modes: NDArray[np.str_], params: NDArray, sigma2: NDArray, rows: NDArray[np.bool_]
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Expand the loss of the units `rows` around `params`, and minimise it over their own coefficients.

    What is left are H, rho, squares and n of a sum of squares b' H b - 2 rho' b + squares of the pooled coefficients.
    """
    single = modes == "individual"
    f, g, H, n = (part[rows] for part in problem.expansion(params, sigma2))
    b, s = params[rows], sigma2[rows]
    H, g, f = s[:, None, None] * H, s[:, None] * g, s * f
    rho = np.einsum("uij,uj->ui", H, b) - g
    squares = 2.0 * f - 2.0 * np.einsum("ui,ui->u", g, b) + np.einsum("uij,ui,uj->u", H, b, b)
    if not single.any():
        return H, rho, squares, n
    I, S = np.flatnonzero(single), np.flatnonzero(~single)
    inverse = np.linalg.pinv(H[:, I[:, None], I], hermitian=True)
    cross = H[:, S[:, None], I] @ inverse
    squares = squares - np.einsum("ui,uij,uj->u", rho[:, I], inverse, rho[:, I])
    rho = rho[:, S] - np.einsum("uij,uj->ui", cross, rho[:, I])
    left = H[:, S[:, None], S] - cross @ H[:, I[:, None], S]
    # Of what a unit's own coefficients take up altogether, rounding is left.
    diagonal = np.einsum("uss->us", left)
    rounding = diagonal <= _ROUNDING * np.einsum("uss->us", H[:, S[:, None], S])
    left[rounding[:, :, None] | rounding[:, None, :]] = 0.0
    rho[rounding] = 0.0
    return left, rho, squares, n - len(I)


def _pool_expansions(
    problem: Problem,
    modes: NDArray[np.str_],
    params: NDArray,
    sigma2: NDArray,
    used: NDArray[np.bool_],
    *,
    common: bool,
    covariance: NDArray | None,
    before: Pooled | None,
) -> tuple[Pooled, bool]:
    """Pool the expansions of all units around `params`, and whether a shared state coefficient was kept at its bound."""
    parts = eliminated(problem, modes, params, sigma2, used)
    pooled_modes = modes[modes != "individual"]
    settings = {
        "varies": pooled_modes == "partial",
        "sigma2": None if common else sigma2[used],
        "covariance": covariance,
        "near": before,
    }
    pooled = pool(*parts, **settings)
    if modes[1] != "global":
        return pooled, False
    place = int(modes[0] != "individual")
    low, high = problem.bounds
    if low <= pooled.mean[place] <= high:
        return pooled, False
    fixed = np.full(len(pooled.mean), np.nan)
    fixed[place] = np.clip(pooled.mean[place], low, high)
    return pool(*parts, **settings, fixed=fixed), True


def _given_pooled(
    problem: Problem,
    modes: NDArray[np.str_],
    params: NDArray,
    pooled: Pooled,
    sigma2: NDArray,
    status: NDArray[np.object_],
) -> tuple[NDArray, NDArray, NDArray]:
    """Every unit's estimate when the distribution of the pooled coefficients is known."""
    n_units, k = params.shape
    center, precision = np.zeros(k), np.zeros((k, k))
    center[modes != "individual"] = pooled.mean
    shared = modes == "global"
    partial = np.flatnonzero(modes == "partial")
    if len(partial):
        varies = modes[modes != "individual"] == "partial"
        spread = pooled.covariance[np.ix_(varies, varies)]
        precision[np.ix_(partial, partial)] = _precision(spread, pooled.mean_covariance[np.ix_(varies, varies)])
    params = np.where(shared, center, params)
    weak = status == RANK_DEFICIENT
    # Without data of its own a unit is at the mean.
    params[np.ix_(status == NO_DATA, modes != "individual")] = pooled.mean
    if shared.all():
        return params, np.zeros(n_units, np.int64), np.zeros(n_units, np.int64)
    own = np.zeros((n_units, k, k)) + precision
    if weak.any() and (modes == "individual").any():
        pull = (_ridge(problem, weak) / sigma2)[:, None] * (modes == "individual")
        own[weak] += (pull[:, :, None] * np.eye(k))[weak]
    solvable = (status == OK) | weak
    return problem.minimise(params, solvable, free=~shared, sigma2=sigma2, center=center, precision=own)


def _precision(spread: NDArray, uncertainty: NDArray) -> NDArray:
    """Inverse of a covariance that may have directions without spread."""
    scale = np.sqrt(np.maximum(np.diag(spread), _NO_SPREAD * np.diag(uncertainty)))
    scale = np.where(scale > 0, scale, 1e-12)
    values, vectors = np.linalg.eigh(spread / scale[:, None] / scale)
    inverse = vectors / np.maximum(values, _NO_SPREAD) @ vectors.T
    return inverse / scale[:, None] / scale


def _unchanged(now: Pooled, before: Pooled) -> bool:
    """The mean to 1e-8 of its own size, or of its standard error; where there is a spread, that to 1e-5."""
    size = np.abs(now.mean) + np.sqrt(np.diag(now.mean_covariance))
    spread = np.sqrt(np.diag(now.covariance))
    if not spread.any():
        return bool((np.abs(now.mean - before.mean) <= 1e-9 * size).all())
    moved = np.abs(now.mean - before.mean) <= 1e-5 * size
    return bool(moved.all() and (np.abs(spread - np.sqrt(np.diag(before.covariance))) <= 1e-4 * (spread + size)).all())
