"""The model of an earlier moment of its training, without the noise of minibatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

# So far weights must have been able to move, twice the size that they have at the start (one over the root of 64 inputs). Adam
# moves each by the step size at most: 250 minibatches at a step size of 1e-3.
LEAST_REACH = 0.25


class WeightTrace:
    """Mean weights over a handful of stretches of training, however long it turns out to be."""

    def __init__(self, n_stretches: int = 6):
        self.n_stretches = n_stretches
        self.length = 1  # minibatches in a full stretch
        self.n_minibatches = 0
        self.reach: Float[NDArray, " group"] = np.zeros(1)  # summed step sizes of every group of parameters
        self._stretches: list[tuple[float, dict[str, torch.Tensor]]] = []  # reach in the middle, summed weights
        self._start, self._n, self._sums = 0.0, 0, {}

    @torch.no_grad()
    def add(self, steps: Sequence[float], weights: Mapping[str, torch.Tensor]) -> None:
        """Note the weights after a minibatch, and the step size of every group of parameters that led there."""
        sizes = np.asarray(steps, dtype=float)
        self.reach = self.reach + sizes if self.n_minibatches else sizes
        self.n_minibatches += 1
        floating = {name: value.detach() for name, value in weights.items() if value.is_floating_point()}
        if self._n:
            torch._foreach_add_(list(self._sums.values()), list(floating.values()))
        else:
            self._sums = {name: value.clone() for name, value in floating.items()}
        self._n += 1
        if self._n == self.length:
            self._end_stretch()

    def _end_stretch(self) -> None:
        now = float(self.reach[0])
        self._stretches.append(((self._start + now) / 2, self._sums))
        self._start, self._n, self._sums = now, 0, {}
        if len(self._stretches) == 2 * self.n_stretches:
            pairs = zip(self._stretches[::2], self._stretches[1::2], strict=True)
            merged = []
            for (first, one), (second, other) in pairs:
                torch._foreach_add_(list(one.values()), list(other.values()))
                merged.append(((first + second) / 2, one))
            self._stretches = merged
            self.length *= 2

    def halfway(self) -> dict[str, torch.Tensor] | None:
        """Mean weights when half of the steps' lengths were spent; None after fewer minibatches than there are stretches."""
        if len(self._stretches) < self.n_stretches:
            return None
        middles = np.array([middle for middle, _ in self._stretches])
        # Where two are as near, the earlier: the later one overlaps with the end.
        chosen = int(np.argmin(np.abs(middles - self.reach[0] / 2)))
        return {name: total / self.length for name, total in self._stretches[chosen][1].items()}
