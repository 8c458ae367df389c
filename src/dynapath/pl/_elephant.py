"""dp.pl.elephant: an elephant with four complex parameters, and a fifth for its eye and trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynapath._elephant import PARAMETERS, outline

from ._colors import SAFE
from ._figure import INK, finish, new_figure

if TYPE_CHECKING:
    from anndata import AnnData

_ASPECT = 0.9


def elephant(
    adata: AnnData | None = None,
    *,
    parameters: Sequence[complex] | None = PARAMETERS,
    swing: float = 0.0,
    color: str | None = None,
    size: float = 9.0,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the elephant of its parameters, upright and with its eye, and points on its outline.

    Parameters
    ----------
    adata
        Points, from :func:`dynapath.datasets.elephant`.
    parameters
        Four complex numbers, and a fifth for eye and trunk; by default those of the publication. None: points only.
    swing
        How far the trunk is raised.
    color
        Of the outline.
    size
        Area of a point (points squared).
    figsize
        Width and height in inches.
    ax
        Draw on this Axes instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    The Axes with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    ValueError : for another number of parameters, or nothing to draw.

    Examples
    --------
    >>> import dynapath as dp
    >>> ax = dp.pl.elephant(show=False)
    """
    if parameters is None and adata is None:
        msg = "There is nothing to draw. Give parameters, points, or both."
        raise ValueError(msg)
    if parameters is not None and len(parameters) not in (4, 5):
        msg = f"An elephant has 4 complex parameters, and a fifth for its eye and trunk; there are {len(parameters)}."
        raise ValueError(msg)
    if ax is None:
        ax = new_figure(figsize or (3.35, 3.35 * _ASPECT)).subplots()
    if adata is not None:
        points = np.asarray(adata.X, dtype=float)
        ax.scatter(*points.T, s=size, color=INK, alpha=0.5, lw=0, zorder=1, gid="points")
    if parameters is not None:
        numbers = [complex(p) for p in parameters]
        five = [*numbers, PARAMETERS[4]][:5]
        curve = outline(np.linspace(0, 2 * np.pi, 1000), five, swing)
        line = color or SAFE[0]
        ax.plot(*curve.T, color=line, lw=1.6, solid_joinstyle="round", zorder=2, gid="outline")
        if len(numbers) == 5:
            eye = numbers[4].imag
            ax.plot(eye, eye, marker="o", ms=5, mfc=line, mec="white", mew=0.6, zorder=3, gid="eye")
    ax.set_aspect("equal")
    ax.axis("off")
    return finish(ax.figure, ax, show=show, return_fig=return_fig)
