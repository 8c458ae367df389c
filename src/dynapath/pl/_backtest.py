"""dp.pl.backtest: models beside a reference, over all origins and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ._colors import SAFE
from ._days import label_days, legend_below
from ._figure import INK, LABEL_SIZE, TICK_SIZE, TWO_COLUMNS, finish, halo, new_figure, plain_axes
from ._over_time import given_panels

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NARROW = 5.0
_BASELINES = ("zero", "mean", "modified_mean", "modified_mean_slide", "ols", "ols_published")
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (6, 2)))


def backtest(
    table: pd.DataFrame,
    *,
    reference: str = "zero",
    scores: pd.DataFrame | None = None,
    models: Sequence[str] | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Squared errors of a backtest relative to a reference: in total, best on top, and origin by origin.

    Parameters
    ----------
    table
        From :func:`dynapath.stats.backtest` or :func:`dynapath.stats.temporal_subsets`.
    reference
        The model whose squared errors are 1.
    scores
        From :func:`dynapath.stats.compare_forecasts` with the same reference, for intervals.
    models
        Which to draw; by default all.
    legend
        Whether to add a legend, below the panels.
    figsize
        Width and height in inches. Below 5 inches the panels are put on top of each other.
    axes
        Draw on these two Axes instead of on a new figure: totals, origins.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of two Axes with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : for a table without the columns of a backtest.
    ValueError : for a reference or models that are not in the table, for scores with another reference, or for another
        number of `axes` than two.

    Notes
    -----
    Both axes are logarithmic: half and twice the error are equally far from 1. A small dot is one origin. Read the spread of
    the dots before the order of the rows: a model that wins in total by one origin has won little.

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=60)
    >>> table = dp.stats.backtest(panel, models=["zero", "mean"], origins=[49, 59])  # doctest: +SKIP
    >>> axes = dp.pl.backtest(table, show=False)  # doctest: +SKIP
    """
    by_origin = _by_origin(table, reference, models)
    total = by_origin.sum()
    total = total / total[reference]
    names = list(total.sort_values(kind="stable").index)
    if scores is not None:
        scores = _matching(scores, reference, total)
    own = axes is None
    panels = _new_panels(len(names), figsize) if axes is None else given_panels(axes, 2, "totals and origins")
    styles = _styles(list(by_origin.columns), reference)
    ratio = by_origin.div(by_origin[reference], axis=0).where(by_origin[reference] > 0, axis=0)
    _draw_totals(panels[0], names, total, ratio, scores, reference, styles)
    _draw_origins(panels[1], table, ratio, reference, styles)
    if legend:
        handles = [
            Line2D([], [], label=name, lw=1.6, **styles[name]) for name in by_origin.columns if name != reference
        ]
        handles.append(Line2D([], [], color="0.75", lw=1.6, label=f"{reference} (reference)"))
        handles.append(Line2D([], [], ls="", marker=".", ms=5, color="0.5", mec="none", label="one origin"))
        if scores is not None:
            handles.append(Line2D([], [], color=INK, lw=1.2, marker="|", ms=0, label="interval of the total"))
        if own:
            legend_below(panels[0].figure, handles)
        else:
            panels[1].legend(
                handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=TICK_SIZE
            )
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def _by_origin(table: pd.DataFrame, reference: str, models: Sequence[str] | None) -> pd.DataFrame:
    """Sum of squared errors, one row per origin, one column per model in the order of the table."""
    missing = [column for column in ("model", "origin", "error") if column not in table]
    if missing:
        msg = f"table has no column {missing[0]!r}. Give what dp.stats.backtest returned."
        raise KeyError(msg)
    present = [str(name) for name in pd.unique(table["model"])]
    asked = present if models is None else [*models]
    wrong = [name for name in [reference, *asked] if name not in present]
    if wrong or not asked:
        what = f"{wrong[0]!r} is not in the table" if wrong else "models is empty"
        msg = f"{what}; its models are {', '.join(present)}."
        raise ValueError(msg)
    square = table.assign(square=table["error"] ** 2, model=table["model"].astype(str))
    sums = square.pivot_table(index="origin", columns="model", values="square", aggfunc="sum")
    return sums[[name for name in present if name in asked or name == reference]]


def _matching(scores: pd.DataFrame, reference: str, total: pd.Series) -> pd.DataFrame:
    by_model = scores.set_index("model").reindex(total.index)
    if not np.allclose(by_model["relative"] + 1, total, rtol=1e-6, equal_nan=True):
        msg = f"scores are not those of this table with reference={reference!r}. Use dp.stats.compare_forecasts on it."
        raise ValueError(msg)
    return by_model


