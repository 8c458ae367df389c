"""dp.pl.history: how a fit went, term by term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dynapath import get

from ._colors import SAFE
from ._days import legend_below
from ._figure import INK, LABEL_SIZE, TICK_SIZE, finish, plain_axes
from ._over_time import given_panels, new_panels, only_lowest_label_time

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

_VALIDATION = "_validation"
# The start is steep, and would flatten all that follows.
_STEEP = 0.25


def history(
    adata: AnnData,
    *,
    terms: str | Sequence[str] | None = None,
    key: str | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Every term of the loss over the epochs, by its name and in nats per cell.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.tl.fit_vae` or :func:`dynapath.tl.fit_dynamic_vae` under `key`.
    terms
        Columns of :func:`dynapath.get.history` to draw; all by default.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    legend
        Whether to add a legend, below the panels, where there is more than one line in a panel.
    figsize
        Width and height in inches. Panels are put side by side as far as the width has room for them.
    axes
        Draw on these, one per term, instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of Axes, one per term, with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : without a fit under `key`.
    ValueError : for a term that the fit does not have, or another number of `axes` than terms.

    Notes
    -----
    Terms are unweighted, the `loss` is what was minimised: with the KL weight rising at first and penalties weighted, it is not
    the sum of the curves. The `elbo` is negative, as scvi-tools logs it: lower is better. The first quarter of a phase may leave the
    panel at the top; the loss does while t-SNE exaggerates, which the term leaves out. Phases are told apart by colour; where there are validation cells, their curve is dashed.

    Examples
    --------
    >>> import dynapath as dp
    >>> adata = dp.datasets.simulate_snapshots("rotating", n_cells=60, n_genes=60)
    >>> dp.tl.fit_vae(adata, n_latent=2, latent_penalty="tsne", max_epochs=20)  # doctest: +SKIP
    >>> axes = dp.pl.history(adata, show=False)  # doctest: +SKIP
    """
    table = get.history(adata, key)
    there = [name for name in table if name not in ("phase", "member") and not name.endswith(_VALIDATION)]
    chosen = there if terms is None else [terms] if isinstance(terms, str) else list(terms)
    unknown = [term for term in chosen if term not in there]
    if unknown or not chosen:
        msg = f"terms must be among {', '.join(there)}; {unknown[0]!r} is not." if unknown else "terms names no term."
        raise ValueError(msg)
    own = axes is None
    panels = new_panels(len(chosen), figsize) if own else given_panels(axes, len(chosen), "terms")
    n_epochs = int(table.groupby("member").size().max()) if "member" in table else len(table)
    phases = list(dict.fromkeys(table["phase"].astype(str)))
    colors = {phase: SAFE[i % len(SAFE)] if len(phases) > 1 else INK for i, phase in enumerate(phases)}
    for ax, term in zip(panels, chosen, strict=True):
        _draw(ax, table, term, colors)
        ax.set_title(term, size=LABEL_SIZE, loc="left")
        ax.set_xlabel("epoch", size=LABEL_SIZE)
        ax.set_xlim(0, n_epochs + 1)
        plain_axes(ax)
    if own:
        only_lowest_label_time(panels)
    panels[0].set_ylabel("nats per cell", size=LABEL_SIZE)
    handles = [Line2D([], [], color=colors[phase], lw=1.4, label=phase) for phase in phases if len(phases) > 1]
    if any(f"{term}{_VALIDATION}" in table for term in chosen):
        handles += [Line2D([], [], color=INK, lw=1.2, ls=(0, (3, 1.5)), label="validation cells")]
    if legend and handles:
        if own:
            legend_below(panels[0].figure, handles)
        else:
            panels[-1].legend(
                handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=TICK_SIZE
            )
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def _draw(ax: Axes, table: pd.DataFrame, term: str, colors: dict[str, str]) -> None:
    members = table["member"] if "member" in table else np.zeros(len(table))
    late, lowest = [], np.inf
    for _, member in table.groupby(np.asarray(members), sort=False):
        epoch = np.arange(1, len(member) + 1)
        for phase, color in colors.items():
            here = (member["phase"].astype(str) == phase).to_numpy()
            for column, style in ((term, "-"), (f"{term}{_VALIDATION}", (0, (3, 1.5)))):
                if column not in member or member.loc[here, column].isna().all():
                    continue
                value = member.loc[here, column].to_numpy(dtype=float)
                few = len(value) < 20
                ax.plot(
                    epoch[here], value, color=color, lw=1.2, ls=style, marker="o" if few else None, ms=2, gid=column
                )
                late.append(value[int(_STEEP * len(value)) :])
                lowest = min(lowest, np.nanmin(value))
    if late:
        low, high = lowest, np.nanmax(np.concatenate(late))
        pad = 0.05 * (high - low) if high > low else 0.05 * max(abs(high), 1e-12)
        ax.set_ylim(low - pad, high + pad)
