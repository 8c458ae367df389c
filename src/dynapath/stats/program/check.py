"""Before the search: does the program run for many units at once, return what it should, and have derivatives?"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from .arguments import Arguments, check_names
from .parameters import Parameters
from .problem import Kind, Problem

# Units on which derivatives are tried out.
_TRIED = 48
_DRAWS_RANDOM = "called random operation"


def checked(
    program: Callable[..., Tensor], arguments: Arguments, parameters: Parameters, kind: Kind, seed: int
) -> tuple[Problem, Tensor]:
    """The problem, and its free starting values (unit, k), once it is known to be one.

    Raises
    ------
    KeyError, TypeError, ValueError : saying what is wrong with the program, and what to write instead.
    """
    check_names(program, [*arguments.by_unit, *arguments.shared])
    problem = Problem(program, arguments, parameters, kind)
    start = parameters.free_start()
    some = torch.arange(min(2, arguments.n_units))
    try:
        shape = _shape(problem.take(some), start)
    except RuntimeError as error:
        if _DRAWS_RANDOM not in str(error):
            _explain(error, problem)
        # Only now is it known to draw random numbers, which vmap otherwise refuses.
        problem = replace(problem, seed=seed)
        try:
            with seeded(problem):
                shape = _shape(problem.take(some), start)
        except Exception as again:  # noqa: BLE001
            _explain(again, problem)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, NotImplementedError) as error:
        _explain(error, problem)
    _check_shape(shape, problem)
    problem = replace(problem, size=int(np.prod(shape)))
    every = start.repeat(arguments.n_units, 1)
    _check_finite(problem, every)
    _check_derivatives(problem, every)
    return problem, every


class seeded:
    """Random numbers of a program from its seed, and the user's generator put back afterwards."""

    def __init__(self, problem: Problem, offset: int = 0) -> None:
        self.seed = None if problem.seed is None else problem.seed + offset

    def __enter__(self) -> None:
        if self.seed is not None:
            self.before = torch.random.get_rng_state()
            torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        if self.seed is not None:
            torch.random.set_rng_state(self.before)


def _shape(problem: Problem, start: Tensor) -> tuple[int, ...]:
    found = []

    def one(u: Tensor, by_unit: dict[str, Tensor]) -> Tensor:
        out = problem.run(u, by_unit)
        if not isinstance(out, Tensor):
            msg = (
                f"program returns a {type(out).__name__}; it must return a torch tensor. Compute with torch functions, and do "
                "not convert with float(), .item() or .numpy()."
            )
            raise TypeError(msg)
        found.append(tuple(out.shape))
        return out

    random = "error" if problem.seed is None else "different"
    vmap(one, randomness=random)(start.repeat(problem.n_units, 1), problem.arguments.by_unit)
    return found[0]


def _check_shape(shape: tuple[int, ...], problem: Problem) -> None:
    given = f"one unit's data are {problem.arguments.shapes()}"
    if problem.kind == "residuals":
        if shape == ():
            msg = (
                "program returns a single number, but kind='residuals' needs all residuals of a unit (observed minus fitted), "
                "as a vector. If it returns a loss, use kind='nll' (to be minimised) or 'loglik' (to be maximised)."
            )
            raise ValueError(msg)
    elif len(shape) > 1:
        msg = (
            f"program returns the shape {shape}, but kind={problem.kind!r} needs one value per row (a vector) or their sum (a "
            f"single number); {given}. Did a row meet a column?"
        )
        raise ValueError(msg)
    if 0 in shape:
        msg = f"program returns the empty shape {shape}; {given}."
        raise ValueError(msg)
    known = [tuple(value.shape[1:]) for value in problem.arguments.by_unit.values()]
    known += [tuple(value.shape) for value in problem.arguments.shared.values()]
    if len(shape) == 2 and shape[0] == shape[1] > 1 and shape not in known and any(shape[0] in s for s in known):
        msg = f"program returns the shape {shape}: did a row meet a column? {given[0].upper()}{given[1:]}."
        raise ValueError(msg)


