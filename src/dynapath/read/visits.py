"""AnnData -> visits of subjects at their own times. All messages about bad registries are here; nothing is written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse

from dynapath._columns import column_of
from dynapath._names import as_text
from dynapath._time_column import Place, Times, read_times
from dynapath._times import settled
from dynapath._visits import Visits, from_rows

from .baseline import Coding, Missing, learn_coding, subject_table

TimeUnit = Literal["hour", "day", "week", "month", "year"]
_DAYS = {"hour": 1 / 24, "day": 1.0, "week": 7.0, "month": 365.25 / 12, "year": 365.25}


@dataclass(frozen=True)
class Schema:
    """How an AnnData was read, so that another one can be read alike."""

    subject_key: str
    time_key: str
    time_unit: str | None
    layer: str | None
    items: tuple[str, ...]
    kinds: tuple[str, ...]
    coding: Coding = field(repr=False)

    def to_arrays(self) -> dict[str, Any]:
        """As values that `uns` can hold."""
        return {
            "subject_key": self.subject_key,
            "time_key": self.time_key,
            "time_unit": self.time_unit or "",
            "layer": self.layer or "",
            "items": np.array(self.items, dtype=str),
            "kinds": np.array(self.kinds, dtype=str),
            "coding": self.coding.to_arrays(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Schema:
        """The schema that `to_arrays` was called on."""
        return cls(
            str(arrays["subject_key"]),
            str(arrays["time_key"]),
            str(arrays["time_unit"]) or None,
            str(arrays["layer"]) or None,
            tuple(map(str, arrays["items"])),
            tuple(map(str, arrays["kinds"])),
            Coding.from_arrays(arrays["coding"]),
        )


@dataclass(frozen=True)
class ReadVisits:
    """Visits, where each row of the AnnData went, and how it was read."""

    visits: Visits
    place: Int[NDArray, "row 2"] = field(repr=False)  # subject and visit of each row
    schema: Schema
    dropped_items: tuple[str, ...] = ()

    def to_rows(self, values: Float[NDArray, "subject visit ..."]) -> Float[NDArray, "row ..."]:
        """What belongs to visits, in the order of the rows of the AnnData."""
        return values[self.place[:, 0], self.place[:, 1]]


def read_visits(
    adata: AnnData,
    *,
    subject_key: str,
    time_key: str,
    baseline: str | Sequence[str] | None = None,
    baseline_missing: Missing = "error",
    time_unit: TimeUnit | None = None,
    layer: str | None = None,
) -> ReadVisits:
    """Visits for a fit, checked.

    Subjects are in the order of the categories of a categorical column, else in sorted order; rows may be in any order. Items
    with values 0 and 1 only are Bernoulli, unless `var["kind"]` says otherwise. Dates are counted in `time_unit` from each
    subject's first visit.

    Raises
    ------
    KeyError : for unknown columns or layers, naming those there are.
    TypeError : for values that are not real numbers.
    ValueError : for times, items or baseline variables that cannot be used, naming the first of them.

    Warns
    -----
    UserWarning : for items and baseline columns left out since they do not vary, for visits without any measurement, and for
        subjects with one visit.
    """
    _check_size(adata)
    subject = _subjects(adata, subject_key)
    times = _times(adata, time_key, time_unit, subject, subject_key)
    _check_once(subject, times, subject_key, time_key)
    coding, _ = learn_coding(adata.obs, subject, baseline, subject_key=subject_key, missing=baseline_missing)
    X = _values(adata, layer)
    kept, dropped = _varying(X, adata)
    items = tuple(map(str, adata.var_names[kept]))
    kinds = _kinds(adata, X, kept)
    schema = Schema(subject_key, time_key, time_unit, layer, items, kinds, coding)
    visits, place = _assemble(subject, times, X[:, kept], schema)
    _check_visits(visits, subject_key)
    return ReadVisits(visits, place, schema, dropped)


def read_new_visits(adata: AnnData, schema: Schema) -> ReadVisits:
    """Visits of other subjects, with the items, levels and centring of a fit. Items are found by name.

    Raises
    ------
    KeyError : for items or columns of the fit that are not there.
    ValueError : as for :func:`read_visits`.
    """
    _check_size(adata)
    present = as_text(adata.var_names)
    missing = [item for item in schema.items if item not in present]
    if missing:
        msg = f"var_names has no item {missing[0]!r}, which the fit used ({len(missing)} missing). Add it, NaN where not measured."
        raise KeyError(msg)
    subject = _subjects(adata, schema.subject_key)
    times = _times(adata, schema.time_key, schema.time_unit, subject, schema.subject_key)
    _check_once(subject, times, schema.subject_key, schema.time_key)
    X = _values(adata, schema.layer)[:, present.get_indexer(list(schema.items))]
    for j, kind in enumerate(schema.kinds):
        if kind == "bernoulli":
            _check_binary(X[:, j], schema.items[j])
    visits, place = _assemble(subject, times, X, schema, adata.obs)
    return ReadVisits(visits, place, schema)


def read_row_times(adata: AnnData, schema: Schema) -> Float[NDArray, " row"]:
    """Time of each row, as a fit of this schema counts it."""
    subject = _subjects(adata, schema.subject_key)
    return _times(adata, schema.time_key, schema.time_unit, subject, schema.subject_key)


def _assemble(
    subject: pd.Series, times: NDArray, X: NDArray, schema: Schema, obs: pd.DataFrame | None = None
) -> tuple[Visits, NDArray]:
    coding = schema.coding
    table = (
        coding.subjects
        if obs is None
        else subject_table(obs, subject, coding.variables, subject_key=schema.subject_key)
    )
    return from_rows(
        subject.cat.codes.to_numpy().astype(np.int64),
        times,
        X,
        coding.code(table),
        items=schema.items,
        kinds=schema.kinds,
        subjects=tuple(map(str, subject.cat.categories)),
        covariates=coding.columns,
    )


def _check_size(adata: AnnData) -> None:
    if not adata.n_obs or not adata.n_vars:
        msg = f"The AnnData has {adata.n_obs} visits and {adata.n_vars} items. Was it filtered to nothing?"
        raise ValueError(msg)
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()][0]
        msg = f"Item {twice!r} occurs more than once in var_names. Rename or drop one of them."
        raise ValueError(msg)


def _subjects(adata: AnnData, subject_key: str) -> pd.Series:
    """The subject of each row, as categories: as given if categorical, else in sorted order."""
    column = column_of(adata.obs, subject_key, argument="subject_key")
    if column.isna().any():
        row = adata.obs_names[column.isna().to_numpy()][0]
        msg = f"{subject_key!r} is missing in {int(column.isna().sum())} rows, first in {row!r}. Name or drop them."
        raise ValueError(msg)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.cat.remove_unused_categories()
    else:
        column = column.astype("category")
    names = column.cat.categories.astype(str)
    if not names.is_unique:
        msg = f"Different values of {subject_key!r} read the same: {names[names.duplicated()][0]!r}. Convert them to text first."
        raise ValueError(msg)
    return column.cat.rename_categories(list(names))


def _times(
    adata: AnnData, time_key: str, time_unit: str | None, subject: pd.Series, subject_key: str
) -> Float[NDArray, " row"]:
    column = column_of(adata.obs, time_key, argument="time_key")
    if time_unit is not None and time_unit not in _DAYS:
        msg = f"time_unit must be one of {', '.join(map(repr, _DAYS))}, or None for numbers; it is {time_unit!r}."
        raise ValueError(msg)
    place = Place.in_adata(f"obs[{time_key!r}]", repr(time_key))
    read = read_times(column, place, advice="Convert it to numbers, such as years since entry.")
    if read.kind == "numbers":
        if time_unit is not None:
            msg = (
                f"time_unit={time_unit!r} counts dates, but {time_key!r} holds numbers, which are in a unit of their own. Leave "
                "time_unit out, or give dates (new subjects of a fit to dates need dates, too)."
            )
            raise ValueError(msg)
        times = read.values.to_numpy(dtype=float)
    else:
        times = _since_first_visit(read, time_key, time_unit, subject, str(column.dropna().iloc[0]))
    bad = ~np.isfinite(times)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        msg = (
            f"{time_key!r} is missing or infinite in {int(bad.sum())} rows, first for {subject_key} {subject.iloc[row]!r} "
            f"(row {adata.obs_names[row]!r}). Give these visits their times, or drop them."
        )
        raise ValueError(msg)
    return settled(times)


def _since_first_visit(
    read: Times, time_key: str, time_unit: str | None, subject: pd.Series, example: str
) -> Float[NDArray, " row"]:
    if time_unit is None:
        msg = (
            f"{time_key!r} holds {read.kind} such as {example!r}. Say in which unit to count with time_unit='year' (or 'month', "
            "'week', 'day', 'hour'), or convert the column to numbers."
        )
        raise ValueError(msg)
    dates = read.values if read.kind == "durations" else read.steady
    first = dates.groupby(subject.to_numpy(), observed=True).transform("min")
    return ((dates - first) / pd.Timedelta(days=1)).to_numpy(dtype=float) / _DAYS[time_unit]


def _check_once(subject: pd.Series, times: NDArray, subject_key: str, time_key: str) -> None:
    pairs = pd.DataFrame({"subject": subject.to_numpy(), "time": times})
    twice = pairs.duplicated(keep="first")
    if twice.any():
        shown = "; ".join(f"{who!r} at {when:g}" for who, when in pairs[twice].head(5).itertuples(index=False))
        msg = (
            f"{int(twice.sum())} visits repeat a {subject_key} and {time_key}: {shown}. Keep one row for each, or average "
            "them yourself."
        )
        raise ValueError(msg)


def _values(adata: AnnData, layer: str | None) -> Float[NDArray, "row item"]:
    layers = [name for name in adata.layers if name is not None]
    if layer is not None and layer not in layers:
        msg = f"layers has no {layer!r}; present: {', '.join(sorted(layers)) or 'none'}."
        raise KeyError(msg)
    where = "X" if layer is None else f"layers[{layer!r}]"
    values = adata.X if layer is None else adata.layers[layer]
    if values is None:
        msg = f"{where} is empty. Give the items as X or name their layer; present: {', '.join(sorted(layers)) or 'none'}."
        raise ValueError(msg)
    if hasattr(values, "to_memory"):  # backed
        values = values.to_memory()
    elif type(values).__module__.startswith("h5py"):
        values = values[()]
    if sparse.issparse(values):
        values = values.toarray()
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        msg = f"{where} must hold real numbers; its type is {values.dtype}. Code text as numbers first."
        raise TypeError(msg)
    values = values.astype(np.float64)  # a copy
    infinite = np.isinf(values)
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        msg = (
            f"Item {adata.var_names[column]!r} is infinite in row {adata.obs_names[row]!r} ({int(infinite.sum())} values). "
            "NaN is for what was not measured; was a logarithm taken of 0?"
        )
        raise ValueError(msg)
    return values


def _varying(X: NDArray, adata: AnnData) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Columns of items that vary, and the names of the others."""
    measured = ~np.isnan(X)
    low = np.where(measured, X, np.inf).min(0)
    high = np.where(measured, X, -np.inf).max(0)
    bad = ~(high > low)
    if bad.all():
        msg = f"None of the {len(bad)} items varies: each is constant or was never measured. Is this the right layer?"
        raise ValueError(msg)
    if bad.any():
        names = [
            f"{adata.var_names[j]} ({'constant' if measured[:, j].any() else 'never measured'})"
            for j in np.flatnonzero(bad)
        ]
        warnings.warn(f"Left out {len(names)} items: {', '.join(names[:5])}.", UserWarning, stacklevel=4)
    return np.flatnonzero(~bad), tuple(map(str, adata.var_names[bad]))


