"""dp.pl.loadings: the genes that make up each factor of a linear decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dynapath import get

from ._colors import SAFE
from ._figure import LABEL_SIZE, TICK_SIZE, TWO_COLUMNS, check_dims, finish, new_figure, plain_axes
from ._over_time import given_panels, only_lowest_label_time

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

_PANEL_WIDTH = 1.6
_LINE = 0.15


def loadings(
    adata: AnnData,
    *,
    dims: int | Sequence[int] | None = None,
    n_genes: int = 10,
    key: str | None = None,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Genes with the largest loadings of each latent dimension, of a fit with a linear decoder.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.tl.fit_vae` with `decoder="linear"` under `key`.
    dims
        Latent dimensions to draw, counted from 1; all by default.
    n_genes
        Genes per dimension, those with the largest absolute loadings.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    figsize
        Width and height in inches. Panels are put side by side as far as the width has room for them.
    axes
        Draw on these, one per dimension, instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of Axes, one per dimension, with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : without such a fit, or if its decoder is not linear.
    ValueError : for dimensions that the fit does not have, or another number of `axes` than dimensions.

    Notes
    -----
    Signs of a dimension may be swapped as a whole, and dimensions may be turned into each other: only the space that they span is
    estimated, and the prior N(0, I) does not say which axes to take.

    Examples
    --------
    >>> import dynapath as dp
    >>> adata = dp.datasets.simulate_snapshots("rotating", n_cells=60, n_genes=60)
    >>> dp.tl.fit_vae(adata, n_latent=2, decoder="linear", max_epochs=20)  # doctest: +SKIP
    >>> axes = dp.pl.loadings(adata, show=False)  # doctest: +SKIP
    """
    key = get.vae_slots(adata, key).key
    table = get.loadings(adata, key)
    if n_genes < 1:
        msg = f"n_genes must be at least 1; it is {n_genes}."
        raise ValueError(msg)
    numbers = check_dims(range(1, table.shape[1] + 1) if dims is None else dims, table.shape[1], key)
    own = axes is None
    panels = (
        _new_panels(len(numbers), min(n_genes, len(table)), figsize)
        if own
        else given_panels(axes, len(numbers), "dims")
    )
    for ax, number in zip(panels, numbers, strict=True):
        _draw(ax, table.iloc[:, number - 1], n_genes)
        ax.set_title(f"latent dimension {number}", size=LABEL_SIZE, loc="left")
        ax.set_xlabel("loading", size=LABEL_SIZE)
    if own:
        only_lowest_label_time(panels)
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def _draw(ax: Axes, column: pd.Series, n_genes: int) -> None:
    chosen = column.iloc[np.argsort(-column.abs().to_numpy(), kind="stable")[:n_genes]].sort_values(kind="stable")
    place, value = np.arange(len(chosen)), chosen.to_numpy()
    colors = [SAFE[0] if v >= 0 else SAFE[1] for v in value]
    ax.hlines(place, 0, value, colors=colors, lw=1.4, zorder=1, gid="loadings")
    ax.scatter(value, place, s=14, c=colors, zorder=2, gid="genes")
    ax.axvline(0, color="0.6", lw=0.8, zorder=0)
    plain_axes(ax)
    ax.set_yticks(place, [str(gene) for gene in chosen.index], size=TICK_SIZE)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.set_ylim(-0.6, len(chosen) - 0.4)
    ax.margins(x=0.1)


def _new_panels(n: int, n_genes: int, figsize: tuple[float, float] | None) -> NDArray[np.object_]:
    """Axes side by side, as many as fit into the width."""
    width = min(TWO_COLUMNS, n * _PANEL_WIDTH) if figsize is None else figsize[0]
    n_columns = int(np.clip(width / _PANEL_WIDTH + 0.1, 1, n))
    n_rows = -(-n // n_columns)
    # The last row is filled.
    n_columns = -(-n // n_rows)
    height = n_rows * (0.6 + _LINE * n_genes) if figsize is None else figsize[1]
    grid = new_figure((width, height)).subplots(n_rows, n_columns, squeeze=False).ravel()
    for ax in grid[n:]:
        ax.remove()
    return grid[:n]
