"""A long table, one row per measurement, as visits: one row per subject and time, one column per item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from dynapath._columns import check_columns, column_of, names_in
from dynapath._time_column import Place, read_times, storable


def visits_from_long(
    df: pd.DataFrame,
    *,
    subject: str,
    time: str,
    item: str,
    value: str,
    baseline: pd.DataFrame | Sequence[str] = (),
) -> AnnData:
    """Visits of subjects from a table with one row per measurement.

    Parameters
    ----------
    df
        One row per subject, time and item, in any order. A table with one column per item can be brought into this form with
        :func:`pandas.melt`; a row with a missing value says that the visit took place.
    subject
        Column with the subject, read as text.
    time
        Column with the time of the visit: numbers in any unit, or dates, which become text in ISO format (h5ad holds no
        timestamps); models then need `time_unit`. Midnights with a time zone are days of the local calendar, whatever summer
        time does to their length; other times with a time zone become those of UTC.
    item, value
        Columns with the name of the item and its value; NaN is not measured.
    baseline
        Variables known from the start: a DataFrame with one row per subject, which is named by the column `subject` or, where
        there is none, by the index; or names of columns of `df` that do not change within a subject.

    Returns
    -------
    AnnData with one row per visit, sorted by subject (as in the table) and time: `X` (visit, item) float64 with NaN, `obs` with
    the columns `subject`, `time` and the baseline under their names, `var_names` the items in the order of the table.

    Raises
    ------
    KeyError : for a column that does not exist.
    TypeError : for values that are no numbers.
    ValueError : for missing subjects, times or items, dates that can be read day first or month first, a measurement that
        occurs twice, a baseline that changes within a subject, whose index holds row numbers, or that lacks subjects.

    Examples
    --------
    >>> import pandas as pd
    >>> import dynapath as dp
    >>> tests = pd.DataFrame(
    ...     {
    ...         "patient": ["a", "a", "a", "b"],
    ...         "month": [0, 0, 6, 0],
    ...         "test": ["RULM", "HFMSE", "RULM", "RULM"],
    ...         "score": [20, 31, 22, 17],
    ...     }
    ... )
    >>> visits = dp.pp.visits_from_long(tests, subject="patient", time="month", item="test", value="score")
    >>> visits.to_df()
         RULM  HFMSE
    a_0  20.0   31.0
    a_1  22.0    NaN
    b_0  17.0    NaN
    """
    if not isinstance(df, pd.DataFrame):
        msg = f"df must be a pandas DataFrame with one row per measurement; it is {type(df).__name__}."
        raise TypeError(msg)
    table = isinstance(baseline, pd.DataFrame)
    names = list(baseline.columns) if table else [baseline] if isinstance(baseline, str) else list(baseline)
    check_columns(df, [subject, time, item, value, *([] if table else names)])
    if not len(df):
        msg = "The table has no rows, so that there are no visits to make."
        raise ValueError(msg)
    if table:
        for name in names:
            column_of(baseline, name, place="baseline")
        names = [name for name in names if name != subject]
    for name in names:
        if names.count(name) > 1:
            msg = f"baseline names {name!r} {names.count(name)} times. Name each column once."
            raise ValueError(msg)
        if name in (subject, time):
            role = "subject" if name == subject else "time"
            msg = f"baseline {'has' if table else 'names'} {name!r}, which is the {role}. Leave it out."
            raise ValueError(msg)
    who, what = pd.Series(names_in(df[subject], repr(subject))), names_in(df[item], repr(item))
    read = read_times(df[time].reset_index(drop=True), Place.in_table(time))
    missing = read.values.isna()
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        msg = f"{time!r} is missing in {int(missing.sum())} rows, first in row {row}. Fill it in, or drop them."
        raise ValueError(msg)
    values = _numbers(df, value, who)
    long = pd.DataFrame({"subject": who, "time": read.steady, "item": what, "value": values})
    twice = long.duplicated(["subject", "time", "item"])
    if twice.any():
        first = long[twice].iloc[0]
        msg = (
            f"{subject} {first['subject']!r} has {first['item']!r} twice at {first['time']} ({int(twice.sum())} such rows). "
            "Keep one, or average them."
        )
        raise ValueError(msg)
    subjects, items = pd.unique(long["subject"]), pd.unique(long["item"])
    long["subject"] = pd.Categorical(long["subject"], categories=subjects)
    wide = long.pivot(index=["subject", "time"], columns="item", values="value")[list(items)].sort_index()
    rows = wide.index.to_frame(index=False)
    obs = pd.DataFrame({subject: pd.Categorical(rows["subject"], categories=subjects)})
    obs[time] = rows["time"].map(dict(zip(read.steady, storable(read), strict=True)))
    known = _by_subject(baseline, subject, subjects) if table else _constant(df, who, names, subject)
    lacking = [name for name in subjects if name not in known.index] if names else []
    if lacking:
        msg = f"baseline has no row for {subject} {lacking[0]!r} ({len(lacking)} subjects). It must have one for each subject."
        raise ValueError(msg)
    if not known.index.is_unique:
        msg = f"baseline has several rows for {subject} {known.index[known.index.duplicated()][0]!r}. Keep one."
        raise ValueError(msg)
    for name in names:
        obs[str(name)] = known.loc[rows["subject"].astype(str), name].to_numpy()
    visit = rows.groupby("subject", observed=True).cumcount()
    obs.index = [f"{name}_{number}" for name, number in zip(rows["subject"], visit, strict=True)]
    return AnnData(X=wide.to_numpy(dtype=float), obs=obs, var=pd.DataFrame(index=pd.Index(items).astype(str)))


def _numbers(df: pd.DataFrame, value: str, who: pd.Series) -> NDArray[np.float64]:
    numbers = pd.to_numeric(df[value], errors="coerce")
    lost = numbers.isna() & df[value].notna()
    if lost.any():
        row = int(np.flatnonzero(lost)[0])
        msg = f"{value!r} holds {df[value].iloc[row]!r} ({who.iloc[row]!r}, row {row}), which is no number. Code it as one."
        raise TypeError(msg)
    return numbers.to_numpy(dtype=float, na_value=np.nan)


def _by_subject(baseline: pd.DataFrame, subject: str, subjects: Sequence[str]) -> pd.DataFrame:
    """The table indexed by the subject as text, which is a column of it or its index."""
    if subject in baseline.columns:
        return baseline.set_axis(names_in(baseline[subject], f"baseline[{subject!r}]"))
    index = baseline.index
    if index.nlevels > 1:
        msg = f"The index of baseline has {index.nlevels} levels. Give the subject as a column {subject!r}: baseline.reset_index()."
        raise ValueError(msg)
    text = index.astype(str)
    # Nobody has set such an index: a table has it from the start, and keeps part of it when rows are dropped or sorted.
    counted = set(text) == set(map(str, range(len(text))))
    numbers = pd.api.types.is_integer_dtype(index.dtype) and set(text) != set(subjects)
    if index.name is None and (counted or numbers) and len(baseline.columns):
        msg = (
            f"The index of baseline holds row numbers such as {text[0]}, which do not name the subjects. Give the subject as a "
            f"column {subject!r} or as the index; if these numbers are the subjects, say so: baseline.rename_axis({subject!r})."
        )
        raise ValueError(msg)
    return baseline.set_axis(text)


def _constant(df: pd.DataFrame, who: pd.Series, names: list[str], subject: str) -> pd.DataFrame:
    for name in names:
        several = df[name].groupby(who.to_numpy()).nunique(dropna=False) > 1
        if several.any():
            msg = f"{name!r} changes within {subject} {several.index[several][0]!r}. A baseline is constant: use its first value."
            raise ValueError(msg)
    return df[names].set_axis(who)[~who.duplicated().to_numpy()]
