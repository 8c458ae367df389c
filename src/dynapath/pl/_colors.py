"""Colours of cells: those stored in the AnnData first, else a palette for all eyes, stored where scanpy finds it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex, to_rgb, to_rgba, to_rgba_array

from dynapath._columns import column_of
from dynapath._keys import colors_key

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

Palette = str | Sequence[str] | Mapping[str, str]

# Okabe & Ito (2008) without yellow, which is lost on white. From the eighth on, each colour is the one whose smallest
# Oklab distance to all before it is largest, over normal vision and three dichromacies (Machado et al. 2009,
# doi:10.1109/TVCG.2009.113).
SAFE = (
    "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000 #502000 #00109F #804050 #BFCFAF #9F70FF "
    "#7000EF #40DFFF #AF4000 #302050 #604080 #AFAF8F #707080 #EFBF60 #8F2000 #702040 #CF00BF #808FDF"
).split()
_ROUNDS = 3
_MOST_CATEGORIES = _ROUNDS * len(SAFE)

MISSING = "#D3D3D3"


def safe_palette(n: int) -> list[str]:
    """`n` colours as hex; after the first 24 paler rounds of the same."""
    colors = []
    for i in range(n):
        level, position = divmod(i, len(SAFE))
        pale = 0.3 * level
        r, g, b = (pale + (1 - pale) * channel for channel in to_rgb(SAFE[position]))
        colors.append(to_hex((r, g, b)).upper())
    return colors


@dataclass(frozen=True)
class CellColors:
    """The colour of each cell, and what a legend or a colour bar has to say about them."""

    rgba: NDArray[np.float64]  # (cell, 4)
    title: str
    colors: dict[str, str]  # of each category; empty for numbers
    present: list[str]  # categories with cells to draw
    scale: ScalarMappable | None  # for numbers
    missing: bool


def color_cells(adata: AnnData, column: str, palette: Palette | None, drawn: NDArray[np.bool_]) -> CellColors:
    """Colours of all cells by a column of `obs`; what is said about them is about those `drawn`."""
    if not isinstance(column, str) or column not in adata.obs:
        msg = f"color must be a column of obs; {column!r} is not. Columns: {', '.join(map(str, adata.obs.columns))}."
        raise KeyError(msg)
    values = column_of(adata.obs, column, argument="color")
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return _by_number(values, column, palette, drawn)
    return _by_category(adata, values, column, palette, drawn)


def _category_colors(adata: AnnData, column: str, categories: Sequence[str], palette: Palette | None) -> list[str]:
    """One hex per category: from `palette`, else from `uns`, else the safe palette.

    Colours are stored in `uns` where none are yet, for a categorical column of an AnnData that is not a view.
    """
    n, slot = len(categories), colors_key(column)
    stored = adata.uns.get(slot)
    if palette is not None:
        colors = _from_palette(palette, categories, column)
    elif stored is not None and np.ndim(stored) == 1 and len(stored) >= n:
        colors = _hexes(list(stored[:n]), f"uns[{slot!r}]")
    else:
        colors = safe_palette(n)
        if stored is not None:
            warnings.warn(
                f"uns[{slot!r}] holds {np.size(stored)} colours, but {column!r} has {n} categories; this figure uses "
                f"others. Delete it, or add the missing ones.",
                UserWarning,
                stacklevel=6,
            )
    # Writing to a view would turn it into a copy behind the user's back.
    if stored is None and not adata.is_view and isinstance(adata.obs[column].dtype, pd.CategoricalDtype):
        adata.uns[slot] = np.array(colors, dtype=object)
    return colors


def _by_category(
    adata: AnnData, values: pd.Series, column: str, palette: Palette | None, drawn: NDArray[np.bool_]
) -> CellColors:
    cells = values if isinstance(values.dtype, pd.CategoricalDtype) else values.astype("category")
    codes = cells.cat.codes.to_numpy()
    names = [str(category) for category in cells.cat.categories]
    if len(names) > _MOST_CATEGORIES:
        msg = (
            f"obs[{column!r}] has {len(names)} categories; more than {_MOST_CATEGORIES} colours cannot be told apart. "
            "Choose another column, or set all but a few categories to missing."
        )
        raise ValueError(msg)
    colors = _category_colors(adata, column, names, palette)
    # Code -1, a missing value, picks the last.
    rgba = to_rgba_array([*colors, MISSING])[codes]
    present = [names[k] for k in np.unique(codes[drawn & (codes >= 0)])]
    by_name = dict(zip(names, colors, strict=True))
    return CellColors(rgba, column, by_name, present, None, missing=bool((codes[drawn] < 0).any()))


def _by_number(values: pd.Series, column: str, palette: Palette | None, drawn: NDArray[np.bool_]) -> CellColors:
    if palette is not None and not isinstance(palette, str):
        msg = f"obs[{column!r}] holds numbers: palette must be the name of a colour map, such as 'viridis'."
        raise ValueError(msg)
    numbers = values.to_numpy(dtype=float, na_value=np.nan)
    known = np.isfinite(numbers)
    if not known.any():
        msg = f"obs[{column!r}] holds no finite number. Choose another column."
        raise ValueError(msg)
    scale = ScalarMappable(Normalize(numbers[known].min(), numbers[known].max()), _colormap(palette or "viridis"))
    scale.set_array(numbers[known])
    rgba = np.tile(to_rgba(MISSING), (len(numbers), 1))
    rgba[known] = scale.to_rgba(numbers[known])
    return CellColors(rgba, column, {}, [], scale, missing=not known[drawn].all())


def _from_palette(palette: Palette, categories: Sequence[str], column: str) -> list[str]:
    if isinstance(palette, str):
        colormap = _colormap(palette)
        qualitative = colormap.N >= len(categories) and colormap.N < 64
        at = range(len(categories)) if qualitative else np.linspace(0, 1, len(categories))
        return [to_hex(colormap(position)) for position in at]
    if isinstance(palette, Mapping):
        given = {str(name): color for name, color in palette.items()}
        without = [name for name in categories if name not in given]
        if without:
            msg = f"palette has no colour for {', '.join(map(repr, without))} of obs[{column!r}]. Add it."
            raise ValueError(msg)
        return _hexes([given[name] for name in categories], "palette")
    if len(palette) < len(categories):
        msg = f"palette has {len(palette)} colours, but obs[{column!r}] has {len(categories)} categories."
        raise ValueError(msg)
    return _hexes(list(palette)[: len(categories)], "palette")


def _colormap(name: str) -> mpl.colors.Colormap:
    if name not in mpl.colormaps:
        msg = f"palette={name!r} is no colour map of matplotlib (see matplotlib.colormaps). Or give a list."
        raise ValueError(msg)
    return mpl.colormaps[name]


def _hexes(colors: Sequence[str], place: str) -> list[str]:
    hexes = []
    for color in colors:
        try:
            hexes.append(to_hex(color))
        except ValueError:
            msg = f"{place} holds {color!r}, which is no colour. Write it as '#RRGGBB' or by its name in matplotlib."
            raise ValueError(msg) from None
    return hexes
