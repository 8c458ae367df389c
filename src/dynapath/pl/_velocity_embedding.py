"""dp.pl.velocity_embedding: where the cells of a UMAP, or of another embedding, are heading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynapath import get

from ._colors import Palette
from ._figure import (
    LABEL_SIZE,
    add_legend,
    choose_look,
    draw_cells,
    finish,
    legend_handles,
    new_figure,
    plain_axes,
    read_fit,
)
from ._velocity_field import draw_field, field_handle

if TYPE_CHECKING:
    from anndata import AnnData

_WRITTEN = {"umap": "UMAP ", "tsne": "t-SNE ", "pca": "PC ", "diffmap": "DC "}


def velocity_embedding(
    adata: AnnData,
    *,
    basis: str = "umap",
    key: str | None = None,
    dims: Sequence[int] = (1, 2),
    color: str | None = None,
    groups: str | int | Iterable[str | int] | None = None,
    size: float | None = None,
    palette: Palette | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Cells in an embedding, and arrows where they are heading.

    Parameters
    ----------
    adata
        With a fit under `key`, and arrows of :func:`dynapath.tl.embed_velocity` for this basis.
    basis
        Name of the embedding: `"umap"` for `obsm["X_umap"]`.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    dims
        The two dimensions of the embedding, counted from 1: horizontal, vertical.
    color
        Column of `obs` that colours the cells, categories or numbers such as the time; by default the fitted group. If
        it is another one, arrows are dark grey.
    groups
        Fitted groups to draw; cells of the others are light grey. By default all.
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
    KeyError : if there is no such fit, embedding or column, or no arrows for the embedding.
    ValueError : for dimensions or groups that do not exist.

    Notes
    -----
    Arrows are means over the cells of one group in one of 14 by 14 bins, if there are at least three, and share one
    scale, by which nearly all fit into a bin. Lengths compare within a cloud; an embedding such as UMAP has no one scale.

    Examples
    --------
    >>> import dynapath as dp
    >>> adata = dp.datasets.simulate_snapshots("branching", n_cells=40, n_genes=20)
    >>> quick = dp.models.Training(n_restarts=2, prior_steps=30, progress=False)
    >>> dp.tl.fit_dynamic_vae(adata, time_key="time", use_rep="Z_true", training=quick)  # doctest: +SKIP
    >>> dp.tl.embed_velocity(adata, basis="umap")  # doctest: +SKIP
    >>> ax = dp.pl.velocity_embedding(adata, basis="umap", color="time", show=False)  # doctest: +SKIP
    """
    key = get.cell_slots(adata, key).key
    fit = read_fit(adata, key, groups)
    name, embedding, arrows = get.embedded_velocity(adata, basis, key)
    columns = _columns(dims, name, embedding.shape[1])
    if ax is not None and not isinstance(ax, Axes):
        msg = f"ax must be one Axes; it is {type(ax).__name__}."
        raise ValueError(msg)
    look = choose_look(adata, fit, color, palette)
    own = ax is None
    if ax is None:
        ax = new_figure((4.6, 3.4) if figsize is None else figsize).add_subplot()
    at = embedding[:, columns]
    draw_cells(ax, at[:, 0], at[:, 1], look, size, fit.chosen)
    draw_field(ax, at, arrows[:, columns], fit, look)
    plain_axes(ax)
    # Coordinates of an embedding mean nothing in themselves, but both axes have one unit.
    ax.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    ax.set_xlabel(f"{_WRITTEN.get(name, f'{name} ')}{dims[0]}", size=LABEL_SIZE)
    ax.set_ylabel(f"{_WRITTEN.get(name, f'{name} ')}{dims[1]}", size=LABEL_SIZE)
    if legend:
        add_legend([ax], [*legend_handles(fit, look), field_handle()], look, own=own)
    return finish(ax.figure, ax, show=show, return_fig=return_fig)


def _columns(dims: Sequence[int], basis: str, n_dims: int) -> list[int]:
    asked = list(dims)
    numbers = [dim for dim in asked if isinstance(dim, int | np.integer) and 1 <= dim <= n_dims]
    if len(asked) != 2 or len(numbers) != 2 or asked[0] == asked[1]:
        msg = f"dims must be two different dimensions of {basis!r}, from 1 to {n_dims}; it is {dims!r}."
        raise ValueError(msg)
    return [int(dim) - 1 for dim in numbers]
