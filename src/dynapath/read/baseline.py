"""Baseline variables of subjects as columns of numbers, by a formula whose levels and centring are remembered."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath._columns import column_of

MOST_LEVELS = 20
Missing = Literal["error", "mean+indicator"]


@dataclass(frozen=True)
class Coding:
    """A formula, and the variables of the subjects that its levels and centring come from, one row per subject.

    The rows are kept because transformations such as `center(age)` or splines need them to code new subjects alike.
    """

    formula: str  # "" for no baseline
    subjects: pd.DataFrame = field(repr=False)
    indicators: tuple[
        str, ...
    ] = ()  # numeric variables with missing values: filled by the mean, with an indicator each
    dropped: tuple[str, ...] = ()  # columns that did not vary

    @cached_property
    def _spec(self) -> Any:
        from formulaic import model_matrix
        from formulaic.errors import FormulaicError

        try:
            return model_matrix(self.formula, self._filled(self.subjects), na_action="raise").model_spec
        except FormulaicError as error:
            known = ", ".join(self.variables)
            msg = f"The baseline {self.formula!r} cannot be evaluated: {error} It was given the columns {known}."
            raise ValueError(msg) from error

    @property
    def variables(self) -> tuple[str, ...]:
        """Columns of obs that the formula uses."""
        return tuple(self.subjects.columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the result."""
        if not self.formula:
            return ()
        names = [name for name in map(str, self._spec.column_names) if name != "Intercept"]
        names += [f"missing({name})" for name in self.indicators]
        return tuple(name for name in names if name not in self.dropped)

    def code(self, subjects: pd.DataFrame) -> Float[NDArray, "subject covariate"]:
        """Columns of these subjects, on the levels and means of the first ones.

        Raises
        ------
        ValueError : for a level that was not there, or a missing value where there was none.
        """
        if not self.formula:
            return np.zeros((len(subjects), 0))
        for name in self.variables:
            known = self.subjects[name]
            missing = subjects[name].isna()
            if missing.any() and name not in self.indicators:
                msg = (
                    f"Baseline variable {name!r} is missing for subject {subjects.index[missing.to_numpy()][0]!r} "
                    f"({int(missing.sum())} subjects). Fill it in or drop them; where it was missing in the fit too, "
                    "baseline_missing='mean+indicator' fills in means."
                )
                raise ValueError(msg)
            if is_number(known):
                _check_numbers(subjects[name], name)
            else:
                new = subjects.loc[~subjects[name].astype(str).isin(known.astype(str)), name]
                if len(new):
                    levels = ", ".join(sorted(known.astype(str).unique()))
                    msg = f"Baseline variable {name!r} is {new.iloc[0]!r} for subject {new.index[0]!r}, a level that the fit did not see; it saw {levels}."
                    raise ValueError(msg)
        matrix = self._spec.get_model_matrix(self._filled(subjects))
        coded = pd.DataFrame(np.asarray(matrix, dtype=float), columns=list(map(str, self._spec.column_names)))
        for name in self.indicators:
            coded[f"missing({name})"] = subjects[name].isna().to_numpy(dtype=float)
        coded = coded[list(self.columns)].to_numpy()
        if not np.isfinite(coded).all():
            row, column = np.argwhere(~np.isfinite(coded))[0]
            msg = f"Baseline column {self.columns[column]!r} is {coded[row, column]} for subject {subjects.index[row]!r}. Change the formula, or this value."
            raise ValueError(msg)
        return coded

    def _filled(self, subjects: pd.DataFrame) -> pd.DataFrame:
        filled = subjects[list(self.variables)].copy()
        for name in self.variables:
            if is_number(self.subjects[name]):
                filled[name] = filled[name].astype(float)
                if name in self.indicators:
                    filled[name] = filled[name].fillna(float(self.subjects[name].astype(float).mean()))
            else:
                filled[name] = filled[name].astype(str)
        return filled

    def to_arrays(self) -> dict[str, Any]:
        """What is needed to code new subjects, as arrays."""
        table = {
            name: column.to_numpy(dtype=float) if is_number(column) else column.astype(str).to_numpy(dtype=str)
            for name, column in self.subjects.items()
        }
        return {
            "formula": self.formula,
            "variables": np.array(self.variables, dtype=str),
            "subjects": {str(i): values for i, values in enumerate(table.values())},
            "indicators": np.array(self.indicators, dtype=str),
            "dropped": np.array(self.dropped, dtype=str),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Coding:
        """The coding that `to_arrays` was called on."""
        names = [str(name) for name in arrays["variables"]]
        columns = {}
        for i, name in enumerate(names):
            values = np.asarray(arrays["subjects"][str(i)])
            columns[name] = values if values.dtype.kind == "f" else np.array(list(map(str, values)), dtype=object)
        return cls(
            str(arrays["formula"]),
            pd.DataFrame(columns),
            tuple(map(str, arrays["indicators"])),
            tuple(map(str, arrays["dropped"])),
        )


def learn_coding(
    obs: pd.DataFrame, subject: pd.Series, baseline: str | Sequence[str] | None, *, subject_key: str, missing: Missing
) -> tuple[Coding, pd.DataFrame]:
    """The coding of a formula, and the variables of each subject (one row per subject, in the order of the categories).

    Raises
    ------
    KeyError : for a variable that obs does not have.
    ValueError : for variables that change within a subject, are missing, or have too many levels.
    """
    if missing not in ("error", "mean+indicator"):
        msg = f"baseline_missing must be 'error' or 'mean+indicator'; it is {missing!r}."
        raise ValueError(msg)
    formula, names = _formula(baseline, obs)
    if not formula and missing != "error":
        msg = f"baseline_missing={missing!r} says what to do with a baseline, but there is none. Leave it out, or give a baseline."
        raise ValueError(msg)
    table = subject_table(obs, subject, names, subject_key=subject_key)
    lacking = [name for name in names if table[name].isna().any()]
    for name in lacking:
        who = table.index[table[name].isna().to_numpy()]
        if missing == "error" or not is_number(table[name]):
            advice = (
                "or baseline_missing='mean+indicator'"
                if is_number(table[name])
                else "for example with a level of its own, 'unknown'"
            )
            msg = f"Baseline variable {name!r} is missing for {len(who)} subjects, first {who[0]!r}. Fill it in, {advice}."
            raise ValueError(msg)
    for name in names:
        if is_number(table[name]):
            continue
        levels = table[name].astype(str).nunique()
        if levels > MOST_LEVELS:
            advice = _conversion(name) if _reads_as_numbers(table[name]) else "Merge rare ones."
            msg = f"Baseline variable {name!r} has {levels} levels; more than {MOST_LEVELS} cannot be learned from. {advice}"
            raise ValueError(msg)
        if f"C({name}" not in formula.replace(" ", "").replace("`", ""):
            kept = ", ".join(sorted(table[name].astype(str).unique()))
            otherwise = f" {_conversion(name)}" if _reads_as_numbers(table[name]) else ""
            warnings.warn(
                f"Baseline variable {name!r} is not numeric and becomes one column for each level but the first: {kept}. "
                f"Write C({name}) to say that this is meant.{otherwise}",
                UserWarning,
                stacklevel=5,
            )
    coding = Coding(formula, table, tuple(lacking))
    if not formula:
        return coding, table
    coded = coding.code(table)
    constant = tuple(name for name, column in zip(coding.columns, coded.T, strict=True) if np.ptp(column) == 0)
    if constant:
        if len(constant) == len(coding.columns):
            msg = f"No baseline column varies between subjects: {', '.join(constant)}. Choose other variables, or baseline=None."
            raise ValueError(msg)
        warnings.warn(
            f"Baseline columns are the same for all subjects and are left out: {', '.join(constant)}.",
            UserWarning,
            stacklevel=5,
        )
        coding = Coding(formula, table, tuple(lacking), constant)
    return coding, table


def subject_table(obs: pd.DataFrame, subject: pd.Series, names: Sequence[str], *, subject_key: str) -> pd.DataFrame:
    """One row per subject of columns that must not change within a subject."""
    for name in names:
        several = (
            column_of(obs, name, argument="baseline")
            .groupby(subject.to_numpy(), sort=False, observed=True)
            .nunique(dropna=False)
        )
        if (several > 1).any():
            who = several.index[several > 1][0]
            values = ", ".join(map(str, obs.loc[(subject == who).to_numpy(), name].unique()[:3]))
            msg = (
                f"Baseline variable {name!r} changes within {subject_key} {who!r} ({values}; {int((several > 1).sum())} subjects). "
                "A baseline is known at the first visit and constant: use the first value, or make it an item."
            )
            raise ValueError(msg)
    first = ~subject.duplicated().to_numpy()
    table = obs.loc[first, list(names)].set_axis(subject[first].astype(str), axis=0)
    table = pd.DataFrame({name: _as_numbers(table[name]) for name in names}, index=table.index)
    return table.loc[[str(name) for name in subject.cat.categories]]


def is_number(column: pd.Series) -> bool:
    """Whether a column enters as a number; booleans do."""
    return pd.api.types.is_numeric_dtype(column.dtype) and not isinstance(column.dtype, pd.CategoricalDtype)


def _as_numbers(column: pd.Series) -> pd.Series:
    """Numbers as floats, whether the column has a type of numbers or holds them as objects; text stays text."""
    if column.dtype == object:
        known = column[column.notna()]
        if not len(known) or not all(isinstance(value, Real | Decimal | np.bool_) for value in known):
            return column
        return column.where(column.notna(), np.nan).astype(float)
    return column.astype(float) if is_number(column) else column


def _check_numbers(column: pd.Series, name: str) -> None:
    """What was a number in the fit must be one in new subjects."""
    known = column.dropna()
    if is_number(column) or not len(known):
        return
    other = known[[not isinstance(value, Real) for value in known]]
    example = other if len(other) else known
    msg = (
        f"Baseline variable {name!r} is {example.iloc[0]!r} for subject {example.index[0]!r}, but a number in the fit. "
        f"{_conversion(name)}"
    )
    raise ValueError(msg)


def _reads_as_numbers(column: pd.Series) -> bool:
    """Whether each value that is not missing is the text of a number."""
    return bool(pd.to_numeric(column.dropna().astype(str), errors="coerce").notna().all())


def _conversion(name: str) -> str:
    return f"If it holds numbers as text: adata.obs[{name!r}] = pd.to_numeric(adata.obs[{name!r}])."


def _formula(baseline: str | Sequence[str] | None, obs: pd.DataFrame) -> tuple[str, list[str]]:
    if baseline is None or (not isinstance(baseline, str) and not len(baseline)):
        return "", []
    if not isinstance(baseline, str):
        names = list(dict.fromkeys(baseline))
        return "~ " + " + ".join(f"`{name}`" for name in names), names
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    try:
        formula = Formula(baseline)
        if getattr(formula, "lhs", None) is not None:
            msg = f"baseline={baseline!r} has a left side. Write the right one only, such as '~ age + C(subtype)'."
            raise ValueError(msg)
        variables = {str(name).split(".")[0] for name in formula.required_variables}
        variables |= {name for term in formula for factor in term.factors for name in _arguments(factor.expr, obs)}
    except FormulaicError as error:
        msg = f"baseline={baseline!r} is no formula: {error}. Write, for example, '~ age + C(subtype)'."
        raise ValueError(msg) from error
    return baseline, sorted(variables)


def _arguments(expression: str, obs: pd.DataFrame) -> set[str]:
    """Columns named inside transformations that keep a state, such as center(age): formulaic does not list these."""
    try:
        tree = ast.parse(expression, mode="eval")
    except SyntaxError:  # a quoted name, which formulaic lists itself
        return set()
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in obs}
