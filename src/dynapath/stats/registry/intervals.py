"""Intervals of predicted visits: quantiles of standardised errors on subjects left out of refits.

Conformal as in calibrate.py, for each item and landmark (1, 2, 3 or more visits), kept for many levels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from .calibrate import STRATA, strata, stratum_quantiles
from .history import landmarks
from .visits import Forecaster, Visits

LEVELS = np.arange(1, 100) / 100


@dataclass(frozen=True)
class Intervals:
    """Half-widths in standard deviations, infinite where too few subjects are known."""

    quantiles: Float[NDArray, "level item stratum"]

    @classmethod
    def by_folds(cls, forecaster: Forecaster, visits: Visits, folds: int, random_state: int | None) -> Intervals:
        """Next-visit forecasts of subjects by refits without them."""
        order = np.random.default_rng(random_state).permutation(visits.n_subjects)
        z, subject, item, stratum = [], [], [], []
        for fold in range(folds):
            held = np.sort(order[fold::folds])
            with warnings.catch_warnings():
                # What the refits have to say was said of the fit.
                warnings.simplefilter("ignore", UserWarning)
                fitted = forecaster.fit(visits.take(np.setdiff1d(order, held)))
            for cut in landmarks(visits.take(held)):
                mean, sd = fitted.predict(cut.history, cut.times)
                row, _, column = np.nonzero(cut.scored)
                z.append((np.abs(cut.values - mean) / sd)[cut.scored])
                subject.append(held[cut.subjects[row]])
                item.append(column)
                stratum.append(np.full(len(row), strata(np.array([cut.k]))[0]))
        return cls.of(*(np.concatenate(part) for part in (z, subject, item, stratum)), visits.n_items)

    @classmethod
    def of(cls, z: NDArray, subject: NDArray, item: NDArray, stratum: NDArray, n_items: int) -> Intervals:
        """Learned from standardised errors."""
        quantiles = np.full((len(LEVELS), n_items, STRATA), np.inf)
        for j in range(n_items):
            own = item == j
            quantiles[:, j] = stratum_quantiles(z[own], subject[own], stratum[own], LEVELS)
        return cls(quantiles)

    def to_arrays(self) -> dict[str, Any]:
        """The quantiles."""
        return {"quantiles": self.quantiles}
