"""Visits of subjects at their own times, as arrays with named axes: what registry models are fitted to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

KINDS = ("gaussian", "bernoulli")


@dataclass(frozen=True)
class Visits:
    """Visits in the order of time, from the first axis position on; positions after a subject's last visit are padding.

    Padding has `present` False, `values` NaN, and repeats the time of the last visit, so that it is 0 after it. A subject
    without visits has time 0 throughout.
    """

    times: Float[NDArray, "subject visit"]
    values: Float[NDArray, "subject visit item"] = field(repr=False)  # NaN: not measured
    present: Bool[NDArray, "subject visit"] = field(repr=False)
    baseline: Float[NDArray, "subject covariate"] = field(repr=False)
    items: tuple[str, ...]
    kinds: tuple[str, ...]  # of each item: "gaussian" or "bernoulli"
    subjects: tuple[str, ...] = field(repr=False)
    covariates: tuple[str, ...]

    def __post_init__(self) -> None:
        n_subjects, n_visits, n_items = self.values.shape
        assert self.times.shape == self.present.shape == (n_subjects, n_visits)
        assert self.baseline.shape == (n_subjects, len(self.covariates))
        assert len(self.subjects) == n_subjects
        assert len(self.items) == len(self.kinds) == n_items
        assert set(self.kinds) <= set(KINDS)

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.values.shape[0]

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.values.shape[2]

    @property
    def n_covariates(self) -> int:
        """Number of columns of the baseline."""
        return self.baseline.shape[1]

    @property
    def n_visits(self) -> Int[NDArray, " subject"]:
        """Visits of each subject."""
        return self.present.sum(1)

    @property
    def observed(self) -> Bool[NDArray, "subject visit item"]:
        """Whether an item was measured."""
        return ~np.isnan(self.values)

    @property
    def gaussian(self) -> Bool[NDArray, " item"]:
        """Items with real values; the others are 0 or 1."""
        return np.array([kind == "gaussian" for kind in self.kinds], dtype=bool)

    def take(self, subjects: NDArray) -> Visits:
        """Some of the subjects: positions or a mask, with as many visits as they have."""
        rows = np.arange(self.n_subjects)[subjects]
        width = max(int(self.n_visits[rows].max(initial=0)), 1)
        return replace(
            self,
            times=self.times[rows, :width],
            values=self.values[rows, :width],
            present=self.present[rows, :width],
            baseline=self.baseline[rows],
            subjects=tuple(self.subjects[row] for row in rows),
        )

    def first(self, k: int) -> Visits:
        """The first `k` visits of each subject; what comes later is not in the arrays any more."""
        return replace(self, times=self.times[:, :k], values=self.values[:, :k], present=self.present[:, :k])

    def first_measured(self, k: int) -> Visits:
        """Each subject's visits up to the `k`-th at which anything was measured; those without any do not count."""
        measured = self.observed.any(2)
        return self._keep(self.present & (np.cumsum(measured, axis=1) - measured < k))

    def measured(self) -> Visits:
        """The visits at which anything was measured; a subject without any keeps its first visit."""
        kept = self.present & self.observed.any(2)
        kept[:, 0] |= self.present[:, 0] & ~kept.any(1)
        return self._keep(kept)

    def _keep(self, kept: Bool[NDArray, "subject visit"]) -> Visits:
        n = kept.sum(1)
        order = np.argsort(~kept, axis=1, kind="stable")[:, : max(int(n.max(initial=0)), 1)]
        present = np.arange(order.shape[1]) < n[:, None]
        times = np.take_along_axis(self.times, order, axis=1)
        last = times[np.arange(len(n)), np.maximum(n - 1, 0)]
        values = np.take_along_axis(self.values, order[..., None], axis=1)
        return replace(
            self,
            times=np.where(present, times, np.where(n > 0, last, 0.0)[:, None]),
            values=np.where(present[..., None], values, np.nan),
            present=present,
        )

    def last_time(self) -> Float[NDArray, " subject"]:
        """Time of each subject's last visit."""
        return self.times[:, -1]

    def with_values(self, values: Float[NDArray, "subject visit item"]) -> Visits:
        """The same visits with other values."""
        return replace(self, values=values)


def from_rows(
    subject: Int[NDArray, " row"],
    times: Float[NDArray, " row"],
    values: Float[NDArray, "row item"],
    baseline: Float[NDArray, "subject covariate"],
    *,
    items: tuple[str, ...],
    kinds: tuple[str, ...] | None = None,
    subjects: tuple[str, ...] | None = None,
    covariates: tuple[str, ...] | None = None,
) -> tuple[Visits, Int[NDArray, "row 2"]]:
    """Visits from one row per visit in any order, and where each row went (subject, visit).

    `subject` counts the subjects from 0, in the order of `baseline`. By default items are Gaussian and names are numbers.
    """
    n_subjects = len(baseline)
    order = np.lexsort((times, subject))
    counts = np.bincount(subject, minlength=n_subjects)
    width = max(int(counts.max(initial=0)), 1)
    visit = np.empty(len(subject), dtype=np.int64)
    visit[order] = np.arange(len(subject)) - np.repeat(np.cumsum(counts) - counts, counts)
    present = np.arange(width) < counts[:, None]
    grid = np.zeros((n_subjects, width))
    grid[subject, visit] = times
    last = grid[np.arange(n_subjects), np.maximum(counts - 1, 0)]
    measured = np.full((n_subjects, width, len(items)), np.nan)
    measured[subject, visit] = values
    visits = Visits(
        times=np.where(present, grid, last[:, None]),
        values=measured,
        present=present,
        baseline=np.asarray(baseline, dtype=float),
        items=items,
        kinds=("gaussian",) * len(items) if kinds is None else kinds,
        subjects=tuple(map(str, range(n_subjects))) if subjects is None else subjects,
        covariates=tuple(f"y{j}" for j in range(baseline.shape[1])) if covariates is None else covariates,
    )
    return visits, np.stack([subject, visit], axis=1)
