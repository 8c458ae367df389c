"""Panels as long tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dynapath._columns import column_of
from dynapath._time_column import Place, read_times

if TYPE_CHECKING:
    from anndata import AnnData


def long(adata: AnnData, *, layers: Sequence[str] | None = None) -> pd.DataFrame:
    """A panel as a long table, the way back from :func:`dynapath.pp.panel_from_long`.

    Parameters
    ----------
    adata
        Units in rows, days in columns.
    layers
        Layers to add as columns, by default all: covariates, and what a fit wrote.

    Returns
    -------
    One row per unit and day, unit by unit: the unit, the day, the value in `X` (NaN = not reported), then the layers. The
    first three columns are named as in the table that the panel was made of, else `unit`, `date` and `value`. Days are
    timestamps where they read as dates.

    Raises
    ------
    KeyError : for a layer that does not exist.
    """
    present = [name for name in adata.layers if name is not None]
    chosen = present if layers is None else list(layers)
    for name in chosen:
        if name not in present:
            msg = f"layers has no {name!r}; present: {', '.join(sorted(present)) or 'none'}."
            raise KeyError(msg)
    names = {"unit": "unit", "time": "date", "value": "value"} | dict(adata.uns.get("panel", {}))
    named = column_of(adata.var, "date", place="var") if "date" in adata.var else adata.var_names
    days = pd.Series(named).reset_index(drop=True)
    try:
        read = read_times(days, Place.in_adata("var_names"))
        days = read.values if read.kind == "dates" else days
    except ValueError:
        pass  # the user's own names of the days
    dense = lambda matrix: np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix).ravel()
    table = {
        str(names["unit"]): np.repeat(adata.obs_names.to_numpy(), adata.n_vars),
        str(names["time"]): np.tile(days.to_numpy(), adata.n_obs),
        str(names["value"]): dense(adata.X),
    }
    return pd.DataFrame(table | {name: dense(adata.layers[name]) for name in chosen})