def _styles(names: list[str], reference: str) -> dict[str, dict]:
    """Models of interest in colour, baselines in greys."""
    colours, greys = iter([*SAFE[:6], *SAFE[7:]]), iter(["0.35", "0.55", "0.45", "0.6", "0.5", "0.65"])
    dashes = iter(_DASHES)
    return {
        name: {"color": next(greys), "ls": next(dashes)}
        if name in _BASELINES and name != reference
        else {"color": "0.75" if name == reference else next(colours), "ls": "-"}
        for name in names
    }


def _draw_totals(
    ax: Axes,
    names: list[str],
    total: pd.Series,
    ratio: pd.DataFrame,
    scores: pd.DataFrame | None,
    reference: str,
    styles: dict[str, dict],
) -> None:
    ax.axvline(1, color="0.75", lw=1.6, zorder=0.5, gid="reference")
    for row, name in enumerate(names):
        ax.axhline(row, color="0.94", lw=0.8, zorder=0.1)
        if name == reference:
            ax.plot(1, row, ls="", marker="D", ms=4.5, mfc="0.75", mec="white", mew=0.6, zorder=3)
            continue
        color = styles[name]["color"]
        ax.plot(
            ratio[name], np.full(len(ratio), row), ls="", marker=".", ms=4, mec="none", mfc=color, alpha=0.45, zorder=2
        )
        if scores is not None:
            ends = scores.loc[name, ["lower", "upper"]].astype(float) + 1
            ax.plot(ends, [row, row], color=color, lw=1.6, zorder=2.5, gid=f"interval {name}")
        ax.plot(
            total[name], row, ls="", marker="D", ms=4.5, mfc=color, mec="white", mew=0.6, zorder=3, gid=f"model {name}"
        )
    _log_ratio(ax.xaxis, ax)
    left, right = ax.get_xlim()
    ax.set_xlim(left, right * (right / left) ** 0.3)
    for row, name in enumerate(names):
        if name != reference:
            text = f"{100 * (total[name] - 1):+.1f} %" if total[name] < 10 else f"x {total[name]:.0f}"
            ax.annotate(
                text,
                (0.995, row),
                xycoords=("axes fraction", "data"),
                size=TICK_SIZE,
                color=INK,
                va="center",
                ha="right",
                path_effects=halo(),
                zorder=4,
            )
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    plain_axes(ax)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(f"squared error / that of {reference}", size=LABEL_SIZE)


def _draw_origins(ax: Axes, table: pd.DataFrame, ratio: pd.DataFrame, reference: str, styles: dict[str, dict]) -> None:
    when = table.groupby("origin")["date"].min().reindex(ratio.index) if "date" in table else pd.Series(ratio.index)
    days = when.to_numpy()
    if not np.issubdtype(days.dtype, np.datetime64):
        days = ratio.index.to_numpy()
    ax.axhline(1, color="0.75", lw=1.6, zorder=0.5)
    for name in ratio:
        if name != reference:
            ax.plot(days, ratio[name], lw=1.2, marker="o", ms=2, zorder=2, gid=f"origins {name}", **styles[name])
    _log_ratio(ax.yaxis, ax)
    plain_axes(ax)
    label_days(ax, days)
    ax.set_ylabel(f"squared error / that of {reference}", size=LABEL_SIZE)
    if not np.issubdtype(days.dtype, np.datetime64):
        ax.set_xlabel("origin", size=LABEL_SIZE)


def _log_ratio(axis: Axis, ax: Axes) -> None:
    """A logarithmic axis with ticks at plain ratios."""
    if axis is ax.xaxis:
        ax.set_xscale("log")
    else:
        ax.set_yscale("log")
    low, high = axis.get_view_interval()
    far, middle, close = (
        [0.01, 0.1, 1, 10, 100, 1000],
        [0.1, 0.2, 0.5, 1, 2, 5, 10],
        [0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.2, 1.5, 2, 2.5, 3],
    )
    span = np.log10(high / low)
    ticks = [t for t in (close if span < 0.7 else middle if span < 1.7 else far) if low <= t <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _new_panels(n_models: int, figsize: tuple[float, float] | None) -> NDArray[np.object_]:
    height = 0.55 + 0.2 * n_models
    if figsize is None:
        figsize = (TWO_COLUMNS, max(2.4, height + 0.7))
    figure = new_figure(figsize)
    panels = np.empty(2, dtype=object)
    if figsize[0] < _NARROW:
        grid = figure.add_gridspec(2, 1, height_ratios=[1.2, 1])
        panels[:] = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    else:
        grid = figure.add_gridspec(1, 2, width_ratios=[1.25, 1])
        panels[:] = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    return panels
