"""The outline of an elephant with four complex parameters, and a fifth for its eye and trunk.

Mayer, Khairy, Howard, "Drawing an elephant with four complex parameters", Am. J. Phys. 78, 648 (2010),
doi:10.1119/1.3254017; x and y there are turned here so that the animal stands upright. How the trunk moves is not said in
the paper: here its points rise by Re p5 times the swing, most at the tip and none where it begins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

PARAMETERS = (50 - 30j, 18 + 8j, 12 - 10j, -14 - 60j, 40 + 20j)
# Angles between which the outline is the trunk.
_TRUNK = (0.9 * np.pi, 1.43 * np.pi)


def outline(
    angle: Float[NDArray, " point"], parameters: Sequence[complex] = PARAMETERS, swing: float = 0.0
) -> Float[NDArray, "point 2"]:
    """Points (right, up) at angles."""
    p = parameters
    x = p[0].real * np.sin(angle) + p[1].real * np.sin(2 * angle) + p[2].real * np.cos(3 * angle)
    x = x + p[3].real * np.cos(5 * angle)
    y = p[3].imag * np.cos(angle) + p[0].imag * np.sin(angle) + p[1].imag * np.sin(2 * angle)
    y = y + p[2].imag * np.sin(3 * angle)
    lift = p[4].real * swing * trunk(angle) if swing else 0.0
    return np.column_stack([y, -x + lift])


def trunk(angle: Float[NDArray, " point"]) -> Float[NDArray, " point"]:
    """How much a point moves with the trunk, 1 at its tip."""
    low, high = _TRUNK
    along = (np.mod(angle, 2 * np.pi) - low) / (high - low)
    return np.where((along > 0) & (along < 1), np.sin(np.pi * along) ** 2, 0.0)
