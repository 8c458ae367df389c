"""How tables of forecasts are scored: what an interval covers, and which errors have a unit in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def inside(observed: Any, lower: Any, upper: Any) -> NDArray[np.float64]:
    """1 where an observation is in its interval, 0 where it is outside, NaN without an interval.

    An interval that is infinite on one side or both counts as none: it would cover without saying anything.
    """
    observed, lower, upper = (np.asarray(values, dtype=float) for values in (observed, lower, upper))
    bounded = np.isfinite(lower) & np.isfinite(upper)
    return np.where(bounded, (observed >= lower) & (observed <= upper), np.nan)


def kinds(table: Any) -> Any:
    """`"gaussian"` or `"bernoulli"` for each forecast of a DataFrame.

    From the column `kind`; in a table without it, items are 0/1 items if all values are 0 or 1 and none has an interval.
    """
    if "kind" in table:
        return table["kind"].astype(str)
    item = table["item"].astype(str) if "item" in table else np.zeros(len(table))
    without = table["lower90"].isna() if "lower90" in table else False
    binary = (table["observed"].isin((0, 1)) & without).groupby(item).transform("all")
    return binary.map({True: "bernoulli", False: "gaussian"})


def check_one_kind(table: Any, group: Any, instead: str) -> None:
    """Refuse to average errors in standard deviations with errors of probabilities, in any group of rows."""
    kind = kinds(table)
    mixed = kind.groupby(group).transform("nunique") > 1
    if not mixed.any():
        return
    which = ""
    if "item" in table:
        real, binary = (table.loc[mixed & (kind == name), "item"].iloc[0] for name in ("gaussian", "bernoulli"))
        which = f" ({real!r} is real-valued, {binary!r} is 0 or 1)"
    msg = (
        f"Items of two kinds would be averaged{which}: errors of real-valued items are in standard deviations, those of 0/1 "
        f"items are of probabilities. Take them apart: {instead}."
    )
    raise ValueError(msg)
