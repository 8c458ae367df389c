"""dp.pl.latent_trajectories: latent dimensions over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dynapath import get

from ._colors import Palette
from ._figure import (
    LABEL_SIZE,
    TWO_COLUMNS,
    DrawnFit,
    Look,
    add_legend,
    check_dims,
    choose_look,
    draw_cells,
    finish,
    halo,
    legend_handles,
    mean_handles,
    new_figure,
    number_line,
    plain_axes,
    read_fit,
    spread,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

_HELDOUT: dict[str, Any] = {"color": "0.35", "lw": 1.1, "ls": ":"}
_PANEL_HEIGHT = 2.0
_PANEL_WIDTH = 1.5


def latent_trajectories(
    adata: AnnData,
    *,
    key: str = "dynvae",
    color: str | None = None,
    dims: int | Sequence[int] | None = None,
    groups: str | int | Iterable[str | int] | None = None,
    heldout: ArrayLike | None = None,
    level: float = 0.9,
    jitter: float = 0.2,
    size: float | None = None,
    palette: Palette | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Latent dimensions over time: cells, and the mean and band of each group.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.tl.fit_dynamic_vae` under `key`, with or without `use_rep`.
    key
        `key_added` of the fit.
    color
        Column of `obs` that colours the cells, categories or numbers; by default the fitted group. If it is another
        one, lines are dark grey and carry the number of their group.
    dims
        Latent dimensions to draw, counted from 1 as in :func:`dynapath.get.trajectories`; by default all.
    groups
        Fitted groups to draw; cells of the others are light grey. By default all.
    heldout
        Times that the fit has not seen, to be marked. Lines go on to the last of them, dashed after the last snapshot.
    level
        Probability of the band in which a cell of the group lies.
    jitter
        How far cells are moved along the time axis at most, in units of the smallest gap between times. The same cells
        are always moved alike; 0 puts them where they are.
    size
        Area of a cell's point, in points squared; by default by the number of cells.
    palette
        Colours for this figure: a list in the order of the categories, a mapping from categories, or the name of a
        colour map. By default `uns["{color}_colors"]`, else colours that are safe for colour-blind readers.
    legend
        Whether to add a legend or a colour bar.
    figsize
        Width and height in inches. Below 5 inches the legend is put under the panels.
    axes
        Draw on these, one per dimension, instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of Axes, one per dimension, with `show=False`; the Figure with `return_fig=True`; None once shown. Sets the
    following field:

    `uns["{color}_colors"]` : colours of the categories, if there were none and `adata` is not a view.

    Raises
    ------
    KeyError : if there is no such fit or column.
    ValueError : for dimensions, groups or times that do not exist, or another number of `axes` than panels.

    Notes
    -----
    Filled points are cells whose group is clear; hollow ones are undetermined (`obs["{key}_undetermined"]`).

    Examples
    --------
    >>> import dynapath as dp
    >>> adata = dp.datasets.simulate_snapshots("crossing", n_cells=40, n_genes=20)
    >>> quick = dp.models.Training(n_restarts=2, prior_steps=30, progress=False)
    >>> dp.tl.fit_dynamic_vae(adata, time_key="time", use_rep="Z_true", training=quick)  # doctest: +SKIP
    >>> axes = dp.pl.latent_trajectories(adata, heldout=0.6, show=False)  # doctest: +SKIP
    """
    fit = read_fit(adata, key, groups)
    shown = check_dims(range(1, fit.n_latent + 1) if dims is None else dims, fit.n_latent, key)
    if not shown:
        msg = f"dims is empty. Name dimensions from 1 to {fit.n_latent}, or leave it out to draw all."
        raise ValueError(msg)
    _check_fractions(level, jitter)
    times = _cell_times(adata, fit)
    held = _heldout_times(heldout)
    given = None if axes is None else _one_per_dimension(axes, shown)
    look = choose_look(adata, fit, color, palette)
    paths = _paths(adata, key, fit, held, level)
    gap = _smallest_gap(np.concatenate([fit.observed_times, times[np.isfinite(times)], held]))
    x = times + jitter * gap * np.random.default_rng(0).uniform(-1, 1, len(times))

    own = given is None
    panels = _new_panels(len(shown), figsize) if given is None else given
    for ax, dim in zip(panels, shown, strict=True):
        for time in held:
            ax.axvline(time, **_HELDOUT, zorder=0.8, gid="heldout")
        draw_cells(ax, x, fit.z[:, dim - 1], look, size, fit.chosen)
        here = paths[paths["dimension"] == dim]
        _draw_means(ax, here, look)
        if not look.by_group:
            _number_means(ax, here)
        plain_axes(ax)
        ax.set_ylabel(f"{fit.latent_name} {dim}", size=LABEL_SIZE)
        _label_time(ax, fit, held, gap)
    if own:
        _only_lowest_label_time(panels)
    if legend:
        handles = legend_handles(fit, look) + mean_handles(level)
        if len(held):
            handles.append(Line2D([], [], **_HELDOUT, label="held-out time"))
        add_legend(panels, handles, look, own=own)
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def _check_fractions(level: float, jitter: float) -> None:
    if not 0 < level < 1:
        msg = f"level is a probability between 0 and 1; it is {level!r}."
        raise ValueError(msg)
    if not 0 <= jitter <= 0.5:
        msg = f"jitter must lie between 0 and .5 of the smallest gap between times; it is {jitter!r}."
        raise ValueError(msg)


