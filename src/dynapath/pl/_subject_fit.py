"""dp.pl.subject_fit: items of a subject over time, with forecasts from its first visits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynapath import get
from dynapath._names import as_text

from ._colors import safe_palette
from ._figure import LABEL_SIZE, TICK_SIZE, finish, plain_axes
from ._over_time import check_level, given_panels, new_panels

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def subject_fit(
    adata: AnnData,
    subject: str,
    *,
    items: Sequence[str] | None = None,
    given: int | str = "all",
    truth: str | None = None,
    level: float = 0.9,
    key: str | None = None,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Items of one subject over time: measured values, and what the fit predicts from the visits before.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.stats.fit_latent_dynamics` under `key`.
    subject
        Name of the subject.
    items
        Items to draw; by default the first six.
    given
        Number of first visits that predictions may use, or `"all"`: then each time is predicted from the visits up to it, and
        lines start anew at every visit.
    truth
        Layer with items without noise, if known, drawn as a dashed line.
    level
        Probability of the band, in which a new measurement lies.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    figsize
        Width and height in inches.
    axes
        Draw on these, one per item, instead of on a new figure.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of Axes, one per item, with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : for a fit, subject, item or layer that is not there.

    Notes
    -----
    Filled points were given to the prediction, hollow ones were not.

    Examples
    --------
    >>> import dynapath as dp
    >>> axes = dp.pl.subject_fit(visits, "P0003", given=2, show=False)  # doctest: +SKIP
    """
    check_level(level)
    key = get.visit_slots(adata, key).key
    schema = get.visit_fit(adata, key)["params"]["schema"]
    fitted_items = list(map(str, schema["items"]))
    shown = fitted_items[:6] if items is None else [items] if isinstance(items, str) else list(items)
    unknown = [item for item in shown if item not in fitted_items]
    if unknown:
        msg = f"The fit has no item {unknown[0]!r}; it has {', '.join(fitted_items[:20])}."
        raise KeyError(msg)
    if truth is not None and truth not in adata.layers:
        msg = f"layers has no {truth!r} (truth); present: {', '.join(sorted(n for n in adata.layers if n is not None)) or 'none'}."
        raise KeyError(msg)
    names = adata.obs[str(schema["subject_key"])].astype(str)
    rows = (names == str(subject)).to_numpy()
    own = adata[rows].copy()
    if not own.n_obs:
        msg = f"There is no subject {subject!r} in {str(schema['subject_key'])!r}; the first are {', '.join(names.unique()[:5])}."
        raise KeyError(msg)
    # Dates count from the first visit, as the fit counted them.
    time = get.visit_times(adata, key)[rows]
    order = np.argsort(time, kind="stable")
    time = time[order]
    k = own.n_obs if given == "all" else int(given)
    end = time[-1] + (0.1 * (time[-1] - time[0]) if given == "all" else 0.0)
    grid = np.unique(np.concatenate([np.linspace(time[0], end, 60), time, np.nextafter(time[1:], -np.inf)]))
    predicted, _ = get.visit_predictions(adata, key, times=grid, given=given, interval=level, only=str(subject))

    panels = new_panels(len(shown), figsize, 3) if axes is None else given_panels(axes, len(shown), f"items={shown}")
    color = safe_palette(1)[0]
    for ax, item in zip(panels, shown, strict=True):
        here = predicted[predicted["item"] == item]
        ax.fill_between(here["time"], here["lower"], here["upper"], color=color, alpha=0.2, lw=0, zorder=1)
        ax.plot(here["time"], here["predicted"], color=color, lw=1.4, zorder=2)
        column = as_text(own.var_names).get_loc(item)
        if truth is not None:
            ax.plot(time, np.asarray(own.layers[truth])[order, column], color="0.4", lw=1, ls="--", zorder=2.5)
        values = own[order].to_df(schema["layer"] or None)[item].to_numpy(dtype=float)
        ax.scatter(time[:k], values[:k], s=14, color="0.1", zorder=3, lw=0.8)
        ax.scatter(time[k:], values[k:], s=14, facecolors="white", edgecolors="0.1", zorder=3, lw=0.8)
        plain_axes(ax)
        ax.set_title(item, size=LABEL_SIZE)
        ax.set_xlabel(str(schema["time_key"]), size=LABEL_SIZE)
    if axes is None:
        handles = [
            Line2D([], [], ls="", marker="o", ms=4, color="0.1", label="given"),
            Line2D([], [], ls="", marker="o", ms=4, mfc="white", mec="0.1", label="not given"),
            Line2D([], [], color=color, lw=1.4, label="predicted"),
            Patch(facecolor=color, alpha=0.2, lw=0, label=f"{100 * level:.3g}% interval"),
        ]
        if k >= own.n_obs:
            handles.pop(1)
        if truth is not None:
            handles.append(Line2D([], [], color="0.4", lw=1, ls="--", label="truth"))
        narrow = panels[0].figure.get_size_inches()[0] < 5
        panels[0].figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=2 if narrow else len(handles),
            frameon=False,
            fontsize=TICK_SIZE,
        )
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)
