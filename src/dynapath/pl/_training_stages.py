"""dp.pl.training_stages: what the model makes of the cells with no, some and complete training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import norm

from dynapath import get

from ._colors import Palette
from ._figure import (
    INK,
    LABEL_SIZE,
    TWO_COLUMNS,
    DrawnFit,
    Look,
    add_legend,
    check_dims,
    choose_look,
    default_size,
    draw_cells,
    finish,
    legend_handles,
    mean_handles,
    new_figure,
    plain_axes,
    read_fit,
)
from ._over_time import (
    cell_times,
    check_jitter,
    check_level,
    draw_line,
    given_panels,
    jittered,
    label_time,
    path_times,
    smallest_gap,
    wrapped_title,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from dynapath.models import Stage

_TITLES = {"untrained": "no training", "static": "static phase", "joint": "complete training"}
# Before there are groups.
_ALL = "all"
_PANEL_HEIGHT = 1.35


def training_stages(
    adata: AnnData,
    *,
    key: str | None = None,
    color: str | None = None,
    dims: int | Sequence[int] | None = None,
    groups: str | int | Iterable[str | int] | None = None,
    level: float = 0.9,
    jitter: float = 0.2,
    size: float | None = None,
    palette: Palette | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Encoded cells above what the model predicts, with no, some and complete training.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.tl.fit_dynamic_vae` under `key`, made with `Training(keep_stages=True)`.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    color
        Column of `obs` that colours the encoded cells; by default the group of the finished fit, at all stages. If it is
        another one, what the model predicts is dark grey.
    dims
        Latent dimensions to draw, counted from 1, two rows each; by default the first two.
    groups
        Fitted groups to draw; encoded cells of the others are light grey. By default all.
    level
        Probability of the band in which a cell of the group lies.
    jitter
        How far cells are moved along the time axis at most, in units of the smallest gap between times.
    size
        Area of a cell's point, in points squared; by default by the number of cells.
    palette
        Colours for this figure, as in :func:`dynapath.pl.latent_trajectories`.
    legend
        Whether to add a legend or a colour bar.
    figsize
        Width and height in inches. Below 5 inches the legend is put under the panels.
    axes
        Draw on these instead of on a new figure: rows of the figure one after another.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of Axes (two rows per dimension, one column per stage) with `show=False`; the Figure with `return_fig=True`;
    None once shown. Sets the following field:

    `uns["{color}_colors"]` : colours of the categories, if there were none and `adata` is not a view.

    Raises
    ------
    KeyError : if there is no such fit or column, or no stages were kept.
    ValueError : for dimensions or groups that do not exist, or another number of `axes` than panels.

    Notes
    -----
    Columns are the stages of :func:`dynapath.get.stages`: before training, when the model is a standard normal; after the
    static phase, with groups fitted to its latent space; and the fit. Each column has a latent space of its own, so what
    changes is the order of the cells, not their place. Predicted cells are drawn from the model, as many as were observed at
    each time. Filled points are cells whose group is clear in the finished fit; hollow ones are undetermined.

    Examples
    --------
    >>> import dynapath as dp
    >>> adata = dp.datasets.simulate_snapshots("rotating", n_cells=60, n_genes=60)
    >>> dp.tl.fit_dynamic_vae(adata, time_key="time", training=dp.models.Training(keep_stages=True))  # doctest: +SKIP
    >>> axes = dp.pl.training_stages(adata, show=False)  # doctest: +SKIP
    """
    key = get.cell_slots(adata, key).key
    fit = read_fit(adata, key, groups)
    shown = check_dims(range(1, min(2, fit.n_latent) + 1) if dims is None else dims, fit.n_latent, key)
    if not shown:
        msg = f"dims is empty. Name dimensions from 1 to {fit.n_latent}, or leave it out to draw the first two."
        raise ValueError(msg)
    check_level(level)
    check_jitter(jitter)
    stages = get.stages(adata, key)
    times = cell_times(adata, fit)
    shape = (2 * len(shown), len(stages))
    what = f"{len(stages)} stages in two rows for each of dims={shown}"
    given = None if axes is None else given_panels(axes, shape[0] * shape[1], what)
    look = choose_look(adata, fit, color, palette)
    size = default_size(len(times)) if size is None else size
    gap = smallest_gap(np.concatenate([fit.observed_times, times[np.isfinite(times)]]))

    own = given is None
    panels = _new_grid(shape, figsize) if given is None else given.reshape(shape)
    for column, stage in zip(panels.T, stages, strict=True):
        wrapped_title(column[0], f"{_TITLES[stage.name]}\n{stage.epoch} epochs")
        paths = _paths(stage, fit, level)
        predicted = _predicted(stage, fit, times[np.isfinite(times)])
        for (above, below), dim in zip(column.reshape(-1, 2), shown, strict=True):
            draw_cells(above, jittered(times, jitter * gap), stage.z[:, dim - 1], look, size, fit.chosen)
            _draw_predicted(below, predicted, dim, jitter * gap, look, size)
            _draw_paths(below, paths[paths["dimension"] == dim], look)
    for row, rows in enumerate(panels):
        _share_scale(panels[2 * (row // 2) : 2 * (row // 2) + 2].ravel())
        for ax in rows:
            plain_axes(ax)
            label_time(ax, fit, np.empty(0), gap)
            if row < len(panels) - 1:
                ax.set_xlabel("")
                ax.tick_params(labelbottom=False)
            if ax is not rows[0]:
                ax.tick_params(labelleft=False)
        rows[0].set_ylabel(f"{('encoded', 'predicted')[row % 2]}\ndimension {shown[row // 2]}", size=LABEL_SIZE)
    if legend:
        handles = legend_handles(fit, look)
        if not look.by_group or stages[0].dynamics is None:
            label = "standard normal" if look.by_group else "predicted"
            handles.append(Line2D([], [], ls="", marker="o", ms=4, mfc=INK, mew=0, label=label))
        add_legend(panels.ravel(), [*handles, *mean_handles(level)], look, own=own)
    return finish(panels[0, 0].figure, panels, show=show, return_fig=return_fig)


def _paths(stage: Stage, fit: DrawnFit, level: float) -> pd.DataFrame:
    """Means and bands of the groups, in the columns of `get.trajectories`; of the standard normal where there are none."""
    times = path_times(fit, np.empty(0))
    if stage.dynamics is None:
        mean, sd = np.zeros((1, len(times), fit.n_latent)), np.ones((1, len(times), fit.n_latent))
    else:
        path = stage.dynamics.trajectories(times)
        mean, sd = path.mean, np.sqrt(np.diagonal(path.cov, axis1=-2, axis2=-1))
    group, time, dimension = (axis.ravel() for axis in np.indices(mean.shape))
    mean, half = mean.ravel(), norm.ppf((1 + level) / 2) * sd.ravel()
    names = _ALL if stage.dynamics is None else np.array(fit.all_groups)[group]
    table = pd.DataFrame({"group": names, "time": times[time], "dimension": dimension + 1, "mean": mean})
    table = table.assign(lower=mean - half, upper=mean + half, extrapolated=False)
    return table[table["group"].isin([*fit.groups, _ALL])]


def _predicted(stage: Stage, fit: DrawnFit, times: NDArray[np.float64]) -> pd.DataFrame:
    """As many cells drawn from the model at each time as were observed: `time`, `group`, and a column per dimension."""
    distinct, counts = np.unique(times, return_counts=True)
    n, d = counts.max(), stage.z.shape[1]
    if stage.dynamics is None:
        z, group = np.random.default_rng(0).normal(size=(len(distinct), n, d)), np.full((len(distinct), n), _ALL)
    else:
        z, group = stage.dynamics.sample(distinct, int(n), random_state=0)
        group = np.array(fit.all_groups)[group]
    tables = [
        pd.DataFrame(z[t, :count], columns=range(1, d + 1)).assign(time=distinct[t], group=group[t, :count])
        for t, count in enumerate(counts)
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[table["group"].isin([*fit.groups, _ALL])]


def _draw_predicted(ax: Axes, cells: pd.DataFrame, dim: int, width: float, look: Look, size: float) -> None:
    """Predicted cells, mixed so that no group lies on top."""
    x = jittered(cells["time"].to_numpy(), width)
    order = np.random.default_rng(0).permutation(len(cells))
    color = np.array([look.group.get(name, INK) for name in cells["group"]], dtype=object)
    ax.scatter(
        x[order],
        cells[dim].to_numpy()[order],
        s=size,
        c=list(color[order]),
        alpha=0.6,
        linewidths=0,
        rasterized=len(order) > 2000,
        zorder=1,
        gid="predicted",
    )


def _draw_paths(ax: Axes, paths: pd.DataFrame, look: Look) -> None:
    """Lines and bands of groups, or of what stands for all of them."""
    for name in paths["group"].unique():
        path = paths[paths["group"] == name]
        color = look.group.get(name, INK)
        ax.fill_between(path["time"], path["lower"], path["upper"], color=color, alpha=0.14, lw=0, zorder=0.5)
        draw_line(ax, name, path, "mean", color)


def _share_scale(axes: NDArray[np.object_]) -> None:
    """One scale for the panels of a dimension."""
    low, high = zip(*(ax.get_ylim() for ax in axes), strict=True)
    for ax in axes:
        ax.set_ylim(min(low), max(high))


def _new_grid(shape: tuple[int, int], figsize: tuple[float, float] | None) -> NDArray[np.object_]:
    rows, cols = shape
    size = (TWO_COLUMNS, 0.6 + _PANEL_HEIGHT * rows) if figsize is None else figsize
    return new_figure(size).subplots(rows, cols, squeeze=False)
