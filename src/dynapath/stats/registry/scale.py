"""Scales of items, covariates and times, learned from the visits of a fit and applied to new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from .visits import Visits


@dataclass(frozen=True)
class Scale:
    """Items and covariates have mean 0 and variance 1; times count median gaps from a subject's first visit."""

    mean: Float[NDArray, " item"]
    sd: Float[NDArray, " item"]
    covariate_mean: Float[NDArray, " covariate"]
    covariate_sd: Float[NDArray, " covariate"]
    gap: float

    @classmethod
    def of(cls, visits: Visits) -> Scale:
        """Scales of these visits. What does not vary is only centred."""
        gaps = np.diff(visits.times, axis=1)[visits.present[:, 1:]]
        measured = visits.values[visits.present]
        return cls(
            mean=np.array([_of_known(column, np.mean, 0.0) for column in measured.T]),
            sd=np.array([_of_known(column, np.std, 1.0) or 1.0 for column in measured.T]),
            covariate_mean=visits.baseline.mean(0),
            covariate_sd=np.where(visits.baseline.std(0) > 1e-9, visits.baseline.std(0), 1.0),
            gap=float(np.median(gaps)) if gaps.size else 1.0,
        )

    def apply(self, visits: Visits) -> Visits:
        """The visits on this scale."""
        return replace(
            visits,
            times=(visits.times - visits.times[:, :1]) / self.gap,
            values=(visits.values - self.mean) / self.sd,
            baseline=(visits.baseline - self.covariate_mean) / self.covariate_sd,
        )

    def restore(self, mean: NDArray, sd: NDArray) -> tuple[NDArray, NDArray]:
        """Means and standard deviations of items in their own units."""
        return mean * self.sd + self.mean, sd * self.sd

    def to_arrays(self) -> dict[str, Any]:
        """The five fields."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Scale:
        """The scale that `to_arrays` was called on."""
        fields = {name: np.atleast_1d(np.asarray(arrays[name], dtype=float)) for name in cls.__dataclass_fields__}
        return cls(**fields | {"gap": float(fields["gap"][0])})


def _of_known(values: NDArray, statistic: Any, otherwise: float) -> float:
    known = values[~np.isnan(values)]
    return float(statistic(known)) if known.size else otherwise
