"""Visits <-> ehrdata: subjects x items x times on one common axis of times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from dynapath._columns import column_of
from dynapath._time_column import NotATime, Place, read_times, storable

LAYER = "tem_data"  # ehrdata's usual name


def from_ehrdata(
    edata: Any, *, layer: str | None = None, subject_key: str = "patient", time_key: str = "time"
) -> AnnData:
    """Visits from an object of ehrdata: one row for each subject and time with a measurement.

    Parameters
    ----------
    edata
        Any AnnData with a table `tem` of times and values of shape (subject, item, time); ehrdata itself is not needed.
    layer
        Layer with the values; by default `X` if it has three axes, else the layer `"tem_data"`.
    subject_key
        Name for the column with the subjects, `edata.obs_names`.
    time_key
        Column of `edata.tem` with the times, and its name in the result; the index of `tem` where there is no such column.

    Returns
    -------
    AnnData with one row per visit: `X` (visit, item), `obs` with subject, time and all columns of `edata.obs`; `var` as there.
    Times at which nothing was measured of a subject are no visits.

    Raises
    ------
    TypeError : for an object without `tem`.
    KeyError : for an unknown layer.
    ValueError : for values without a time axis, or columns that would be overwritten.

    Examples
    --------
    >>> import dynapath as dp
    >>> visits = dp.pp.from_ehrdata(edata)  # doctest: +SKIP
    """
    tem = getattr(edata, "tem", None)
    if tem is None:
        msg = f"edata has no table of times, tem; it is {type(edata).__name__}. Visits in a long table: dp.pp.visits_from_long."
        raise TypeError(msg)
    values, where = _cube(edata, layer)
    if values.ndim != 3 or values.shape != (edata.n_obs, edata.n_vars, len(tem)):
        msg = (
            f"{where} has shape {values.shape}; expected {(edata.n_obs, edata.n_vars, len(tem))} (subject, item, time)."
        )
        raise ValueError(msg)
    for name in (subject_key, time_key):
        if name in edata.obs:
            msg = f"edata.obs already has a column {name!r}. Choose another subject_key or time_key, or rename it."
            raise ValueError(msg)
    name = f"tem[{time_key!r}]" if time_key in tem else "tem.index"
    times = column_of(tem, time_key, place="tem") if time_key in tem else tem.index.to_series()
    try:
        times = np.asarray(storable(read_times(times, Place(name, f"edata.{name}", f"edata.{name} = "))))
    except NotATime:
        times = np.asarray(times.astype(str))  # for the user to convert
    subject, at = np.nonzero(~np.isnan(values).all(1))
    obs = pd.DataFrame({subject_key: pd.Categorical(edata.obs_names.astype(str)[subject], edata.obs_names.astype(str))})
    obs[time_key] = times[at]
    for name in edata.obs:
        obs[name] = column_of(edata.obs, name, place="obs").iloc[subject].to_numpy()
    obs.index = [f"{edata.obs_names[i]}_{j}" for i, j in zip(subject, at, strict=True)]
    return AnnData(X=values[subject, :, at], obs=obs, var=edata.var.copy())


def to_ehrdata(
    adata: AnnData, *, subject_key: str = "patient", time_key: str = "time", layer: str | None = None
) -> Any:
    """Visits as an object of ehrdata, with one slot for every distinct time of the cohort.

    Parameters
    ----------
    adata
        One row per visit.
    subject_key, time_key
        Columns of `obs`.
    layer
        Layer with the items, instead of `X`.

    Returns
    -------
    `ehrdata.EHRData` with `layers["tem_data"]` (subject, item, time), NaN = not measured; `obs` the columns that do not change
    within a subject; `tem` the times.

    Raises
    ------
    ImportError : if ehrdata is not installed (0.4 or later, which needs Python 3.12).
    KeyError : for unknown columns or layers.
    ValueError : if a subject has two visits at one time.

    Notes
    -----
    Irregular visits make this large: 1,945 visits of pbc2 fill 0.6 % of their slots. Round times first where that is harmless.

    Examples
    --------
    >>> import dynapath as dp
    >>> edata = dp.pp.to_ehrdata(dp.datasets.pbc2())  # doctest: +SKIP
    """
    subject, time = (
        column_of(adata.obs, name, argument=argument)
        for name, argument in ((subject_key, "subject_key"), (time_key, "time_key"))
    )
    for name in adata.obs:
        column_of(adata.obs, name)
    if layer is not None and layer not in adata.layers:
        present = ", ".join(name for name in adata.layers if name is not None)
        msg = f"layers has no {layer!r}; present: {present or 'none'}."
        raise KeyError(msg)
    try:
        from ehrdata import EHRData
    except ImportError as error:
        msg = "to_ehrdata needs ehrdata 0.4 or later (Python 3.12 or later): pip install 'ehrdata>=0.4'."
        raise ImportError(msg) from error
    read = read_times(time, Place.in_adata(f"obs[{time_key!r}]"))
    stored = np.asarray(storable(read))
    twice = pd.DataFrame({"subject": subject.astype(str), "time": read.steady}).duplicated().to_numpy()
    if twice.any():
        row = int(twice.argmax())
        msg = f"{subject_key} {subject.iloc[row]!r} has two visits at {stored[row]}. Keep one of them."
        raise ValueError(msg)
    subjects, row = np.unique(subject.astype(str), return_inverse=True)
    _, row_of_time, at = np.unique(read.steady.to_numpy(), return_index=True, return_inverse=True)
    times = stored[row_of_time]
    values = adata.X if layer is None else adata.layers[layer]
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=float)
    cube = np.full((len(subjects), adata.n_vars, len(times)), np.nan)
    cube[row, :, at] = values
    grouped = adata.obs.groupby(row)
    constant = [
        name
        for name in adata.obs
        if name not in (subject_key, time_key) and (grouped[name].nunique(dropna=False) <= 1).all()
    ]
    first = np.unique(row, return_index=True)[1]
    obs = adata.obs[constant].iloc[first].set_axis(subjects, axis=0)
    tem = pd.DataFrame({time_key: times}, index=pd.Index(times).astype(str))
    return EHRData(obs=obs, var=adata.var.copy(), tem=tem, layers={LAYER: cube})


def _cube(edata: Any, layer: str | None) -> tuple[NDArray[np.float64], str]:
    layers = [name for name in edata.layers if name is not None]
    if layer is not None and layer not in layers:
        msg = f"layers has no {layer!r}; present: {', '.join(layers) or 'none'}."
        raise KeyError(msg)
    if layer is None and np.ndim(edata.X) == 3:
        return np.asarray(edata.X, dtype=float), "X"
    chosen = LAYER if layer is None else layer
    if chosen not in layers:
        msg = f"X has no axis of times and there is no layer {LAYER!r}. Give layer=; present: {', '.join(layers) or 'none'}."
        raise ValueError(msg)
    return np.asarray(edata.layers[chosen], dtype=float), f"layers[{chosen!r}]"
