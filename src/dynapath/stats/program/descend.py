"""Searches that need the gradient only: L-BFGS for many parameters, Adam for programs that draw random numbers.

L-BFGS (Nocedal 1980, doi:10.1090/S0025-5718-1980-0572855-7) runs for all units at once with a backtracking line search
(Armijo); Adam (Kingma and Ba 2015, arXiv:1412.6980) with a step that falls to 0 along a cosine.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .check import seeded
from .problem import Problem

_MEMORY = 10
_GRADIENT, _DECREASE = 1e-8, 1e-13


def lbfgs(
    problem: Problem, start: Float[Tensor, "unit k"], *, max_iter: int = 1000
) -> tuple[Float[Tensor, "unit k"], Int[Tensor, " unit"], Bool[Tensor, " unit"]]:
    """Free numbers, iterations, and whether the gradient has vanished."""
    u = start.clone()
    f, g = problem.gradient(u)
    n_iter = torch.zeros(len(u), dtype=torch.int64)
    converged = torch.zeros(len(u), dtype=torch.bool)
    alive = torch.isfinite(f)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(max_iter):
        converged |= alive & (g.abs() <= _GRADIENT * (1.0 + f.abs())[:, None]).all(1)
        alive &= ~converged
        if not bool(alive.any()):
            break
        direction = _two_loops(g, history)
        slope = (direction * g).sum(1)
        uphill = ~(slope < 0)
        direction = torch.where(uphill[:, None], -g, direction)
        slope = torch.where(uphill, -(g * g).sum(1), slope)
        # Without a history the length of a step is unknown.
        length = torch.ones_like(f) if history else 1.0 / g.norm(dim=1).clamp_min(1.0)
        found = ~alive
        step = torch.zeros_like(u)
        for _ in range(40):
            trial = torch.where(found[:, None], u, u + length[:, None] * direction)
            there = problem.loss(trial)
            good = ~found & (there <= f + 1e-4 * length * slope)
            step = torch.where(good[:, None], trial - u, step)
            found = found | good
            if bool(found.all()):
                break
            length = torch.where(found, length, 0.5 * length)
        n_iter += alive
        new = u + step
        f_new, g_new = problem.gradient(new)
        y = g_new - g
        curvature = (step * y).sum(1)
        keep = curvature > 1e-12 * (y * y).sum(1)
        history.append((torch.where(keep[:, None], step, 0.0), y, torch.where(keep, 1.0 / curvature, 0.0)))
        history = history[-_MEMORY:]
        settled = alive & (f - f_new <= _DECREASE * (1.0 + f.abs()))
        # A step that brings nothing may be the fault of the history; the gradient decides.
        small = (g_new.abs() <= 1e-5 * (1.0 + f_new.abs())[:, None]).all(1)
        converged |= settled & small
        alive &= ~(settled & (small | uphill | ~found))
        u, f, g = new, f_new, g_new
    return u, n_iter, converged


def _two_loops(g: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    q, alphas = g.clone(), []
    for s, y, rho in reversed(history):
        alpha = rho * (s * q).sum(1)
        q = q - alpha[:, None] * y
        alphas.append(alpha)
    if history:
        s, y, rho = history[-1]
        scale = torch.where(rho > 0, (s * y).sum(1) / (y * y).sum(1).clamp_min(1e-300), 1.0)
        q = q * scale[:, None]
    for (s, y, rho), alpha in zip(history, reversed(alphas), strict=True):
        q = q + (alpha - rho * (y * q).sum(1))[:, None] * s
    return -q


def adam(
    problem: Problem, start: Float[Tensor, "unit k"], *, learning_rate: float = 0.05, max_iter: int = 2000
) -> tuple[Float[Tensor, "unit k"], Int[Tensor, " unit"], Bool[Tensor, " unit"], Float[Tensor, "step unit"]]:
    """Free numbers, iterations, whether the loss had stopped falling, and the loss of every step."""
    u = start.clone()
    first, second = torch.zeros_like(u), torch.zeros_like(u)
    losses = []
    with seeded(problem, offset=1):
        for i in range(max_iter):
            f, g = problem.gradient(u)
            losses.append(f)
            first = 0.9 * first + 0.1 * g
            second = 0.999 * second + 0.001 * g * g
            rate = learning_rate * 0.5 * (1.0 + math.cos(math.pi * i / max_iter))
            u = u - rate * (first / (1 - 0.9 ** (i + 1))) / ((second / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8)
    trace = torch.stack(losses)
    tenth = max(max_iter // 10, 2)
    last, before = trace[-tenth:], trace[-2 * tenth : -tenth]
    noise = 3.0 * torch.sqrt((last.var(0) + before.var(0)) / tenth)
    settled = (before.mean(0) - last.mean(0)).abs() <= noise + 1e-3 * last.mean(0).abs()
    return u, torch.full((len(u),), max_iter), settled & torch.isfinite(last).all(0), trace
