"""AnnData -> the named arrays of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from dynapath._columns import column_of

_PLACES = ("layers", "obs", "obsm", "var", "varm")


def read_arguments(
    adata: AnnData, names: Sequence[str], slots: Mapping[str, str] | None = None, *, optional: Sequence[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Arrays by the name under which the program takes them, and the names of those that all rows share.

    A name is looked up as `X`, then in layers, columns of obs, obsm, and columns of var. `slots` says otherwise:
    `{"y": "X", "age": "obs/age", "t": "var/day"}`.

    Raises
    ------
    KeyError : for a name that is nowhere, with what there is.
    ValueError : for a name that is in several places.
    """
    slots = dict(slots or {})
    unknown = [name for name in slots if name not in (*names, *optional)]
    if unknown:
        msg = f"slots names {unknown[0]!r}, which program does not take; it takes {', '.join((*names, *optional)) or 'none'}."
        raise KeyError(msg)
    found, shared = {}, []
    for name in (*names, *optional):
        place = slots.get(name) or _place_of(adata, name, required=name in names)
        if place is None:
            continue
        found[name] = _array(adata, name, place)
        if place.startswith(("var/", "varm/")):
            shared.append(name)
    return found, tuple(shared)


def _place_of(adata: AnnData, name: str, *, required: bool) -> str | None:
    if name == "X":
        return "X"
    places = [place for place in _PLACES if name in getattr(adata, place)]
    if len(places) > 1:
        msg = f"{name!r} is in {' and in '.join(places)}. Say which with slots={{{name!r}: '{places[0]}/{name}'}}."
        raise ValueError(msg)
    if places:
        return f"{places[0]}/{name}"
    if not required:
        return None
    # In newer versions of anndata X is among the layers, under None.
    names = {place: [str(n) for n in getattr(adata, place).keys() if n is not None] for place in _PLACES[:4]}
    there = "; ".join(f"{place}: {', '.join(held)}" for place, held in names.items())
    msg = f"program asks for {name!r}, which is in no slot. Name one with slots={{{name!r}: 'X'}}; present are {there}."
    raise KeyError(msg)


def _array(adata: AnnData, name: str, place: str) -> Any:
    if place == "X":
        values = adata.X
    else:
        where, _, key = place.partition("/")
        if where not in _PLACES or key not in getattr(adata, where):
            there = ", ".join(map(str, getattr(adata, where).keys())) if where in _PLACES else ", ".join(_PLACES)
            msg = f"slots asks for {place!r} as {name!r}, which does not exist; there are {there}."
            raise KeyError(msg)
        table = getattr(adata, where)
        values = column_of(table, key, place=where) if isinstance(table, pd.DataFrame) else table[key]
    if values is None:
        msg = f"slots asks for X as {name!r}, but this AnnData has no X."
        raise KeyError(msg)
    if hasattr(values, "toarray"):
        values = values.toarray()
    if isinstance(values, pd.Series) and isinstance(values.dtype, pd.CategoricalDtype):
        try:
            values = values.astype(float)
        except (TypeError, ValueError):
            msg = (
                f"{place} is categorical ({', '.join(map(str, values.cat.categories[:4]))}), and a program computes with numbers. "
                "Recode it first, e.g. with .cat.codes or pd.get_dummies."
            )
            raise TypeError(msg) from None
    return np.asarray(values)
