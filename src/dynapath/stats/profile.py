"""How well does a unit know a coefficient? The loss as a function of it, the others chosen best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2

from dynapath.read.panel import read_panel

from .increment.problem import Problem
from .increment.recursion import COUNT, LOSS


def profile_loss(
    adata: AnnData,
    *,
    units: str | Sequence[str],
    coefficient: str = "state",
    values: ArrayLike | None = None,
    covariates: str | Sequence[str] | None = None,
    lags: int | Sequence[int] | Mapping[str, int | Sequence[int]] = 1,
    layer: str | None = None,
    observed: str | NDArray | None = None,
    level: float = 0.9,
) -> pd.DataFrame:
    """Squared loss of single units over a grid of one coefficient, minimised over all others.

    Parameters
    ----------
    adata
        Units in rows, days in columns, NaN = not reported.
    units
        Names of units.
    coefficient
        `"state"`, `"intercept"` or a covariate.
    values
        Grid of the coefficient; by default around each unit's estimate, until the loss is well above the threshold, for
        the state not beyond -1 and 0.
    covariates, lags, layer, observed
        As in :func:`dynapath.stats.fit_increment`.
    level
        Confidence of the threshold.

    Returns
    -------
    One row per unit and value: `unit`, `coefficient`, `value`, `loss` (mean squared error over the reports after the first),
    `threshold` (values with a loss below form the confidence set of the likelihood ratio, min loss * exp(chi2/n)), `n`
    (reports after the first). Units with too few reports have none.

    Raises
    ------
    ValueError : for an unknown unit or coefficient.

    Notes
    -----
    Where nothing is missing the loss is a parabola. A gap of m days makes it a polynomial of degree 2m in the state
    coefficient, and flat valleys at 0 are common: a unit that hardly moves does not know how fast it would.

    The state coefficient is not bounded while another one is profiled.

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=5)
    >>> table = dp.stats.profile_loss(panel, units="0001", covariates="incidence")  # doctest: +SKIP
    """
    panel = read_panel(adata, layer=layer, covariates=covariates, lags=lags, observed=observed)
    if coefficient not in panel.coefficients:
        msg = f"There is no coefficient {coefficient!r}; there are {', '.join(panel.coefficients)}."
        raise ValueError(msg)
    units = [units] if isinstance(units, str) else list(units)
    missing = [unit for unit in units if unit not in panel.units]
    if missing or not units:
        msg = f"{missing[0]!r} is no unit of the panel." if missing else "units is empty. Name at least one unit."
        raise ValueError(msg)
    at = panel.coefficients.index(coefficient)
    parts = []
    for unit in units:
        row = panel.units.get_loc(unit)
        grid = _grid(panel.take(np.array([row])), at, values, level)
        if grid is None:
            continue
        loss, n = _profile(panel.take(np.full(len(grid), row)), at, grid)
        best, _ = _best(panel.take(np.array([row])), at)
        threshold = min(best, loss.min()) * np.exp(chi2.ppf(level, 1) / n)
        parts.append(
            pd.DataFrame(
                {"unit": unit, "coefficient": coefficient, "value": grid, "loss": loss, "threshold": threshold, "n": n}
            )
        )
    if not parts:
        return pd.DataFrame(columns=["unit", "coefficient", "value", "loss", "threshold", "n"])
    return pd.concat(parts, ignore_index=True)


def _profile(panel, at: int, grid: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Smallest mean squared error for each value of a coefficient; the panel has one row per value."""
    k = len(panel.coefficients)
    free = np.arange(k) != at
    start = np.zeros((len(grid), k))
    start[:, at] = grid
    problem = Problem(panel, bounds=(-np.inf, np.inf), progress=False)
    params, _, _ = problem.minimise(start, np.ones(len(grid), dtype=bool), free=free)
    sums, _, _ = problem.sums(params)
    return 2 * sums[:, LOSS] / sums[:, COUNT], int(sums[0, COUNT])


def _best(panel, at: int) -> tuple[float, float]:
    """Smallest loss of the unit, with the state coefficient in [-1, 0], and the coefficient there."""
    problem = Problem(panel, progress=False)
    params, _, _ = problem.minimise(np.zeros((1, len(panel.coefficients))), np.ones(1, dtype=bool))
    sums, _, _ = problem.sums(params)
    return float(2 * sums[0, LOSS] / sums[0, COUNT]), float(params[0, at])


def _grid(panel, at: int, values: ArrayLike | None, level: float) -> NDArray[np.float64] | None:
    if (panel.observed[:, panel.first_day :]).sum() < len(panel.coefficients) + 2:
        return None
    if values is not None:
        grid = np.unique(np.asarray(values, dtype=float))
        if np.ndim(values) > 1 or not np.isfinite(grid).all() or not len(grid):
            msg = f"values must be finite numbers in one list; they are {values!r}."
            raise ValueError(msg)
        return grid
    best, center = _best(panel, at)
    n = panel.observed.sum() - 1
    wanted = best * np.exp(10 * chi2.ppf(level, 1) / n)
    reach = 1e-4
    for _ in range(40):
        loss, _ = _profile(panel.take(np.zeros(2, dtype=int)), at, center + np.array([-reach, reach]))
        if loss.min() > wanted or best == 0:
            break
        reach *= 1.6
    low, high = center - reach, center + reach
    if panel.coefficients[at] == "state":
        low, high = max(low, -1.0), min(high, 0.0)
    return np.linspace(low, high, 101)
