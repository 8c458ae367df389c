"""What the visits so far say: the columns that simple forecasts are made from, and the cases to learn them from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from .visits import Visits

Horizon = Literal["next", "all"]
# Shares of the longest follow-up: below the first, gaps are equal but for rounding. A power of two, so that gaps of visits on
# a grid are not halfway between two multiples of it, where the last bit would decide. Below the second, visits have no slope
# between them, as it would be an error of measurement over next to nothing.
TICK = 2.0**-30
SHORTEST = 1e-6


@dataclass(frozen=True)
class Clock:
    """Times since the first visit of a fit, in units of its longest follow-up, rounded to ticks.

    Gaps that are equal in one unit of time differ by their last bits in another, and trees can split between them.
    """

    origin: float
    span: float

    @classmethod
    def of(cls, visits: Visits) -> Clock:
        """From the visits of a fit."""
        first = visits.times[:, 0][visits.n_visits > 0]
        span = float((visits.last_time() - visits.times[:, 0]).max(initial=0.0))
        return cls(float(first.min(initial=np.inf)) if len(first) else 0.0, span if span > 0 else 1.0)

    def gap(self, difference: Float[NDArray, "*shape"]) -> Float[NDArray, "*shape"]:
        """A difference of times."""
        return np.rint(difference / (self.span * TICK)) * TICK

    def time(self, times: Float[NDArray, "*shape"]) -> Float[NDArray, "*shape"]:
        """A time."""
        return self.gap(times - self.origin)

    def before_last(self, visits: Visits) -> Visits:
        """The same visits, with times counted from each subject's last one."""
        return replace(visits, times=self.gap(visits.times - visits.last_time()[:, None]))


@dataclass(frozen=True)
class History:
    """Summaries of each subject's visits, NaN where an item was never measured."""

    last: Float[NDArray, "subject item"]  # last measured value
    mean: Float[NDArray, "subject item"]
    slope: Float[NDArray, "subject item"]  # least squares over time; 0 for a single measurement
    seen: Bool[NDArray, "subject item"]
    time: Float[NDArray, " subject"]  # of the last visit
    n_visits: Int[NDArray, " subject"]


def summarise(visits: Visits, shortest: float = 0.0) -> History:
    """The history of each subject; an item that was measured only within a time below `shortest` has slope 0."""
    observed = visits.observed
    n = observed.sum(1)
    seen = n > 0
    y = np.where(observed, visits.values, 0.0)
    position = np.where(observed, np.arange(visits.values.shape[1])[:, None], -1).max(1)
    last = np.take_along_axis(visits.values, np.maximum(position, 0)[:, None], axis=1)[:, 0]
    count = np.maximum(n, 1)
    mean = y.sum(1) / count
    t = np.where(observed, visits.times[..., None], 0.0)
    dt = np.where(observed, t - (t.sum(1) / count)[:, None], 0.0)
    spread = (dt**2).sum(1)
    sloped = spread > shortest**2
    slope = (dt * y).sum(1) / np.where(sloped, spread, 1.0)
    nothing = np.where(seen, 0.0, np.nan)
    return History(
        last=np.where(seen, last, np.nan),
        mean=mean + nothing,
        slope=np.where(sloped, slope, 0.0) + nothing,
        seen=seen,
        time=visits.last_time(),
        n_visits=visits.n_visits,
    )


@dataclass(frozen=True)
class Landmark:
    """Subjects with visits after their first `k`: those first visits, and what came later."""

    k: int
    subjects: Int[NDArray, " subject"]  # positions in the visits this was cut from
    history: Visits
    times: Float[NDArray, "subject ahead"]  # NaN: no such visit
    values: Float[NDArray, "subject ahead item"]  # NaN: not measured

    @property
    def scored(self) -> Bool[NDArray, "subject ahead item"]:
        """Measured later, and at least once before, so that every model has something to go by."""
        return ~np.isnan(self.values) & self.history.observed.any(1)[:, None]


def landmarks(visits: Visits, horizon: Horizon = "next", ks: tuple[int, ...] | None = None) -> Iterator[Landmark]:
    """From each number of first visits `ks` (by default all that leave a visit), the next visit or all later ones."""
    longest = int(visits.n_visits.max(initial=0))
    for k in range(1, longest) if ks is None else ks:
        rows = np.flatnonzero(visits.n_visits > k)
        if not len(rows):
            continue
        own = visits.take(rows)
        ahead = slice(k, k + 1) if horizon == "next" else slice(k, None)
        times = np.where(own.present[:, ahead], own.times[:, ahead], np.nan)
        yield Landmark(k, rows, own.first(k), times, own.values[:, ahead])
