"""The loss over one number, minimised over the others: profile likelihood."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2

from dynapath._threads import few_threads

from .newton import minimise
from .problem import Problem

# In standard errors.
_REACH = 5.0


@few_threads(lambda problem, *_, **__: problem.n_units * problem.size)
def profile(
    problem: Problem,
    free: Float[NDArray, "unit k"],
    se: Float[NDArray, "unit k"],
    n: Int[NDArray, " unit"],
    rows: Int[NDArray, " row"],
    name: str,
    j: int,
    *,
    values: ArrayLike | None,
    n_grid: int,
    level: float,
) -> pd.DataFrame:
    """Of the free number `j`, which is the parameter `name`, for the units `rows`."""
    rows = rows[np.isfinite(free[rows]).all(1)]
    if values is None:
        reach = np.where(np.isfinite(se[rows, j]), _REACH * se[rows, j], 1.0)
        grid = free[rows, j][:, None] + reach[:, None] * np.linspace(-1, 1, n_grid)
    else:
        given = np.unique(np.asarray(values, dtype=float))
        constraint = problem.parameters.constraints[problem.parameters.owner[j]]
        if np.ndim(values) > 1 or not np.isfinite(given).all() or not len(given) or not constraint.holds(given):
            msg = f"values must be finite numbers in one list, inside the constraint of {name!r} ({constraint}); they are {values!r}."
            raise ValueError(msg)
        grid = np.tile(constraint.invert(given), (len(rows), 1))
    m = grid.shape[1]
    start = np.repeat(free[rows], m, axis=0)
    start[:, j] = grid.ravel()
    some = problem.take(torch.from_numpy(np.repeat(rows, m)))
    moves = torch.ones(start.shape, dtype=torch.bool)
    moves[:, j] = False
    found = minimise(some, torch.from_numpy(start), free=moves)
    f = found.at.f.numpy().reshape(len(rows), m)
    best = minimise(problem.take(torch.from_numpy(rows)), torch.from_numpy(free[rows])).at.f.numpy()
    best = np.minimum(best, np.nanmin(f, axis=1))[:, None]
    count = n[rows][:, None]
    if problem.kind == "residuals":
        loss, threshold = 2.0 * f / count, 2.0 * best / count * np.exp(chi2.ppf(level, 1) / count)
        label = "mean squared residual"
    else:
        loss, threshold = f, best + 0.5 * chi2.ppf(level, 1)
        label = "negative log-likelihood"
    natural = problem.parameters.natural(start)[:, problem.parameters.elements.index(name)]
    table = pd.DataFrame(
        {
            "unit": np.repeat(problem.arguments.units[rows].to_numpy(dtype=object), m),
            "coefficient": name,
            "value": natural,
            "loss": loss.ravel(),
            "threshold": np.repeat(threshold.ravel(), m),
            "n": np.repeat(count.ravel(), m),
        }
    )
    table.attrs["loss"] = label
    return table
