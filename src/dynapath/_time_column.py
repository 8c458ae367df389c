"""What users write as times -> numbers, dates or durations. All readers of times share this one.

A number is a number however it is held, as text "2" or as a category. A date is read if its format leaves no choice: the year
first, the month by its name, or a day above 12 somewhere in the column that tells it from the month. Otherwise it is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dynapath._times import in_decimals, settled

_MISSING = {"", "nan", "nat", "none", "<na>"}  # how text spells what is missing
_YEAR_LAST = re.compile(r"(\d{1,2})([./\- ])\s?(\d{1,2})\2\s?(\d{4}|\d{2})(?!\d)(.*)", re.DOTALL)
_QUARTER = re.compile(r"(\d{4})-?Q([1-4])")
_YEAR_FIRST = re.compile(r"\d{4}(\D|\d{4}(\D|$))")
_MONTH = re.compile(r"(?<![a-z])(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)", re.IGNORECASE)
_YEAR = re.compile(r"(?<!\d)\d{4}(?!\d)")
_TWELVE_HOURS = re.compile(r"(\d{1,2})(:\d{2}(?::\d{2}(?:\.\d+)?)?)\s?([AP])\.?M\.?$", re.IGNORECASE)
_ZONE = re.compile(r"(:\d{2}(?:\.\d+)?|T\d{2,6})\s?(Z|[+-]\d{2}(:?\d{2})?)$")
_DURATION = re.compile(r"-?\d+ days?( [+-]?\d{2}:\d{2}:\d{2}(\.\d+)?)?")


class NotATime(ValueError):
    """A value that is neither a number nor a date."""


@dataclass(frozen=True)
class Place:
    """Where times stand: in the words of a message, and in the line of code that it proposes."""

    name: str
    source: str  # what holds the times
    target: str  # what takes them, with its equals sign
    text: bool = False  # whether the target can hold no timestamps

    @classmethod
    def in_table(cls, column: str) -> Place:
        """A column of the user's table."""
        return cls(repr(column), f"df[{column!r}]", f"df[{column!r}] = ")

    @classmethod
    def in_adata(cls, slot: str, name: str | None = None) -> Place:
        """A column of `obs` or `var`; neither h5ad nor zarr hold timestamps."""
        source = f"adata.{slot}"
        return cls(name or slot, source, f"{source} = ", text=True)

    def as_dates(self, options: str) -> str:
        """The line that turns what is there into dates."""
        return f"{self.target}pd.to_datetime({self.source}{options}){'.astype(str)' if self.text else ''}"


@dataclass(frozen=True)
class Times:
    """Times as they stand in a column, in its order, missing ones as NaN or NaT."""

    kind: Literal["numbers", "dates", "durations"]
    values: pd.Series  # float64; datetime64, as a clock on the wall shows it; timedelta64
    ahead: pd.Series | None = None  # of dates with a time zone: how far that clock is ahead of UTC
    options: str = ""  # with which pd.to_datetime reads these dates

    @property
    def steady(self) -> pd.Series:
        """Dates whose differences are the time between them.

        Days, that is midnights, are those of the calendar: a change to summer time makes none of them shorter. Times of day
        with a time zone are those of UTC.
        """
        if self.ahead is None or (self.values.dropna() == self.values.dropna().dt.normalize()).all():
            return self.values
        return self.values - self.ahead


def storable(times: Times) -> NDArray[np.float64] | list[str]:
    """Times as a column of h5ad can hold them, so that they read the same again: numbers, or text."""
    if times.kind == "numbers":
        return times.values.to_numpy(dtype=float)
    if times.kind == "durations":
        return [str(pd.Timedelta(value)) for value in times.values]
    steady = times.steady
    zone = "" if steady is times.values else "+00:00"
    return ["NaT" if pd.isna(value) else value.isoformat() + zone for value in steady]


