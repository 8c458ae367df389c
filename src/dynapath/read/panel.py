"""AnnData -> a panel of daily reports. All messages about bad panels are here; nothing is written."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import sparse

from dynapath._columns import column_of
from dynapath._names import as_text
from dynapath._time_column import NotATime, Place, read_times

# Whole numbers above this are no longer exact in float64.
_EXACT_BELOW = 2.0**53


@dataclass(frozen=True)
class Panel:
    """Reports of units on consecutive days, and the covariates of their increments.

    The step to day t uses covariate `source[j]` of day `t - lag[j]`, for every column j.
    """

    y: Float[NDArray, "unit day"]  # NaN: not reported
    z: Float[NDArray, "covariate unit day"] = field(repr=False)
    covariates: tuple[str, ...]
    source: Int[NDArray, " column"]
    lag: Int[NDArray, " column"]
    units: pd.Index = field(repr=False)
    days: pd.Index = field(repr=False)
    dates: pd.DatetimeIndex | None = field(repr=False, default=None)  # None: days are numbered

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.y.shape[0]

    @property
    def n_days(self) -> int:
        """Number of days."""
        return self.y.shape[1]

    @property
    def observed(self) -> Bool[NDArray, "unit day"]:
        """Whether there is a report."""
        return ~np.isnan(self.y)

    @property
    def first_day(self) -> int:
        """The first day on which a report can be the start of a trajectory: all lags must reach into the panel."""
        return max(int(self.lag.max(initial=1)) - 1, 0)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """One name for each regressor: that of the covariate, with the lag if it has several."""
        several = {s for s in self.source if (self.source == s).sum() > 1}
        return tuple(
            f"{self.covariates[s]}_lag{lag}" if s in several else self.covariates[s]
            for s, lag in zip(self.source, self.lag, strict=True)
        )

    @property
    def coefficients(self) -> tuple[str, ...]:
        """`intercept`, `state`, then the regressors."""
        return ("intercept", "state", *self.columns)

    def until(self, last: int) -> Panel:
        """Days 0 to `last`, that day included."""
        days = slice(0, last + 1)
        dates = None if self.dates is None else self.dates[days]
        # Copies, so that the compiled functions meet one memory layout only.
        y, z = self.y[:, days].copy(), self.z[:, :, days].copy()
        return replace(self, y=y, z=z, days=self.days[days], dates=dates)

    def take(self, rows: NDArray) -> Panel:
        """Some of the units."""
        return replace(self, y=self.y[rows], z=self.z[:, rows], units=self.units[rows])

    def with_y(self, y: Float[NDArray, "unit day"]) -> Panel:
        """The same panel with other reports."""
        return replace(self, y=y)


def read_panel(
    adata: AnnData,
    *,
    layer: str | None = None,
    covariates: str | Sequence[str] | None = None,
    lags: int | Sequence[int] | Mapping[str, int | Sequence[int]] = 1,
    observed: str | NDArray | None = None,
    train_until: int | str | pd.Timestamp | None = None,
) -> Panel:
    """Reports and covariates of a panel (rows units, columns days), checked, up to day `train_until`.

    Raises
    ------
    KeyError : for an unknown layer, naming those there are.
    TypeError : for values that are not real numbers.
    ValueError : for days, reports or covariates that no increment model can use, naming the first of them.
    """
    dates = read_dates(adata)
    _check_units(adata)
    y = _matrix(adata, layer, "reports")
    y = _masked(adata, y, observed)
    _check_reports(adata, y)
    names = _covariate_names(adata, covariates, layer)
    source, lag = _columns(names, lags, adata.n_vars)
    z = np.stack([_matrix(adata, name, f"covariate {name!r}") for name in names]) if names else np.empty((0, *y.shape))
    panel = Panel(y, z, tuple(names), source, lag, as_text(adata.obs_names), as_text(adata.var_names), dates)
    if adata.n_vars < 2:
        msg = "The panel has one day, and an increment needs two. Rows must be units and columns days."
        raise ValueError(msg)
    panel = panel if train_until is None else panel.until(day_index(panel, train_until, "train_until"))
    if panel.n_days < panel.first_day + 2:
        msg = f"{panel.n_days} days are too few for a lag of {int(panel.lag.max())}. Use more days or a smaller lag."
        raise ValueError(msg)
    check_covariates(panel)
    return panel


def read_dates(adata: AnnData) -> pd.DatetimeIndex | None:
    """Dates of the columns from `var["date"]` or the names of the columns; None where these are consecutive numbers.

    Dates with a time zone are read as local calendar dates, so that a change to summer time shifts nothing.
    """
    where = "var['date']" if "date" in adata.var else "var_names"
    values = column_of(adata.var, "date", place="var") if "date" in adata.var else adata.var_names
    try:
        read = read_times(values, Place.in_adata(where))
    except NotATime as error:
        raise ValueError(_no_days(where, values)) from error
    if read.kind == "numbers" and "date" not in adata.var and np.isfinite(read.values).all():
        _check_spacing(read.values.to_numpy(), values, where)
        return None
    if read.kind != "dates":
        raise ValueError(_no_days(where, values))
    dates = pd.DatetimeIndex(read.values)
    if dates.isna().any():
        msg = f"{where} is missing for column {adata.var_names[dates.isna()][0]!r}. Give every column its date."
        raise ValueError(msg)
    _check_spacing(dates, values, where)
    return dates


def _no_days(where: str, values: Iterable[object]) -> str:
    return (
        f"The columns of a panel are days, but {where} does not read as dates ({str(next(iter(values)))!r}). "
        "Are these cells and genes? A panel has units as rows and days as columns, with var['date']: see "
        "dp.pp.panel_from_long."
    )


def day_index(panel: Panel, day: int | str | pd.Timestamp, argument: str) -> int:
    """Index of a day given by its index (negative: from the end), its name or its date."""
    if isinstance(day, Integral) and not isinstance(day, bool):
        if not -panel.n_days <= day < panel.n_days:
            msg = f"{argument}={day} is beyond the panel, whose {panel.n_days} days are 0 to {panel.n_days - 1}."
            raise ValueError(msg)
        return int(day) % panel.n_days
    if isinstance(day, str) and day in panel.days:
        return int(panel.days.get_loc(day))
    if panel.dates is not None:
        try:
            read = read_times(pd.Series([day]), Place(argument, repr(day), ""))
        except (NotATime, TypeError):
            found = -1
        else:
            found = panel.dates.get_indexer(read.values)[0] if read.kind == "dates" else -1
        if found >= 0:
            return int(found)
    msg = f"{argument}={day!r} is no day of the panel, which goes from {panel.days[0]} to {panel.days[-1]}."
    raise ValueError(msg)


def check_covariates(panel: Panel) -> None:
    """Covariates must be finite on every day that a step uses, from a unit's first report to its last."""
    observed = panel.observed
    observed[:, : panel.first_day] = False
    days = np.arange(panel.n_days)
    anchor = np.where(observed.any(1), observed.argmax(1), panel.n_days)
    last = np.where(observed.any(1), panel.n_days - 1 - observed[:, ::-1].argmax(1), -1)
    for name, source, lag in zip(panel.columns, panel.source, panel.lag, strict=True):
        used = (days + lag > anchor[:, None]) & (days + lag <= last[:, None])
        _raise_at(panel, used & ~np.isfinite(panel.z[source]), panel.z[source], name, int(lag))


