"""dp.stats.predict_increment: forecasts of a fitted panel as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from dynapath import get
from dynapath._names import as_text
from dynapath.read.panel import Panel, frequency, read_panel

from .increment.forecast import forecast

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray


def predict_increment(
    adata: AnnData,
    *,
    horizon: int = 1,
    future_covariates: AnnData | Mapping[str, ArrayLike | pd.DataFrame] | Literal["carry"] | None = None,
    interval: float = 0.9,
    start: Literal["state", "locf"] = "state",
    key: str | None = None,
) -> pd.DataFrame:
    """Forecast every unit from the last day of its fit.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.stats.fit_increment` under `key`, or some of its units.
    horizon
        Number of days ahead. The step to the next day uses the covariate of the last day of the fit; those after it need
        the covariates of later days.
    future_covariates
        Of the days after the fit: a panel that has these days, with the same layers; or a mapping from covariate to a
        table or array (unit, day), the first column being the first day after the fit; or `"carry"`, which holds the last
        value of each. Needed for a horizon above the smallest lag.
    interval
        Probability of the interval from `lower` to `upper`.
    start
        `"state"`: from the state of the last day, which the model has filled in if there was no report. `"locf"`: from the
        last report carried forward, as in the publication.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.

    Returns
    -------
    One row per unit and day: `unit`, `horizon`, `date` (or `day`, if days are numbered), `origin` (the value on the last
    day of the fit that the forecast starts from), `predicted`, `sd`, `lower`, `upper`, `status`. Of units without an
    estimate `predicted` is missing, of units without an innovation variance the last three are: `status` says why.

    Raises
    ------
    KeyError : if there is no such fit.
    ValueError : if covariates are needed and not given, or days do not match.

    Notes
    -----
    Intervals contain the innovations of the days ahead and since the last report, and the uncertainty of the coefficients
    if the fit has standard errors. They are normal, and may reach below 0, unless the loss is one of counts.

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=20)
    >>> dp.stats.fit_increment(panel, covariates="incidence", train_until=-2)
    >>> ahead = dp.stats.predict_increment(panel)
    >>> len(ahead)
    20
    """
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1:
        msg = f"horizon must be a positive number of days; it is {horizon!r}."
        raise ValueError(msg)
    check_probability(interval)
    key = get.increment_slots(adata, key).key
    panel = read_fitted_panel(adata, key)
    dynamics = get.model(adata, key)
    ahead = forecast(
        dynamics,
        panel,
        horizon=int(horizon),
        future=_future(panel, future_covariates, int(horizon)),
        start=start,
        interval=interval,
    )
    days = _days_ahead(panel, int(horizon))
    return pd.DataFrame(
        {
            "unit": np.repeat(np.asarray(panel.units, dtype=object), horizon),
            "horizon": np.tile(np.arange(1, horizon + 1), panel.n_units),
            "date" if panel.dates is not None else "day": np.tile(days, panel.n_units),
            "origin": np.repeat(ahead.origin, horizon),
            "predicted": ahead.mean.ravel(),
            "sd": ahead.sd.ravel(),
            "lower": ahead.lower.ravel(),
            "upper": ahead.upper.ravel(),
            "status": np.repeat(dynamics.status, horizon),
        }
    )


def read_fitted_panel(adata: AnnData, key: str) -> Panel:
    """The panel as it was fitted: same layers, lags, mask and days."""
    params = get.increment_fit(adata, key)["params"]
    observed = params.get("observed")
    return read_panel(
        adata,
        layer=None if params.get("layer") is None else str(params["layer"]),
        covariates=[str(name) for name in params["covariates"]],
        lags={str(name): [int(lag) for lag in lags] for name, lags in params["lags"].items()},
        observed=None if observed is None else str(observed),
        train_until=int(params["train_until"]),
    )


def check_probability(interval: float) -> None:
    """Raise unless strictly between 0 and 1."""
    if not 0 < interval < 1:
        msg = f"interval={interval!r} must be a probability between 0 and 1, such as 0.9."
        raise ValueError(msg)


def _future(
    panel: Panel, given: AnnData | Mapping[str, ArrayLike | pd.DataFrame] | str | None, horizon: int
) -> NDArray[np.float64] | None:
    """Covariates (covariate, unit, day ahead); None if no step needs them."""
    needed = horizon - int(panel.lag.min(initial=horizon))
    if needed <= 0:
        return None
    if given is None:
        msg = (
            f"horizon={horizon} needs {', '.join(panel.covariates)} on the {needed} day(s) after {panel.days[-1]}. Give "
            "future_covariates: a panel with these days, a table for each covariate, or 'carry' to hold the last value."
        )
        raise ValueError(msg)
    if isinstance(given, str):
        if given != "carry":
            msg = f"future_covariates must be a panel, a mapping or 'carry'; it is {given!r}."
            raise ValueError(msg)
        return np.repeat(panel.z[:, :, -1:], needed, axis=2)
    if isinstance(given, Mapping):
        return _from_mapping(panel, given, needed)
    return _from_panel(panel, given, needed)


def _from_mapping(panel: Panel, given: Mapping[str, ArrayLike | pd.DataFrame], needed: int) -> NDArray[np.float64]:
    missing = [name for name in panel.covariates if name not in given]
    if missing:
        msg = f"future_covariates lacks {', '.join(map(repr, missing))}; it has {', '.join(map(repr, given)) or 'nothing'}."
        raise ValueError(msg)
    tables = []
    for name in panel.covariates:
        table = given[name]
        if isinstance(table, pd.DataFrame):
            table = table.set_axis(as_text(table.index))
            unknown = panel.units.difference(table.index)
            if len(unknown):
                msg = f"future_covariates[{name!r}] has no row for unit {unknown[0]!r} ({len(unknown)} are missing)."
                raise ValueError(msg)
            table = table.loc[panel.units]
        values = np.asarray(table, dtype=float)
        if values.ndim != 2 or values.shape[0] != panel.n_units or values.shape[1] < needed:
            msg = (
                f"future_covariates[{name!r}] has shape {values.shape}; needed are {panel.n_units} units and at least "
                f"{needed} day(s)."
            )
            raise ValueError(msg)
        tables.append(values[:, :needed])
    return np.stack(tables)


def _from_panel(panel: Panel, given: AnnData, needed: int) -> NDArray[np.float64]:
    later = read_panel(given, layer=panel.covariates[0], covariates=None)
    rows = later.units.get_indexer(panel.units)
    if (rows < 0).any():
        msg = f"future_covariates has no unit {panel.units[rows < 0][0]!r} ({int((rows < 0).sum())} are missing)."
        raise ValueError(msg)
    wanted = _days_ahead(panel, needed)
    axis = later.dates if panel.dates is not None else pd.Index(pd.to_numeric(later.days))
    columns = axis.get_indexer(wanted) if axis is not None else np.full(needed, -1)
    if (columns < 0).any():
        msg = f"future_covariates does not have day {wanted[columns < 0][0]}, which the forecast needs."
        raise ValueError(msg)
    layers = {name for name in given.layers if name is not None}
    missing = [name for name in panel.covariates if name not in layers]
    if missing:
        msg = f"future_covariates has no layer {missing[0]!r}; present: {', '.join(sorted(layers)) or 'none'}."
        raise ValueError(msg)
    return np.stack([np.asarray(given.layers[name], dtype=float)[np.ix_(rows, columns)] for name in panel.covariates])


def _days_ahead(panel: Panel, horizon: int) -> pd.Index:
    """Dates, or numbers, of the days after the panel."""
    if panel.dates is None:
        numbers = pd.to_numeric(pd.Series(panel.days.astype(str))).to_numpy()
        return pd.Index(numbers[-1] + (numbers[-1] - numbers[-2]) * np.arange(1, horizon + 1))
    freq = frequency(panel.dates)
    if freq is not None:
        return pd.date_range(panel.dates[-1], periods=horizon + 1, freq=freq)[1:]
    return panel.dates[-1] + (panel.dates[-1] - panel.dates[-2]) * np.arange(1, horizon + 1)
