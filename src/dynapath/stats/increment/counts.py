"""How much counts vary beyond a Poisson distribution: variance = mean + alpha mean^2."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from .recursion import compiled

# Below the first the distribution is Poisson for all purposes, above the second all mass is at 0.
_ALPHA = (1e-6, 1e2)
_GOLDEN = 0.6180339887498949


@compiled
def _negative_log_likelihood(y, mean, log_alpha, rows):
    alpha = math.exp(log_alpha)
    r = 1.0 / alpha
    value = 0.0
    for u in rows:
        for t in range(y.shape[1]):
            m = mean[u, t]
            if not math.isnan(m):
                x = y[u, t]
                value += (r + x) * math.log1p(alpha * m) - x * math.log(alpha * m) - math.lgamma(x + r) + math.lgamma(r)
    return value


@compiled
def _golden_section(y, mean, rows, low, high):
    """Log alpha of the units `rows`, one for all of them."""
    a, b = low, high
    c, d = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    fc, fd = _negative_log_likelihood(y, mean, c, rows), _negative_log_likelihood(y, mean, d, rows)
    while b - a > 1e-4:
        if fc < fd:
            b, d, fd = d, c, fc
            c = b - _GOLDEN * (b - a)
            fc = _negative_log_likelihood(y, mean, c, rows)
        else:
            a, c, fc = c, d, fd
            d = a + _GOLDEN * (b - a)
            fd = _negative_log_likelihood(y, mean, d, rows)
    return 0.5 * (a + b)


def estimate_overdispersion(
    y: Float[NDArray, "unit day"], mean: Float[NDArray, "unit day"], *, common: bool = False
) -> Float[NDArray, " unit"]:
    """Maximum likelihood alpha of every unit, or of all together, given means (NaN: not counted)."""
    low, high = (math.log(alpha) for alpha in _ALPHA)
    rows = np.arange(len(y))
    if common:
        return np.full(len(y), math.exp(_golden_section(y, mean, rows, low, high)))
    return np.exp([_golden_section(y, mean, rows[u : u + 1], low, high) for u in rows])
