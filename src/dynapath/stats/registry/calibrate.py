"""Intervals that hold: standard deviations and quantiles learned from patients who were not in the fit.

Forecasts of training patients by models fitted without them give standardised errors |y - mean| / sd. Their quantiles, for
each item and landmark (1, 2, 3 or more visits), are the half-widths of intervals, in standard deviations: split conformal
prediction (Vovk, Gammerman & Shafer 2005; Lei et al. 2018, doi:10.1080/01621459.2017.1307116), over folds of patients instead
of one split. Pooling landmarks would hide that the first is the hardest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from dynapath.metrics.forecasts import gaussian_crps

LEVELS = (0.5, 0.9)
STRATA = 3  # landmarks 1, 2, and 3 or more
FEWEST = 60  # errors in a stratum; with fewer, those of the item at all landmarks are used
_FACTORS = np.geomspace(0.4, 2.5, 43)


@dataclass(frozen=True)
class Errors:
    """Errors of forecasts, one row per forecast."""

    item: Int[NDArray, " row"]
    k: Int[NDArray, " row"]
    dt: Float[NDArray, " row"]
    error: Float[NDArray, " row"]
    sd: Float[NDArray, " row"]  # NaN: the model has none


@dataclass(frozen=True)
class Calibration:
    """How far a model's forecasts miss, by item: its scale, the factor of the CRPS, and quantiles."""

    scale: Float[NDArray, "item 2"] | None  # s0 + s1 dt, for models without standard deviations
    factor: Float[NDArray, " item"]
    quantiles: Float[NDArray, "level item stratum"]

    @classmethod
    def of(cls, errors: Errors, n_items: int) -> Calibration:
        """Learned from errors on patients outside the fit."""
        scale = None if np.isfinite(errors.sd).all() else _scale(errors, n_items)
        sd = errors.sd if scale is None else _line(scale, errors.item, errors.dt)
        z = np.abs(errors.error) / sd
        stratum = strata(errors.k)
        factor = np.ones(n_items)
        quantiles = np.full((len(LEVELS), n_items, STRATA), np.nan)
        for item in range(n_items):
            own = errors.item == item
            if not own.any():
                continue
            # The scale by which a normal forecast has the smallest CRPS, which errors with heavy tails pull less than a variance.
            scores = [gaussian_crps(errors.error[own], 0.0, factor * sd[own]).mean() for factor in _FACTORS]
            factor[item] = _FACTORS[int(np.argmin(scores))]
            for s in range(STRATA):
                chosen = own & (stratum == s)
                chosen = chosen if chosen.sum() >= FEWEST else own
                quantiles[:, item, s] = [conformal_quantile(z[chosen], level) for level in LEVELS]
        return cls(scale, factor, quantiles)

    def apply(
        self,
        item: Int[NDArray, " row"],
        k: Int[NDArray, " row"],
        dt: Float[NDArray, " row"],
        sd: Float[NDArray, " row"],
    ) -> tuple[Float[NDArray, " row"], Float[NDArray, "level row"]]:
        """Standard deviation, and the half-width of the interval of each level."""
        sd = sd if self.scale is None else _line(self.scale, item, dt)
        return sd * self.factor[item], self.quantiles[:, item, strata(k)] * sd


def strata(k: Int[NDArray, " row"]) -> Int[NDArray, " row"]:
    """0, 1, 2 for landmarks 1, 2, and 3 or more."""
    return np.minimum(k, STRATA) - 1


def conformal_quantile(z: Float[NDArray, " row"], level: float) -> float:
    """The ceil((n + 1) level)-th smallest, which a new z of the same kind exceeds with probability at most 1 - level."""
    n = len(z)
    rank = min(int(np.ceil((n + 1) * level)), n)
    return float(np.partition(z, rank - 1)[rank - 1])


def _scale(errors: Errors, n_items: int) -> Float[NDArray, "item 2"]:
    """Mean absolute error as s0 + s1 dt with s0 > 0, s1 >= 0, by least squares."""
    out = np.zeros((n_items, 2))
    out[:, 0] = 1.0
    for item in range(n_items):
        own = errors.item == item
        if not own.any():
            continue
        size, dt = np.abs(errors.error[own]), errors.dt[own]
        centred = dt - dt.mean()
        slope = max((centred @ size) / max(centred @ centred, 1e-12), 0.0)
        start = size.mean() - slope * dt.mean()
        smallest = 0.25 * size.mean()
        if start < smallest:
            start, slope = smallest, max((size.mean() - smallest) / max(dt.mean(), 1e-12), 0.0)
        # 1.25 mean absolute errors are a standard deviation of a normal distribution.
        out[item] = 1.2533 * max(start, 1e-9), 1.2533 * slope
    return out


def _line(scale: Float[NDArray, "item 2"], item: Int[NDArray, " row"], dt: Float[NDArray, " row"]) -> NDArray:
    return scale[item, 0] + scale[item, 1] * dt