def read_times(values: pd.Series | pd.Index, place: Place, *, advice: str = "Convert it first.") -> Times:
    """Numbers, dates or durations.

    Whole numbers that all are calendar dates, such as 20200416, are dates.

    Parameters
    ----------
    advice
        What to do about a value that is no time.

    Raises
    ------
    NotATime : for a value that is neither a number nor a date, and for numbers among dates.
    ValueError : for dates that can be read in two ways, for ordered categories in another order than that of time, and where
        only some dates have a time zone.
    """
    column = pd.Series(values, dtype=values.dtype)
    if isinstance(column.dtype, pd.CategoricalDtype):
        # Categories without rows are what a subset leaves behind; they say nothing.
        used = column.cat.remove_unused_categories().cat
        codes, found, ordered = used.codes.to_numpy(), used.categories, used.ordered
    else:
        (codes, found), ordered = pd.factorize(column), False
    distinct = pd.Series(found, dtype=found.dtype).infer_objects()
    read = _read(distinct, place, advice)
    if ordered and not read.values.dropna().is_monotonic_increasing:
        order = ", ".join(map(str, distinct))
        msg = f"The order of the categories of {place.name} ({order}) is not that of the {read.kind}. {advice}"
        raise ValueError(msg)
    spread = lambda each: None if each is None else each.reindex(codes).set_axis(column.index)  # -1 becomes missing
    return Times(read.kind, spread(read.values), spread(read.ahead), read.options)


def numbers_of(values: pd.Series, place: Place) -> pd.Series:
    """Times that must be numbers, since nothing says in which unit dates would be counted.

    Raises
    ------
    ValueError : for anything else, with the line that makes numbers of it.
    """
    read = read_times(values, place, advice=f"Give numbers in one unit, e.g. days: {place.target}...")
    if read.kind == "numbers":
        return read.values
    example = values.dropna().iloc[0]
    if read.kind == "dates":
        line = f"when = pd.to_datetime({place.source}{read.options}); {place.target}(when - when.min()) / pd.Timedelta(days=1)"
    else:
        line = f"{place.target}pd.to_timedelta({place.source}) / pd.Timedelta(days=1)"
    msg = f"{place.name} holds {read.kind} such as {str(example)!r}, not numbers. Count in one unit, e.g. days: {line}."
    raise ValueError(msg)


def _read(distinct: pd.Series, place: Place, advice: str) -> Times:
    dtype = distinct.dtype
    if isinstance(dtype, pd.PeriodDtype):
        return Times("dates", distinct.dt.to_timestamp())
    if isinstance(dtype, pd.DatetimeTZDtype):
        wall = distinct.dt.tz_localize(None)
        return Times("dates", wall, wall - distinct.dt.tz_convert("UTC").dt.tz_localize(None))
    if pd.api.types.is_datetime64_dtype(dtype):
        return Times("dates", distinct)
    if pd.api.types.is_timedelta64_dtype(dtype):
        return Times("durations", distinct)
    if pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
        msg = f"{place.name} is of type {dtype}, which is no time. {advice}"
        raise NotATime(msg)
    if pd.api.types.is_numeric_dtype(dtype):
        return _of_numbers(distinct)
    text = [str(value).strip() for value in distinct]
    given = np.array([entry.lower() not in _MISSING for entry in text], dtype=bool)
    read = _of_text([entry for entry, there in zip(text, given, strict=True) if there], place, advice)
    at = np.where(given, np.cumsum(given) - 1, -1)
    spread = lambda each: None if each is None else each.reindex(at).reset_index(drop=True)
    return Times(read.kind, spread(read.values), spread(read.ahead), read.options)


def _of_numbers(distinct: pd.Series) -> Times:
    numbers = pd.Series(settled(in_decimals(distinct)))
    there = numbers.dropna()
    if len(there) and there.between(19000101, 21001231).all() and (there % 1 == 0).all():
        days = pd.to_datetime(there.map("{:.0f}".format), format="%Y%m%d", errors="coerce")
        if days.notna().all():
            return Times("dates", days.reindex(numbers.index), None, ", format='%Y%m%d'")
    return Times("numbers", numbers)


