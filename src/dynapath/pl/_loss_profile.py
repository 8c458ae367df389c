"""dp.pl.loss_profile: how well units know a coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ._colors import SAFE
from ._days import legend_below
from ._figure import LABEL_SIZE, TICK_SIZE, finish, plain_axes
from ._over_time import given_panels, new_panels

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COLUMNS = ("unit", "coefficient", "value", "loss", "threshold")


def loss_profile(
    table: pd.DataFrame,
    *,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Loss of units over one coefficient, with the values that the reports do not exclude.

    Parameters
    ----------
    table
        From :func:`dynapath.stats.profile_loss`, or from `profile` of what :func:`dynapath.stats.estimate` returned. Tables
        of several coefficients may be put together with :func:`pandas.concat`.
    legend
        Whether to add a legend, below the panels.
    figsize
        Width and height in inches. Panels are put side by side as far as the width has room for them.
    axes
        Draw on these, one per unit and coefficient, instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of Axes, one per unit and coefficient, with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : for a table without the columns of :func:`dynapath.stats.profile_loss`.
    ValueError : for an empty table, or another number of `axes` than panels.

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=5)
    >>> table = dp.stats.profile_loss(panel, units="0001", covariates="incidence")  # doctest: +SKIP
    >>> axes = dp.pl.loss_profile(table, show=False)  # doctest: +SKIP
    """
    missing = [column for column in _COLUMNS if column not in table]
    if missing:
        msg = f"table has no column {missing[0]!r}. Give what dp.stats.profile_loss returned."
        raise KeyError(msg)
    if table.empty:
        msg = "table is empty: no unit has enough reports for a profile."
        raise ValueError(msg)
    profiles = list(table.groupby(["unit", "coefficient"], sort=False, observed=True))
    own = axes is None
    if own:
        panels = new_panels(len(profiles), figsize)
    else:
        panels = given_panels(axes, len(profiles), "the units and coefficients")
    for ax, ((unit, coefficient), profile) in zip(panels, profiles, strict=True):
        _draw(ax, profile.sort_values("value"))
        ax.set_title(str(unit), size=LABEL_SIZE, loc="left")
        ax.set_xlabel(str(coefficient), size=LABEL_SIZE)
        if not own or ax.get_subplotspec().colspan.start == 0:
            ax.set_ylabel(str(table.attrs.get("loss", "mean squared error")), size=LABEL_SIZE)
        plain_axes(ax)
    if legend:
        handles = [
            Line2D([], [], color=SAFE[0], lw=1.4, label="loss, other coefficients at their best"),
            Line2D([], [], ls="", marker="o", ms=4, color=SAFE[0], label="smallest"),
            Patch(facecolor=SAFE[0], alpha=0.18, lw=0, label="not excluded by the reports"),
        ]
        if own:
            legend_below(panels[0].figure, handles)
        else:
            panels[-1].legend(
                handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=TICK_SIZE
            )
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def _draw(ax: Axes, profile: pd.DataFrame) -> None:
    value, loss = profile["value"].to_numpy(), profile["loss"].to_numpy()
    threshold = float(profile["threshold"].iloc[0])
    best = int(np.argmin(loss))
    ax.axhline(threshold, color="0.6", lw=0.8, ls=(0, (3, 2)), zorder=1, gid="threshold")
    ax.fill_between(value, 0, 1, where=loss <= threshold, color=SAFE[0], alpha=0.18, lw=0, zorder=0.5,
                    transform=ax.get_xaxis_transform(), gid="not excluded")  # fmt: skip
    ax.plot(value, loss, color=SAFE[0], lw=1.4, zorder=2, gid="loss")
    ax.plot(value[best], loss[best], marker="o", ms=4, mfc=SAFE[0], mec="white", mew=0.6, zorder=3, gid="smallest")
    # Far from the minimum the loss may be enormous.
    span = threshold - loss[best]
    ax.set_ylim(loss[best] - 0.15 * span, min(loss.max(), loss[best] + 4 * span) + 0.1 * span)
    ax.margins(x=0.02)
