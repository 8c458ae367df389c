"""dp.pl.latent_phase: two latent dimensions against each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dynapath import get

from ._colors import Palette
from ._figure import (
    INK,
    LABEL_SIZE,
    DrawnFit,
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
)
from ._velocity_field import draw_field, field_handle

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def latent_phase(
    adata: AnnData,
    *,
    key: str | None = None,
    dims: Sequence[int] = (1, 2),
    color: str | None = None,
    groups: str | int | Iterable[str | int] | None = None,
    arrows: bool = True,
    size: float | None = None,
    palette: Palette | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Two latent dimensions: cells, the path of each group, and where cells are heading.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.tl.fit_dynamic_vae` under `key`, with or without `use_rep`.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    dims
        The two latent dimensions, counted from 1 as in :func:`dynapath.get.trajectories`: horizontal, vertical.
    color
        Column of `obs` that colours the cells, categories or numbers such as the time; by default the fitted group. If
        it is another one, paths are dark grey and carry the number of their group.
    groups
        Fitted groups to draw; cells of the others are light grey. By default all.
    arrows
        Whether to draw the field of velocities: means of `obsm["{key}_velocity"]` over neighbouring cells of a group.
    size
        Area of a cell's point, in points squared; by default by the number of cells.
    palette
        Colours for this figure, as in :func:`dynapath.pl.latent_trajectories`.
    legend
        Whether to add a legend or a colour bar.
    figsize
        Width and height in inches. Below 5 inches the legend is put under the panel.
    ax
        Draw on this instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    The Axes with `show=False`; the Figure with `return_fig=True`; None once shown. Sets the following field:

    `uns["{color}_colors"]` : colours of the categories, if there were none and `adata` is not a view.

    Raises
    ------
    KeyError : if there is no such fit or column.
    ValueError : for a fit with one latent dimension, or dimensions or groups that do not exist.

    Notes
    -----
    White dots on a path are the observed times, its arrow heads point forwards in time. Arrows of the field share one
    scale, by which nearly all fit into one of 14 bins; groups are averaged apart, as crossing ones would cancel out.

    Examples
    --------
    >>> import dynapath as dp
    >>> adata = dp.datasets.simulate_snapshots("rotating", n_cells=40, n_genes=20)
    >>> quick = dp.models.Training(n_restarts=2, prior_steps=30, progress=False)
    >>> dp.tl.fit_dynamic_vae(adata, time_key="time", use_rep="Z_true", training=quick)  # doctest: +SKIP
    >>> ax = dp.pl.latent_phase(adata, color="time", show=False)  # doctest: +SKIP
    """
    key = get.cell_slots(adata, key).key
    fit = read_fit(adata, key, groups)
    if fit.n_latent < 2:
        msg = f"The fit {key!r} has one latent dimension, a phase plot needs two. Use dp.pl.latent_trajectories."
        raise ValueError(msg)
    shown = check_dims(dims, fit.n_latent, key)
    if len(shown) != 2 or shown[0] == shown[1]:
        msg = f"dims must be two different dimensions from 1 to {fit.n_latent}; it is {dims!r}."
        raise ValueError(msg)
    if ax is not None and not isinstance(ax, Axes):
        msg = f"ax must be one Axes; it is {type(ax).__name__}."
        raise ValueError(msg)
    look = choose_look(adata, fit, color, palette)
    own = ax is None
    if ax is None:
        ax = new_figure((4.6, 3.4) if figsize is None else figsize).add_subplot()
    columns = [dim - 1 for dim in shown]
    z = fit.z[:, columns]

    draw_cells(ax, z[:, 0], z[:, 1], look, size, fit.chosen)
    if arrows:
        draw_field(ax, z, fit.velocity[:, columns], fit, look)
    path = _means(adata, key, fit, shown, np.linspace(fit.observed_times[0], fit.observed_times[-1], 201))
    stops = _means(adata, key, fit, shown, fit.observed_times)
    for name in fit.groups:
        _draw_path(ax, name, path.loc[name], stops.loc[name], look.group[name])
    if not look.by_group:
        for name in fit.groups:
            _number_path(ax, name, path.loc[name].to_numpy())
    plain_axes(ax)
    ax.set_xlabel(f"{fit.latent_name} {shown[0]}", size=LABEL_SIZE)
    ax.set_ylabel(f"{fit.latent_name} {shown[1]}", size=LABEL_SIZE)
    if legend:
        stop = Line2D([], [], ls="", marker="o", ms=4, mfc="white", mec=INK, mew=1.2, label="observed times")
        handles = [*legend_handles(fit, look), *mean_handles(), stop]
        if arrows:
            handles.append(field_handle())
        add_legend([ax], handles, look, own=own)
    return finish(ax.figure, ax, show=show, return_fig=return_fig)


def _means(adata: AnnData, key: str, fit: DrawnFit, dims: list[int], times: NDArray[np.float64]) -> pd.DataFrame:
    """Group means, one row per group and time, one column per dimension in the order of `dims`."""
    table = get.trajectories(adata, key, times=times)
    return table.pivot(index=["group", "time"], columns="dimension", values="mean")[dims]


def _draw_path(ax: Axes, name: str, path: pd.DataFrame, stops: pd.DataFrame, color: str) -> None:
    at, points = path.index.to_numpy(), path.to_numpy()
    ax.plot(*points.T, color=color, lw=1.6, path_effects=halo(2.8), zorder=3, gid=f"path {name}")
    ax.plot(*stops.to_numpy().T, ls="", marker="o", ms=4, mfc="white", mec=color, mew=1.2, zorder=3.2)
    scale = np.ptp(np.concatenate([ax.get_xlim(), ax.get_ylim()]))
    for start, end in zip(stops.index[:-1], stops.index[1:], strict=True):
        middle = np.searchsorted(at, (start + end) / 2)
        tail, head = points[max(middle - 2, 0)], points[min(middle + 2, len(points) - 1)]
        # A group at rest points nowhere.
        if np.linalg.norm(head - tail) > 1e-4 * scale:
            style = {
                "arrowstyle": "-|>",
                "color": color,
                "ec": "white",
                "lw": 0.6,
                "mutation_scale": 13,
                "shrinkA": 0,
                "shrinkB": 0,
            }
            ax.annotate("", xy=head, xytext=tail, arrowprops=style, zorder=3.1)


def _number_path(ax: Axes, name: str, path: NDArray[np.float64]) -> None:
    """The number of a group, ahead of the end of its path."""
    before, end = ax.transData.transform(path[[-5, -1]])
    length = np.linalg.norm(end - before)
    ahead = 7 * (end - before) / length if length > 0 else np.array([7.0, 0.0])
    number_line(ax, name, path[-1], ahead)