def check_steps(panel: Panel, start: int, stop: int, rows: NDArray | None = None) -> None:
    """The same for the steps to days `start`..`stop - 1`, whether or not anything is reported there."""
    days = np.arange(panel.n_days)
    rows = np.ones(panel.n_units, bool) if rows is None else rows
    for name, source, lag in zip(panel.columns, panel.source, panel.lag, strict=True):
        used = ((days + lag >= start) & (days + lag < stop)) & rows[:, None]
        _raise_at(panel, used & ~np.isfinite(panel.z[source]), panel.z[source], name, int(lag))


def check_counts(panel: Panel, loss: str) -> None:
    """Likelihoods of counts need non-negative reports."""
    with np.errstate(invalid="ignore"):
        negative = panel.y < 0
    if not negative.any():
        return
    unit, day = np.argwhere(negative)[0]
    where = f"unit {panel.units[unit]!r}, day {panel.days[day]}: {panel.y[unit, day]:g}"
    if loss in ("poisson", "negative_binomial"):
        msg = f"loss={loss!r} is for counts, but reports are negative ({where}). Correct them, or use loss='squared'."
        raise ValueError(msg)
    warnings.warn(f"{int(negative.sum())} reports are negative ({where}). Are these counts?", UserWarning, stacklevel=4)


