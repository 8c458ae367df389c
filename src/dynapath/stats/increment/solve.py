"""Estimation unit by unit: Levenberg-Marquardt with exact derivatives, and the gradient descent of the publication.

Minimised is f(b) = loss(b) / sigma^2 + (b - m)' P (b - m) / 2, with a prior of mean m and precision P where parameters
are partially pooled and sigma = 1, P = 0 otherwise. With gap weights f is the Gaussian log-likelihood, negative, with
sigma^2 profiled out unless given: n/2 log(sum e^2 / v) + 1/2 sum log v, whose extra terms are no sum of squares.

Every unit takes a Gauss-Newton step (for counts: Fisher scoring; for squares and one covariate Newton's, where the exact
curvature is positive), damped only where it does not lower f (Marquardt 1963, doi:10.1137/0111030), and stops on its own. Without missing reports the first step is the solution. The state coefficient
has a bound: a step across it is replaced by the best step that ends there, exact for one bounded coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from tqdm import tqdm

from .recursion import (
    COUNT,
    CURVATURE,
    DLOG_V,
    DLOG_V2,
    LOG_V,
    LOSS,
    LOSS_DLOG_V,
    N_SUMS,
    SECOND_0,
    SECOND_1,
    SECOND_2,
    accumulate,
    accumulate_all,
    compiled,
    one_step_products,
)

CONVERGED, AT_BOUND, NOT_CONVERGED = range(3)
# Relative change of the fitted values below which a step is the last one.
TOLERANCE = 1e-9
NEWTON_TOLERANCE = 1e-6  # the error left by a Newton step goes with the square of its size
# A panel larger than this shows its progress; so many report days are fitted between two updates.
_DAYS_PER_UPDATE = 4_000_000
PUBLISHED_STEPS = (1e-3, 1e-2, 1e-3)  # intercept, state, every covariate
_INFEASIBLE_ABOVE = 10.0


@compiled
def objective(sums, gradient, curvature, gap, scale, b, center, precision, prior):
    """From loss to f: scale = 1 / sigma^2 (0: profiled out), log v, and the prior. Changes its derivatives in place."""
    k = b.shape[0]
    if not gap and scale <= 0.0 and not prior:
        return sums[LOSS]
    loss = max(sums[LOSS], 1e-290)
    weight = scale if scale > 0.0 else (0.5 * sums[COUNT] / loss if gap else 1.0)
    for i in range(k):
        gradient[i] *= weight
        for j in range(k):
            curvature[i, j] *= weight
    f = weight * sums[LOSS]
    if gap:
        gradient[1] += 0.5 * sums[DLOG_V] - weight * sums[LOSS_DLOG_V]
        curvature[1, 1] += 0.5 * sums[DLOG_V2]
        if scale <= 0.0:
            curvature[1, 1] -= 0.5 * sums[DLOG_V] ** 2 / sums[COUNT]
            f = 0.5 * sums[COUNT] * math.log(loss)
        f += 0.5 * sums[LOG_V]
    if not prior:
        return f
    for i in range(k):
        pull = 0.0
        for j in range(k):
            pull += precision[i, j] * (b[j] - center[j])
            curvature[i, j] += precision[i, j]
        gradient[i] += pull
        f += 0.5 * pull * (b[i] - center[i])
    return f


@compiled
def _newton_step(gradient, curvature, moves, damping, step, L):
    """Solve (H + damping diag H) step = -gradient for the coefficients that move; False if H is not positive there.

    Coefficients that do not move keep the step they have. Scaled to a unit diagonal, so units of covariates do not matter.
    """
    k = gradient.shape[0]
    for i in range(k):
        if not moves[i]:
            continue
        if not curvature[i, i] > 0.0:
            return False
        right = -gradient[i]
        for j in range(k):
            if not moves[j]:
                right -= curvature[i, j] * step[j]
        si = math.sqrt(curvature[i, i])
        step[i] = right / si
        for j in range(i + 1):
            if not moves[j]:
                continue
            value = curvature[i, j] / (si * math.sqrt(curvature[j, j]))
            if i == j:
                value = 1.0 + damping
            for m in range(j):
                if moves[m]:
                    value -= L[i, m] * L[j, m]
            if i == j:
                if not value > 1e-14:
                    return False
                L[i, i] = math.sqrt(value)
            else:
                L[i, j] = value / L[j, j]
        for j in range(i):
            if moves[j]:
                step[i] -= L[i, j] * step[j]
        step[i] /= L[i, i]
    for i in range(k - 1, -1, -1):
        if not moves[i]:
            continue
        for j in range(i + 1, k):
            if moves[j]:
                step[i] -= L[j, i] * step[j]
        step[i] /= L[i, i]
    for i in range(k):
        if moves[i]:
            step[i] /= math.sqrt(curvature[i, i])
    return True


@compiled
def _bounded_step(b, gradient, curvature, free, moves, damping, lower, upper, step, L):
    """The step, or the best one that ends at the bound of the state coefficient; False if the curvature is no help."""
    k = b.shape[0]
    for i in range(k):
        moves[i] = free[i]
        step[i] = 0.0
    if not _newton_step(gradient, curvature, moves, damping, step, L):
        return False
    if not free[1] or lower <= b[1] + step[1] <= upper:
        return True
    bound = lower if b[1] + step[1] < lower else upper
    for i in range(k):
        step[i] = 0.0
    step[1] = bound - b[1]
    moves[1] = False
    return _newton_step(gradient, curvature, moves, damping, step, L)


@compiled
def _copy(source, target):
    for i in range(source.shape[0]):
        target[i] = source[i]


@compiled
def _solve_unit(
    y, z, u, source, lag, first, b, free, kind, tuning, gap, scale, center, precision, prior, lower, upper, max_iter, work
):  # fmt: skip
    k = b.shape[0]
    # Of the present point, and of the one tried: the rows of the work space change places when a step is taken.
    sums, gradient, curvature, vectors, L, N, moves, one_step = work
    step, trial, D = vectors[0], vectors[1], vectors[2]
    now, new = 0, 1
    one_step_products(y, z, u, source, lag, first, one_step)
    accumulate(
        y, z, u, source, lag, first, b, kind, tuning, gap, CURVATURE, one_step, sums[now], gradient[now],
        curvature[now], D,
    )  # fmt: skip
    f = objective(sums[now], gradient[now], curvature[now], gap, scale, b, center, precision, prior)
    n = sums[now, COUNT]
    likelihood = gap or kind >= 2
    exact = k == 3 and kind == 0 and not gap and scale <= 0.0 and not prior
    size0 = math.sqrt(n) if likelihood else math.sqrt(2.0 * max(f, 0.0))
    damping = 0.0
    for iteration in range(1, max_iter + 1):
        g, H = gradient[now], curvature[now]
        possible = newton = False
        if exact and damping == 0.0 and sums[now, SECOND_0] != 0.0:
            for i in range(3):
                for j in range(3):
                    N[i, j] = H[i, j]
            N[0, 1] -= sums[now, SECOND_0]
            N[1, 1] -= sums[now, SECOND_1]
            N[2, 1] -= sums[now, SECOND_2]
            N[1, 0], N[1, 2] = N[0, 1], N[2, 1]
            possible = newton = _bounded_step(b, g, N, free, moves, 0.0, lower, upper, step, L)
        if not possible:
            possible = _bounded_step(b, g, H, free, moves, damping, lower, upper, step, L)
        if not possible:
            damping = max(10.0 * damping, 1e-6)
            continue
        moved = 0.0
        for i in range(k):
            moved = max(moved, abs(step[i]) * math.sqrt(H[i, i]))
            trial[i] = b[i] + step[i]
        if not moves[1] and free[1]:
            trial[1] = lower if step[1] < 0.0 or (step[1] == 0.0 and b[1] == lower) else upper
        accumulate(
            y, z, u, source, lag, first, trial, kind, tuning, gap, CURVATURE, one_step, sums[new], gradient[new],
            curvature[new], D,
        )  # fmt: skip
        f_new = objective(sums[new], gradient[new], curvature[new], gap, scale, trial, center, precision, prior)
        size = math.sqrt(n) if likelihood else math.sqrt(2.0 * max(f, 0.0)) + 1e-4 * size0
        last = moved <= (NEWTON_TOLERANCE if newton else TOLERANCE) * size and damping <= 1e-6
        if f_new <= f:
            _copy(trial, b)
            now, new = new, now
            f = f_new
            damping = damping / 10.0 if damping > 1e-7 else 0.0
        elif last or moved <= 1e-7 * size:  # lower than rounding lets see
            last = True
        else:
            damping = max(10.0 * damping, 1e-3)
        if last:
            return iteration, AT_BOUND if free[1] and not moves[1] else CONVERGED
    return max_iter, NOT_CONVERGED


@compiled
def _solve_range(
    start, stop, y, z, source, lag, first, params, solve, free, kind, tuning, gap, scale, center, precision, prior, lower,
    upper, max_iter, n_iter, how,
):  # fmt: skip
    k = params.shape[1]
    work = (
        np.empty((2, N_SUMS)), np.empty((2, k)), np.empty((2, k, k)), np.empty((3, k)), np.zeros((k, k)),
        np.zeros((k, k)), free.copy(), np.empty((k, k)),
    )  # fmt: skip
    for u in range(start, stop):
        if solve[u]:
            n_iter[u], how[u] = _solve_unit(
                y, z, u, source, lag, first, params[u], free, kind, tuning[u], gap, scale[u], center,
                precision[u if prior else 0], prior, lower, upper, max_iter, work,
            )  # fmt: skip


@compiled
def objective_all(sums, gradient, curvature, gap, scale, params):
    """f of all units without a prior."""
    k = params.shape[1]
    f, nothing = np.empty(params.shape[0]), np.zeros((k, k))
    for u in range(params.shape[0]):
        f[u] = objective(sums[u], gradient[u], curvature[u], gap, scale[u], params[u], params[u], nothing, False)  # noqa: FBT003
    return f


def levenberg_marquardt(
    y: Float[NDArray, "unit day"],
    z: Float[NDArray, "covariate unit day"],
    source: Int[NDArray, " column"],
    lag: Int[NDArray, " column"],
    start: Float[NDArray, "unit coefficient"],
    *,
    first: int = 0,
    solve: Bool[NDArray, " unit"],
    free: Bool[NDArray, " coefficient"],
    kind: int = 0,
    tuning: Float[NDArray, " unit"],
    gap: bool = False,
    scale: Float[NDArray, " unit"],
    center: Float[NDArray, " coefficient"],
    precision: Float[NDArray, "unit coefficient coefficient"] | None,
    bounds: tuple[float, float],
    max_iter: int = 100,
    progress: bool = True,
) -> tuple[Float[NDArray, "unit coefficient"], Int[NDArray, " unit"], Int[NDArray, " unit"]]:
    """Minimum of every unit that `solve` names, its number of iterations, and how it ended."""
    params = start.copy()
    n_units, k = params.shape
    prior = precision is not None
    precision = np.zeros((1, k, k)) if precision is None else precision
    n_iter, how = np.zeros(n_units, np.int64), np.zeros(n_units, np.int64)
    for a, b in _ranges(y, "fit", progress=progress):
        _solve_range(
            a, b, y, z, source, lag, first, params, solve, free, kind, tuning, gap, scale, center, precision, prior,
            float(bounds[0]), float(bounds[1]), max_iter, n_iter, how,
        )  # fmt: skip
    return params, n_iter, how


def _ranges(y: NDArray, what: str, *, progress: bool) -> Iterator[tuple[int, int]]:
    """Ranges of units, with a progress bar if there are several."""
    step = max(_DAYS_PER_UPDATE // y.shape[1], 1)
    if len(y) <= step:
        yield 0, len(y)
        return
    with tqdm(total=len(y), desc=what, unit=" units", disable=not progress, leave=False) as bar:
        for start in range(0, len(y), step):
            stop = min(start + step, len(y))
            yield start, stop
            bar.update(stop - start)


def divergence_rule(
    products: Float[NDArray, "unit coefficient coefficient"],
    n: Float[NDArray, " unit"],
    steps: Float[NDArray, " coefficient"],
) -> Float[NDArray, " unit"]:
    """Largest eigenvalue of diag(sqrt steps) mean(D D') diag(sqrt steps) at b = 0; above 1 gradient descent diverges.

    The Hessian of the mean squared error is 2 mean(D D'), and a step may be at most 2 / its largest eigenvalue.
    """
    root = np.sqrt(steps)
    mean = products / np.maximum(n, 1.0)[:, None, None]
    return np.linalg.eigvalsh(root[:, None] * mean * root)[:, -1]


def gradient_descent(
    y: Float[NDArray, "unit day"],
    z: Float[NDArray, "covariate unit day"],
    source: Int[NDArray, " column"],
    lag: Int[NDArray, " column"],
    *,
    first: int = 0,
    shared: Bool[NDArray, " coefficient"],
    steps: Float[NDArray, " coefficient"],
    max_iter: int = 150,
) -> Float[NDArray, "unit coefficient"]:
    """`max_iter` full-gradient steps on each unit's mean squared error, from 0.

    After every step, shared coefficients are replaced by their mean over the feasible units (finite, none above 10 in
    size), taken once; infeasible units are left alone. Units without an innovation stay where they are.
    """
    params = np.zeros((len(y), len(steps)))
    tuning = np.zeros(len(y))
    # Units that diverge overflow on their way, as they did in the publication.
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(max_iter):
            sums, gradient, _ = accumulate_all(y, z, source, lag, first, params, 0, tuning, False, CURVATURE)  # noqa: FBT003
            n = sums[:, COUNT]
            some = n > 0
            params[some] -= steps * (2.0 * gradient[some] / n[some, None])
            if shared.any():
                feasible = some & feasible_params(params)
                if feasible.any():
                    rows = np.flatnonzero(feasible)[:, None]
                    params[rows, np.flatnonzero(shared)] = params[feasible][:, shared].mean(0)
    return params


def feasible_params(params: Float[NDArray, "unit coefficient"]) -> Bool[NDArray, " unit"]:
    """The publication's rule: all coefficients finite and at most 10 in size."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(params).all(1) & (np.abs(params) <= _INFEASIBLE_ABOVE).all(1)