def _check_finite(problem: Problem, start: Tensor) -> None:
    with seeded(problem):
        f = problem.loss(start)
    bad = torch.nonzero(~torch.isfinite(f))[:, 0].tolist()
    if not bad:
        return
    unit, names = problem.arguments.units[bad[0]], problem.arguments.with_nan(bad[0])
    where = f"for unit {unit!r} ({len(bad)} of {problem.n_units})" if problem.n_units > 1 else "here"
    if names:
        reason = (
            f"its data hold NaN or infinite values ({', '.join(names)}). Leave out what is missing inside the program with "
            "dp.stats.where_observed(~torch.isnan(y), lambda y: ..., y)."
        )
    else:
        at = ", ".join(f"{name}={value.tolist()}" for name, value in problem.parameters.start.items())
        reason = f"its data are finite, so the starting values ({at}) are outside of what the program can compute. Change them in params, or add constraints."
    msg = f"The program is {f[bad[0]].item()} at the starting values {where}; {reason}"
    raise ValueError(msg)


def _check_derivatives(problem: Problem, start: Tensor) -> None:
    """Every parameter must change the loss, and by as much as its derivative says."""
    rows = torch.linspace(0, problem.n_units - 1, min(_TRIED, problem.n_units)).round().long()
    some, u = problem.take(rows), start[rows]
    generator = torch.Generator().manual_seed(0)
    points = [u] + [
        u + 0.1 * (1.0 + u.abs()) * torch.randn(u.shape, generator=generator, dtype=u.dtype) for _ in range(2)
    ]
    try:
        with seeded(problem):
            found = [some.gradient(point) for point in points]
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        _explain(error, problem)
    f, g = found[0]
    names = problem.parameters.free_names
    broken = ~torch.isfinite(g).all(0)
    if bool(broken.any()):
        name = names[int(torch.nonzero(broken)[0])]
        msg = (
            f"The derivative by {name!r} is not finite at the starting values although the loss is. Often a torch.where hides "
            "an undefined value in the branch not taken: use dp.stats.where_observed. Or a starting value is where a function "
            "has no slope, such as sqrt at 0."
        )
        raise ValueError(msg)
    slopes = torch.stack([g for _, g in found])
    for j in torch.nonzero((slopes == 0).all(0).all(0))[:, 0].tolist():
        _explain_flat(problem, start, j, names[j])
    if problem.seed is None:
        _check_slopes(some, points[1:], found[1:], names)


def _explain_flat(problem: Problem, start: Tensor, j: int, name: str) -> None:
    """The derivative is 0 for the units tried: is it for all, and does the number change the loss at all?"""
    shifted = start.clone()
    shifted[:, j] += 0.1 * (1.0 + start[:, j].abs())
    with seeded(problem):
        if bool((problem.gradient(start)[1][:, j] != 0).any() or (problem.gradient(shifted)[1][:, j] != 0).any()):
            return
        f = problem.loss(start)
    changes = False
    for size in (1e-3, 0.3, 0.7, 1.9, -0.7, -1.9):
        moved = start.clone()
        moved[:, j] += size * (1.0 + start[:, j].abs())
        with seeded(problem):
            there = problem.loss(moved)
        changes |= bool(((there != f) & torch.isfinite(there)).any())
    if changes:
        msg = (
            f"The program is not differentiable in {name!r}: the loss changes with it, but its derivative is 0 everywhere. "
            "Rounding, comparisons, integer conversion, .detach() and .data cut the derivative. Write smooth functions, e.g. "
            "torch.sigmoid((x - a) / width) instead of (x > a)."
        )
    else:
        msg = f"The program does not use the parameter {name!r}: the loss does not change with it. Use it, or leave it out of params."
    raise ValueError(msg)


