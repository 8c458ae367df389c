"""A long table, one row per unit and day, as a panel: units in rows, days in columns, NaN where nothing was reported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from dynapath._columns import check_columns, names_in
from dynapath._time_column import NotATime, Place, read_times

LARGEST_EXACT = 2**53  # whole numbers beyond it are not all float64


def panel_from_long(
    df: pd.DataFrame,
    *,
    unit: str,
    time: str,
    value: str,
    covariates: str | Sequence[str] = (),
    observed: str | None = None,
    freq: str = "D",
) -> AnnData:
    """A panel of units and days from a long table.

    Parameters
    ----------
    df
        One row per unit and day, in any order. A unit need not have a row for every day: days without one are not
        reported.
    unit
        Column with the name of the unit, taken as text. Read official keys as text (`dtype={"county": str}`): a key
        that was read as a number has lost its leading zeros.
    time
        Column with the day: dates, or text that reads as dates. Together the rows must cover every day from the first
        to the last, if only with missing values.
    value
        Column with the count. NaN is not reported; a 0 is a report of 0.
    covariates
        Columns that become layers, one or several.
    observed
        Name of a boolean column that says which values were reported. Where it is False the value is not used,
        whatever it is. By default a value is reported if it is not NaN.
    freq
        Distance of the days, as pandas spells it: `"D"`, `"W-SUN"`, `"h"`, ...

    Returns
    -------
    AnnData with

    - `X` (unit, day) float64, NaN = not reported.
    - `obs_names` units in sorted order, `var_names` days in ISO format, and the same in `var["date"]`, as text: neither
      h5ad nor zarr can hold timestamps. `pd.to_datetime(panel.var["date"])` gives them back.
    - `layers[covariate]` (unit, day) float64, on the day of their row. NaN where the table has no row or no value.
    - `uns["panel"]` the names of the columns and `freq`, which :func:`dynapath.get.long` uses for the way back.

    Raises
    ------
    KeyError : for a column that does not exist.
    TypeError : for values that are no numbers, an `observed` that is not boolean, times that are numbers.
    ValueError : for days that are irregular, occur twice in a unit, carry a time zone, or can be read day first or month
        first; for missing units or days; infinite values; a value that is said to be observed and is NaN; whole numbers too
        large for float64.

    See Also
    --------
    dynapath.get.long : the way back.

    Examples
    --------
    >>> import pandas as pd
    >>> import dynapath as dp
    >>> reports = pd.DataFrame(
    ...     {
    ...         "hospital": ["007", "007", "007", "012", "012"],
    ...         "date": ["2020-04-16", "2020-04-17", "2020-04-18", "2020-04-16", "2020-04-18"],
    ...         "patients": [3, 4, 4, 1, 2],
    ...     }
    ... )
    >>> panel = dp.pp.panel_from_long(reports, unit="hospital", time="date", value="patients")
    >>> panel.to_df()
              2020-04-16  2020-04-17  2020-04-18
    hospital
    007              3.0         4.0         4.0
    012              1.0         NaN         2.0
    """
    covariates = [covariates] if isinstance(covariates, str) else list(covariates)
    _check_table(df, [unit, time, value, *covariates, *([] if observed is None else [observed])], covariates)
    if not len(df):
        msg = "The table has no rows, so that there is no panel to make."
        raise ValueError(msg)
    units = names_in(df[unit], repr(unit))
    days = _days(df, time, freq)
    names, row = np.unique(units, return_inverse=True)
    axis, column = np.unique(days, return_inverse=True)
    axis = pd.DatetimeIndex(axis)
    _check_regular(axis, time, freq)
    _check_once(row, column, names, axis, unit, time)

    reported = None if observed is None else _observed(df, observed)
    values = _numbers(df, value, units, days, reported)
    if reported is not None:
        silent = np.flatnonzero(reported & np.isnan(values))
        if len(silent):
            first = silent[0]
            msg = (
                f"{observed!r} is True where {value!r} is NaN: {unit} {units[first]!r} on {_iso(days[first])}, and "
                f"{len(silent) - 1} more rows. Set {observed!r} to False there, or fill in the value."
            )
            raise ValueError(msg)
        values = np.where(reported, values, np.nan)

    def spread(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        panel = np.full((len(names), len(axis)), np.nan)
        panel[row, column] = numbers
        return panel

    labels = axis.strftime("%Y-%m-%d" if (axis == axis.normalize()).all() else "%Y-%m-%dT%H:%M:%S")
    return AnnData(
        X=spread(values),
        obs=pd.DataFrame(index=pd.Index(names, name=unit)),
        var=pd.DataFrame({"date": labels}, index=pd.Index(labels)),
        layers={name: spread(_numbers(df, name, units, days, None)) for name in covariates},
        uns={"panel": {"unit": unit, "time": time, "value": value, "freq": freq}},
    )


def _check_table(df: pd.DataFrame, wanted: list[str], covariates: list[str]) -> None:
    if not isinstance(df, pd.DataFrame):
        msg = f"df must be a pandas DataFrame with one row per unit and day; it is {type(df).__name__}."
        raise TypeError(msg)
    check_columns(df, wanted)
    repeated = [name for name in covariates if covariates.count(name) > 1]
    if repeated:
        msg = f"covariates names {repeated[0]!r} {covariates.count(repeated[0])} times. Name each column once."
        raise ValueError(msg)
    slashed = [name for name in covariates if "/" in str(name)]
    if slashed:
        msg = f"The covariate {slashed[0]!r} cannot name a layer: h5ad splits names at the slash. Rename the column."
        raise ValueError(msg)


def _days(df: pd.DataFrame, time: str, freq: str) -> NDArray:
    column = df[time]
    try:
        read = read_times(column, Place.in_table(time), advice="Convert it with pd.to_datetime first.")
    except NotATime as error:
        msg = f"{time!r} does not read as dates: {error}"
        raise ValueError(msg) from error
    missing = read.values.isna()
    if missing.any():
        position = int(np.flatnonzero(missing)[0])
        msg = f"{time!r} is missing in {int(missing.sum())} rows, first in row {position}. Drop or date them."
        raise ValueError(msg)
    if read.kind != "dates":
        numeric = pd.api.types.is_numeric_dtype(column.dtype)
        number = f"df[{time!r}]" if numeric or read.kind == "durations" else f"pd.to_numeric(df[{time!r}])"
        unit = "" if read.kind == "durations" else ", unit='D'"
        msg = (
            f"{time!r} holds {read.kind} such as {column.iloc[0]!r}, not dates. Convert them, e.g. "
            f"pd.Timestamp('2020-01-01') + pd.to_timedelta({number}{unit})."
        )
        raise TypeError(msg)
    if read.ahead is not None:
        what = f"the time zone of {column.iloc[0]}" if read.ahead.nunique() == 1 else "mixed time zones"
        msg = (
            f"{time!r} carries {what}; a day is not the same day everywhere. Say which day is meant: df[{time!r}] = "
            f"pd.to_datetime(df[{time!r}]{read.options}).dt.tz_convert('Europe/Berlin').dt.tz_localize(None).dt.normalize()."
        )
        raise ValueError(msg)
    try:
        pd.tseries.frequencies.to_offset(freq)
    except ValueError as error:
        msg = f"freq={freq!r} is no frequency that pandas knows; days are 'D', Sundays 'W-SUN', months 'MS'."
        raise ValueError(msg) from error
    return read.values.to_numpy(dtype="datetime64[ns]")


def _check_regular(axis: pd.DatetimeIndex, time: str, freq: str) -> None:
    """Raise unless each day is one step of `freq` after the one before."""
    step = pd.tseries.frequencies.to_offset(freq)
    if not step.is_on_offset(axis[0]):
        msg = f"{time!r} starts on {_iso(axis[0])}, which is no day of freq={freq!r}. Choose a frequency that it is on."
        raise ValueError(msg)
    expected = pd.date_range(axis[0], periods=len(axis), freq=step)
    off = np.flatnonzero(axis != expected)
    if not len(off):
        return
    before, after = axis[off[0] - 1], axis[off[0]]
    wanted = expected[off[0]]
    if after > wanted:
        advice = (
            "no unit has a row between. If nobody reported then, add rows with a missing value (pandas: reindex), with "
            "their covariates; if this is the distance of the reports, say so with freq"
        )
    else:
        advice = "round the times to days (.dt.normalize()), or choose another freq"
    msg = (
        f"{time!r} is irregular: {_iso(before)} is followed by {_iso(after)}, and with freq={freq!r} {_iso(wanted)} "
        f"comes next. In this case {advice}."
    )
    raise ValueError(msg)


def _check_once(
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    names: NDArray[np.object_],
    axis: pd.DatetimeIndex,
    unit: str,
    time: str,
) -> None:
    """Raise when a unit has two rows for one day."""
    cell = pd.Series(row * len(axis) + column)
    repeated = cell.duplicated()
    if not repeated.any():
        return
    second = int(np.flatnonzero(repeated)[0])
    first = int(np.flatnonzero(cell == cell[second])[0])
    msg = (
        f"{unit} {names[row[second]]!r} has two rows for {_iso(axis[column[second]])} (rows {first} and {second}), and "
        f"{int(repeated.sum()) - 1} more rows repeat a {time}. Keep one row per {unit} and {time}, e.g. with drop_duplicates "
        "or groupby."
    )
    raise ValueError(msg)


def _observed(df: pd.DataFrame, observed: str) -> NDArray[np.bool_]:
    column = df[observed]
    if column.isna().any():
        position = int(np.flatnonzero(column.isna())[0])
        msg = f"{observed!r} is missing in {int(column.isna().sum())} rows, first in row {position}. Fill it in."
        raise ValueError(msg)
    if not pd.api.types.is_bool_dtype(column.dtype):
        msg = f"{observed!r} must be boolean; it is {column.dtype}. Convert it: {_to_boolean(column, f'df[{observed!r}]')}."
        raise TypeError(msg)
    return column.to_numpy(dtype=bool)


def _to_boolean(column: pd.Series, name: str) -> str:
    """The line that makes a boolean column of this one."""
    values = column.drop_duplicates().tolist()
    words = {str(value).lower() for value in values}
    if words <= {"true", "false"}:
        return f"{name} = {name}.astype(str).str.lower() == 'true'"
    if words <= {"0", "1", "0.0", "1.0"}:
        return f"{name} = {name}.astype(float) == 1"
    listed = ", ".join(map(str, values[:5]))
    return f"its values are {listed}; {name} = {name} == {values[0]!r}, if {values[0]!r} means reported"


def _numbers(
    df: pd.DataFrame,
    name: str,
    units: NDArray[np.object_],
    days: NDArray,
    reported: NDArray[np.bool_] | None,
) -> NDArray[np.float64]:
    """A column as float64, missing as NaN; what is not `reported` may be anything numeric."""
    column = df[name]
    where = lambda position: f"{units[position]!r} on {_iso(days[position])}"
    if column.dtype == object:
        number = column.map(lambda entry: pd.isna(entry) or isinstance(entry, int | float | np.number))
        if not number.all():
            position = int(np.flatnonzero(~number)[0])
            msg = (
                f"{name!r} holds {column.iloc[position]!r} ({where(position)}), which is no number. Convert the column, "
                "e.g. with pd.to_numeric."
            )
            raise TypeError(msg)
        column = column.astype(float)
    dtype = column.dtype
    if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
        msg = f"{name!r} must hold real numbers; it is {dtype}. Convert the column, e.g. with pd.to_numeric."
        raise TypeError(msg)
    if pd.api.types.is_integer_dtype(dtype):
        large = column.abs() > LARGEST_EXACT
        if large.any():
            position = int(np.flatnonzero(large.to_numpy(dtype=bool, na_value=False))[0])
            msg = (
                f"{name!r} is {column.iloc[position]} ({where(position)}), too large for float64 to hold exactly. Is "
                "it a code for a missing value, or in too small a unit?"
            )
            raise ValueError(msg)
    values = column.to_numpy(dtype=float, na_value=np.nan)
    infinite = np.isinf(values) if reported is None else np.isinf(values) & reported
    if infinite.any():
        position = int(np.flatnonzero(infinite)[0])
        msg = f"{name!r} is infinite ({where(position)}), and {int(infinite.sum()) - 1} more rows. Missing is NaN."
        raise ValueError(msg)
    return values


def _iso(day: pd.Timestamp | np.datetime64) -> str:
    """The date, with the time of day only where there is one."""
    day = pd.Timestamp(day)
    return day.strftime("%Y-%m-%d") if day == day.normalize() else day.isoformat(sep=" ")
