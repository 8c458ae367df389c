"""dp.pl.group_proportions: how many cells the groups have over time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dynapath import get

from ._colors import Palette
from ._figure import (
    INK,
    LABEL_SIZE,
    MOST_BY_COLOUR,
    add_legend,
    choose_look,
    finish,
    group_handles,
    new_figure,
    plain_axes,
    read_fit,
)
from ._over_time import (
    check_level,
    draw_line,
    draw_observed,
    draw_uncertainty,
    heldout_handles,
    heldout_times,
    label_time,
    mark_heldout,
    number_ends,
    observed_handle,
    path_times,
    side_by_side,
    smallest_gap,
    uncertainty_handle,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike


def group_proportions(
    adata: AnnData,
    *,
    key: str | None = None,
    groups: str | int | Iterable[str | int] | None = None,
    heldout: ArrayLike | None = None,
    level: float = 0.9,
    palette: Palette | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Proportions of the groups over time: fitted as lines, observed in each snapshot as dots.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.tl.fit_dynamic_vae` under `key`, with or without `use_rep`.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    groups
        Fitted groups to draw; by default all. Proportions stay those among all cells.
    heldout
        Times that the fit has not seen, to be marked. Lines go on to the last of them, dashed after the last snapshot.
    level
        Probability of the intervals of the dots, and of the band of a line, drawn if the fit has a bootstrap or several
        members.
    palette
        Colours for this figure, as in :func:`dynapath.pl.latent_trajectories`.
    legend
        Whether to add a legend.
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

    `uns["{key}_group_colors"]` : colours of the groups, if there were none and `adata` is not a view.

    Raises
    ------
    KeyError : if there is no such fit.
    ValueError : for groups or times that do not exist.

    Notes
    -----
    Lines are pi_k(t) of :func:`dynapath.get.trajectories`, dots and intervals :func:`dynapath.get.observed_proportions`.
    Dots of groups are drawn side by side.
    The intervals are those of sampling cells; donors or libraries of one time vary more. Where groups overlap, a cell's
    probabilities already contain the fitted proportions: dots on the line are no proof there.

    Examples
    --------
    >>> import dynapath as dp
    >>> adata = dp.datasets.simulate_snapshots("separated", n_cells=40, n_genes=20, growth=(0, 1.5, -1.5))
    >>> quick = dp.models.Training(n_restarts=2, prior_steps=30, progress=False)
    >>> dp.tl.fit_dynamic_vae(adata, time_key="time", use_rep="Z_true", training=quick)  # doctest: +SKIP
    >>> ax = dp.pl.group_proportions(adata, show=False)  # doctest: +SKIP
    """
    key = get.cell_slots(adata, key).key
    fit = read_fit(adata, key, groups)
    check_level(level)
    held = heldout_times(heldout)
    if ax is not None and not isinstance(ax, Axes):
        msg = f"ax must be one Axes; it is {type(ax).__name__}."
        raise ValueError(msg)
    observed = get.observed_proportions(adata, key, level=level)
    look = choose_look(adata, fit, None, palette)
    table = get.trajectories(adata, key, times=path_times(fit, held), level=level)
    # Every dimension carries the same proportions.
    paths = table[table["dimension"] == 1]

    own = ax is None
    if ax is None:
        ax = new_figure((4.6, 2.8) if figsize is None else figsize).add_subplot()
    mark_heldout(ax, held)
    gap = smallest_gap(np.union1d(fit.observed_times, held))
    aside = side_by_side(fit.groups, gap, np.ptp(fit.observed_times))
    banded = False
    for name in fit.groups:
        path, color = paths[paths["group"] == name], look.group[name]
        banded |= draw_uncertainty(ax, name, path, ("proportion_lower", "proportion_upper"), color)
        draw_line(ax, name, path, "proportion", color)
        draw_observed(ax, name, observed[observed["group"] == name], "proportion", color, aside[name])
    ax.set_ylim(0, min(1.02, 1.05 * ax.get_ylim()[1]))
    if len(fit.groups) > MOST_BY_COLOUR:
        number_ends(ax, paths[paths["group"].isin(fit.groups)], "proportion", fit, look)
    plain_axes(ax)
    ax.set_ylabel("proportion of cells", size=LABEL_SIZE)
    label_time(ax, fit, held, gap)
    if legend:
        handles = [*group_handles(fit, look), Line2D([], [], color=INK, lw=1.6, label="fitted")]
        if banded:
            handles.append(uncertainty_handle(level, "the fit"))
        handles += [observed_handle(level), *heldout_handles(held)]
        add_legend([ax], handles, look, own=own)
    return finish(ax.figure, ax, show=show, return_fig=return_fig)
