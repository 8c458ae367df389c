"""dp.pl.latent_trajectories: latent dimensions over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynapath import get

from ._colors import Palette
from ._figure import (
    LABEL_SIZE,
    Look,
    add_legend,
    check_dims,
    choose_look,
    draw_cells,
    finish,
    legend_handles,
    mean_handles,
    plain_axes,
    read_fit,
)
from ._over_time import (
    cell_times,
    check_jitter,
    check_level,
    draw_line,
    draw_uncertainty,
    given_panels,
    heldout_handles,
    heldout_times,
    jittered,
    label_time,
    mark_heldout,
    new_panels,
    number_ends,
    only_lowest_label_time,
    path_times,
    smallest_gap,
    uncertainty_handle,
)
from ._visit_trajectories import draw_visits

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray


def latent_trajectories(
    adata: AnnData,
    *,
    key: str | None = None,
    color: str | None = None,
    dims: int | Sequence[int] | None = None,
    groups: str | int | Iterable[str | int] | None = None,
    heldout: ArrayLike | None = None,
    truth: str | None = None,
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
        With a fit of :func:`dynapath.tl.fit_dynamic_vae` under `key`, with or without `use_rep`. For a fit of
        :func:`dynapath.stats.fit_latent_dynamics` one line per subject is drawn through the states at its visits, in the
        colours of `color`; groups, bands, jitter and held-out times do not apply, and at most four dimensions are drawn by
        default.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    color
        Column of `obs` that colours the cells, categories or numbers; by default the fitted group. If it is another
        one, lines are dark grey and carry the number of their group.
    dims
        Latent dimensions to draw, counted from 1 as in :func:`dynapath.get.trajectories`; by default all.
    groups
        Fitted groups to draw; cells of the others are light grey. By default all.
    heldout
        Times that the fit has not seen, to be marked. Lines go on to the last of them, dashed after the last snapshot.
    truth
        Slot of `obsm` with the true states of simulated visits, such as `"Z_true"`: drawn dashed, after the affine map that
        brings them closest to the fitted ones. For fits of visits only.
    level
        Probability of the band in which a cell of the group lies, and of the darker band of the mean itself, drawn if the
        fit has a bootstrap or several members.
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
    KeyError : if there is no such fit, column or slot.
    ValueError : for dimensions, groups or times that do not exist, another number of `axes` than panels, or `truth` of
        snapshots.

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
    if get.is_visit_fit(adata, key):
        return draw_visits(
            adata,
            key=key,
            color=color,
            truth=truth,
            dims=dims,
            size=size,
            palette=palette,
            legend=legend,
            figsize=figsize,
            axes=axes,
            show=show,
            return_fig=return_fig,
        )
    if truth is not None:
        msg = "truth is drawn for fits of visits only; compare snapshots with dp.metrics.trajectory_error."
        raise ValueError(msg)
    key = get.cell_slots(adata, key).key
    fit = read_fit(adata, key, groups)
    shown = check_dims(range(1, fit.n_latent + 1) if dims is None else dims, fit.n_latent, key)
    if not shown:
        msg = f"dims is empty. Name dimensions from 1 to {fit.n_latent}, or leave it out to draw all."
        raise ValueError(msg)
    check_level(level)
    check_jitter(jitter)
    times = cell_times(adata, fit)
    held = heldout_times(heldout)
    given = None if axes is None else given_panels(axes, len(shown), f"dims={shown}")
    look = choose_look(adata, fit, color, palette)
    paths = get.trajectories(adata, key, times=path_times(fit, held), level=level)
    paths = paths[paths["group"].isin(fit.groups)]
    gap = smallest_gap(np.concatenate([fit.observed_times, times[np.isfinite(times)], held]))
    x = jittered(times, jitter * gap)

    own = given is None
    panels = new_panels(len(shown), figsize, 3 if len(shown) > 4 else 4) if given is None else given
    banded = False
    for ax, dim in zip(panels, shown, strict=True):
        mark_heldout(ax, held)
        draw_cells(ax, x, fit.z[:, dim - 1], look, size, fit.chosen)
        here = paths[paths["dimension"] == dim]
        banded |= _draw_means(ax, here, look)
        if not look.by_group:
            number_ends(ax, here, "mean", fit, look)
        plain_axes(ax)
        ax.set_ylabel(f"{fit.latent_name} {dim}", size=LABEL_SIZE)
        label_time(ax, fit, held, gap)
    if own:
        only_lowest_label_time(panels)
    if legend:
        handles = [*legend_handles(fit, look), *mean_handles(level)]
        if banded:
            handles.append(uncertainty_handle(level, "the mean"))
        handles += heldout_handles(held)
        add_legend(panels, handles, look, own=own)
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def _draw_means(ax: Axes, paths: pd.DataFrame, look: Look) -> bool:
    """Bands below the cells' ink, lines above it with a white edge; whether the means have bands of their own."""
    banded = False
    for name, path in paths.groupby("group", observed=True):
        color = look.group[str(name)]
        alpha = min(0.16 if look.by_group else 0.1, 0.5 / len(look.group))
        ax.fill_between(path["time"], path["lower"], path["upper"], color=color, alpha=alpha, lw=0, zorder=0.5)
        # Often narrower than the white edge of the line, so it lies on top of it.
        banded |= draw_uncertainty(ax, str(name), path, ("mean_lower", "mean_upper"), color, zorder=3.05)
        draw_line(ax, str(name), path, "mean", color)
    return banded
