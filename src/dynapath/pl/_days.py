"""What figures of panels share: the axis of days, which units are drawn, runs of days without a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.dates as mdates
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynapath._columns import column_of
from dynapath._names import as_text
from dynapath._time_column import NotATime, Place, read_times

from ._figure import LABEL_SIZE, TICK_SIZE

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.artist import Artist
    from numpy.typing import NDArray

# Days without a report.
GAP = "0.92"


def day_axis(adata: AnnData) -> NDArray[Any]:
    """Days of the columns: dates where `var["date"]` or the names read as such, else 0, 1, ..."""
    dated = "date" in adata.var
    names = column_of(adata.var, "date", place="var") if dated else pd.Series(adata.var_names)
    try:
        read = read_times(names, Place.in_adata("var['date']" if dated else "var_names"))
    except NotATime:  # names of the user's own
        return np.arange(adata.n_vars)
    return read.values.to_numpy(dtype="datetime64[ns]") if read.kind == "dates" else np.arange(adata.n_vars)


def label_days(ax: Axes, days: NDArray[Any]) -> None:
    """Dates as short as they can be."""
    if np.issubdtype(days.dtype, np.datetime64):
        locator = mdates.AutoDateLocator(minticks=2, maxticks=4)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))
        ax.xaxis.get_offset_text().set_size(TICK_SIZE)
    else:
        ax.set_xlabel("day", size=LABEL_SIZE)


def half_day(days: NDArray[Any]) -> Any:
    """Half of the distance between days."""
    if len(days) < 2:
        return np.timedelta64(12, "h") if np.issubdtype(days.dtype, np.datetime64) else 0.5
    return (days[1] - days[0]) / 2


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of each run of True."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1, strict=True))


def rows_of(adata: AnnData, units: str | Sequence[str], most: int) -> list[int]:
    """Rows of the named units."""
    names = [units] if isinstance(units, str) else list(map(str, units))
    present = as_text(adata.obs_names)
    missing = [name for name in names if name not in present]
    if missing or not names:
        what = f"{missing[0]!r} is none of them" if missing else "none was given"
        msg = f"units must be among obs_names ({', '.join(present[:3])}, ...); {what}."
        raise ValueError(msg)
    if len(names) > most:
        msg = f"units names {len(names)} units, more than the {most} that are readable. Choose some of them."
        raise ValueError(msg)
    return [int(present.get_loc(name)) for name in names]


def reports_of(
    adata: AnnData, layer: str | None, observed: str | NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Reports (unit, day), NaN where there is none."""
    if layer is not None and layer not in adata.layers:
        present = ", ".join(sorted(name for name in adata.layers if name is not None)) or "none"
        msg = f"layers has no {layer!r}; present: {present}."
        raise KeyError(msg)
    values = adata.X if layer is None else adata.layers[layer]
    values = np.array(values.toarray() if hasattr(values, "toarray") else values, dtype=float)
    if observed is None:
        return values
    if isinstance(observed, str):
        if observed not in adata.layers:
            msg = f"layers has no {observed!r} (observed)."
            raise KeyError(msg)
        observed = adata.layers[observed]
    return np.where(np.asarray(observed, dtype=bool), values, np.nan)


def legend_below(figure: Figure, handles: Sequence[Artist], *, longest: float = 0.06) -> None:
    """A legend under all panels, in as many columns as there is room for."""
    widest = max(len(str(handle.get_label())) for handle in handles)
    ncols = int(np.clip(figure.get_size_inches()[0] / (0.4 + longest * widest), 1, len(handles)))
    style = {"frameon": False, "fontsize": TICK_SIZE, "handletextpad": 0.5, "columnspacing": 1.2}
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, **style)
