r"""Constraints by reparametrisation: the search moves freely in u, the program sees theta = T(u).

    positive       theta = exp(u)
    bounds (l, h)  theta = l + (h - l) / (1 + exp(-u)); one-sided bounds like positive
    simplex        theta = softmax(u, 0), one number less
    ordered        theta_1 = u_1, theta_j = theta_(j-1) + exp(u_j)

Simplex and ordered act along the last axis. Near a boundary u runs off to infinity, which `at_bound` tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NAMES = ("positive", "unit", "simplex", "ordered")
# A parameter this close to its boundary, relative to its range or its start, is at it.
_CLOSE = 1e-7


@dataclass(frozen=True)
class Constraint:
    """What values a parameter may take, and the map from free numbers to them."""

    kind: str = "free"  # free, interval, simplex, ordered
    low: float = -math.inf
    high: float = math.inf

    @property
    def elementwise(self) -> bool:
        """Whether every element has a free number of its own."""
        return self.kind in ("free", "interval")

    def free_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of u for a parameter of `shape`."""
        return (*shape[:-1], shape[-1] - 1) if self.kind == "simplex" else shape

    def apply(self, u: Tensor) -> Tensor:
        """Theta of u; leading axes are carried along."""
        if self.kind == "interval":
            if math.isinf(self.high):
                return self.low + torch.exp(u)
            if math.isinf(self.low):
                return self.high - torch.exp(u)
            return self.low + (self.high - self.low) * torch.sigmoid(u)
        if self.kind == "simplex":
            return torch.softmax(torch.cat([u, torch.zeros_like(u[..., :1])], dim=-1), dim=-1)
        if self.kind == "ordered":
            steps = torch.cat([u[..., :1], torch.exp(u[..., 1:])], dim=-1)
            return torch.cumsum(steps, dim=-1)
        return u

    def invert(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """U of theta."""
        if self.kind == "interval":
            if math.isinf(self.high):
                return np.log(theta - self.low)
            if math.isinf(self.low):
                return np.log(self.high - theta)
            return np.log(theta - self.low) - np.log(self.high - theta)
        if self.kind == "simplex":
            return np.log(theta[..., :-1]) - np.log(theta[..., -1:])
        if self.kind == "ordered":
            return np.concatenate([theta[..., :1], np.log(np.diff(theta, axis=-1))], axis=-1)
        return theta

    def holds(self, theta: NDArray[np.float64]) -> bool:
        """Whether theta lies strictly inside."""
        if self.kind == "interval":
            return bool(((theta > self.low) & (theta < self.high)).all())
        if self.kind == "simplex":
            return theta.ndim > 0 and bool((theta > 0).all() and np.allclose(theta.sum(-1), 1.0))
        if self.kind == "ordered":
            return theta.ndim > 0 and bool((np.diff(theta, axis=-1) > 0).all())
        return True

    def at_bound(self, theta: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which elements of theta (unit, ...) have run to a boundary."""
        if self.kind != "interval":
            return np.zeros(theta.shape, dtype=bool)
        with np.errstate(invalid="ignore"):
            if math.isinf(self.high):
                return theta - self.low < _CLOSE * (start - self.low)
            if math.isinf(self.low):
                return self.high - theta < _CLOSE * (self.high - start)
            return np.minimum(theta - self.low, self.high - theta) < _CLOSE * (self.high - self.low)

    def __str__(self) -> str:
        if self.kind != "interval":
            return self.kind
        return f"between {self.low:g} and {self.high:g}"


def constraint_of(name: str, given: object) -> Constraint:
    """A constraint from how the user wrote it.

    Raises
    ------
    ValueError : for an unknown word, or bounds that leave nothing between them.
    """
    if isinstance(given, Constraint):
        return given
    if isinstance(given, str):
        known = {
            "positive": Constraint("interval", 0.0),
            "unit": Constraint("interval", 0.0, 1.0),
            "simplex": Constraint("simplex"),
            "ordered": Constraint("ordered"),
        }
        if given in known:
            return known[given]
    if isinstance(given, tuple | list) and len(given) == 2:
        low, high = (math.copysign(math.inf, 2 * i - 1) if b is None else float(b) for i, b in enumerate(given))
        if low < high:
            return Constraint("interval", low, high) if math.isfinite(low) or math.isfinite(high) else Constraint()
    msg = (
        f"The constraint of {name!r} is {given!r}; it must be one of {', '.join(map(repr, NAMES))}, or bounds (low, high) "
        "with low < high, of which one may be None."
    )
    raise ValueError(msg)


def constraints_of(given: Mapping[str, object] | None, names: tuple[str, ...]) -> dict[str, Constraint]:
    """One constraint for every parameter."""
    unknown = set(given or {}) - set(names)
    if unknown:
        msg = f"constraints names {', '.join(sorted(map(repr, unknown)))}; the parameters are {', '.join(names)}."
        raise KeyError(msg)
    return {name: constraint_of(name, (given or {}).get(name, Constraint())) for name in names}
