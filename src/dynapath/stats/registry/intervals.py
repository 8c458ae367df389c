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

from .calibrate import FEWEST, STRATA, conformal_quantile, strata
from .history import landmarks
from .visits import Forecaster, Visits

LEVELS = np.arange(1, 100) / 100


@dataclass(frozen=True)
class Intervals:
    """Half-widths in standard deviations."""

    quantiles: Float[NDArray, "level item stratum"]

    @classmethod
    def by_folds(cls, forecaster: Forecaster, visits: Visits, folds: int, random_state: int | None) -> Intervals:
        """Next-visit forecasts of subjects by refits without them."""
        order = np.random.default_rng(random_state).permutation(visits.n_subjects)
        z, item, stratum = [], [], []
        for fold in range(folds):
            held = np.sort(order[fold::folds])
            with warnings.catch_warnings():
                # What the refits have to say was said of the fit.
                warnings.simplefilter("ignore", UserWarning)
                fitted = forecaster.fit(visits.take(np.setdiff1d(order, held)))
            for cut in landmarks(visits.take(held)):
                mean, sd = fitted.predict(cut.history, cut.times)
                z.append((np.abs(cut.values - mean) / sd)[cut.scored])
                item.append(np.nonzero(cut.scored)[2])
                stratum.append(np.full(len(z[-1]), strata(np.array([cut.k]))[0]))
        return cls.of(np.concatenate(z), np.concatenate(item), np.concatenate(stratum), visits.n_items)

    @classmethod
    def of(cls, z: NDArray, item: NDArray, stratum: NDArray, n_items: int) -> Intervals:
        """Learned from standardised errors; where a stratum has few, all of the item's count."""
        quantiles = np.full((len(LEVELS), n_items, STRATA), np.nan)
        for j in range(n_items):
            own = item == j
            for s in range(STRATA):
                chosen = own & (stratum == s)
                chosen = chosen if chosen.sum() >= FEWEST else own
                if chosen.any():
                    quantiles[:, j, s] = [conformal_quantile(z[chosen], level) for level in LEVELS]
        return cls(quantiles)

    def to_arrays(self) -> dict[str, Any]:
        """The quantiles."""
        return {"quantiles": self.quantiles}
