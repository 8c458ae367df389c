"""Panels with time from left to right: held-out times, lines dashed where no data are, ticks at the snapshots."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynapath._columns import column_of

from ._figure import (
    INK,
    LABEL_SIZE,
    TWO_COLUMNS,
    DrawnFit,
    Look,
    halo,
    new_figure,
    number_line,
    short_names,
    spread,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

_HELDOUT: dict[str, Any] = {"color": "0.35", "lw": 1.1, "ls": ":"}
_PANEL_HEIGHT = 2.0
_PANEL_WIDTH = 1.5


def heldout_times(heldout: ArrayLike | None) -> NDArray[np.float64]:
    """The times to be marked, increasing."""
    if heldout is None:
        return np.empty(0)
    try:
        times = np.atleast_1d(np.asarray(heldout, dtype=float))
    except (TypeError, ValueError):
        times = np.array([np.nan])
    if times.ndim > 1 or not np.isfinite(times).all():
        msg = f"heldout must be times as numbers, such as [0.5]; it is {heldout!r}."
        raise ValueError(msg)
    return np.unique(times)


def check_level(level: float) -> None:
    """Raise for what is no probability of a band."""
    if not 0 < level < 1:
        msg = f"level is a probability between 0 and 1; it is {level!r}."
        raise ValueError(msg)


def check_jitter(jitter: float) -> None:
    """Raise for a jitter that would move cells to another time."""
    if not 0 <= jitter <= 0.5:
        msg = f"jitter must lie between 0 and .5 of the smallest gap between times; it is {jitter!r}."
        raise ValueError(msg)


def cell_times(adata: AnnData, fit: DrawnFit) -> NDArray[np.float64]:
    """Time of each cell, NaN where there is none."""
    if fit.time_key not in adata.obs:
        msg = (
            f"obs has no {fit.time_key!r}, the time that was fitted. Columns: {', '.join(map(str, adata.obs.columns))}."
        )
        raise KeyError(msg)
    column = column_of(adata.obs, fit.time_key)
    # Categories may read as numbers: their names, not their codes.
    return pd.to_numeric(column.astype(str), errors="coerce").to_numpy(dtype=float)


def jittered(times: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Times of cells moved by up to `width`, each time alike."""
    return times + width * np.random.default_rng(0).uniform(-1, 1, len(times))