def _raise_at(panel: Panel, bad: NDArray, values: NDArray, name: str, lag: int) -> None:
    if not bad.any():
        return
    places = [f"{panel.units[u]!r} on {panel.days[t]} ({values[u, t]:g})" for u, t in np.argwhere(bad)[:5]]
    more = int(bad.sum()) - len(places)
    msg = (
        f"Covariate {name!r} is missing or infinite where a step needs it (the step to a day uses it {lag} day(s) "
        f"earlier): {'; '.join(places)}{f' and {more} more' if more else ''}. Fill it in, for example by interpolation, or drop these units."
    )
    raise ValueError(msg)


def _check_units(adata: AnnData) -> None:
    if not adata.n_obs:
        msg = "The panel has no units. Was it filtered to nothing?"
        raise ValueError(msg)
    if not adata.obs_names.is_unique:
        twice = adata.obs_names[adata.obs_names.duplicated()][0]
        msg = f"Unit {twice!r} occurs more than once in obs_names. Use adata.obs_names_make_unique(), or drop one of them."
        raise ValueError(msg)


def _matrix(adata: AnnData, layer: str | None, what: str) -> Float[NDArray, "unit day"]:
    layers = [name for name in adata.layers if name is not None]
    if layer is not None and layer not in layers:
        msg = f"layers has no {layer!r} ({what}); present: {', '.join(sorted(layers)) or 'none'}."
        raise KeyError(msg)
    values = adata.X if layer is None else adata.layers[layer]
    where = "X" if layer is None else f"layers[{layer!r}]"
    if values is None:
        msg = f"{where} is empty, but should hold the {what}. Give layer=; present: {', '.join(sorted(layers)) or 'none'}."
        raise ValueError(msg)
    if hasattr(values, "to_memory"):
        values = values.to_memory()
    if sparse.issparse(values):
        warnings.warn(
            f"{where} is sparse and is read as dense: its zeros count as reports of 0, not as missing. "
            "Mark missing reports with observed=, or store NaN.",
            UserWarning,
            stacklevel=4,
        )
        values = values.toarray()
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        try:
            if values.dtype.kind in "cSU" or any(isinstance(value, str | complex) for value in values.flat):
                raise TypeError
            values = values.astype(np.float64)
        except (TypeError, ValueError):
            msg = f"{where} ({what}) must hold real numbers; its type is {values.dtype}. Convert it first."
            raise TypeError(msg) from None
    if values.dtype.kind in "iu" and values.size and max(int(values.max()), -int(values.min())) > _EXACT_BELOW:
        msg = f"{where} ({what}) holds {int(values.max())}, too large to be computed with exactly. Has it overflowed?"
        raise ValueError(msg)
    return values.astype(np.float64, order="C")  # a copy, so that unsigned integers neither overflow nor are written to


def _masked(adata: AnnData, y: NDArray, observed: str | NDArray | None) -> NDArray:
    if observed is None:
        return y
    if isinstance(observed, str):
        layers = [name for name in adata.layers if name is not None]
        if observed not in layers:
            msg = f"layers has no {observed!r} (observed); present: {', '.join(sorted(layers)) or 'none'}."
            raise KeyError(msg)
        name, mask = f"layers[{observed!r}]", np.asarray(adata.layers[observed])
    else:
        name, mask = "observed", np.asarray(observed)
    if mask.shape != y.shape:
        msg = f"{name} has shape {mask.shape}; it must be that of the panel, {y.shape} (unit, day)."
        raise ValueError(msg)
    if mask.dtype != bool:
        if mask.dtype.kind not in "iuf" or not np.isin(mask, (0, 1)).all():
            msg = f"{name} must be True where a report was received, else False; its type is {mask.dtype}."
            raise ValueError(msg)
        mask = mask.astype(bool)
    lost = mask & np.isnan(y)
    if lost.any():
        unit, day = np.argwhere(lost)[0]
        msg = (
            f"{name} says that {adata.obs_names[unit]!r} reported on {adata.var_names[day]}, but the value is NaN "
            f"({int(lost.sum())} such reports). Set observed to False there, or fill in the value."
        )
        raise ValueError(msg)
    return np.where(mask, y, np.nan)


