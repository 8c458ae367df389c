"""dp.pl.heldout: the model among its baselines, at times that were held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ._colors import SAFE
from ._figure import INK, LABEL_SIZE, TICK_SIZE, TWO_COLUMNS, finish, halo, new_figure, plain_axes
from ._over_time import given_panels

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from numpy.typing import NDArray

# Marker and colour, of the methods that dp.tl.evaluate_heldout knows.
_MODEL = ("D", SAFE[1])
_BASELINE = ("o", "0.45")
_OWN = ("s", SAFE[0])
_BASELINES = ("forward", "backward", "mixture", "mean_shift", "ot_interpolation")
# Line style, colour and what it is, of references: they are no competitors.
_REFERENCES = {
    "floor": ("-", "0.6", "floor: another sample of the truth"),
    "oracle_vae": (":", SAFE[2], "oracle_vae: limit of the decoder"),
}
_AXIS = {
    "energy": "energy distance",
    "w2": "2-Wasserstein distance",
    "zero_error": "error of zero fractions",
    "variance_ratio": "variance ratio",
}
_IDEAL = {"variance_ratio": 1.0}

# Inches.
_NAMES, _PANEL, _ROW, _AROUND = 1.1, 1.6, 0.2, 0.75


def heldout(
    table: pd.DataFrame,
    *,
    metric: str = "energy",
    values: bool = True,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Scores at held-out times: one panel per time, one row per method, the best on top.

    Parameters
    ----------
    table
        From :func:`dynapath.tl.evaluate_heldout`. Tables of several seeds may be put together with
        :func:`pandas.concat`.
    metric
        `"energy"`, `"w2"`, `"zero_error"` or `"variance_ratio"`.
    values
        Whether to write the value of each method beside it.
    legend
        Whether to add a legend, below the panels.
    figsize
        Width and height in inches. Panels are put side by side as far as the width has room for them.
    axes
        Draw on these, one per held-out time, instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of Axes, one per held-out time, with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : for a table without the columns of :func:`dynapath.tl.evaluate_heldout`.
    ValueError : for a metric that the table does not have, a table without methods to draw, or another number of `axes` than
    held-out times.

    Notes
    -----
    The dynamic VAE is a filled diamond, baselines are open circles, functions of your own filled squares: each at its mean
    over seeds, with a small dot for every seed if there are several. Vertical lines are references, at their mean, with a
    band from the smallest to the largest of several seeds: the floor, what another sample of the truth scores, and the
    oracle, what the decoder allows. Methods are in the order of their mean rank over the panels, nearest to the ideal first;
    it is 0, or 1 for the variance ratio. Methods without the metric are left out, and rows are empty where a method has none
    at that time.

    Examples
    --------
    >>> import dynapath as dp
    >>> cells = dp.datasets.simulate_snapshots("branching", n_cells=50, n_genes=50)
    >>> scores = dp.tl.evaluate_heldout(cells, time_key="time", holdout=0.5, methods=["floor", "forward", "mixture"])
    >>> axes = dp.pl.heldout(scores, show=False)  # doctest: +SKIP
    """
    here = _of_metric(table, metric)
    times = list(here["holdout"].unique())
    methods = _ordered(here, metric)
    extrapolated = table.attrs.get("extrapolated", [])
    own = axes is None
    panels = (
        _new_panels(len(times), len(methods), figsize)
        if axes is None
        else given_panels(axes, len(times), f"the held-out times {', '.join(f'{t:g}' for t in times)}")
    )
    limits = _limits(here, metric)
    for i, (ax, time) in enumerate(zip(panels, times, strict=True)):
        scores = here[here["holdout"] == time].groupby("method")["value"].apply(np.asarray)
        _draw_references(ax, scores, metric)
        for row, name in enumerate(methods):
            ax.axhline(row, color="0.94", lw=0.8, zorder=0.1)
            if name in scores:
                _draw_method(ax, row, name, scores[name], written=_written(metric) if values else None)
        ax.set_xlim(limits)
        ax.set_ylim(len(methods) - 0.4, -0.6)
        first = not own or ax.get_subplotspec().colspan.start == 0
        ax.set_yticks(range(len(methods)), methods if first else [""] * len(methods))
        for label, name in zip(ax.get_yticklabels(), methods, strict=True):
            label.set_fontweight("bold" if name == "dynvae" else "normal")
        plain_axes(ax)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_title(f"time {time:g}{', extrapolated' if time in extrapolated else ''}", size=LABEL_SIZE, loc="left")
        if not own or i + _columns(panels) >= len(panels):
            ax.set_xlabel(_AXIS.get(metric, metric), size=LABEL_SIZE)
    if legend:
        _add_legend(panels, _handles(here, methods), own=own)
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def _of_metric(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    needed = ("method", "holdout", "metric", "value", "n_cells")
    missing = [column for column in needed if column not in table]
    if missing:
        msg = f"table has no column {missing[0]!r}. Give what dp.tl.evaluate_heldout returned."
        raise KeyError(msg)
    here = table[(table["metric"] == metric) & table["value"].notna()]
    if here.empty:
        present = ", ".join(map(repr, table.loc[table["value"].notna(), "metric"].unique()))
        msg = f"table has no values of metric={metric!r}; it has those of {present or 'none'}."
        raise ValueError(msg)
    return here


def _ordered(here: pd.DataFrame, metric: str) -> list[str]:
    """Methods by their mean rank in the panels, the one nearest to the ideal first."""
    rivals = here[~here["method"].isin(list(_REFERENCES))]
    if rivals.empty:
        msg = "table has references alone. Score a method beside them, such as 'forward'."
        raise ValueError(msg)
    mean = rivals.groupby(["holdout", "method"], sort=False)["value"].mean()
    # An energy distance below zero is as good as zero.
    away = (mean - _IDEAL.get(metric, 0)).clip(lower=0) if metric not in _IDEAL else (mean - _IDEAL[metric]).abs()
    return away.groupby("holdout").rank().groupby("method", sort=False).mean().sort_values(kind="stable").index.tolist()


def _limits(here: pd.DataFrame, metric: str) -> tuple[float, float]:
    """One scale for all panels, with room for a number on the right."""
    low, high = here["value"].min(), here["value"].max()
    ideal = _IDEAL.get(metric, 0)
    low, high = (low, high) if metric == "w2" else (min(low, ideal), max(high, ideal))
    span = (high - low) or 1.0
    return low - 0.06 * span, high + 0.3 * span


def _style(name: str) -> tuple[str, str]:
    return _MODEL if name == "dynvae" else _BASELINE if name in _BASELINES else _OWN


def _draw_references(ax: Axes, scores: pd.Series, metric: str) -> None:
    if metric in _IDEAL:
        ax.axvline(_IDEAL[metric], color="0.85", lw=4, zorder=0.2, gid="ideal")
    for name, (line, color, _) in _REFERENCES.items():
        if name not in scores:
            continue
        values = scores[name]
        ax.axvline(values.mean(), color=color, ls=line, lw=1.4, zorder=0.8, gid=name)
        if len(values) > 1:
            ax.axvspan(values.min(), values.max(), color=color, alpha=0.2, lw=0, zorder=0.5, gid=f"range {name}")


def _written(metric: str) -> str:
    """Format of a value."""
    return ".3f" if metric == "zero_error" else ".2f"


def _draw_method(ax: Axes, row: int, name: str, scores: NDArray[np.float64], *, written: str | None) -> None:
    marker, color = _style(name)
    if len(scores) > 1:
        ax.plot(scores, np.full(len(scores), row), ls="", marker=".", ms=4, mec="none", mfc=color, alpha=0.5, zorder=2)
    face = "white" if name in _BASELINES else color
    mean = scores.mean()
    ax.plot(mean, row, ls="", marker=marker, ms=5, mfc=face, mec=color, mew=1.2, zorder=3, gid=f"method {name}")
    if written is not None:
        ax.annotate(
            f"{mean:z{written}}",
            (max(mean, scores.max()), row),
            xytext=(5, 0),
            textcoords="offset points",
            size=TICK_SIZE,
            color=INK,
            va="center",
            path_effects=halo(),
            zorder=4,
        )


def _new_panels(n: int, n_methods: int, figsize: tuple[float, float] | None) -> NDArray[np.object_]:
    width = min(TWO_COLUMNS, _NAMES + 2.4 * n) if figsize is None else figsize[0]
    most = max(1, min(n, int((width - _NAMES) / _PANEL)))
    rows = -(-n // most)
    cols = -(-n // rows)
    height = 0.4 + rows * (_AROUND + _ROW * n_methods)
    figure = new_figure((width, height) if figsize is None else figsize)
    grid = figure.add_gridspec(rows, cols)
    panels = np.empty(n, dtype=object)
    for i in range(n):
        panels[i] = figure.add_subplot(grid[divmod(i, cols)])
    return panels


def _columns(panels: NDArray[np.object_]) -> int:
    return 1 + max(ax.get_subplotspec().colspan.start for ax in panels)


def _handles(here: pd.DataFrame, methods: list[str]) -> list[Line2D]:
    def marker(style: tuple[str, str], label: str, *, filled: bool = True) -> Line2D:
        shape, color = style
        face = color if filled else "white"
        return Line2D([], [], ls="", marker=shape, ms=5, mfc=face, mec=color, mew=1.2, label=label)

    handles = [marker(_MODEL, "dynamic VAE")] if "dynvae" in methods else []
    if set(methods) & set(_BASELINES):
        handles.append(marker(_BASELINE, "baselines", filled=False))
    if set(methods) - set(_BASELINES) - {"dynvae"}:
        handles.append(marker(_OWN, "other methods"))
    competing = here[~here["method"].isin(list(_REFERENCES))]["n_cells"].max()
    for name, (line, color, label) in _REFERENCES.items():
        sizes = here.loc[here["method"] == name, "n_cells"]
        if len(sizes):
            # W2 grows as cells get fewer, so a line from fewer cells has to say so.
            few = f" ({sizes.max()} cells)" if (here["metric"] == "w2").all() and sizes.max() < competing else ""
            handles.append(Line2D([], [], ls=line, lw=1.4, color=color, label=label + few))
    return handles


def _add_legend(panels: NDArray[np.object_], handles: Sequence[Artist], *, own: bool) -> None:
    style = {"frameon": False, "fontsize": TICK_SIZE, "handletextpad": 0.5, "columnspacing": 1.2}
    figure = panels[0].figure
    if own and isinstance(figure, Figure):
        longest = max(len(str(handle.get_label())) for handle in handles)
        ncols = int(np.clip(figure.get_size_inches()[0] / (0.35 + 0.055 * longest), 1, len(handles)))
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols, **style)
    else:
        panels[-1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, **style)
