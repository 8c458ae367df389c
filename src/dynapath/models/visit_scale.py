"""Scales of items, covariates and times, learned from the visits of a fit and applied to new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath._visits import Visits


@dataclass(frozen=True)
class Scale:
    """Items and covariates have mean 0 and variance 1; times are in units of `gap` from a subject's first visit."""

    mean: Float[NDArray, " item"]
    sd: Float[NDArray, " item"]
    covariate_mean: Float[NDArray, " covariate"]
    covariate_sd: Float[NDArray, " covariate"]
    filling: Float[NDArray, " item"]  # mean of the scaled items
    gap: float

    @classmethod
    def of(cls, visits: Visits) -> Scale:
        """Scales of these visits, times in median gaps. What does not vary is only centred."""
        gaps = np.diff(visits.times, axis=1)[visits.present[:, 1:]]
        measured = visits.values[visits.present]
        spread = visits.baseline.std(0)
        return cls(
            mean=np.array([_of_known(column, np.mean, 0.0) for column in measured.T]),
            sd=np.array([_of_known(column, np.std, 1.0) or 1.0 for column in measured.T]),
            covariate_mean=visits.baseline.mean(0),
            covariate_sd=np.where(spread > 1e-9, spread, 1.0),
            filling=np.zeros(visits.n_items),
            gap=float(np.median(gaps)) if gaps.size else 1.0,
        )

    @classmethod
    def by_span(cls, visits: Visits, *, centred: bool) -> Scale:
        """The same with the longest follow-up as 10 units of time, in which published rates are about .2.

        Not `centred`: items keep their zero, which a homogeneous system decays to or grows from, and have a mean square
        of 1. Items of 0 and 1 keep their scale.
        """
        own = cls.of(visits)
        root = np.sqrt(own.mean**2 + own.sd**2)
        binary = ~visits.gaussian
        mean = own.mean if centred else np.zeros_like(own.mean)
        sd = own.sd if centred else np.where(root > 0, root, 1.0)
        mean, sd = np.where(binary, 0.0, mean), np.where(binary, 1.0, sd)
        span = float((visits.times - visits.times[:, :1]).max(initial=0.0))
        return replace(own, mean=mean, sd=sd, filling=(own.mean - mean) / sd, gap=span / 10 or 1.0)

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
        """All fields."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Scale:
        """The scale that `to_arrays` was called on."""
        fields = {name: np.atleast_1d(np.asarray(arrays[name], dtype=float)) for name in cls.__dataclass_fields__}
        return cls(**fields | {"gap": float(fields["gap"][0])})


def _of_known(values: NDArray, statistic: Any, otherwise: float) -> float:
    known = values[~np.isnan(values)]
    return float(statistic(known)) if known.size else otherwise