def _check_reports(adata: AnnData, y: NDArray) -> None:
    infinite = np.isinf(y)
    if infinite.any():
        unit, day = np.argwhere(infinite)[0]
        msg = (
            f"The report of unit {adata.obs_names[unit]!r} on {adata.var_names[day]} is infinite ({int(infinite.sum())} "
            "in all). Use NaN for what was not reported."
        )
        raise ValueError(msg)


def _covariate_names(adata: AnnData, covariates: str | Sequence[str] | None, layer: str | None) -> list[str]:
    names = [] if covariates is None else [covariates] if isinstance(covariates, str) else list(covariates)
    for name in names:
        if names.count(name) > 1:
            msg = f"Covariate {name!r} is given {names.count(name)} times. Name each layer once; lags= takes several lags."
            raise ValueError(msg)
        if name in ("intercept", "state"):
            msg = f"A covariate cannot be called {name!r}, which is a coefficient of the model. Rename the layer."
            raise ValueError(msg)
        if name == layer:
            msg = f"Layer {name!r} is given both as the reports and as a covariate. Leave it out of covariates."
            raise ValueError(msg)
    return names


def _columns(
    names: list[str], lags: int | Sequence[int] | Mapping[str, int | Sequence[int]], n_days: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if not names and not isinstance(lags, Mapping) and _lags_of(lags) != [1]:
        msg = f"lags={lags!r} says how many days before a step its covariates are from, but there are none. Give covariates, or leave lags out."
        raise ValueError(msg)
    if isinstance(lags, Mapping):
        unknown = set(lags) - set(names)
        if unknown:
            msg = f"lags names {_listed(unknown)}, not among the covariates: {_listed(names)}."
            raise ValueError(msg)
        chosen = [_lags_of(lags.get(name, 1)) for name in names]
    else:
        chosen = [_lags_of(lags)] * len(names)
    pairs = [(i, lag) for i, own in enumerate(chosen) for lag in own]
    return np.array([i for i, _ in pairs], dtype=np.int64), np.array([lag for _, lag in pairs], dtype=np.int64)


def _lags_of(lags: int | Sequence[int]) -> list[int]:
    """A number p stands for the lags 1 to p, as in statsmodels' AutoReg."""
    if isinstance(lags, Integral) and not isinstance(lags, bool) and lags >= 1:
        return list(range(1, int(lags) + 1))
    if isinstance(lags, Sequence | np.ndarray) and not isinstance(lags, str) and len(lags):
        own = list(lags)
        if all(isinstance(lag, Integral) and lag >= 0 for lag in own) and len(set(own)) == len(own):
            return [int(lag) for lag in own]
    msg = f"lags must be a number of days of at least 1, or different numbers of at least 0 in a list; it is {lags!r}."
    raise ValueError(msg)


def frequency(dates: pd.DatetimeIndex) -> str | pd.offsets.BaseOffset | None:
    """How regular dates go on; None where they are not regular, or fewer than three."""
    with warnings.catch_warnings():
        # Whether pandas gives a string or an offset, which depends on its version, is the same to `pd.date_range`.
        warnings.simplefilter("ignore")
        return pd.infer_freq(dates) if len(dates) > 2 else None


def _check_spacing(days: pd.DatetimeIndex | NDArray, names: Iterable[object], where: str) -> None:
    names = [str(name) for name in names]
    if len(days) < 2:
        return
    gap = np.diff(np.asarray(days))
    zero = np.zeros(1, dtype=gap.dtype)[0]
    wrong, why = gap <= zero, "must increase"
    if not wrong.any():
        # Months and quarters are regular too, though not equally long.
        if isinstance(days, pd.DatetimeIndex) and frequency(days) is not None:
            return
        values, counts = np.unique(gap, return_counts=True)
        wrong, why = gap != values[counts.argmax()], "must be equally spaced"
    if not wrong.any():
        return
    i = int(np.flatnonzero(wrong)[0])
    same = " (the same day twice)" if gap[i] == zero else ""
    msg = (
        f"Days {why}: {where} goes from {names[i]} to {names[i + 1]}{same}. Build the panel with dp.pp.panel_from_long, "
        "or reindex it to all days; days without reports are columns of NaN."
    )
    raise ValueError(msg)


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
