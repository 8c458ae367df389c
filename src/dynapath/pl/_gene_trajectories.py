"""dp.pl.gene_trajectories: decoded genes over time, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    plain_axes,
    read_fit,
)
from ._over_time import (
    check_level,
    draw_line,
    draw_observed,
    draw_uncertainty,
    given_panels,
    heldout_handles,
    heldout_times,
    label_time,
    mark_heldout,
    new_panels,
    number_ends,
    observed_handle,
    only_lowest_label_time,
    path_times,
    side_by_side,
    smallest_gap,
    uncertainty_handle,
    wrapped_title,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

# Means of fewer cells say little; their intervals would set the scale of the panel.
_FEWEST_CELLS = 5


def gene_trajectories(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    key: str | None = None,
    groups: str | int | Iterable[str | int] | None = None,
    heldout: ArrayLike | None = None,
    level: float = 0.9,
    palette: Palette | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Genes along the paths of the groups: decoded means as lines, measured means of each snapshot as dots.

    Parameters
    ----------
    adata
        With a fit of counts by :func:`dynapath.tl.fit_dynamic_vae` under `key`, and the counts it was fitted to.
    genes
        Names in `var_names`, one panel each.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    groups
        Fitted groups to draw; by default all.
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
        Width and height in inches. Below 5 inches the legend is put under the panels.
    axes
        Draw on these, one per gene, instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of Axes, one per gene, with `show=False`; the Figure with `return_fig=True`; None once shown. Sets the following
    field:

    `uns["{key}_group_colors"]` : colours of the groups, if there were none and `adata` is not a view.

    Raises
    ------
    KeyError : if there is no such fit, or for unknown genes, with names like theirs.
    ValueError : for a fit with `use_rep`, groups or times that do not exist, or another number of `axes` than genes.

    Notes
    -----
    Lines are :func:`dynapath.get.gene_trajectories`; dots and intervals are :func:`dynapath.get.observed_genes`, those of
    groups side by side, left out where a snapshot has fewer than 5 cells of the group. Lines away from their dots mean that
    the decoder or the dynamics miss that gene. Where groups overlap, a cell counts for each with its probability.

    Examples
    --------
    >>> import dynapath as dp
    >>> adata = dp.datasets.simulate_snapshots("rotating", n_cells=40, n_genes=20)
    >>> dp.tl.fit_dynamic_vae(adata, time_key="time", n_bootstrap=50)  # doctest: +SKIP
    >>> axes = dp.pl.gene_trajectories(adata, ["gene0", "gene3"], show=False)  # doctest: +SKIP
    """
    key = get.cell_slots(adata, key).key
    fit = read_fit(adata, key, groups)
    names = get.gene_names(adata, genes)
    check_level(level)
    held = heldout_times(heldout)
    given = None if axes is None else given_panels(axes, len(names), f"the {len(names)} genes")
    observed = get.observed_genes(adata, names, key, level=level)
    observed = observed[observed["n_cells"] >= _FEWEST_CELLS]
    paths = get.gene_trajectories(adata, names, key, times=path_times(fit, held, 25), level=level)
    paths = paths[paths["group"].isin(fit.groups)]
    look = choose_look(adata, fit, None, palette)
    gap = smallest_gap(np.union1d(fit.observed_times, held))
    aside = side_by_side(fit.groups, gap, np.ptp(fit.observed_times))

    own = given is None
    panels = new_panels(len(names), figsize) if given is None else given
    banded = False
    for ax, gene in zip(panels, names, strict=True):
        mark_heldout(ax, held)
        here, measured = paths[paths["gene"] == gene], observed[observed["gene"] == gene]
        for name in fit.groups:
            path, color = here[here["group"] == name], look.group[name]
            banded |= draw_uncertainty(ax, name, path, ("lower", "upper"), color)
            draw_line(ax, name, path, "mean", color)
            draw_observed(ax, name, measured[measured["group"] == name], "mean", color, aside[name])
        ax.set_ylim(bottom=max(0.0, ax.get_ylim()[0]))
        if len(fit.groups) > MOST_BY_COLOUR:
            number_ends(ax, here, "mean", fit, look)
        plain_axes(ax)
        wrapped_title(ax, gene)
        label_time(ax, fit, held, gap)
    if own:
        only_lowest_label_time(panels)
    per = "size factors" if "size_factor_key" in adata.uns[key]["params"] else "counts"
    for ax in panels:
        if not own or ax.get_subplotspec().colspan.start == 0:
            ax.set_ylabel(f"mean per 10$^4$ {per}", size=LABEL_SIZE)
    if legend:
        handles = [*group_handles(fit, look), Line2D([], [], color=INK, lw=1.6, label="decoded mean")]
        if banded:
            handles.append(uncertainty_handle(level, "the mean"))
        handles += [observed_handle(level), *heldout_handles(held)]
        add_legend(panels, handles, look, own=own)
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)
