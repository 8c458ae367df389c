"""From a problem to estimates: choose the search, repeat it from other starts, say how each unit ended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from dynapath._threads import few_threads

from .check import seeded
from .descend import adam, lbfgs
from .newton import minimise
from .problem import Expansion, Problem
from .small import relative_determinant, units_last

Method = Literal["auto", "lm", "newton", "lbfgs", "adam"]
METHODS = ("auto", "lm", "newton", "lbfgs", "adam")
OK, AT_BOUND, NO_DATA, RANK_DEFICIENT, INDEFINITE, MAX_ITER = STATUS = (
    "ok", "at_bound", "no_data", "rank_deficient", "indefinite", "max_iter",
)  # fmt: skip
MAX_ITER_OF = {"lm": 100, "newton": 100, "lbfgs": 1000, "adam": 2000}
# More parameters than these make the Hessian the larger part of the work.
_MANY = 60
_INDEFINITE, SINGULAR = -1e-7, 1e-11
# Up to so many parameters determinants are cheaper than eigenvalues.
_FEW = 8
# Restarts count as the same optimum when their losses differ by no more than this share.
_SAME = 1e-6


@dataclass(frozen=True)
class Found:
    """Estimates of every unit, in free numbers, with what is needed for their errors."""

    u: Float[NDArray, "unit k"]
    status: NDArray[np.object_]
    f: Float[NDArray, " unit"]
    H: Float[NDArray, "unit k k"] | None  # None where it was not computed
    n: Int[NDArray, " unit"]  # residuals, or rows
    n_iter: Int[NDArray, " unit"]
    agreement: Float[NDArray, " unit"]  # share of starts that led to this loss
    fixed: NDArray[np.bool_]  # (unit, k): at a bound
    history: Float[NDArray, "step unit"] | None = None


def method_of(problem: Problem, method: str) -> str:
    """What `"auto"` means, and whether the method goes with the program.

    Raises
    ------
    ValueError : if it does not.
    """
    if method not in METHODS:
        msg = f"method must be one of {', '.join(map(repr, METHODS))}; it is {method!r}."
        raise ValueError(msg)
    if problem.seed is not None:
        if method not in ("auto", "adam"):
            msg = f"The program draws random numbers, for which method={method!r} is no method. Use method='adam'."
            raise ValueError(msg)
        return "adam"
    if method == "auto":
        if problem.parameters.k > _MANY:
            return "lbfgs"
        return "lm" if problem.kind == "residuals" else "newton"
    if (method == "lm") != (problem.kind == "residuals") and method in ("lm", "newton"):
        other = "newton" if method == "lm" else "lm"
        msg = f"method={method!r} does not go with kind={problem.kind!r}; use method={other!r}, or 'auto'."
        raise ValueError(msg)
    return method


@few_threads(lambda problem, *_, **__: problem.n_units * problem.size)
def estimate_each(
    problem: Problem,
    start: Float[Tensor, "unit k"],
    *,
    method: str,
    n_restarts: int = 1,
    max_iter: int | None = None,
    learning_rate: float | None = None,
    random_state: int | None = 0,
    curvature: bool = True,
    n: Int[NDArray, " unit"] | None = None,
) -> Found:
    """Every unit for itself."""
    steps = MAX_ITER_OF[method] if max_iter is None else max_iter
    counted, empty = count_rows(problem, start) if n is None else (n, n == 0)
    n_units, k = start.shape
    many, starts = problem, start
    if n_restarts > 1:
        draws = np.random.default_rng(random_state).standard_normal((n_restarts - 1, n_units, k))
        away = torch.from_numpy(draws) * 0.5 * (1.0 + start.abs())
        starts = torch.cat([start[None], start + away]).reshape(-1, k)
        many = problem.take(torch.arange(n_units).repeat(n_restarts))
    history = None
    at: Expansion | None = None
    if method in ("lm", "newton"):
        found = minimise(many, starts, max_iter=steps)
        u, n_iter, converged, f, at = found.u, found.n_iter, found.converged, found.at.f, found.at
    elif method == "lbfgs":
        u, n_iter, converged = lbfgs(many, starts, max_iter=steps)
        f = many.loss(u)
    else:
        u, n_iter, converged, trace = adam(many, starts, learning_rate=learning_rate or 0.05, max_iter=steps)
        tenth = max(steps // 10, 2)
        f, history = trace[-tenth:].mean(0), trace.numpy()
    agreement = np.ones(n_units)
    if n_restarts > 1:
        losses = torch.where(torch.isfinite(f), f, torch.inf).reshape(n_restarts, n_units)
        best = losses.argmin(0)
        least = losses.gather(0, best[None])[0]
        agreement = (losses <= least + _SAME * (least.abs() + 1e-9)).double().mean(0).numpy()
        rows = best * n_units + torch.arange(n_units)
        u, n_iter, converged, f = u[rows], n_iter[rows], converged[rows], f[rows]
        at = None if at is None else at.take(rows)
        history = None if history is None else history[:, rows.numpy()]
    if at is None and curvature and problem.seed is None:
        at = problem.expand(units_last(u))
    status, fixed = judge(problem, u.numpy(), None if at is None else at.H.numpy(), counted, empty, converged.numpy())
    return Found(
        u=np.array(u.numpy()),
        status=status,
        f=np.array(f.numpy()),
        H=None if at is None else np.array(at.H.numpy()),
        n=counted,
        n_iter=n_iter.numpy(),
        agreement=agreement,
        fixed=fixed,
        history=history,
    )


def count_rows(problem: Problem, start: Float[Tensor, "unit k"]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How many residuals, or rows, every unit has, and which units have none.

    Those that are exactly 0 with all derivatives were left out by the program.
    """
    if problem.size == 1 and problem.kind != "residuals":
        with seeded(problem):
            f, g = problem.gradient(start)
        empty = ((f == 0) & (g == 0).all(1)).numpy()
        return np.where(empty, 0, 1), empty
    if problem.seed is not None or problem.parameters.k > _MANY:
        with seeded(problem):
            values = problem.values(start)
        n = (values != 0).sum(1).numpy()
        return n, n == 0
    values = problem.values(start)
    counts = values != 0
    doubtful = torch.nonzero(~counts.all(1))[:, 0]
    if len(doubtful):
        _, slopes = problem.take(doubtful).jacobian(start[doubtful])
        counts[doubtful] |= (slopes != 0).any(1)
    n = counts.sum(1).numpy()
    return n, n == 0


