"""Increments of units over days: s[t] = s[t-1] + b1 + b2 s[t-1] + b3 z[t-1] + ..., one set of coefficients per unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

# c of the smooth floor h(x) = (x + sqrt(x^2 + c^2)) / 2 under the mean of counts: a mean of 0 becomes .05 reports.
FLOOR = 0.1


@dataclass(frozen=True)
class IncrementDynamics:
    """A fitted increment model as arrays.

    Attributes
    ----------
    coefficients
        `intercept`, `state`, then one name for each regressor.
    covariates, source, lag
        Regressor j is covariate `covariates[source[j]]`, `lag[j]` days before the day that is stepped to.
    units
        Names of the units, in the order of all that follows.
    params
        Coefficients (unit, coefficient), in reports per day and unit of the regressor; NaN where there are no data.
    covariance
        Of the coefficients, unit by unit; NaN where unknown, None if no errors were asked for.
    sigma2
        Variance of one day's innovation; NaN where unknown.
    overdispersion
        Of counts (unit,): variance = mean + overdispersion mean^2; None unless the loss is that of counts.
    status
        How each unit's fit ended.
    mean, mean_covariance, spread
        Mean of the pooled coefficients, its covariance, and the covariance of the units around it (0 where shared, NaN
        where individual); None if nothing is pooled.
    """

    coefficients: tuple[str, ...]
    covariates: tuple[str, ...]
    source: Int[NDArray, " column"]
    lag: Int[NDArray, " column"]
    units: NDArray[np.object_] = field(repr=False)
    params: Float[NDArray, "unit coefficient"] = field(repr=False)
    sigma2: Float[NDArray, " unit"] = field(repr=False)
    status: NDArray[np.object_] = field(repr=False)
    covariance: Float[NDArray, "unit coefficient coefficient"] | None = field(default=None, repr=False)
    overdispersion: Float[NDArray, " unit"] | None = field(default=None, repr=False)
    mean: Float[NDArray, " coefficient"] | None = None
    mean_covariance: Float[NDArray, "coefficient coefficient"] | None = field(default=None, repr=False)
    spread: Float[NDArray, "coefficient coefficient"] | None = field(default=None, repr=False)

    @property
    def se(self) -> Float[NDArray, "unit coefficient"] | None:
        """Standard errors."""
        if self.covariance is None:
            return None
        return np.sqrt(np.maximum(np.einsum("ukk->uk", self.covariance), 0.0))

    @property
    def persistence(self) -> Float[NDArray, " unit"]:
        """a = 1 + state coefficient: how much of a deviation is left a day later."""
        return 1.0 + self.params[:, 1]

    def increment(
        self, state: Float[NDArray, " unit"], regressors: Float[NDArray, "unit column"]
    ) -> Float[NDArray, " unit"]:
        """Expected change over one day."""
        b = self.params
        change = b[:, 0] + b[:, 1] * state + np.einsum("uj,uj->u", b[:, 2:], regressors)
        return change if self.overdispersion is None else floored(state + change)[0] - state

    def take(self, rows: Int[NDArray, " chosen"]) -> IncrementDynamics:
        """Some of the units."""
        own = {
            name: value[rows]
            for name in ("units", "params", "sigma2", "status", "covariance", "overdispersion")
            if (value := getattr(self, name)) is not None
        }
        return IncrementDynamics(**{**vars(self), **own})

    def to_arrays(self) -> dict[str, Any]:
        """Arrays to store; `from_arrays` takes them back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> IncrementDynamics:
        """Built again, whichever string type a file format gave back."""
        values: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            value = arrays.get(name)
            if name in ("coefficients", "covariates"):
                value = tuple(str(item) for item in value) if value is not None else ()
            elif name in ("units", "status"):
                value = np.array([str(item) for item in value], dtype=object)
            elif name in ("source", "lag"):
                value = np.asarray(value, dtype=np.int64)
            elif value is not None:
                value = np.asarray(value, dtype=np.float64)
            values[name] = value
        return cls(**values)


def floored(x: Float[NDArray, "..."]) -> tuple[Float[NDArray, "..."], Float[NDArray, "..."]]:
    """The smooth floor h(x) under the mean of counts, and its derivative."""
    root = np.sqrt(x * x + FLOOR * FLOOR)
    value = np.where(x > 0, 0.5 * (x + root), 0.5 * FLOOR * FLOOR / (root - x))
    return value, value / root
