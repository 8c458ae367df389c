"""Forecasts of a panel from rolling origins, beside what they must beat, and their comparison.

From each origin, the last training day, every model forecasts the same units and days. All information is from the
origin or before: covariates of later days are the last known ones carried forward.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath._forecast_tables import inside
from dynapath.read.panel import Panel, day_index, read_panel

from .baselines import BASELINES, REGRESSIONS, carry_forward, zero_before_first
from .increment.fit import fit
from .increment.forecast import forecast

INCREMENT = {f"increment_{pooling}": {"pooling": pooling} for pooling in ("individual", "global", "partial")}
COLUMNS = ("model", "origin", "horizon", "unit", "date", "observed", "predicted", "error", "lower", "upper")

Own = Callable[[AnnData, int], NDArray[np.float64]]
Models = str | Sequence[str] | Mapping[str, str | Mapping[str, Any] | Own]


@dataclass(frozen=True)
class Levels:
    """Forecasts of all units, with an interval where the model has one."""

    predicted: Float[NDArray, "unit step"]
    lower: Float[NDArray, "unit step"]
    upper: Float[NDArray, "unit step"]

    @classmethod
    def points(cls, predicted: Float[NDArray, "unit step"]) -> Levels:
        """Without intervals."""
        nothing = np.full(predicted.shape, np.nan)
        return cls(predicted, nothing, nothing)


def backtest(
    adata: AnnData,
    *,
    models: Models = "all",
    covariates: str | Sequence[str] | None = None,
    origins: int | str | Iterable[int | str],
    horizon: int = 1,
    start: Literal["locf", "state"] | None = None,
    lags: int | Sequence[int] | Mapping[str, int | Sequence[int]] = 1,
    layer: str | None = None,
    observed: str | NDArray | None = None,
    interval: float | None = None,
    before_first: Literal["skip", "zero"] | None = None,
) -> pd.DataFrame:
    """Forecast from several origins with several models, and compare with what was reported.

    Parameters
    ----------
    adata
        Units in rows, days in columns, NaN = not reported.
    models
        `"all"`, or some of

        - `"zero"`: the last report carried forward.
        - `"mean"`: with the mean daily change since the first report.
        - `"modified_mean"`: but no change for units at 0, as in the published code; `"modified_mean_slide"`: but no change
          for units whose last change was 0, as in the slides to it.
        - `"ols"`: least squares of each change on level and covariates of the day before, missing values carried forward.
        - `"ols_published"`: the same on level and covariates of the day itself, as in the published code. It uses
          coefficients for the end of a change as if they were for its beginning, and is here to reproduce [1]_, not to
          be beaten.
        - `"increment_individual"`, `"increment_global"`, `"increment_partial"`: :func:`dynapath.stats.fit_increment` with
          that pooling.

        Or a mapping from names of your choice to one of these names; to settings of :func:`dynapath.stats.fit_increment`
        such as `{"pooling": "partial", "weights": "gap"}`; or to a function `f(train, horizon)`, which is given the
        AnnData up to the origin and returns levels (unit, step ahead).
    covariates
        Layers with covariates, for `"ols"`, `"ols_published"` and the increment models.
    origins
        Last training days: indices of columns (negative ones from the end), their names, or dates.
    horizon
        How many days to forecast from each.
    start
        Whether increment models start from the last report carried forward (`"locf"`, the default, as published), or from their
        own filled-in `"state"`. It matters for units that did not report on the origin.
    lags
        As in :func:`dynapath.stats.fit_increment`.
    layer
        Layer with the reports; by default `X`.
    observed
        Mask of what was reported, or the name of a layer with it.
    interval
        Probability of the intervals of increment models, by default .9.
    before_first
        What baselines make of the days before a unit's first report: `"skip"`, the default, starts with it, as the increment models do;
        `"zero"` takes them for 0, as the publication did where nothing was known.

    Returns
    -------
    One row per forecast that can be compared with a report: `model`, `origin` (index of the last training day), `horizon`
    (days after it), `unit`, `date`, `observed`, `predicted`, `error` (observed - predicted), `lower`, `upper` (NaN for models
    without intervals). `attrs["left_out"]` counts, for each origin and horizon, the units that did not report on that day
    (`not_reported`) or never up to the origin (`no_report_before`). They are left out for all models alike.

    Raises
    ------
    KeyError : for an unknown layer.
    ValueError : for an unknown model, an origin with fewer than `horizon` days after it, or an argument that none of the models
        uses.

    Warns
    -----
    UserWarning : how many forecasts were left out, and whether a function of yours returned NaN.

    Notes
    -----
    The error of a level is also that of the increment from the last report. A unit without enough reports for an increment
    model of its own (fewer than two) is forecast by its last report.

    References
    ----------
    .. [1] M. Hackenberg et al. Using differentiable programming for flexible statistical modeling. The American
       Statistician 76:270-279, 2022. doi:10.1080/00031305.2021.2002189

    See Also
    --------
    compare_forecasts : losses relative to a reference, with a bootstrap over units.

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=40)
    >>> table = dp.stats.backtest(panel, models=["zero", "mean"], origins=[49, 59])  # doctest: +SKIP
    >>> dp.stats.compare_forecasts(table)  # doctest: +SKIP
    """
    chosen = _chosen(models)
    _refuse_unused(chosen, covariates=covariates, start=start, interval=interval, before_first=before_first)
    start = "locf" if start is None else start
    interval = 0.9 if interval is None else interval
    before_first = "skip" if before_first is None else before_first
    if before_first not in ("skip", "zero"):
        msg = f"before_first must be 'skip' or 'zero'; it is {before_first!r}."
        raise ValueError(msg)
    panel = read_panel(adata, layer=layer, covariates=covariates, lags=lags, observed=observed)
    days = _origins(panel, origins, horizon)
    rows, left_out = [], []
    for origin in days:
        train = panel.until(origin)
        actual = panel.y[:, origin + 1 : origin + 1 + horizon]
        begun = train.observed.any(1)
        scored = ~np.isnan(actual) & begun[:, None]
        for step in range(horizon):
            silent = int(np.isnan(actual[begun, step]).sum())
            left_out.append(
                {
                    "origin": origin,
                    "horizon": step + 1,
                    "not_reported": silent,
                    "no_report_before": int((~begun).sum()),
                }
            )
        for name, model in chosen.items():
            if isinstance(model, str) and model in BASELINES:
                levels = _baseline(model, train, horizon, before_first)
            elif isinstance(model, str | Mapping):
                settings = INCREMENT[model] if isinstance(model, str) else model
                levels = _increment(settings, train, horizon, start, interval)
            else:
                levels = _own(name, model, adata[:, : origin + 1], horizon)
            rows.append(_rows(name, origin, panel, actual, levels, scored))
    table = pd.concat(rows, ignore_index=True)
    table["model"] = pd.Categorical(table["model"], categories=list(chosen))
    table.attrs["left_out"] = left_out
    _warn(table, left_out, n_forecasts=len(days) * horizon * panel.n_units)
    return table


def temporal_subsets(
    adata: AnnData,
    *,
    models: Models = "all",
    covariates: str | Sequence[str] | None = None,
    length: int | None = None,
    starts: Iterable[int] | None = None,
    min_reports: int = 2,
    start: Literal["locf", "state"] | None = None,
    lags: int | Sequence[int] | Mapping[str, int | Sequence[int]] = 1,
    layer: str | None = None,
    observed: str | NDArray | None = None,
    interval: float | None = None,
) -> pd.DataFrame:
    """Fit windows of the days one by one, and forecast the last day of each, as in the published sensitivity analysis.

    Parameters
    ----------
    adata, models, covariates, start, lags, layer, observed, interval
        As in :func:`backtest`.
    length
        Days of a window, the last of which is held out; by default half of the days, rounded down.
    starts
        Indices of the windows' first days; by default all that fit.
    min_reports
        A unit with fewer reports in a window, its last day apart, is no part of it, neither of fits nor of scores.

    Returns
    -------
    Rows of :func:`backtest` with a first column `window`, the index of the first day; `origin` is the last training day of
    the whole panel. `attrs["left_out"]` counts for each window also the units with too few reports (`too_few_reports`).

    Raises
    ------
    ValueError : for windows that do not fit, or in which no unit is left.
    """
    panel = read_panel(adata, layer=layer, covariates=covariates, lags=lags, observed=observed)
    length = panel.n_days // 2 if length is None else length
    if not 3 <= length <= panel.n_days:
        msg = f"length must be from 3 to the {panel.n_days} days of the panel; it is {length}."
        raise ValueError(msg)
    firsts = list(range(panel.n_days - length + 1)) if starts is None else list(starts)
    wrong = [first for first in firsts if not 0 <= first <= panel.n_days - length]
    if wrong or not firsts:
        what = f"{wrong[0]} is not" if wrong else "none was given"
        msg = f"starts must be from 0 to {panel.n_days - length} for windows of {length} days; {what}."
        raise ValueError(msg)
    parts, left_out = [], []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Left out")
        for first in firsts:
            inside = slice(first, first + length)
            enough = panel.observed[:, first : first + length - 1].sum(1) >= min_reports
            if not enough.any():
                msg = f"No unit has {min_reports} reports in the window from {panel.days[first]}. Use longer windows."
                raise ValueError(msg)
            mask = observed if not isinstance(observed, np.ndarray) else observed[enough, inside]
            part = backtest(
                adata[enough, inside],
                models=models,
                covariates=covariates,
                origins=length - 2,
                start=start,
                lags=lags,
                layer=layer,
                observed=mask,
                interval=interval,
            )
            counted = part.attrs["left_out"][0] | {"origin": first + length - 2, "window": first}
            left_out.append(counted | {"too_few_reports": int((~enough).sum())})
            part.attrs = {}
            part["origin"] += first
            part.insert(0, "window", first)
            parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table.attrs["left_out"] = left_out
    _warn(table, left_out, n_forecasts=len(firsts) * panel.n_units)
    return table


def compare_forecasts(
    table: pd.DataFrame,
    *,
    reference: str = "zero",
    n_bootstrap: int = 1000,
    level: float = 0.9,
    random_state: int | None = 0,
) -> pd.DataFrame:
    """Losses of the models of a backtest, and how they compare with a reference.

    Parameters
    ----------
    table
        Of :func:`backtest` or :func:`temporal_subsets`.
    reference
        The model to compare with.
    n_bootstrap
        Resamples of units. All forecasts of a unit go together, since they are not independent.
    level
        Probability of the interval of `relative`.
    random_state
        Seed of the bootstrap.

    Returns
    -------
    One row per model: `n` forecasts, `sse` and `mse` (squared errors, summed and averaged), `mae`, `largest` squared error,
    `relative` = (sse - sse of the reference) / sse of the reference with its interval `lower`, `upper` (percentiles of the
    bootstrap), `coverage` of the model's own intervals that are finite (NaN without).

    Raises
    ------
    ValueError : if the reference is not in the table, or models were not scored on the same forecasts.

    Notes
    -----
    The interval says how the comparison depends on which units were seen. It does not cover other days or waves; look at
    the origins one by one for that (:func:`dynapath.pl.backtest`).
    """
    names = [str(name) for name in pd.unique(table["model"])]
    if reference not in names:
        msg = f"reference={reference!r} is not in the table; its models are {', '.join(names)}."
        raise ValueError(msg)
    squares = table.assign(model=table["model"].astype(str), square=table["error"] ** 2)
    n = squares.groupby("model")["square"].count()
    if n.nunique() > 1:
        msg = f"The models were scored on different forecasts ({', '.join(f'{name}: {n[name]}' for name in names)}). Compare those all have."
        raise ValueError(msg)
    by_unit = squares.pivot_table(index="unit", columns="model", values="square", aggfunc="sum", observed=True)[names]
    loss = by_unit.to_numpy()
    at = names.index(reference)
    drawn = np.random.default_rng(random_state).multinomial(len(loss), np.full(len(loss), 1 / len(loss)), n_bootstrap)
    resampled = drawn @ loss
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = loss.sum(0) / loss.sum(0)[at] - 1
        ends = np.quantile(resampled / resampled[:, [at]] - 1, [(1 - level) / 2, (1 + level) / 2], axis=0)
    covered = pd.Series(inside(table["observed"], table["lower"], table["upper"]), index=table.index)
    covered = covered.groupby(table["model"].astype(str)).mean()
    grouped = squares.groupby("model")
    return pd.DataFrame(
        {
            "model": names,
            "n": n.reindex(names).to_numpy(),
            "sse": loss.sum(0),
            "mse": loss.sum(0) / n.reindex(names).to_numpy(),
            "mae": grouped["error"].agg(lambda error: error.abs().mean()).reindex(names).to_numpy(),
            "largest": grouped["square"].max().reindex(names).to_numpy(),
            "relative": relative,
            "lower": ends[0],
            "upper": ends[1],
            "coverage": covered.reindex(names).to_numpy(),
        }
    )


def _chosen(models: Models) -> dict[str, str | Mapping[str, Any] | Own]:
    built_in = [*BASELINES, *INCREMENT]
    if isinstance(models, str):
        models = built_in if models == "all" else [models]
    if not isinstance(models, Mapping):
        models = {name: name for name in models}
    if not models:
        msg = f"models is empty; there are {', '.join(built_in)}."
        raise ValueError(msg)
    for name, model in models.items():
        if isinstance(model, str) and model not in built_in:
            msg = f"There is no model {model!r}; there are {', '.join(built_in)}. Other models: models={{{name!r}: f}}."
            raise ValueError(msg)
        if not isinstance(model, str | Mapping) and not callable(model):
            msg = (
                f"Model {name!r} must be a name, settings of fit_increment or a function; it is {type(model).__name__}."
            )
            raise ValueError(msg)
    return dict(models)


def _refuse_unused(chosen: Mapping[str, str | Mapping[str, Any] | Own], **given: Any) -> None:
    """Raise for an argument that none of the models uses. A function of your own is given the AnnData alone."""
    rules = {model for model in chosen.values() if isinstance(model, str) and model in BASELINES}
    increments = any(
        isinstance(model, Mapping) or (isinstance(model, str) and model in INCREMENT) for model in chosen.values()
    )
    uses = {
        "covariates": (increments or bool(rules & {*REGRESSIONS}), f"{', '.join(REGRESSIONS)} and increment models"),
        "start": (increments, "increment models"),
        "interval": (increments, "increment models"),
        "before_first": (bool(rules), f"the baselines {', '.join(BASELINES)}"),
    }
    for name, value in given.items():
        used, by = uses[name]
        if value is not None and not used:
            msg = f"{name}={value!r} is for {by}, and models has none of them: {', '.join(chosen)}. Leave {name} out."
            raise ValueError(msg)


def _origins(panel: Panel, origins: int | str | Iterable[int | str], horizon: int) -> list[int]:
    if not isinstance(horizon, int | np.integer) or horizon < 1:
        msg = f"horizon must be a whole number of days of at least 1; it is {horizon!r}."
        raise ValueError(msg)
    single = isinstance(origins, int | np.integer | str) or not isinstance(origins, Iterable)
    days = [day_index(panel, day, "origins") for day in ([origins] if single else origins)]
    if not days:
        msg = "origins is empty. Give indices of last training days, such as range(40, 69, 3)."
        raise ValueError(msg)
    if len(set(days)) < len(days):
        twice = next(day for day in days if days.count(day) > 1)
        msg = f"origins has day {twice} ({panel.days[twice]}) more than once."
        raise ValueError(msg)
    for day in days:
        if day + horizon > panel.n_days - 1:
            msg = (
                f"Origin {day} ({panel.days[day]}) has {panel.n_days - 1 - day} days after it, too few for horizon={horizon}. "
                f"An origin is the last training day; the latest possible one is {panel.n_days - 1 - horizon}."
            )
            raise ValueError(msg)
        if day < panel.first_day + 1:
            msg = f"Origin {day} leaves {day + 1} training days; at least {panel.first_day + 2} are needed."
            raise ValueError(msg)
    return days


def _baseline(name: str, train: Panel, horizon: int, before_first: str) -> Levels:
    x, ahead = steps(train, horizon)
    y = zero_before_first(train.y) if before_first == "zero" else train.y
    return Levels.points(BASELINES[name](y, x, ahead))


def _own(name: str, model: Own, train: AnnData, horizon: int) -> Levels:
    predicted = np.asarray(model(train.copy(), horizon), dtype=float)
    if predicted.shape != (train.n_obs, horizon):
        msg = f"Model {name!r} returned an array of shape {predicted.shape}; expected {(train.n_obs, horizon)} (unit, step)."
        raise ValueError(msg)
    return Levels.points(predicted)


def _increment(settings: Mapping[str, Any], train: Panel, horizon: int, start: str, interval: float) -> Levels:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*reports are negative")  # not once per origin and model
        result = fit(train, **settings)
    ahead = forecast(
        result.dynamics, train, horizon=horizon, future=carried(train, horizon), start=start, interval=interval
    )
    # Units without a fit of their own: their last report, as nothing else is known.
    last = carry_forward(train.y)[:, -1:]
    return Levels(np.where(np.isnan(ahead.mean), last, ahead.mean), ahead.lower, ahead.upper)


def carried(panel: Panel, horizon: int) -> Float[NDArray, "covariate unit step"]:
    """Covariates of the days after the panel: those of its last day."""
    return np.repeat(panel.z[:, :, -1:], horizon, axis=2)


def steps(panel: Panel, horizon: int) -> tuple[Float[NDArray, "column unit day"], Float[NDArray, "column unit step"]]:
    """Covariates of the step to each day of the panel, NaN where a lag reaches before it, and of those after it."""
    z = np.concatenate([panel.z, carried(panel, horizon)], axis=2)
    t = np.arange(panel.n_days + horizon)
    x = np.full((len(panel.source), *z.shape[1:]), np.nan)
    for j, (source, lag) in enumerate(zip(panel.source, panel.lag, strict=True)):
        x[j, :, lag:] = z[source][:, t[lag:] - lag]
    return x[:, :, : panel.n_days], x[:, :, panel.n_days :]


def _rows(
    name: str, origin: int, panel: Panel, actual: NDArray, levels: Levels, scored: NDArray[np.bool_]
) -> pd.DataFrame:
    unit, step = np.nonzero(scored)
    axis = panel.days if panel.dates is None else panel.dates
    return pd.DataFrame(
        {
            "model": name,
            "origin": origin,
            "horizon": step + 1,
            "unit": panel.units.to_numpy()[unit],
            "date": axis[origin + 1 + step],
            "observed": actual[unit, step],
            "predicted": levels.predicted[unit, step],
            "error": actual[unit, step] - levels.predicted[unit, step],
            "lower": levels.lower[unit, step],
            "upper": levels.upper[unit, step],
        },
        columns=list(COLUMNS),
    )


def _warn(table: pd.DataFrame, left_out: list[dict[str, int]], *, n_forecasts: int) -> None:
    reasons = {
        "had no report on their day": sum(one["not_reported"] for one in left_out),
        "were of units without a report before": sum(one["no_report_before"] for one in left_out),
        "were of units with too few reports": sum(one.get("too_few_reports", 0) for one in left_out),
    }
    said = [f"{count} {reason}" for reason, count in reasons.items() if count]
    if said:
        msg = (
            f"Left out of {n_forecasts} forecasts of each model: {', '.join(said)}. See attrs['left_out'] of the table."
        )
        warnings.warn(msg, UserWarning, stacklevel=3)
    failed = table.loc[table["predicted"].isna(), "model"].value_counts()
    failed = failed[failed > 0]
    if len(failed):
        which = ", ".join(f"{name} {count} times" for name, count in failed.items())
        warnings.warn(f"Models returned NaN: {which}. Their errors are NaN.", UserWarning, stacklevel=3)
