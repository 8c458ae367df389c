"""What was observed of a group of cells whose membership is a probability, and how far chance may have moved it.

With weights w_i (the probability that cell i belongs to the group):

    share  s = sum w_i / n                    Wilson's (1927) interval of a share among n cells
    mean   m = sum w_i y_i / sum w_i          var(m) = sum w_i^2 (y_i - m)^2 / (sum w_i)^2  n' / (n' - 1),
                                              n' = (sum w_i)^2 / sum w_i^2, Student's t with n' - 1 degrees of freedom
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

FloatArray = NDArray[np.float64]


def share_interval(share: ArrayLike, n: ArrayLike, level: float) -> tuple[FloatArray, FloatArray]:
    """Bounds of a share among `n` independent cells; inside [0, 1], and open to chance even at 0 and 1.

    As labels drawn from the weights have variance s(1 - s), it is no narrower for weights than for labels.
    """
    s, n = np.asarray(share, dtype=float), np.asarray(n, dtype=float)
    z = norm.ppf((1 + level) / 2)
    shrink = 1 + z**2 / n
    centre = (s + z**2 / (2 * n)) / shrink
    half = z / shrink * np.sqrt(s * (1 - s) / n + z**2 / (4 * n**2))
    # Rounding must not put a share of 0 or 1 outside its interval.
    return np.clip(centre - half, 0.0, s), np.clip(centre + half, s, 1.0)


def weighted_mean(values: FloatArray, weights: FloatArray, level: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean of each variable in each group, and its bounds.

    Parameters
    ----------
    values
        (cell, variable).
    weights
        (cell, group), not negative.

    Returns
    -------
    Three arrays (group, variable). The mean is NaN where the weights do not add up to one cell, the bounds where they
    are fewer than two.
    """
    values, weights = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    total = weights.sum(0)[:, None]
    squares = (weights**2).sum(0)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = weights.T @ values / total
        # Deviations group by group: expanding the square would lose the small ones to rounding.
        scatter = np.stack([w**2 @ (values - m) ** 2 for w, m in zip(weights.T, mean, strict=True)])
        effective = total**2 / squares
        sd = np.sqrt(scatter / total**2 * effective / (effective - 1))
        half = np.where(effective >= 2, t.ppf((1 + level) / 2, np.maximum(effective - 1, 1.0)) * sd, np.nan)
    mean = np.where(total >= 1, mean, np.nan)
    return mean, mean - half, mean + half
