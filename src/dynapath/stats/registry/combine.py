"""Several forecasts as one: a weighted mean whose weights are learned on patients outside the fits.

Weights minimise the squared error of out-of-fold forecasts under w >= 0, sum w = 1 (stacking, Wolpert 1992,
doi:10.1016/S0893-6080(05)80023-1; with these constraints Breiman 1996). One set serves all items: with a few hundred
patients, weights for each item are noise.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import nnls


def stacking_weights(
    observed: Float[NDArray, " row"], predicted: Float[NDArray, "row model"]
) -> Float[NDArray, " model"]:
    """Weights >= 0 that add up to 1, of smallest squared error."""
    # A heavy last row keeps the sum at 1.
    heavy = 1e3 * np.sqrt((predicted**2).sum() + len(observed))
    A = np.vstack([predicted - observed[:, None], np.full(predicted.shape[1], heavy)])
    weights, _ = nnls(A, np.concatenate([np.zeros(len(observed)), [heavy]]))
    return weights / weights.sum()