def _of_text(text: list[str], place: Place, advice: str) -> Times:
    numbers = [_number(entry) for entry in text]
    if all(number is not None for number in numbers):
        return _of_numbers(pd.Series(numbers, dtype=float))
    if all(_DURATION.fullmatch(entry) for entry in text):
        return Times("durations", pd.to_timedelta(pd.Series(text)))
    iso, options = _iso(text, place)
    bare = [None if entry is None else _ZONE.sub(r"\1", entry) for entry in iso]
    utc = pd.to_datetime(pd.Series(iso, dtype=object), format="ISO8601", utc=True, errors="coerce").dt.tz_localize(None)
    wall = pd.to_datetime(pd.Series(bare, dtype=object), format="ISO8601", errors="coerce")
    lost = (wall.isna() | utc.isna()).to_numpy()
    if lost.any():
        number = np.array([number is not None for number in numbers])
        odd = text[int((lost & ~number).argmax())]
        msg = f"{place.name} has the value {odd!r}, which does not read as a number or a date. {advice}"
        if not (lost & ~number).any():
            odd, date = text[int(number.argmax())], text[int((~number).argmax())]
            msg = f"{place.name} has numbers such as {odd!r} among dates such as {date!r}. {advice}"
        raise NotATime(msg)
    zoned = np.array([one != other for one, other in zip(iso, bare, strict=True)])
    if not zoned.any():
        return Times("dates", wall, None, options)
    if not zoned.all():
        msg = (
            f"{place.name} has dates with a time zone, such as {text[int(zoned.argmax())]!r}, and without, such as "
            f"{text[int(zoned.argmin())]!r}. Give all of them one, or none."
        )
        raise ValueError(msg)
    return Times("dates", wall, wall - utc, f"{options}, utc=True")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _iso(text: list[str], place: Place) -> tuple[list[str | None], str]:
    """Dates as ISO text, None where they are none, and the options with which pandas reads them."""
    last = {entry: _YEAR_LAST.fullmatch(entry) for entry in text}
    several = len({re.sub(r"\d+", "0", entry) for entry in text}) > 1
    mixed = ", format='mixed'" if several else ""
    day_first = _day_first([match for match in last.values() if match], place, mixed)
    return [
        _one_iso(entry, last[entry], day_first) for entry in text
    ], f"{', dayfirst=True' if any(day_first.values()) else ''}{mixed}"


def _day_first(dates: Sequence[re.Match[str]], place: Place, mixed: str) -> dict[str, bool]:
    """Whether the day comes before the month in dates with the year last, for each sign between them."""
    first: dict[str, bool] = {}
    for sign in dict.fromkeys(date[2] for date in dates):
        # A date with both above 12 is none, which is said when it does not read as one.
        own = [date for date in dates if date[2] == sign and min(int(date[1]), int(date[3])) <= 12]
        if not own:
            first[sign] = True
            continue
        short = next((date for date in own if len(date[4]) == 2), None)
        by_day = next((date for date in own if int(date[1]) > 12), None)
        by_month = next((date for date in own if int(date[3]) > 12), None)
        line = f"{place.as_dates(f', dayfirst=True{mixed}')} if the day comes first, dayfirst=False if the month does"
        if short is not None:
            msg = (
                f"{place.name} holds {short[0]!r}, whose year has two digits and could be any part. Say what comes first: "
                f"{line}, yearfirst=True if the year does."
            )
            raise ValueError(msg)
        if by_day is not None and by_month is not None:
            msg = (
                f"{place.name} holds {by_day[0]!r}, with the day first, and {by_month[0]!r}, with the month first. Correct one "
                "of them, or write all dates with the year first, as in 2020-03-04."
            )
            raise ValueError(msg)
        if by_day is None and by_month is None:
            msg = (
                f"{place.name} holds {own[0][0]!r}, with no day above 12 that would tell the day from the month. Say which "
                f"comes first: {line}."
            )
            raise ValueError(msg)
        first[sign] = by_day is not None
    return first


def _one_iso(text: str, last: re.Match[str] | None, day_first: dict[str, bool]) -> str | None:
    if last:
        one, sign, two, year, rest = last.groups()
        day, month = (one, two) if day_first[sign] else (two, one)
        text = f"{year}-{int(month):02}-{int(day):02}{rest}"
    elif quarter := _QUARTER.fullmatch(text):
        text = f"{quarter[1]}-{3 * int(quarter[2]) - 2:02}-01"
    elif _MONTH.search(text) and _YEAR.search(text):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of time zones by a name that is not understood
            try:
                return pd.to_datetime(text, format="mixed").isoformat()
            except (ValueError, Warning):
                return None
    elif not _YEAR_FIRST.match(text):
        return None
    text = re.sub(r"\s?(GMT|UTC)$", "Z", text)
    return _TWELVE_HOURS.sub(lambda found: f"{int(found[1]) % 12 + 12 * (found[3] in 'Pp'):02}{found[2]}", text)
