"""Parametric bootstrap: all simulated data sets of all units are estimated as one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from dynapath._threads import few_threads

from .check import seeded
from .fit import estimate_each, method_of, without_data
from .pooled import estimate_pooled, modes_of
from .problem import Problem
from .small import units_last

# Numbers that one batch of data sets may hold.
_MOST = 2e7


@few_threads(lambda problem, *_, **__: problem.n_units * problem.size)
def bootstrap_draws(
    problem: Problem,
    free: Float[NDArray, "unit k"],
    sigma2: Float[NDArray, " unit"],
    settings: Mapping[str, Any],
    n: int,
    simulate: Callable[..., Mapping[str, Tensor]] | None,
    random_state: int | None,
) -> tuple[Float[NDArray, "replicate unit k"], NDArray[np.object_]]:
    """Estimates and status from `n` simulated data sets.

    Raises
    ------
    ValueError : without a simulator where one is needed, or if it returns other data than the program takes.
    """
    if problem.seed is not None:
        msg = "The program draws random numbers itself; a bootstrap of it is not offered."
        raise ValueError(msg)
    if simulate is None and problem.kind != "residuals":
        msg = (
            f"A bootstrap with kind={problem.kind!r} needs simulate=..., a function simulate(params, **data) that returns the "
            "simulated data of one unit as a dict, e.g. {'y': torch.poisson(mean)}."
        )
        raise ValueError(msg)
    if n < 2:
        msg = f"n={n!r} data sets are too few; errors need at least 2."
        raise ValueError(msg)
    pooled = settings.get("pooled", False)
    per_part = 1 if pooled else max(1, int(_MOST / (problem.n_units * max(problem.size, 1))))
    rng = np.random.default_rng(random_state)
    method = method_of(problem, settings["method"])
    draws, status = [], []
    for first in range(0, n, per_part):
        m = min(per_part, n - first)
        drawn = _simulated(problem, free, sigma2, m, simulate, rng)
        start = torch.from_numpy(np.tile(np.nan_to_num(free), (m, 1)))
        found = estimate_each(drawn, start, method=method, max_iter=settings.get("max_iter"))
        if pooled:
            modes = modes_of(settings["pooling"], problem.parameters)
            found, _ = estimate_pooled(drawn, start, found, modes, se=None, max_iter=settings.get("max_iter") or 100)
        found = without_data(found)
        draws.append(found.u.reshape(m, *free.shape))
        status.append(found.status.reshape(m, len(free)))
    return np.concatenate(draws), np.concatenate(status)


def _simulated(
    problem: Problem, free: NDArray, sigma2: NDArray, m: int, simulate: Callable | None, rng: np.random.Generator
) -> Problem:
    rows = torch.arange(problem.n_units).repeat(m)
    many = problem.take(rows)
    u = torch.from_numpy(np.tile(np.nan_to_num(free), (m, 1)))
    if simulate is None:
        # With r = y - f(theta), new data f(estimate) + e have the residuals r - r(estimate) + e.
        at = problem.values(torch.from_numpy(np.nan_to_num(free)))
        values, slopes = problem.jacobian(torch.from_numpy(np.nan_to_num(free)))
        real = (values != 0) | (slopes != 0).any(1)
        noise = torch.from_numpy(rng.standard_normal((m, *at.shape)) * np.sqrt(np.nan_to_num(sigma2))[:, None])
        shift = torch.where(real, noise - at, 0.0).reshape(-1, at.shape[1])
        return replace(many, shift=units_last(shift))
    names = [*problem.arguments.by_unit, *problem.arguments.shared]
    run = lambda u, by_unit: dict(simulate(problem.parameters.unpack(u), **by_unit, **problem.arguments.shared))
    with seeded(replace(problem, seed=int(rng.integers(2**31)))):
        drawn = vmap(run, randomness="different")(u, many.arguments.by_unit)
    unknown = [name for name in drawn if name not in problem.arguments.by_unit]
    if unknown or not drawn:
        what = f"returns {unknown[0]!r}" if unknown else "returns nothing"
        msg = f"simulate {what}; it must return new values of data that differ between units, of {', '.join(names)}."
        raise ValueError(msg)
    for name, value in drawn.items():
        wanted = tuple(many.arguments.by_unit[name].shape)
        if tuple(value.shape) != wanted:
            msg = f"simulate returns {name!r} with the shape {tuple(value.shape[1:])} for one unit; its data have {wanted[1:]}."
            raise ValueError(msg)
    # What was not observed stays so.
    missing = {name: value.isnan() for name, value in many.arguments.by_unit.items() if value.is_floating_point()}
    new = {name: value.double() for name, value in drawn.items()}
    new = {
        name: torch.where(missing[name], torch.nan, value) if name in missing else value for name, value in new.items()
    }
    by_unit = many.arguments.by_unit | {name: units_last(value) for name, value in new.items()}
    return replace(many, arguments=replace(many.arguments, by_unit=by_unit))
