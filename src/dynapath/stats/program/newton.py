r"""Damped Newton steps for all units at once, and for residuals those of Levenberg and Marquardt.

A step solves (H + lambda D) d = -g, D the diagonal of H; lambda is each unit's own, falls after a step that lowered the
loss, and rises after one that did not or where the matrix is not positive definite. With residuals H = J'J (Marquardt
1963, doi:10.1137/0111030; gain ratio and factors as in Nielsen 1999), and where residuals stay large the steps d shrink
slowly; the secant through the last two of them tells where they lead (Anderson 1965, doi:10.1145/321296.321305, with one
step of memory). Units that have converged leave the batch.

A unit has converged when a step promises to lower its loss by no more than 1e-11 of it (1e-14 of a likelihood), some 1e-6
standard errors, or moves no number by more than 1e-10 of its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .problem import Expansion, Problem
from .small import solve, take, units_last

_LEAST_DECREASE, _LEAST_STEP = 1e-11, 1e-10
_START, _LOWEST, _HIGHEST = 1e-4, 1e-14, 1e14


@dataclass(frozen=True)
class Minimum:
    """Where the search ended."""

    u: Float[Tensor, "unit k"]
    at: Expansion  # of the program's loss, at `u` or a last small step before it
    n_iter: Int[Tensor, " unit"]
    converged: Bool[Tensor, " unit"]


@dataclass(frozen=True)
class Pull:
    """Each unit's loss is multiplied by `weight`, and (u - center)' precision (u - center) / 2 is added."""

    weight: Float[Tensor, " unit"]
    center: Float[Tensor, " k"]
    precision: Float[Tensor, "k k"]

    def take(self, rows: Tensor) -> Pull:
        """Some units."""
        return Pull(self.weight[rows], self.center, self.precision)

    def __call__(self, at: Expansion, u: Tensor) -> Expansion:
        """The expansion with weight and pull."""
        away = u - self.center
        slope = away @ self.precision
        return Expansion(
            self.weight * at.f + 0.5 * (away * slope).sum(1),
            self.weight[:, None] * at.g + slope,
            self.weight[:, None, None] * at.H + self.precision,
        )


def minimise(
    problem: Problem,
    start: Float[Tensor, "unit k"],
    *,
    free: Bool[Tensor, "unit k"] | None = None,
    pull: Pull | None = None,
    max_iter: int = 100,
) -> Minimum:
    """The smallest loss of every unit.

    Parameters
    ----------
    free
        Numbers that may move.
    pull
        Towards the distribution over units that is known.
    """
    n, k = start.shape
    u = units_last(start)
    at = problem.expand(u)
    n_iter = torch.zeros(n, dtype=torch.int64)
    converged = torch.zeros(n, dtype=torch.bool)
    # The units still searching: their rows, and their part of everything.
    rows = torch.arange(n)
    some, x, here = problem, u, at
    hold = None if free is None else ~free
    pulled = pull
    seen = here if pull is None else pull(here, x)
    damping = torch.full((n,), _START, dtype=torch.float64)
    factor = torch.full_like(damping, 2.0)
    alive = torch.isfinite(seen.f)
    before = None  # the step before, and how far it was gone
    # Newton's steps square the error, so the last one costs little.
    least = _LEAST_DECREASE * (1.0 if problem.kind == "residuals" else 1e-3)
    for _ in range(max_iter):
        step, promise, definite = _step(seen, damping, hold)
        small = promise <= least * seen.f.abs()
        small |= (step.abs() <= _LEAST_STEP * (x.abs() + 1e-2 * x.abs().amax(1, keepdim=True))).all(1)
        if problem.kind != "residuals":
            small |= promise <= least
        # Damping makes steps short too: only an almost undamped one is evidence.
        done = alive & definite & small & (damping <= 1e-2)
        stuck = alive & (damping >= _HIGHEST)
        if bool((done | stuck | ~alive).any()):
            x = torch.where(done[:, None], x + step, x)
            converged[rows] |= done
            alive = alive & ~done & ~stuck
            if not bool(alive.any()):
                break
            # Copying data costs as well, so units leave the batch in groups.
            if int(alive.sum()) < 0.7 * len(rows):
                u = _put(u, at, rows, x, here)
                keep = torch.nonzero(alive)[:, 0]
                rows, x, step = rows[keep], take(x, keep), take(step, keep)
                promise, definite = promise[keep], definite[keep]
                damping, factor = damping[keep], factor[keep]
                before = None if before is None else (take(before[0], keep), take(before[1], keep))
                some, here, seen = some.take(keep), here.take(keep), seen.take(keep)
                hold = None if hold is None else hold[keep]
                pulled = None if pulled is None else pulled.take(keep)
                alive = torch.ones(len(rows), dtype=torch.bool)
        moved = step
        if problem.kind == "residuals":
            moved = _accelerated(step, before, damping <= 1e-2)
        trial = torch.where((alive & definite)[:, None], x + moved, x)
        there = some.expand(trial)
        there_seen = there if pulled is None else pulled(there, trial)
        n_iter[rows] += alive
        gain = (seen.f - there_seen.f) / promise.clamp_min(1e-300)
        better = alive & definite & (gain > 1e-4) & torch.isfinite(there_seen.H).flatten(1).all(1)
        before = step, torch.where(better[:, None], moved, 0.0)
        x = torch.where(better[:, None], trial, x)
        here, seen = _choose(better, there, here), _choose(better, there_seen, seen)
        lower = torch.clamp(1.0 - (2.0 * gain.clamp(-1e3, 1e3) - 1.0) ** 3, min=0.1)
        damping = torch.where(better, damping * lower, damping * factor).clamp(_LOWEST, _HIGHEST * 2)
        damping = torch.where(definite, damping, damping.clamp_min(1e-2))
        factor = torch.where(better, 2.0, factor * 2.0).clamp(max=1e6)
    u = _put(u, at, rows, x, here)
    return Minimum(u, at, n_iter, converged)


def _put(u: Tensor, at: Expansion, rows: Tensor, x: Tensor, here: Expansion) -> Tensor:
    """Where the units `rows` are now, among all."""
    if here is not at:
        at.f[rows], at.g[rows], at.H[rows] = here.f, here.g, here.H
    return u.index_copy(0, rows, x)


def _accelerated(step: Tensor, before: tuple[Tensor, Tensor] | None, near: Tensor) -> Tensor:
    """Where the last two steps lead, for those `near` convergence whose steps shrink."""
    if before is None:
        return step
    last, gone = before
    scale = 1.0 / (last.abs() + step.abs() + 1e-300)
    change = step - last
    size = ((change * scale) ** 2).sum(1)
    gamma = (change * step * scale**2).sum(1) / size.clamp_min(1e-300)
    # gamma = -rho / (1 - rho) where steps shrink by rho
    use = near & (gone != 0).any(1) & (gamma.abs() < 0.9)
    return torch.where(use[:, None], step - gamma[:, None] * (gone + change), step)


def _choose(better: Tensor, new: Expansion, old: Expansion) -> Expansion:
    if bool(better.all()):
        return new
    return Expansion(
        torch.where(better, new.f, old.f),
        torch.where(better[:, None], new.g, old.g),
        torch.where(better[:, None, None], new.H, old.H),
    )


def _step(at: Expansion, damping: Tensor, hold: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Damped steps, by how much they promise to lower the loss, and whether the damped curvature is positive definite."""
    g, H = at.g, at.H
    if hold is not None:
        g = torch.where(hold, 0.0, g)
        moves = ~hold
        H = torch.where(moves[:, :, None] & moves[:, None, :], H, 0.0)
    diagonal = torch.diagonal(H, dim1=1, dim2=2).abs()
    # A number that the loss does not depend on stays where it is.
    diagonal = torch.where(diagonal > 0, diagonal, 1.0)
    extra = damping[:, None] * diagonal
    step, definite = solve(H, g, extra)
    step = torch.where(definite[:, None], -step, 0.0)
    # With (H + lambda D) d = -g the promise -(g'd + d'H d / 2) is (lambda d'D d - g'd) / 2.
    promise = 0.5 * (step * (extra * step - g)).sum(1)
    return step, promise, definite & torch.isfinite(promise)
