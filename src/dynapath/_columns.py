"""Columns of a table by their names: they must be there, and be there once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def column_of(table: pd.DataFrame, name: object, *, argument: str = "", place: str = "obs") -> pd.Series:
    """The one column of that name.

    Parameters
    ----------
    argument
        Of the caller's function, which names the column.
    place
        What the messages call the table.

    Raises
    ------
    KeyError : if there is none, with those there are.
    ValueError : if there are several.
    """
    where = f"{name!r} ({argument})" if argument else repr(name)
    if name not in table.columns:
        names = sorted(map(str, table.columns)) if argument else map(str, table.columns)
        msg = f"{place} has no column {where}; {'present:' if argument else 'it has'} {', '.join(names) or 'none'}."
        raise KeyError(msg)
    found = table[name]
    if isinstance(found, pd.DataFrame):
        msg = f"{place} has {found.shape[1]} columns named {where}. Rename or drop all but one."
        raise ValueError(msg)
    return found


def check_columns(df: pd.DataFrame, names: Sequence[object]) -> None:
    """Raise unless each is the name of one column of the user's long table."""
    for name in names:
        column_of(df, name, place="The table")


def names_in(values: pd.Series, what: str) -> NDArray[np.object_]:
    """Names of units, subjects or items as text; `what` is how messages call the column.

    Raises
    ------
    ValueError : for missing names, and for different values that read the same.
    """
    missing = values.isna().to_numpy()
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        msg = f"{what} is missing in {int(missing.sum())} rows, first in row {row}. Fill it in, or drop them."
        raise ValueError(msg)
    distinct = pd.unique(values)
    text = pd.Index([str(value) for value in distinct])
    if text.has_duplicates:
        same = text[text.duplicated()][0]
        which = " and ".join(repr(value) for value, spelled in zip(distinct, text, strict=True) if spelled == same)
        msg = f"Different values of {what} read the same: {which}. Convert the column to text first."
        raise ValueError(msg)
    return values.astype(str).to_numpy(dtype=object)
