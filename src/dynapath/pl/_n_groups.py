"""dp.pl.n_groups: the BIC of each number of groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynapath import get

from ._colors import SAFE
from ._figure import INK, LABEL_SIZE, TICK_SIZE, finish, halo, new_figure, plain_axes

if TYPE_CHECKING:
    from anndata import AnnData


def n_groups(
    adata: AnnData,
    *,
    key: str | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """The BIC of each number of groups that was tried, above the lowest; the chosen one is marked.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.tl.fit_dynamic_vae` with `n_groups="auto"` under `key`.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    figsize
        Width and height in inches.
    ax
        Draw on this instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    The Axes with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : if there is no such fit, or its number of groups was given.

    Notes
    -----
    The numbers at the dots are `delta_bic` of :func:`dynapath.get.n_groups`: below 2 there is hardly a difference, and the
    smaller number is taken; above 6 it is a strong one. Crosses are numbers that were not to be chosen, since a group would
    have less than 2 % of the cells.

    Examples
    --------
    >>> import dynapath as dp
    >>> adata = dp.datasets.simulate_snapshots("rotating", n_cells=40, n_genes=20)
    >>> quick = dp.models.Training(n_restarts=4, prior_steps=100, progress=False)
    >>> dp.tl.fit_dynamic_vae(
    ...     adata, time_key="time", n_groups="auto", use_rep="Z_true", training=quick
    ... )  # doctest: +SKIP
    >>> ax = dp.pl.n_groups(adata, show=False)  # doctest: +SKIP
    """
    table = get.n_groups(adata, key)
    if ax is not None and not isinstance(ax, Axes):
        msg = f"ax must be one Axes; it is {type(ax).__name__}."
        raise ValueError(msg)
    if ax is None:
        ax = new_figure((3.35, 2.4) if figsize is None else figsize).add_subplot()
    number, delta = table["n_groups"].to_numpy(), table["delta_bic"].to_numpy()
    chosen, eligible = table["chosen"].to_numpy(), table["eligible"].to_numpy()
    ax.plot(number, delta, color=INK, lw=1.2, zorder=1, gid="bic")
    others = eligible & ~chosen
    ax.plot(number[others], delta[others], ls="", marker="o", ms=5, mfc="white", mec=INK, mew=1.2, gid="others")
    if not eligible.all():
        style: dict[str, Any] = {
            "ls": "",
            "marker": "X",
            "ms": 6,
            "mfc": INK,
            "mec": "white",
            "mew": 0.8,
            "gid": "tiny group",
        }
        ax.plot(number[~eligible], delta[~eligible], label="a group below 2% of the cells", **style)
        ax.legend(frameon=False, fontsize=TICK_SIZE, handletextpad=0.2, loc="best")
    ax.plot(number[chosen], delta[chosen], ls="", marker="o", ms=7, color=SAFE[0], gid="chosen")
    top = delta.max() if delta.max() > 0 else 1.0
    for i, (x, y) in enumerate(zip(number, delta, strict=True)):
        text = f"{y:,.0f}" if y >= 10 else f"{y:.1f}" if y > 0 else "0"
        # Out of the way of a line that falls onto the dot, unless one rises from it as well.
        falls = i > 0 and delta[i - 1] > y and (i + 1 == len(delta) or delta[i + 1] - y < top / 4)
        colour: dict[str, Any] = {"color": SAFE[0], "weight": "bold"} if chosen[i] else {"color": INK}
        ax.annotate(
            f"chosen\n{text}" if chosen[i] else text,
            (x, y),
            xytext=(-2 if falls else 0, 6),
            textcoords="offset points",
            ha="left" if falls else "center",
            va="bottom",
            size=TICK_SIZE,
            path_effects=halo(),
            annotation_clip=False,
            **colour,
        )
    ax.set_xticks(number)
    ax.set_xlim(number[0] - 0.5, number[-1] + 0.5)
    ax.set_ylim(-0.06 * top, 1.15 * top)
    plain_axes(ax)
    ax.set_xlabel("number of groups", size=LABEL_SIZE)
    ax.set_ylabel("BIC above the lowest", size=LABEL_SIZE)
    return finish(ax.figure, ax, show=show, return_fig=return_fig)
