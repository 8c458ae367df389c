"""dp.pl.missing_reports: who reported when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.dates as mdates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ._colors import SAFE
from ._days import day_axis, half_day, label_days, legend_below, reports_of
from ._figure import LABEL_SIZE, TICK_SIZE, finish, new_figure, plain_axes
from ._over_time import given_panels

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

_REPORTED, _MISSING = "#D6E4EF", SAFE[1]


def missing_reports(
    adata: AnnData,
    *,
    layer: str | None = None,
    observed: str | NDArray[np.bool_] | None = None,
    complete: bool = True,
    sort: bool = True,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Reports of all units on all days, with the share of units that reported on each day above.

    Parameters
    ----------
    adata
        Units in rows, days in columns, NaN = not reported.
    layer
        Layer with the reports; by default `X`.
    observed
        Mask of what was reported, or the name of a layer with it.
    complete
        Whether to draw units that miss no report. Without them, gaps are easier to see where few have any.
    sort
        Whether to put units with the most missing reports on top; else they keep their order.
    legend
        Whether to add a legend, below the panels.
    figsize
        Width and height in inches.
    axes
        Draw on these two Axes instead of on a new figure: the shares, the reports.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of two Axes with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : for an unknown layer.
    ValueError : if no unit is left to draw, or for another number of `axes` than two.

    Examples
    --------
    >>> import dynapath as dp
    >>> axes = dp.pl.missing_reports(dp.datasets.simulate_reports(n_units=100), show=False)
    """
    missing = np.isnan(reports_of(adata, layer, observed))
    share = 1 - missing.mean(0)
    n_missing = missing.sum(1)
    rows = np.arange(len(missing)) if complete else np.flatnonzero(n_missing)
    if not len(rows):
        msg = "No unit misses a report, so that complete=False leaves nothing to draw."
        raise ValueError(msg)
    if sort:
        # Units with equally many gaps lie in the order of their first one, which makes common gaps visible.
        rows = rows[np.lexsort([missing[rows].argmax(1), -n_missing[rows]])]
    days, own = day_axis(adata), axes is None
    if own:
        figure = new_figure((3.35, 3.4) if figsize is None else figsize)
        grid = figure.add_gridspec(2, 1, height_ratios=[1, 3])
        above = figure.add_subplot(grid[0])
        panels = np.array([above, figure.add_subplot(grid[1], sharex=above)], dtype=object)
    else:
        panels = given_panels(axes, 2, "the shares and the reports")
    above, below = panels

    left, right = days[0] - half_day(days), days[-1] + half_day(days)
    above.stairs(100 * share, _edges(days), color="0.3", lw=1.0, baseline=None, gid="share")
    low = 100 * share.min()
    above.set_ylim(max(0.0, low - 0.15 * (100 - low) - 1), 100.5)
    above.set_ylabel("reported (%)", size=TICK_SIZE)
    plain_axes(above)
    above.tick_params(labelbottom=False)

    ends = mdates.date2num([left, right]) if np.issubdtype(days.dtype, np.datetime64) else (left, right)
    below.imshow(
        missing[rows],
        cmap=ListedColormap([_REPORTED, _MISSING]),
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
        extent=(*ends, len(rows), 0),
        gid="reports",
    )
    plain_axes(below)
    n_complete = int((n_missing == 0).sum())
    named = "units" if complete else "units with gaps"
    below.set_ylabel(f"{len(rows)} {named}", size=LABEL_SIZE)
    below.set_yticks([])
    label_days(below, days)
    if legend:
        without = "" if complete else f" ({n_complete} units miss none)"
        handles = [
            Patch(facecolor=_REPORTED, label="reported"),
            Patch(facecolor=_MISSING, label=f"not reported: {100 * missing.mean():.1f} %{without}"),
        ]
        if own:
            legend_below(below.figure, handles)
        else:
            below.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=TICK_SIZE)
    return finish(below.figure, panels, show=show, return_fig=return_fig)


def _edges(days: NDArray) -> NDArray[np.float64]:
    half = half_day(days)
    edges = np.append(days - half, days[-1] + half)
    return mdates.date2num(edges) if np.issubdtype(days.dtype, np.datetime64) else edges
