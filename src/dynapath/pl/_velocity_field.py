"""Arrows on a grid: mean velocity of the cells of a bin, group by group."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ._figure import INK, DrawnFit, Look

_BINS = 14
_FEWEST_CELLS = 3
_DARKER = 0.65


def draw_field(ax: Axes, at: NDArray[np.float64], velocity: NDArray[np.float64], fit: DrawnFit, look: Look) -> None:
    """Mean velocity per bin and group, where the cells of the bin are on average; groups apart, lest they cancel out.

    Parameters
    ----------
    at, velocity
        Of each cell (cell, 2), as drawn.
    """
    low, high = at.min(0), at.max(0)
    width = np.where(high > low, high - low, 1) / _BINS
    cells = pd.DataFrame(np.column_stack([at, velocity]), columns=["x", "y", "u", "v"])
    cells["group"] = fit.group
    cells[["i", "j"]] = np.minimum((at - low) / width, _BINS - 1).astype(int)
    bins = cells[fit.chosen].groupby(["group", "i", "j"])
    arrows = bins.mean()[bins.size() >= _FEWEST_CELLS].reset_index()
    if arrows.empty:
        return
    # One factor for both directions, so that arrows keep their angle in the data; a few may be longer than a bin.
    lengths = (arrows[["u", "v"]].abs().to_numpy() / width).max(1)
    if lengths.max() == 0:
        return
    scale = np.quantile(lengths[lengths > 0], 0.95)
    ax.quiver(
        arrows["x"],
        arrows["y"],
        arrows["u"],
        arrows["v"],
        # Darker than the cells, and edged in white, to be seen on top of them.
        color=[tuple(_DARKER * np.array(to_rgb(look.group[name]))) for name in arrows["group"]],
        edgecolor="white",
        linewidth=0.4,
        angles="xy",
        scale_units="xy",
        scale=scale,
        units="inches",
        width=0.018,
        headwidth=4,
        headlength=4.5,
        headaxislength=4,
        zorder=2,
        gid="velocity",
    )


def field_handle() -> Line2D:
    """What the arrows stand for."""
    return Line2D([], [], ls="", marker=r"$\rightarrow$", ms=9, mew=0.2, color=INK, label="velocity")