def judge(
    problem: Problem,
    u: NDArray,
    H: NDArray | None,
    n: NDArray,
    empty: NDArray[np.bool_],
    converged: NDArray[np.bool_],
) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """How the search of every unit ended, and which numbers ended at a bound."""
    k = u.shape[1]
    status = np.full(len(u), OK, dtype=object)
    status[~converged] = MAX_ITER
    fixed = problem.parameters.at_bound(u)
    if H is not None:
        finite = np.isfinite(H).all((1, 2))
        least = np.ones(len(u))
        # Eigenvalues are needed only where there is doubt.
        doubtful = fixed.any(1) | ~finite | (k > _FEW)
        if k <= _FEW:
            doubtful |= ~(relative_determinant(torch.from_numpy(H)).numpy() > 10 * SINGULAR)
        least[doubtful] = _least_eigenvalue(H[doubtful], fixed[doubtful], finite[doubtful])
        short = (n < k - fixed.sum(1)) & (problem.kind == "residuals")
        status[finite & ((least < SINGULAR) | short)] = RANK_DEFICIENT
        status[finite & (least < _INDEFINITE)] = INDEFINITE
        status[~finite] = MAX_ITER
    status[fixed.any(1) & np.isin(status, (OK, MAX_ITER))] = AT_BOUND
    status[empty] = NO_DATA
    return status, fixed & ~empty[:, None]


def _least_eigenvalue(H: NDArray, fixed: NDArray[np.bool_], finite: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of matrices with a diagonal of 1. What is at its bound is fixed, and no longer asked for."""
    eye = np.eye(H.shape[1])
    clean = np.where(finite[:, None, None], H, eye)
    diagonal = np.einsum("ukk->uk", clean)
    root = np.sqrt(np.where(diagonal == 0, 1.0, np.abs(diagonal)))
    scaled = clean / root[:, :, None] / root[:, None]
    scaled = np.where(fixed[:, :, None] | fixed[:, None, :], eye, scaled)
    return np.linalg.eigvalsh(scaled)[:, 0] if len(scaled) else np.zeros(0)


def rank_of(H: Float[NDArray, "unit k k"]) -> Int[NDArray, " unit"]:
    """How many combinations of numbers a unit's data tell."""
    clean = np.where(np.isfinite(H).all((1, 2))[:, None, None], H, 0.0)
    root = np.sqrt(np.maximum(np.einsum("ukk->uk", clean), 0.0))
    root[root == 0] = 1.0
    return (np.linalg.eigvalsh(clean / root[:, :, None] / root[:, None]) > SINGULAR).sum(1)


def without_data(found: Found) -> Found:
    """NaN for units that have nothing to estimate from."""
    u = found.u.copy()
    u[found.status == NO_DATA] = np.nan
    return replace(found, u=u)