def _check_slopes(problem: Problem, points: list[Tensor], found: list[tuple[Tensor, Tensor]], names: list[str]) -> None:
    k, n = len(names), problem.n_units
    tried = list(range(0, k, max(1, k // 16)))  # of many parameters some are enough
    point = torch.stack(points)
    moved, sizes = [], []
    for j in tried:
        h = 1e-5 * (1.0 + point[:, :, j].abs())
        for sign in (1.0, -1.0):
            there = point.clone()
            there[:, :, j] += sign * h
            moved.append(there)
        sizes.append(h)
    everywhere = torch.stack(moved).reshape(-1, k)
    losses = problem.take(torch.arange(n).repeat(len(everywhere) // n)).loss(everywhere)
    losses = losses.reshape(len(tried), 2, len(points), n)
    for j, (up, down), h in zip(tried, losses, sizes, strict=True):
        slopes = (up - down) / (2 * h)
        wrong = torch.ones(n, dtype=torch.bool)
        for slope, step, (f, g) in zip(slopes, h, found, strict=True):
            gap = (slope - g[:, j]).abs()
            wrong &= gap > 0.01 * (slope.abs() + g[:, j].abs()) + 1e-9 * f.abs() / step + 1e-7
        g, slope = found[-1][1], slopes[-1]
        if bool(wrong.double().mean() > 0.5):
            msg = (
                f"The derivative by {names[j]!r} that torch finds ({float(g[0, j]):.4g}) is not the slope of the loss "
                f"({float(slope[0]):.4g}). A part of the program is cut off from it: .detach(), .data, rounding, or a "
                "comparison. Write that part with smooth torch functions."
            )
            raise ValueError(msg)


def _explain(error: BaseException, problem: Problem) -> NoReturn:
    """What torch says in terms of vmap, in terms of the program."""
    text = str(error)
    if text.startswith("program returns"):
        raise error
    line = _line_of(error)
    place = f" The line is: {line}" if line else ""
    lowered = text.lower()
    if "data-dependent control flow" in lowered:
        msg = (
            "The program branches in Python (if, while, and, or, max) on a value that differs between units, but all units are "
            f"computed at once.{place} Write torch.where(condition, this, that) instead of if; loop a fixed number of "
            "times instead of while."
        )
        raise ValueError(msg) from error
    if (
        ".item()" in lowered
        or "numpy()" in lowered
        or "storage" in lowered
        or "data pointer" in lowered
        or "array()" in lowered
    ):
        msg = (
            f"The program leaves torch (float(), int(), .item(), .numpy(), numpy functions), which loses the derivative.{place} "
            "Use the torch function of the same name, e.g. torch.exp, torch.sqrt, torch.lgamma."
        )
        raise ValueError(msg) from error
    if "dynamic shape" in lowered or "boolean mask" in lowered or "nonzero" in lowered:
        msg = (
            f"The program selects by a condition (y[seen], nonzero), so that units would have different shapes.{place} Keep the "
            "shape, and use dp.stats.where_observed(seen, lambda y: ..., y) for what does not count."
        )
        raise ValueError(msg) from error
    if "inplace" in lowered or "in-place" in lowered:
        msg = (
            f"The program writes into a tensor in place, which cannot be vectorised over units.{place} Collect the values in "
            "a list, and put them together with torch.stack."
        )
        raise ValueError(msg) from error
    if isinstance(error, KeyError):
        names = ", ".join(problem.parameters.names)
        msg = f"The program asks for {text}, which is not in params; there are {names}.{place}"
        raise KeyError(msg) from error
    msg = (
        f"The program fails at the starting values: {type(error).__name__}: {text}{place} One unit's data have the shapes "
        f"{problem.arguments.shapes()}."
    )
    raise ValueError(msg) from error


def _line_of(error: BaseException) -> str:
    """The last line of the user's own code on the way to an error."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename.replace("\\", "/") for part in ("/torch/", "/dynapath/stats/", "<frozen"))
    ]
    return f"{own[-1].line} ({own[-1].name}, line {own[-1].lineno})." if own and own[-1].line else ""
