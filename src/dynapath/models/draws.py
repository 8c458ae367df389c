"""What the data leave open about a fit: refits to resampled cells, and members trained anew.

    variance = mean over members of the variance between bootstrap draws + variance between members

Either part may be missing. The quantile is Student's t with the degrees of freedom of the sum (Welch 1938,
doi:10.2307/2332010; Satterthwaite 1946, doi:10.2307/3002019), so that few members give the wide band that few members
deserve. Standard deviations instead of percentiles: 50 draws know the former to 10 %, the latter to 20 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from dynapath.dynamics import GroupDynamics
from dynapath.metrics import AffineMap

from .last_layer import LastLayerError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """One member of a fit.

    Attributes
    ----------
    fit
        Its dynamics.
    bootstrap
        Refits to resampled cells, side by side; None where there was no bootstrap.
    to_reference
        From its latent space to that of the first member.
    last_layer
        Error of its decoder, given the states; None without a bootstrap or a decoder.
    """

    fit: GroupDynamics
    bootstrap: GroupDynamics | None
    to_reference: AffineMap
    last_layer: LastLayerError | None

    @property
    def dynamics(self) -> GroupDynamics:
        """The draws that there are: the bootstrap, else the fit alone."""
        return self.fit if self.bootstrap is None else self.bootstrap

    def of(self, ask: Callable[[GroupDynamics], FloatArray]) -> FloatArray:
        """Answers of all draws, which come first."""
        answer = ask(self.dynamics)
        return answer[None] if self.bootstrap is None else answer


def half_width(parts: Sequence[FloatArray], level: float) -> FloatArray:
    """Half the width of a band that holds the true value with probability `level`.

    Parameters
    ----------
    parts
        Draws of each member (draw, ...), on a scale on which they are about normal.

    Returns
    -------
    NaN where there is but one draw of one member.
    """
    n_free = sum(len(part) - 1 for part in parts)
    within = sum(((part - part.mean(0)) ** 2).sum(0) for part in parts) / max(n_free, 1)
    centres = np.stack([part.mean(0) for part in parts])
    if len(parts) > 1:
        between = centres.var(0, ddof=1)
    elif n_free:
        between = np.zeros_like(within)
    else:
        return np.full(centres.shape[1:], np.nan)
    variance = within + between
    scatter = within**2 / max(n_free, 1) + between**2 / max(len(parts) - 1, 1)
    # Without any spread every number of degrees of freedom gives the same band.
    df = np.divide(variance**2, scatter, out=np.ones_like(variance), where=scatter > 0)
    return student.ppf((1 + level) / 2, df) * np.sqrt(variance)


def check_level(level: float) -> float:
    """`level` if it is a probability.

    Raises
    ------
    ValueError : unless it lies strictly between 0 and 1.
    """
    if not 0 < level < 1:
        msg = f"level must lie between 0 and 1, such as 0.9; it is {level!r}."
        raise ValueError(msg)
    return level