def _cell_times(adata: AnnData, fit: DrawnFit) -> NDArray[np.float64]:
    if fit.time_key not in adata.obs:
        msg = (
            f"obs has no {fit.time_key!r}, the time that was fitted. Columns: {', '.join(map(str, adata.obs.columns))}."
        )
        raise KeyError(msg)
    column = adata.obs[fit.time_key]
    # Categories may read as numbers: their names, not their codes.
    return pd.to_numeric(column.astype(str), errors="coerce").to_numpy(dtype=float)


def _heldout_times(heldout: ArrayLike | None) -> NDArray[np.float64]:
    if heldout is None:
        return np.empty(0)
    try:
        times = np.atleast_1d(np.asarray(heldout, dtype=float)).ravel()
    except (TypeError, ValueError):
        times = np.array([np.nan])
    if not np.isfinite(times).all():
        msg = f"heldout must be times as numbers, such as [0.5]; it is {heldout!r}."
        raise ValueError(msg)
    return np.unique(times)


def _smallest_gap(times: NDArray[np.float64]) -> float:
    # Rounding must not make two times of one.
    distinct = np.unique(times)
    gaps = np.diff(distinct)
    return float(gaps[gaps > 1e-6 * np.ptp(distinct)].min())


def _paths(adata: AnnData, key: str, fit: DrawnFit, held: NDArray[np.float64], level: float) -> pd.DataFrame:
    """Trajectories of the groups, to the last snapshot or the last held-out time, whichever is later."""
    first, last = fit.observed_times[[0, -1]]
    end = max(last, held.max(initial=last))
    grid = np.linspace(first, last, 50)
    if end > last:
        grid = np.concatenate([grid, np.linspace(last, end, 25)[1:]])
    paths = get.trajectories(adata, key, times=grid, level=level)
    return paths[paths["group"].isin(fit.groups)]


def _draw_means(ax: Axes, paths: pd.DataFrame, look: Look) -> None:
    """Bands below the cells' ink, lines above it with a white edge."""
    for name, path in paths.groupby("group", observed=True):
        color = look.group[str(name)]
        alpha = min(0.16 if look.by_group else 0.1, 0.5 / len(look.group))
        ax.fill_between(path["time"], path["lower"], path["upper"], color=color, alpha=alpha, lw=0, zorder=0.5)
        seen = path[~path["extrapolated"]]
        ax.plot(seen["time"], seen["mean"], color=color, lw=1.6, path_effects=halo(2.8), zorder=3, gid=f"group {name}")
        if path["extrapolated"].any():
            beyond = path.iloc[len(seen) - 1 :]
            gid = f"group {name} extrapolated"
            ax.plot(beyond["time"], beyond["mean"], color=color, lw=1.6, ls=(0, (3, 1.5)), zorder=3, gid=gid)


def _number_means(ax: Axes, paths: pd.DataFrame) -> None:
    """The number of each group where its line ends."""
    ends = paths.groupby("group", observed=True).last()
    low, high = ax.get_ylim()
    # A number is about as high as its type; panels are rarely lower than a dozen of them.
    for name, time, y in zip(ends.index, ends["time"], spread(ends["mean"], 0.085 * (high - low)), strict=True):
        number_line(ax, str(name), (time, y), (6, 0))


def _label_time(ax: Axes, fit: DrawnFit, held: NDArray[np.float64], gap: float) -> None:
    ax.set_xlabel(fit.time_key, size=LABEL_SIZE)
    ticks = np.union1d(fit.observed_times, held)
    labels = [f"{tick:g}" for tick in ticks]
    # Before the layout is known, about four fifths of the width are left.
    panel = 0.8 * ax.get_window_extent().width / ax.figure.dpi
    # The times themselves, as long as their numbers do not run into each other (inches, 7-point type).
    if gap / np.ptp(ticks) * panel > 0.08 + 0.06 * max(map(len, labels)):
        ax.set_xticks(ticks, labels)


def _one_per_dimension(axes: Axes | Sequence[Axes] | NDArray[np.object_], dims: list[int]) -> NDArray[np.object_]:
    """The given Axes as a flat array."""
    given = [axes] if isinstance(axes, Axes) else list(np.asarray(axes, dtype=object).ravel())
    if len(given) != len(dims) or not all(isinstance(ax, Axes) for ax in given):
        msg = f"axes must be {len(dims)} Axes, one for each of dims={dims}; {len(given)} given. Choose others, or dims."
        raise ValueError(msg)
    panels = np.empty(len(given), dtype=object)
    panels[:] = given
    return panels


def _new_panels(n: int, figsize: tuple[float, float] | None) -> NDArray[np.object_]:
    """As many side by side as are readable, the rows about equally full."""
    width = min(TWO_COLUMNS, 1.4 + 2.6 * n) if figsize is None else figsize[0]
    most = max(1, min(3 if n > 4 else 4, int(width / _PANEL_WIDTH)))
    rows = -(-n // most)
    cols = -(-n // rows)
    figure = new_figure((width, 0.3 + _PANEL_HEIGHT * rows) if figsize is None else figsize)
    grid = figure.add_gridspec(rows, cols)
    panels = np.empty(n, dtype=object)
    for i in range(n):
        panels[i] = figure.add_subplot(grid[divmod(i, cols)])
    return panels


def _only_lowest_label_time(panels: NDArray[np.object_]) -> None:
    lowest = {ax.get_subplotspec().colspan.start: ax for ax in panels}
    for ax in panels:
        if ax is not lowest[ax.get_subplotspec().colspan.start]:
            ax.set_xlabel("")
