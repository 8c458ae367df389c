"""dp.pl.increment_trajectory: what a unit reported, and what the model fills in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynapath import get

from ._colors import SAFE
from ._days import GAP, day_axis, half_day, label_days, legend_below, reports_of, rows_of, runs
from ._figure import INK, LABEL_SIZE, TICK_SIZE, finish, plain_axes
from ._over_time import given_panels, new_panels

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

FILTERED, SMOOTHED, FORECAST = SAFE[0], SAFE[1], SAFE[2]
_BY_DEFAULT = 4
_MOST = 24


def increment_trajectory(
    adata: AnnData,
    *,
    units: str | Sequence[str] | None = None,
    key: str | None = None,
    forecast: pd.DataFrame | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Reports of units over time, the days without one, and what the increment model says of these.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.stats.fit_increment` under `key`; after :func:`dynapath.stats.impute_increment`
        with its values and bands too.
    units
        Names of the units to draw, one panel each; by default the four with most missing reports among those with an
        estimate, as there is most to see.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    forecast
        From :func:`dynapath.stats.predict_increment`, drawn after the last day.
    legend
        Whether to add a legend, below the panels.
    figsize
        Width and height in inches. Panels are put side by side as far as the width has room for them.
    axes
        Draw on these, one per unit, instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of Axes, one per unit, with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : if there is no such fit.
    ValueError : for units that do not exist, or another number of `axes` than units.

    Notes
    -----
    Dots are reports. Grey areas are days without one. There the blue line is the state that the model knows on that day,
    from the reports before it (the filter); the orange one is what `impute_increment` wrote, with `mode="smooth"` from both
    sides of the gap, with its band. On days with a report both are the report.

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=30)
    >>> dp.stats.fit_increment(panel, covariates="incidence", pooling="partial")  # doctest: +SKIP
    >>> dp.stats.impute_increment(panel, mode="smooth", interval=0.9)  # doctest: +SKIP
    >>> axes = dp.pl.increment_trajectory(panel, show=False)  # doctest: +SKIP
    """
    names = get.increment_slots(adata, key)
    key = names.key
    fit = get.increment_fit(adata, key)
    layer, observed = (None if name is None else str(name) for name in map(fit["params"].get, ("layer", "observed")))
    reports = reports_of(adata, layer, observed)
    state = np.asarray(adata.layers[names.state], dtype=float)
    filled = {
        part: np.asarray(adata.layers[slot], dtype=float)
        for part, slot in (("mean", names.imputed), ("lower", names.imputed_lower), ("upper", names.imputed_upper))
        if slot in adata.layers
    }
    rows = _chosen(reports, state) if units is None else rows_of(adata, units, _MOST)
    days, own = day_axis(adata), axes is None
    if own:
        panels = new_panels(len(rows), figsize)
    else:
        panels = given_panels(axes, len(rows), f"the units {', '.join(adata.obs_names[rows])}")
    for ax, row in zip(panels, rows, strict=True):
        _draw(ax, days, reports[row], state[row], {part: values[row] for part, values in filled.items()})
        if forecast is not None:
            last = int(fit["params"]["train_until"])
            _draw_forecast(ax, days, last, forecast[forecast["unit"].astype(str) == adata.obs_names[row]])
        plain_axes(ax)
        label_days(ax, days)
        ax.set_title(adata.obs_names[row], size=LABEL_SIZE, loc="left")
        if not own or ax.get_subplotspec().colspan.start == 0:
            ax.set_ylabel(_value_name(adata), size=LABEL_SIZE)
    if legend:
        handles = _handles(filled, str(fit.get("imputed", {}).get("mode", "smooth")), forecast)
        if own:
            legend_below(panels[0].figure, handles)
        else:
            panels[-1].legend(
                handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=TICK_SIZE
            )
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def _chosen(reports: NDArray[np.float64], state: NDArray[np.float64]) -> list[int]:
    """Units that move and have gaps between reports, those with most first."""
    inside = np.isnan(reports) & ~np.isnan(state)
    with np.errstate(invalid="ignore"):
        moves = np.nan_to_num(np.nanmax(np.where(np.isnan(reports), -np.inf, reports), 1)) > np.nan_to_num(
            np.nanmin(np.where(np.isnan(reports), np.inf, reports), 1)
        )
    worth = inside.sum(1) * moves * (~np.isnan(reports)).sum(1) ** 0.5
    return [int(row) for row in np.argsort(-worth, kind="stable")[: min(_BY_DEFAULT, len(reports))]]


def _value_name(adata: AnnData) -> str:
    return str(adata.uns.get("panel", {}).get("value", "reports"))


def _draw(
    ax: Axes,
    days: NDArray[Any],
    reports: NDArray[np.float64],
    state: NDArray[np.float64],
    filled: dict[str, NDArray[np.float64]],
) -> None:
    half = half_day(days)
    missing = np.isnan(reports)
    for first, last in runs(missing):
        ax.axvspan(days[first] - half, days[last] + half, color=GAP, lw=0, zorder=0.1, gid="gap")
    ax.plot(days, reports, color=INK, lw=0.8, marker="o", ms=2.2, mec="none", zorder=3, gid="reports")
    for first, last in runs(missing & ~np.isnan(state)):
        start = max(first - 1, 0)
        within = slice(start, last + 1)
        ax.plot(days[within], state[within], color=FILTERED, lw=1.3, zorder=2.6, gid="filtered")
        if "mean" in filled:
            across = slice(start, min(last + 2, len(days)))
            ax.plot(days[across], filled["mean"][across], color=SMOOTHED, lw=1.3, zorder=2.8, gid="imputed")
            if "lower" in filled and "upper" in filled:
                # Of no width at the reports around the gap.
                lower, upper = (np.where(missing, filled[end], reports)[across] for end in ("lower", "upper"))
                ax.fill_between(days[across], lower, upper, color=SMOOTHED, alpha=0.22, lw=0, zorder=2, gid="band")


def _draw_forecast(ax: Axes, days: NDArray[Any], last: int, forecast: pd.DataFrame) -> None:
    """From day `last`, that of the fit."""
    if forecast.empty:
        return
    forecast = forecast.sort_values("horizon")
    at = np.array([days[last] + 2 * half_day(days) * int(h) for h in forecast["horizon"]])
    ax.plot(at, forecast["predicted"], color=FORECAST, lw=1.3, marker="o", ms=2.2, zorder=3.2, gid="forecast")
    lower, upper = forecast["lower"].to_numpy(dtype=float), forecast["upper"].to_numpy(dtype=float)
    if len(at) > 1:
        ax.fill_between(at, lower, upper, color=FORECAST, alpha=0.22, lw=0, zorder=2, gid="forecast band")
    else:
        ax.vlines(at, lower, upper, color=FORECAST, lw=2.5, alpha=0.35, zorder=2, gid="forecast band")


def _handles(filled: dict[str, Any], mode: str, forecast: pd.DataFrame | None) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=INK, lw=0.8, marker="o", ms=2.6, mec="none", label="reported"),
        Patch(facecolor=GAP, label="not reported"),
        Line2D([], [], color=FILTERED, lw=1.3, label="filtered (reports before)"),
    ]
    if "mean" in filled:
        what = "smoothed (both sides)" if mode == "smooth" else "imputed by the filter"
        handles.append(Line2D([], [], color=SMOOTHED, lw=1.3, label=what))
    if "lower" in filled:
        handles.append(Patch(facecolor=SMOOTHED, alpha=0.3, label="its band"))
    if forecast is not None:
        handles.append(Line2D([], [], color=FORECAST, lw=1.3, marker="o", ms=2.6, label="forecast"))
    return handles
