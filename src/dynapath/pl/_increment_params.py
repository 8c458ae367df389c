"""dp.pl.increment_params: coefficients of units with their intervals, of one fit or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dynapath import get

from ._colors import SAFE
from ._days import legend_below, rows_of
from ._figure import INK, LABEL_SIZE, TICK_SIZE, TWO_COLUMNS, finish, new_figure, plain_axes
from ._over_time import check_level, given_panels

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

_MOST_NAMED = 40
_MARKERS = "osD^vP"


def increment_params(
    adata: AnnData,
    *,
    keys: str | Sequence[str] | None = None,
    coefficients: str | Sequence[str] | None = None,
    units: str | Sequence[str] | None = None,
    level: float = 0.9,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Forest plot of the coefficients of units: individual, partially pooled and shared ones.

    Parameters
    ----------
    adata
        With one or more fits of :func:`dynapath.stats.fit_increment`.
    keys
        `key_added` of the fits to draw on top of each other; by default the only one, or of several that under the standard name.
    coefficients
        Which to draw, one panel each; by default all of the first fit.
    units
        Which to draw, with their names. By default all: up to 40 with names, more as a line from the smallest to the
        largest estimate of the first fit.
    level
        Probability of the intervals.
    legend
        Whether to add a legend, below the panels.
    figsize
        Width and height in inches.
    axes
        Draw on these, one per coefficient, instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of Axes, one per coefficient, with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : if there is no such fit.
    ValueError : for units or coefficients that do not exist, or another number of `axes` than coefficients.

    Notes
    -----
    A coefficient that all units share is a vertical line with a band, its interval. Of a partially pooled one the estimated
    mean over units is a dashed line. Units without an estimate, and intervals of estimates at a bound, are left out. Axes
    end where 98 % of the estimates do and their intervals are cut there: a few units with hardly any information would
    otherwise be all there is to see.

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=30)
    >>> dp.stats.fit_increment(panel, covariates="incidence", pooling="partial")  # doctest: +SKIP
    >>> axes = dp.pl.increment_params(panel, show=False)  # doctest: +SKIP
    """
    check_level(level)
    keys = [get.increment_slots(adata, keys).key] if keys is None or isinstance(keys, str) else list(keys)
    tables = {key: get.increment_params(adata, key, level=level) for key in keys}
    if not tables:
        msg = "keys is empty. Name at least one fit, such as 'increment'."
        raise ValueError(msg)
    shown = _coefficients(tables[keys[0]], coefficients)
    names = list(adata.obs_names) if units is None else [adata.obs_names[row] for row in rows_of(adata, units, 200)]
    named = len(names) <= _MOST_NAMED or units is not None
    own = axes is None
    panels = (
        _new_panels(len(shown), len(names) if named else None, figsize)
        if axes is None
        else given_panels(axes, len(shown), f"the coefficients {', '.join(shown)}")
    )
    order = _order(tables[keys[0]], "state" if "state" in shown else shown[0], names)
    for i, (ax, coefficient) in enumerate(zip(panels, shown, strict=True)):
        if not named:
            order = _order(tables[keys[0]], coefficient, names)
        drawn = []
        for j, key in enumerate(keys):
            table = tables[key][tables[key]["coefficient"] == coefficient]
            offset = 0.0 if not named else 0.18 * (j - (len(keys) - 1) / 2)
            drawn.append(_draw(ax, table, order, SAFE[j], _MARKERS[j % len(_MARKERS)], offset, named=named))
        _set_limits(ax, drawn)
        ax.axvline(0, color="0.85", lw=0.8, zorder=0.1)
        ax.set_ylim(len(order) - 0.4, -0.6)
        first = not own or i == 0
        if named:
            ax.set_yticks(range(len(order)), order if first else [""] * len(order))
        else:
            ax.set_yticks([])
            if first:
                ax.set_ylabel(f"{len(order)} units", size=LABEL_SIZE)
        plain_axes(ax)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(coefficient, size=LABEL_SIZE)
    if legend:
        handles = _handles(keys, tables, level)
        if own:
            legend_below(panels[0].figure, handles)
        else:
            panels[-1].legend(
                handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=TICK_SIZE
            )
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def _coefficients(table: pd.DataFrame, asked: str | Sequence[str] | None) -> list[str]:
    present = list(pd.unique(table["coefficient"].astype(str)))
    chosen = present if asked is None else [asked] if isinstance(asked, str) else list(asked)
    wrong = [name for name in chosen if name not in present]
    if wrong or not chosen:
        what = f"{wrong[0]!r} is none of them" if wrong else "none was given"
        msg = f"coefficients must be among those of the fit, {', '.join(present)}; {what}."
        raise ValueError(msg)
    return chosen


