"""What the figures share: making them, their legends, and how they are handed back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Stroke, withStroke

from dynapath import get

from ._colors import MISSING, CellColors, Palette, color_cells

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.artist import Artist
    from matplotlib.figure import SubFigure
    from numpy.typing import ArrayLike, NDArray

# Inches. One column of a journal is about 85 mm wide, two are about 175 mm.
TWO_COLUMNS = 6.9
_NARROW = 5.0

# Relative to the user's font size, for panels of some 40 mm.
LABEL_SIZE, TICK_SIZE = "small", "x-small"
INK = "0.25"
# Groups beyond these are named at their lines too: colours alone no longer tell them apart.
MOST_BY_COLOUR = 7


@dataclass(frozen=True)
class DrawnFit:
    """What a fit offers to draw: cells, groups, and names for the axes."""

    z: NDArray[np.float64]  # (cell, latent)
    velocity: NDArray[np.float64]  # (cell, latent)
    group: NDArray[np.str_]  # (cell,)
    undetermined: NDArray[np.bool_]  # (cell,)
    group_column: str
    surest: dict[str, int]  # group -> row of its most certain cell, if it has cells
    groups: list[str]  # those to draw
    all_groups: list[str]
    time_key: str
    observed_times: NDArray[np.float64]
    latent_name: str

    @property
    def n_latent(self) -> int:
        """Number of latent dimensions."""
        return self.z.shape[1]

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """Cells of the groups to draw."""
        return np.isin(self.group, self.groups)


def read_fit(adata: AnnData, key: str, groups: str | int | Iterable[str | int] | None) -> DrawnFit:
    """The slots of the fit under `key`, checked."""
    names = get.cell_slots(adata, key)
    fit = adata.uns[key]
    params = fit["params"]
    fitted = get.dynamics(adata, key)
    asked, everything = get.chosen_groups(adata, key, groups)
    certainty = np.asarray(adata.obsm[names.groups], dtype=float)
    group = np.array(everything)[certainty.argmax(1)]
    rows = {k: np.flatnonzero(group == name) for k, name in enumerate(everything)}
    surest = {everything[k]: int(own[certainty[own, k].argmax()]) for k, own in rows.items() if len(own)}
    # A latent space of our own has no name; a representation that was given does.
    own = fit["kind"] == "dynamic_vae"
    return DrawnFit(
        z=np.asarray(adata.obsm[names.latent], dtype=float),
        velocity=np.asarray(adata.obsm[names.velocity], dtype=float),
        group=group,
        undetermined=adata.obs[names.undetermined].to_numpy(dtype=bool),
        group_column=names.group,
        surest=surest,
        groups=[everything[k] for k in sorted(asked)],
        all_groups=everything,
        time_key=str(params["time_key"]),
        observed_times=fitted.observed_times,
        latent_name="latent dimension" if own else str(params["use_rep"]),
    )


def check_dims(dims: int | Sequence[int], n_latent: int, key: str) -> list[int]:
    """`dims` as a list of numbers from 1 to `n_latent`."""
    asked = [dims] if isinstance(dims, int | np.integer) else list(dims)
    for dim in asked:
        if not isinstance(dim, int | np.integer) or isinstance(dim, bool) or not 1 <= dim <= n_latent:
            msg = (
                f"dims counts latent dimensions from 1, and the fit {key!r} has {n_latent}; {dim!r} is not one of them."
            )
            raise ValueError(msg)
    return [int(dim) for dim in asked]


@dataclass(frozen=True)
class Look:
    """Colours of cells and of groups."""

    cells: CellColors
    by_group: bool
    face: NDArray[np.float64]  # (cell, 4)
    edge: NDArray[np.float64]  # (cell, 4)
    group: dict[str, str]  # of its line
    labels: dict[str, str]  # of its group in the legend


def choose_look(adata: AnnData, fit: DrawnFit, color: str | None, palette: Palette | None) -> Look:
    """Cells by `color` and groups to match: their own colours if the cells have them, else dark grey."""
    by_group = color is None or color == fit.group_column
    cells = color_cells(adata, fit.group_column if color is None else color, palette, fit.chosen)
    # A subset may have lost the categories, and so the colours, of groups without cells; a whole has them.
    group = dict.fromkeys(fit.all_groups, INK)
    labels = {k: f"group {k}" if k.isdigit() else k for k in fit.all_groups}
    if by_group:
        group |= {k: to_hex(cells.colors[k]) for k in fit.all_groups if k in cells.colors}
        group |= {k: to_hex(cells.rgba[row]) for k, row in fit.surest.items()}
    rgba = cells.rgba.copy()
    rgba[~fit.chosen] = to_rgba(MISSING)
    face, edge = rgba.copy(), rgba.copy()
    edge[:, 3] = 0
    face[:, 3] = 0.6
    if by_group:
        hollow = fit.undetermined & fit.chosen
        face[hollow, 3] = 0
        edge[hollow, 3] = 0.6
    return Look(cells, by_group, face, edge, group, labels)


def draw_cells(ax: Axes, x: ArrayLike, y: ArrayLike, look: Look, size: float | None, chosen: NDArray[np.bool_]) -> None:
    """All cells as one collection, mixed so that no group lies on top; cells of groups not chosen lie below."""
    order = np.random.default_rng(0).permutation(len(look.face))
    order = order[np.argsort(chosen[order], kind="stable")]
    s = default_size(len(order)) if size is None else size
    ax.scatter(
        np.asarray(x)[order],
        np.asarray(y)[order],
        s=s,
        facecolors=look.face[order],
        edgecolors=list(map(tuple, look.edge[order])),
        linewidths=max(0.3, 0.16 * np.sqrt(s)),
        rasterized=len(order) > 2000,
        zorder=1,
        gid="cells",
    )


def default_size(n_cells: int) -> float:
    """Area of a cell's point (points squared)."""
    return float(np.clip(9000 / max(n_cells, 1), 0.5, 7))