def _kinds(adata: AnnData, X: NDArray, kept: NDArray[np.int64]) -> tuple[str, ...]:
    if "kind" not in adata.var:
        binary = [np.isin(X[~np.isnan(X[:, j]), j], (0, 1)).all() for j in kept]
        return tuple("bernoulli" if is_binary else "gaussian" for is_binary in binary)
    kinds = column_of(adata.var, "kind", place="var").astype(str).to_numpy()[kept]
    for j, kind in zip(kept, kinds, strict=True):
        if kind not in ("gaussian", "bernoulli"):
            msg = f"var['kind'] is {kind!r} for item {adata.var_names[j]!r}; it must be 'gaussian' or 'bernoulli'."
            raise ValueError(msg)
        if kind == "bernoulli":
            _check_binary(X[:, j], adata.var_names[j])
    return tuple(map(str, kinds))


def _check_binary(values: NDArray, item: str) -> None:
    wrong = ~np.isnan(values) & ~np.isin(values, (0, 1))
    if wrong.any():
        msg = f"Item {item!r} is Bernoulli, but holds {values[wrong][0]:g}. Code it as 0 and 1, or set var['kind'] to 'gaussian'."
        raise ValueError(msg)


def _check_visits(visits: Visits, subject_key: str) -> None:
    empty = visits.present & ~visits.observed.any(2)
    if empty.any():
        who = visits.subjects[np.flatnonzero(empty.any(1))[0]]
        warnings.warn(
            f"{int(empty.sum())} visits have no measurement at all (first: {subject_key} {who!r}). Nothing is learned from them.",
            UserWarning,
            stacklevel=4,
        )
    single = visits.n_visits == 1
    if single.all():
        msg = "Every subject has one visit, so that nothing is known of change. At least some must have two."
        raise ValueError(msg)
    if single.any():
        warnings.warn(
            f"{int(single.sum())} of {visits.n_subjects} subjects have one visit and say nothing of change.",
            UserWarning,
            stacklevel=4,
        )