def _of_units(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["unit"].notna()].set_index("unit")


def _order(table: pd.DataFrame, coefficient: str, names: list[str]) -> list[str]:
    """Units from the largest estimate down, those without one last."""
    estimate = _of_units(table[table["coefficient"] == coefficient])["estimate"].reindex(names)
    return list(estimate.sort_values(ascending=False, kind="stable").index)


def _shared(units: pd.DataFrame) -> bool:
    values = units["estimate"].dropna().unique()
    return len(units) > 1 and len(values) == 1


def _draw(
    ax: Axes, table: pd.DataFrame, order: list[str], color: str, marker: str, offset: float, *, named: bool
) -> NDArray[np.float64]:
    """Draw one coefficient of one fit; what the axis must reach."""
    units = _of_units(table).reindex(order)
    mean = table[table["unit"].isna()]
    if len(mean):
        one = mean.iloc[0]
        together = _shared(units)
        ax.axvline(one["estimate"], color=color, lw=1.2, ls="-" if together else (0, (4, 2)), zorder=1, gid="pooled")
        if together:
            if np.isfinite(one["lower"]):
                ax.axvspan(
                    one["lower"], one["upper"], color=color, alpha=0.2, lw=0, zorder=0.5, gid="interval of the mean"
                )
            return np.array([one["estimate"], *one[["lower", "upper"]].dropna()], dtype=float)
    rows = np.arange(len(order)) + offset
    width, size = (0.9, 3.6) if named else (0.4, 1.2)
    known = units["lower"].notna() & units["upper"].notna()
    ax.hlines(rows[known], units["lower"][known], units["upper"][known], color=color, lw=width, alpha=0.6, zorder=2)
    ax.plot(units["estimate"], rows, ls="", marker=marker, ms=size, mfc=color, mec="none", zorder=3, gid="estimates")
    return units["estimate"].dropna().to_numpy()


def _set_limits(ax: Axes, drawn: list[NDArray[np.float64]]) -> None:
    """Where nearly all estimates lie, with room for intervals."""
    drawn = [values for values in drawn if len(values)]
    if not drawn:
        return
    low = min(np.quantile(values, 0.01) for values in drawn)
    high = max(np.quantile(values, 0.99) for values in drawn)
    room = 0.25 * ((high - low) or max(abs(high), 1e-3))
    ax.set_xlim(low - room, high + room)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _new_panels(n: int, n_named: int | None, figsize: tuple[float, float] | None) -> NDArray[np.object_]:
    if figsize is None:
        height = 3.2 if n_named is None else 0.9 + 0.16 * n_named
        figsize = (min(TWO_COLUMNS, 1.0 + 1.9 * n), max(2.0, height))
    figure = new_figure(figsize)
    panels = np.empty(n, dtype=object)
    panels[:] = figure.subplots(1, n, squeeze=False)[0]
    return panels


def _handles(keys: list[str], tables: dict[str, pd.DataFrame], level: float) -> list[Line2D]:
    style: dict[str, Any] = {"ls": "-", "lw": 0.9, "ms": 3.6, "mec": "none"}
    handles = [
        Line2D([], [], color=SAFE[j], marker=_MARKERS[j % len(_MARKERS)], mfc=SAFE[j], label=key, **style)
        for j, key in enumerate(keys)
    ]
    handles.append(Line2D([], [], color=INK, lw=0.9, label=f"{100 * level:.3g}% interval"))
    if any(table["unit"].isna().any() for table in tables.values()):
        handles.append(Line2D([], [], color=INK, lw=1.2, ls=(0, (4, 2)), label="mean over units"))
    return handles