def halo(width: float = 2.0) -> list[Stroke]:
    """A white edge that keeps a line readable over the cells."""
    return [withStroke(linewidth=width, foreground="white")]


def plain_axes(ax: Axes) -> None:
    """No box; small type."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=TICK_SIZE)


def new_figure(figsize: tuple[float, float]) -> Figure:
    """A figure that makes room for legends outside its panels."""
    return plt.figure(figsize=figsize, layout="constrained")


def legend_handles(fit: DrawnFit, look: Look) -> list[Line2D]:
    """What the points stand for."""

    def dot(label: str, color: str, *, filled: bool = True) -> Line2D:
        face = color if filled else "none"
        return Line2D([], [], ls="", marker="o", ms=4, mfc=face, mec=color, mew=0.8, label=label)

    if look.by_group:
        handles = [dot(look.labels[k], look.group[k]) for k in fit.groups]
        if (fit.undetermined & fit.chosen).any():
            handles.append(dot("undetermined", "0.4", filled=False))
    else:
        handles = [dot(name, color) for name, color in look.cells.colors.items() if name in look.cells.present]
    if not fit.chosen.all():
        handles.append(dot("other groups", MISSING))
    if look.cells.missing:
        handles.append(dot("missing", MISSING))
    return handles


def group_handles(fit: DrawnFit, look: Look) -> list[Line2D]:
    """The colours of the lines of groups."""
    return [Line2D([], [], color=look.group[k], lw=1.6, label=look.labels[k]) for k in fit.groups]


def short_names(fit: DrawnFit, look: Look) -> dict[str, str]:
    """What to write at the lines of groups: their numbers, or the names that the user gave them."""
    return {k: look.labels[k].removeprefix("group ") for k in fit.groups}


def add_legend(axes: Iterable[Axes], handles: Sequence[Artist], look: Look, *, own: bool) -> None:
    """Outside the panels: beside them, or below them where the figure is one column wide."""
    axes = list(axes)
    figure = axes[0].figure
    if look.cells.scale is not None:
        bar = figure.colorbar(look.cells.scale, ax=axes, shrink=0.8, aspect=25, pad=0.02)
        bar.set_label(look.cells.title, size=LABEL_SIZE)
        bar.ax.tick_params(labelsize=TICK_SIZE)
        bar.outline.set_visible(False)
    if not handles:
        return
    style: dict[str, Any] = {"frameon": False, "fontsize": TICK_SIZE, "handletextpad": 0.4}
    if look.cells.present and not look.by_group:
        style |= {"title": look.cells.title, "title_fontsize": TICK_SIZE}
    if not own or not isinstance(figure, Figure):
        axes[-1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, **style)
        return
    width, height = figure.get_size_inches()
    if width < _NARROW or look.cells.scale is not None:
        longest = max(len(str(handle.get_label())) for handle in handles)
        ncols = int(np.clip(width / (0.2 + 0.06 * longest), 1, len(handles)))
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols, columnspacing=1, **style)
        return
    fits = max(3, int(height / 0.17) - 2)
    columns = -(-len(handles) // fits)
    figure.legend(handles=handles, loc="outside right center", ncols=columns, alignment="left", **style)


def mean_handles(level: float | None = None) -> list[Line2D | Patch]:
    """What lines and bands stand for."""
    handles: list[Line2D | Patch] = [Line2D([], [], color=INK, lw=1.6, label="group mean")]
    if level is not None:
        handles.append(Patch(facecolor=INK, alpha=0.18, lw=0, label=f"{100 * level:.3g}% of cells"))
    return handles


def number_line(ax: Axes, name: str, at: ArrayLike, offset: ArrayLike, color: str = INK) -> None:
    """The number of a group `offset` points away from a point of the data."""
    ax.annotate(
        name,
        tuple(np.asarray(at)),
        xytext=tuple(np.asarray(offset)),
        textcoords="offset points",
        size=TICK_SIZE,
        weight="bold",
        color=color,
        va="center",
        ha="center",
        path_effects=halo(),
        zorder=4,
        annotation_clip=False,
    )


def finish(figure: Figure | SubFigure, drawn: Any, *, show: bool | None, return_fig: bool) -> Any:
    """The figure, or None once it is shown, or what was drawn on."""
    if return_fig:
        return figure
    if show is None:
        import scanpy

        show = scanpy.settings.autoshow
    if show:
        plt.show()
        return None
    return drawn


def spread(positions: ArrayLike, least: float) -> NDArray[np.float64]:
    """`positions` moved apart until all are at least `least` from each other; those that touch keep their middle."""
    positions = np.asarray(positions, dtype=float)
    order = np.argsort(positions, kind="stable")
    # Blocks of labels that touch, each (sum of wished starts, size), merged from below as in isotonic regression.
    blocks: list[tuple[float, int]] = []
    for position in positions[order]:
        blocks.append((position, 1))
        while len(blocks) > 1 and _start(blocks[-2], least) + blocks[-2][1] * least > _start(blocks[-1], least):
            (below, n), (above, m) = blocks[-2:]
            blocks[-2:] = [(below + above, n + m)]
    moved = np.concatenate([_start(block, least) + least * np.arange(block[1]) for block in blocks])
    out = np.empty_like(positions)
    out[order] = moved
    return out


def _start(block: tuple[float, int], least: float) -> float:
    """Where the lowest label of a block lies when the block is centred on what its labels point at."""
    total, size = block
    return total / size - least * (size - 1) / 2
