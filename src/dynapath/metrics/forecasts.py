"""Scores of probabilistic forecasts: RMSE, CRPS and coverage."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import pi, sqrt
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import ndtr

from dynapath._forecast_tables import check_one_kind, inside, kinds

if TYPE_CHECKING:
    from typing import Any

_NEEDED = ("observed", "predicted", "crps", "lower50", "upper50", "lower90", "upper90")


def gaussian_crps(
    observed: Float[NDArray, "*row"], mean: Float[NDArray, "*row"] | float, sd: Float[NDArray, "*row"] | float
) -> Float[NDArray, "*row"]:
    """Continuous ranked probability score of normal forecasts, in the unit of the values.

    E|X - y| - E|X - X'| / 2, which for a normal X is sd (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)) with z = (y - mean) / sd
    (Gneiting & Raftery 2007, doi:10.1198/016214506000001437, equation 21). The distance of y from the mean where `sd` is 0.

    Parameters
    ----------
    observed, mean, sd
        Arrays that broadcast.

    Returns
    -------
    One score per forecast; lower is better.
    """
    error = np.asarray(observed - mean, dtype=float)
    sd = np.broadcast_to(np.asarray(sd, dtype=float), error.shape)
    positive = sd > 0
    z = error / np.where(positive, sd, 1.0)
    density = np.exp(-0.5 * z**2) / sqrt(2 * pi)
    score = sd * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / sqrt(pi))
    return np.where(positive | np.isnan(sd), score, np.abs(error))


def forecast_scores(table: Any, by: str | Sequence[str] = ("model",)) -> Any:
    """Scores of a table of forecasts.

    Parameters
    ----------
    table
        DataFrame of :func:`dynapath.stats.landmark_forecast`, one row per forecast.
    by
        Columns to group by, in their order in the result: `"model"`, `"item"`, `"landmark"`, `"fold"`, ... Where there are
        real-valued items and items of 0 and 1, with `"kind"`: their errors have no unit in common.

    Returns
    -------
    DataFrame with one row per group: the columns of `by`, `rmse`, `crps`, `cover50` and `cover90` (share of observations
    inside the intervals of 50 and 90 %, among those with a finite interval), `n` forecasts. NaN where no interval is finite.

    Raises
    ------
    KeyError : for a column that the table does not have.
    ValueError : if a forecast is NaN, since scores of the others would not be comparable; if a group has real-valued items, with
        errors in standard deviations, and 0/1 items, with errors of probabilities.

    Warns
    -----
    UserWarning : where intervals are infinite; these cover everything and say nothing, so that coverage leaves them out.

    Notes
    -----
    Coverage counts forecasts. Intervals of :func:`dynapath.stats.landmark_forecast` hold for patients: their mean over the
    forecasts of a patient, and then over patients, is what they promise. Where patients with many visits are the healthier
    ones, who are covered more often, the share of forecasts is above it.

    Examples
    --------
    >>> import dynapath as dp
    >>> visits = dp.datasets.pbc2()  # doctest: +SKIP
    >>> table = dp.stats.landmark_forecast(visits, models=["locf", "ar_ridge"])  # doctest: +SKIP
    >>> dp.metrics.forecast_scores(table, by=("model", "item"))  # doctest: +SKIP
    """
    by = [by] if isinstance(by, str) else list(by)
    missing = [name for name in (*by, *_NEEDED) if name not in table and name != "kind"]
    if missing:
        msg = f"The table has no column {missing[0]!r}; it has {', '.join(map(str, table.columns))}. Give what dp.stats.landmark_forecast returned."
        raise KeyError(msg)
    unknown = table["predicted"].isna()
    if unknown.any():
        where = f" (model {table.loc[unknown, 'model'].iloc[0]!r})" if "model" in table else ""
        msg = f"{int(unknown.sum())} forecasts are NaN{where}. Drop these cases for all models, then score."
        raise ValueError(msg)
    table = table.assign(kind=kinds(table))
    square = (table["observed"] - table["predicted"]) ** 2
    cover50, cover90 = (inside(table["observed"], table[f"lower{p}"], table[f"upper{p}"]) for p in (50, 90))
    parts = table[by].assign(square=square, crps=table["crps"], cover50=cover50, cover90=cover90)
    grouped = parts.groupby(by, observed=True, sort=False)
    check_one_kind(table, grouped.ngroup(), f"by=({', '.join(map(repr, [*by, 'kind']))})")
    infinite = np.isinf(table["lower90"]) | np.isinf(table["upper90"])
    if infinite.any():
        msg = (
            f"{int(infinite.sum())} of {len(table)} intervals of 90 % are infinite, since too few patients calibrate them. "
            "Coverage leaves them out; see the column 'unbounded' of the table."
        )
        warnings.warn(msg, UserWarning, stacklevel=2)
    scores = grouped[["square", "crps", "cover50", "cover90"]].mean()
    scores.insert(0, "rmse", np.sqrt(scores.pop("square")))
    scores["n"] = grouped.size()
    return scores.reset_index()
