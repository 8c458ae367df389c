"""Latent dimensions of visits over time, one line per subject: what dp.pl.latent_trajectories draws for such fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from dynapath import get

from ._colors import Palette, color_cells
from ._figure import LABEL_SIZE, TICK_SIZE, check_dims, finish, plain_axes
from ._over_time import given_panels, new_panels

if TYPE_CHECKING:
    from anndata import AnnData

_DASHES = (0, (3, 2))


def draw_visits(
    adata: AnnData,
    *,
    key: str | None,
    color: str | None,
    truth: str | None,
    dims: int | Sequence[int] | None,
    size: float | None,
    palette: Palette | None,
    legend: bool,
    figsize: tuple[float, float] | None,
    axes: Any,
    show: bool | None,
    return_fig: bool,
) -> Any:
    """Lines through the states at a subject's visits, coloured by a column of `obs`, and through the true ones."""
    names = get.visit_slots(adata, key)
    key = names.key
    schema = get.visit_fit(adata, key)["params"]["schema"]
    z = np.asarray(adata.obsm[names.latent], dtype=float)
    true = None if truth is None else _fitted_truth(adata, truth, z)
    shown = check_dims(range(1, min(z.shape[1], 4) + 1) if dims is None else dims, z.shape[1], key)
    panels = new_panels(len(shown), figsize) if axes is None else given_panels(axes, len(shown), f"dims={shown}")
    time = get.visit_times(adata, key)
    subject = adata.obs[str(schema["subject_key"])].astype(str).to_numpy()
    if color is None:
        rgba = np.tile((0.25, 0.25, 0.25, 1.0), (len(z), 1))
    else:
        look = color_cells(adata, color, palette, np.ones(len(z), dtype=bool))
        rgba = look.rgba
    rows = [np.flatnonzero(subject == name) for name in np.unique(subject)]
    rows = [own[np.argsort(time[own], kind="stable")] for own in rows]
    # Mixed, so that no group lies on top.
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    alpha = float(np.clip(20 / len(rows), 0.15, 0.8))
    for ax, dim in zip(panels, shown, strict=True):
        lines = [np.column_stack([time[own], z[own, dim - 1]]) for own in rows]
        ax.add_collection(LineCollection(lines, colors=[rgba[own[0]] for own in rows], lw=0.8, alpha=alpha, zorder=1))
        if true is not None:
            lines = [np.column_stack([time[own], true[own, dim - 1]]) for own in rows]
            ax.add_collection(
                LineCollection(
                    lines,
                    colors=[rgba[own[0]] for own in rows],
                    lw=1.0,
                    ls=_DASHES,
                    alpha=alpha,
                    zorder=1.5,
                    gid="truth",
                )
            )
        order = np.concatenate(rows)
        area = float(np.clip(2000 / len(order), 1, 9)) if size is None else size
        ax.scatter(time[order], z[order, dim - 1], s=area, c=rgba[order], alpha=min(1.0, 1.5 * alpha), lw=0, zorder=2)
        ax.autoscale_view()
        plain_axes(ax)
        ax.set_xlabel(str(schema["time_key"]), size=LABEL_SIZE)
        ax.set_ylabel(f"latent dimension {dim}", size=LABEL_SIZE)
    if legend and (color is not None or true is not None):
        handles = [] if color is None else [Line2D([], [], color=look.colors[n], lw=1.6, label=n) for n in look.present]
        scale = None if color is None or handles else look.scale
        if true is not None:
            handles.append(Line2D([], [], color="0.25", lw=1.0, ls=_DASHES, label="truth"))
        if handles and axes is None:
            panels[0].figure.legend(
                handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=TICK_SIZE
            )
        elif handles:
            panels[-1].legend(handles=handles, frameon=False, fontsize=TICK_SIZE)
        if scale is not None:
            panels[0].figure.colorbar(scale, ax=list(panels), shrink=0.8, aspect=25, pad=0.02).set_label(
                color, size=LABEL_SIZE
            )
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def _fitted_truth(adata: AnnData, slot: str, z: Any) -> Any:
    """True states in the latent space of the fit, which is any affine map away: by least squares."""
    if slot not in adata.obsm:
        msg = f"adata.obsm has no {slot!r}; present: {', '.join(adata.obsm) or 'nothing'}."
        raise KeyError(msg)
    design = np.column_stack([np.asarray(adata.obsm[slot], dtype=float), np.ones(len(z))])
    return design @ np.linalg.lstsq(design, z, rcond=None)[0]
