"""Intervals that hold: standard deviations and quantiles learned from patients who were not in the fit.

Forecasts of training patients by models fitted without them give standardised errors |y - mean| / sd. Their quantiles, for
each item and landmark (1, 2, 3 or more visits), are the half-widths of intervals, in standard deviations: split conformal
prediction (Vovk, Gammerman & Shafer 2005; Lei et al. 2018, doi:10.1080/01621459.2017.1307116), over folds of patients instead
of one split. Pooling landmarks would hide that the first is the hardest.

A new patient is like the others; a new forecast is not like the others, many of which may be of one patient and miss together.
So it is patients who are counted: each has the same weight, shared by its forecasts, and the new one has that weight too,
beyond the largest error (Dunn, Wasserman & Ramdas 2022, doi:10.1080/01621459.2022.2060112; Lee, Barber & Willett 2023,
arXiv:2306.06342). A forecast drawn from those of a new patient is then inside with at least the probability of the interval,
however errors go together within patients. With n patients that takes n / (n + 1) of at least this probability, 9 for .9 and
99 for .99; with fewer the interval is infinite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

from dynapath.metrics.forecasts import gaussian_crps

LEVELS = (0.5, 0.9)
STRATA = 3  # landmarks 1, 2, and 3 or more
_FACTORS = np.geomspace(0.4, 2.5, 43)


@dataclass(frozen=True)
class Errors:
    """Errors of forecasts, one row per forecast."""

    subject: Int[NDArray, " row"]
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
    quantiles: Float[NDArray, "level item stratum"]  # infinite where too few patients are known

    @classmethod
    def of(cls, errors: Errors, n_items: int) -> Calibration:
        """Learned from errors on patients outside the fit."""
        scale = None
        sd = without = errors.sd
        if not np.isfinite(errors.sd).all():
            scale, sd, without = _scale(errors, n_items)
        z = np.abs(errors.error) / without
        stratum = strata(errors.k)
        factor = np.ones(n_items)
        quantiles = np.full((len(LEVELS), n_items, STRATA), np.inf)
        for item in range(n_items):
            own = errors.item == item
            if not own.any():
                continue
            # The scale by which a normal forecast has the smallest CRPS, which errors with heavy tails pull less than a variance.
            scores = [gaussian_crps(errors.error[own], 0.0, factor * sd[own]).mean() for factor in _FACTORS]
            factor[item] = _FACTORS[int(np.argmin(scores))]
            quantiles[:, item] = stratum_quantiles(z[own], errors.subject[own], stratum[own], LEVELS)
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
        quantiles = self.quantiles[:, item, strata(k)]
        with np.errstate(invalid="ignore"):
            half = np.where(np.isinf(quantiles), np.inf, quantiles * sd)
        return sd * self.factor[item], half


def strata(k: Int[NDArray, " row"]) -> Int[NDArray, " row"]:
    """0, 1, 2 for landmarks 1, 2, and 3 or more."""
    return np.minimum(k, STRATA) - 1


def patients_needed(level: float) -> int:
    """The fewest patients from whom an interval of this probability can be learned: n / (n + 1) >= level."""
    return int(np.ceil(level / (1 - level) - 1e-9))


def conformal_quantiles(
    z: Float[NDArray, " row"], subject: Int[NDArray, " row"], levels: ArrayLike
) -> Float[NDArray, " level"]:
    """What a forecast drawn from those of a new patient exceeds with probability at most 1 - level.

    The smallest z up to which lie (n + 1) level of the n patients, each counted by the share of its forecasts; infinite for
    more than n. With one forecast of each it is the ceil((n + 1) level)-th smallest. A z that is NaN counts as infinite.
    """
    _, of, size = np.unique(subject, return_inverse=True, return_counts=True)
    order = np.argsort(z, kind="stable")
    patients = np.cumsum(1.0 / size[of[order]])
    at = np.searchsorted(patients, (len(size) + 1) * np.asarray(levels) - 1e-9)
    return np.append(np.where(np.isnan(z), np.inf, z)[order], np.inf)[at]


def stratum_quantiles(
    z: Float[NDArray, " row"], subject: Int[NDArray, " row"], stratum: Int[NDArray, " row"], levels: ArrayLike
) -> Float[NDArray, "level stratum"]:
    """Conformal quantiles for each landmark.

    Where too few patients are known at a landmark, their forecasts with a visit fewer known count as well, and so on: those
    are harder, so that the interval is too wide rather than too narrow. The first landmark has none that are harder.
    """
    quantiles = np.full((len(np.atleast_1d(levels)), STRATA), np.inf)
    for s in range(STRATA):
        for lowest in range(s, -1, -1):
            chosen = (lowest <= stratum) & (stratum <= s)
            found = conformal_quantiles(z[chosen], subject[chosen], levels)
            quantiles[:, s] = np.where(np.isinf(quantiles[:, s]), found, quantiles[:, s])
    # Levels that borrow may not end inside those that need not.
    return np.maximum.accumulate(quantiles, axis=0)


def _scale(
    errors: Errors, n_items: int
) -> tuple[Float[NDArray, "item 2"], Float[NDArray, " row"], Float[NDArray, " row"]]:
    """Size of errors as s0 + s1 dt for each item; at each row; and at each row as learned without its patient.

    Errors that had a part in their own scale would look smaller than those of a new patient. Without any other patient it
    is NaN.
    """
    lines, with_own, without = np.ones((n_items, 2)), np.ones(len(errors.item)), np.full(len(errors.item), np.nan)
    lines[:, 1] = 0.0
    for item in range(n_items):
        own = errors.item == item
        if not own.any():
            continue
        size, dt = np.abs(errors.error[own]), errors.dt[own]
        _, of = np.unique(errors.subject[own], return_inverse=True)
        centre = dt.mean()
        terms = np.column_stack([np.ones(len(dt)), size, dt - centre, (dt - centre) ** 2, (dt - centre) * size])
        by_patient = np.column_stack([np.bincount(of, term) for term in terms.T])
        total = by_patient.sum(0)
        lines[item] = _least_squares(total[None], centre)[0]
        with_own[own] = lines[item, 0] + lines[item, 1] * dt
        if len(by_patient) > 1:
            others = _least_squares(total - by_patient, centre)[of]
            without[own] = others[:, 0] + others[:, 1] * dt
    return lines, with_own, without


def _least_squares(sums: Float[NDArray, "fit 5"], centre: float) -> Float[NDArray, "fit 2"]:
    """Mean absolute error as s0 + s1 dt with s0 > 0, s1 >= 0, from sums of 1, size, dt, dt^2, dt size; dt - `centre`."""
    n, size, dt, square, product = sums.T
    size, dt = size / n, dt / n
    spread = square / n - dt**2
    varies = spread > 1e-9 * (square / n + (dt + centre) ** 2)
    slope = np.where(varies, np.maximum(product / n - dt * size, 0.0) / np.where(varies, spread, 1.0), 0.0)
    dt = dt + centre
    start = size - slope * dt
    # A line through the mean that starts at a quarter of it, where that of least squares starts lower.
    low = start < 0.25 * size
    steep = 0.75 * size / np.where(dt > 0, dt, np.inf)
    start, slope = np.where(low, 0.25 * size, start), np.where(low, steep, slope)
    # 1.25 mean absolute errors are a standard deviation of a normal distribution.
    return 1.2533 * np.column_stack([np.maximum(start, 1e-9), slope])


def _line(scale: Float[NDArray, "item 2"], item: Int[NDArray, " row"], dt: Float[NDArray, " row"]) -> NDArray:
    return scale[item, 0] + scale[item, 1] * dt
