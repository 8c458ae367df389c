"""Names of cells, genes, units and days as text: files and versions of pandas give them different types."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd


def as_text(names: Iterable[object]) -> pd.Index:
    """The same names as Python's `str` in an index of type object, so that equal names are equal."""
    return pd.Index([str(name) for name in names], dtype=object)
