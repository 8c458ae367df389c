"""Gaps in reporting as a chain of two states, reported and missing."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray


def missing_by_chain(
    rng: np.random.Generator, n_units: int, n_days: int, p_start: float | int, p_stay: float | int
) -> Bool[NDArray, "unit day"]:
    """Days missing: a gap starts with probability `p_start` after a report and goes on with `p_stay`. Day 0 is reported.

    In the long run p_start / (p_start + 1 - p_stay) of the days are missing, in gaps of 1 / (1 - p_stay) days.
    """
    for name, p in (("p_start", p_start), ("p_stay", p_stay)):
        if not 0 <= p <= 1:
            msg = f"{name} is a probability, from 0 to 1; it is {p!r}."
            raise ValueError(msg)
    u = rng.random((n_units, n_days))
    missing = np.zeros((n_units, n_days), dtype=bool)
    for t in range(1, n_days):
        missing[:, t] = u[:, t] < np.where(missing[:, t - 1], p_stay, p_start)
    return missing