def path_times(fit: DrawnFit, held: NDArray[np.float64], n_grid: int = 50) -> NDArray[np.float64]:
    """Times of a line from the first snapshot to the last or to the last held-out time, whichever is later."""
    first, last = fit.observed_times[[0, -1]]
    end = max(last, held.max(initial=last))
    grid = np.linspace(first, last, n_grid)
    return np.concatenate([grid, np.linspace(last, end, n_grid // 2)[1:]]) if end > last else grid


def smallest_gap(times: NDArray[np.float64]) -> float:
    """Between two times."""
    # Rounding must not make two times of one.
    distinct = np.unique(times)
    gaps = np.diff(distinct)
    return float(gaps[gaps > 1e-6 * np.ptp(distinct)].min())


def mark_heldout(ax: Axes, held: NDArray[np.float64]) -> None:
    """A dotted vertical line at each held-out time."""
    for time in held:
        ax.axvline(time, **_HELDOUT, zorder=0.8, gid="heldout")


def heldout_handles(held: NDArray[np.float64]) -> list[Line2D]:
    """What the dotted lines stand for."""
    return [Line2D([], [], **_HELDOUT, label="held-out time")] if len(held) else []


def draw_line(ax: Axes, name: str, path: pd.DataFrame, column: str, color: str) -> None:
    """The line of a group, dashed after the last snapshot."""
    seen = path[~path["extrapolated"]]
    ax.plot(seen["time"], seen[column], color=color, lw=1.6, path_effects=halo(2.8), zorder=3, gid=f"group {name}")
    if path["extrapolated"].any():
        beyond = path.iloc[len(seen) - 1 :]
        gid = f"group {name} extrapolated"
        ax.plot(beyond["time"], beyond[column], color=color, lw=1.6, ls=(0, (3, 1.5)), zorder=3, gid=gid)


def draw_uncertainty(
    ax: Axes, name: str, path: pd.DataFrame, columns: tuple[str, str], color: str, zorder: float = 2
) -> bool:
    """The band in which the line of a group itself lies, where there is one; whether there is."""
    lower, upper = (path[column] for column in columns)
    if lower.isna().all():
        return False
    ax.fill_between(path["time"], lower, upper, color=color, alpha=0.3, lw=0, zorder=zorder, gid=f"uncertainty {name}")
    return True


def uncertainty_handle(level: float, what: str) -> Patch:
    """What that band stands for."""
    return Patch(facecolor=INK, alpha=0.4, lw=0, label=f"{100 * level:.3g}% band of {what}")


def side_by_side(groups: Sequence[str], gap: float, span: float) -> dict[str, float]:
    """How far the dots of each group are moved along the time axis, so that equal ones stay visible."""
    width = min(0.3 * gap, 0.018 * span * (len(groups) - 1))
    return dict(zip(groups, np.linspace(-width / 2, width / 2, len(groups)) if width else [0.0], strict=True))


def draw_observed(ax: Axes, name: str, observed: pd.DataFrame, column: str, color: str, aside: float) -> None:
    """Dots with the range of their sampling error, moved `aside` along the time axis."""
    value = observed[column].to_numpy()
    error = np.abs(np.stack([value - observed["lower"], observed["upper"] - value]))
    dots = ax.errorbar(
        observed["time"] + aside,
        value,
        yerr=error,
        ls="",
        marker="o",
        ms=3.6,
        mfc="white",
        mec=color,
        mew=1.1,
        ecolor=color,
        elinewidth=0.9,
        zorder=4,
    )
    dots.lines[0].set_gid(f"observed {name}")
    dots.lines[2][0].set_gid(f"error {name}")


def observed_handle(level: float) -> ErrorbarContainer:
    """What the dots stand for."""
    dot = Line2D([], [], ls="", marker="o", ms=3.6, mfc="white", mec=INK, mew=1.1)
    bar = LineCollection(np.empty((0, 2, 2)), colors=INK, linewidths=0.9)
    label = f"observed, {100 * level:.3g}% interval"
    return ErrorbarContainer((dot, (), (bar,)), has_yerr=True, label=label)


def number_ends(ax: Axes, paths: pd.DataFrame, column: str, fit: DrawnFit, look: Look) -> None:
    """The number of each group, or its name, where its line ends and in its colour."""
    names, ends = short_names(fit, look), paths.groupby("group", observed=True).last()
    low, high = ax.get_ylim()
    # Eight points apart; before the layout is known, about four fifths of the height are left.
    panel = 0.8 * ax.get_window_extent().height / ax.figure.dpi
    least = 8 / 72 / panel * (high - low)
    heights = spread(ends[column], least)
    # Those at the bottom are moved up into the panel.
    order = np.argsort(heights, kind="stable")
    heights[order] = np.maximum(heights[order], low + least * (np.arange(len(order)) + 0.3))
    for name, time, y in zip(ends.index, ends["time"], heights, strict=True):
        number_line(ax, names[str(name)], (time, y), (7, 0), look.group[str(name)])


def wrapped_title(ax: Axes, title: str) -> None:
    """The whole title, on as many lines as the panel needs."""
    # Inches, 8-point type; before the layout is known, about four fifths of the width are left.
    width = max(12, int(0.8 * ax.get_window_extent().width / ax.figure.dpi / 0.07))
    ax.set_title("\n".join(textwrap.fill(line, width) for line in title.splitlines()), size=LABEL_SIZE)


def label_time(ax: Axes, fit: DrawnFit, held: NDArray[np.float64], gap: float) -> None:
    """Name the axis; ticks at the times themselves as long as their numbers do not run into each other."""
    ax.set_xlabel(fit.time_key, size=LABEL_SIZE)
    ticks = np.union1d(fit.observed_times, held)
    labels = [f"{tick:g}" for tick in ticks]
    # Before the layout is known, about four fifths of the width are left.
    panel = 0.8 * ax.get_window_extent().width / ax.figure.dpi
    # Inches, 7-point type.
    if gap / np.ptp(ticks) * panel > 0.08 + 0.06 * max(map(len, labels)):
        ax.set_xticks(ticks, labels)


def given_panels(
    axes: Axes | Sequence[Axes] | NDArray[np.object_], n: int, one_for_each_of: str
) -> NDArray[np.object_]:
    """The given Axes as a flat array."""
    given = [axes] if isinstance(axes, Axes) else list(np.asarray(axes, dtype=object).ravel())
    if len(given) != n or not all(isinstance(ax, Axes) for ax in given):
        msg = f"axes must be {n} Axes, one for each of {one_for_each_of}; {len(given)} given. Choose others, or fewer."
        raise ValueError(msg)
    panels = np.empty(n, dtype=object)
    panels[:] = given
    return panels


def new_panels(n: int, figsize: tuple[float, float] | None, most_columns: int = 4) -> NDArray[np.object_]:
    """As many side by side as are readable, the rows about equally full."""
    width = min(TWO_COLUMNS, 1.4 + 2.6 * n) if figsize is None else figsize[0]
    most = max(1, min(most_columns, int(width / _PANEL_WIDTH)))
    rows = -(-n // most)
    cols = -(-n // rows)
    figure = new_figure((width, 0.3 + _PANEL_HEIGHT * rows) if figsize is None else figsize)
    grid = figure.add_gridspec(rows, cols)
    panels = np.empty(n, dtype=object)
    for i in range(n):
        panels[i] = figure.add_subplot(grid[divmod(i, cols)])
    return panels


def only_lowest_label_time(panels: NDArray[np.object_]) -> None:
    """Keep the name of the time axis at the foot of each column."""
    lowest = {ax.get_subplotspec().colspan.start: ax for ax in panels}
    for ax in panels:
        if ax is not lowest[ax.get_subplotspec().colspan.start]:
            ax.set_xlabel("")
