r"""What a unit would have reported on days without a report.

Filter: the state, from the reports before that day alone, as one would have known it then. Smoother: from both sides. In
a gap that starts at a report and ends m days later with the innovation e, day j has

    mean = s_j + g e,  variance = sigma^2 (v_j - g^2 v_m),  g = a^(m-j) v_j / v_m,

with the variances v of the filter: the conditional distribution of a Gaussian bridge, which is all that smoothing is for a
state that is observed without noise. After the last report both are the same; before the first there is neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath.dynamics.increments import IncrementDynamics
from dynapath.read.panel import Panel

from .forecast import bounds
from .recursion import compiled, follow


@dataclass(frozen=True)
class Imputed:
    """Reports where there are some, else what stands in for them; NaN before the first report."""

    mean: Float[NDArray, "unit day"]
    sd: Float[NDArray, "unit day"]  # 0 at reports
    lower: Float[NDArray, "unit day"] | None = None
    upper: Float[NDArray, "unit day"] | None = None


@compiled
def _bridge(a, resid, variance, closing, mean):
    """Smooth in place the states of all gaps that a report closes; `closing` is the variance of its innovation."""
    n_units, n_days = mean.shape
    for u in range(n_units):
        t = n_days - 1
        while t > 0:
            # A gap has variance, a report has none; its innovation tells that a state came before.
            if math.isnan(resid[u, t]) or not variance[u, t - 1] > 0.0:
                t -= 1
                continue
            share = resid[u, t] / closing[u, t]
            j, power = t - 1, a[u]
            while j > 0 and variance[u, j] > 0.0:
                v = variance[u, j]
                mean[u, j] += power * v * share
                variance[u, j] = max(v - (power * v) ** 2 / closing[u, t], 0.0)
                power *= a[u]
                j -= 1
            t = j


def impute(
    dynamics: IncrementDynamics,
    panel: Panel,
    *,
    mode: Literal["filter", "smooth"] = "smooth",
    interval: float | None = None,
) -> Imputed:
    """Fill in the days without a report, from the units' own dynamics; `interval` adds the ends of central intervals."""
    if mode not in ("filter", "smooth"):
        msg = f"mode must be 'filter' (from reports before) or 'smooth' (from both sides); it is {mode!r}."
        raise ValueError(msg)
    alpha, a = dynamics.overdispersion, dynamics.persistence
    state, resid, variance = follow(
        panel.y, panel.z, panel.source, panel.lag, dynamics.params, first=panel.first_day, overdispersion=alpha
    )
    if mode == "smooth":
        before = np.concatenate([np.zeros((panel.n_units, 1)), variance[:, :-1]], axis=1)
        expected = panel.y - resid
        noise = 1.0 if alpha is None else expected * (1.0 + alpha[:, None] * expected)
        _bridge(a, resid, variance, a[:, None] ** 2 * before + noise, state)
        if alpha is not None:
            state = np.maximum(state, 0.0)
    if alpha is None:
        variance = np.where(variance == 0.0, 0.0, variance * dynamics.sigma2[:, None])
    sd = np.sqrt(variance)
    if interval is None:
        return Imputed(state, sd)
    lower, upper = bounds(state, sd, interval, counts=alpha is not None)
    reported = panel.observed
    return Imputed(state, sd, np.where(reported, state, lower), np.where(reported, state, upper))
