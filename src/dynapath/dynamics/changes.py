"""How far a fit has moved between two moments of its training, in units of what is uncertain anyway; and whether that ends it.

    groups    mean_i sum_k |r'_ik - r_ik| / 2                    over  mean_i (1 - max_k r_ik), at least 1 %
    paths     root mean_kt (mu' - mu)' S^-1 (mu' - mu) n_kt / d

Primes are the earlier moment; r are probabilities of groups, mu and S mean and covariance of group k at time t, and n_kt its
number of cells there: a path counts in the standard errors that means of so many cells have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

# Half a standard deviation adds an eighth to the variance of what is said of a cell. Means are known far better than cells,
# and the noise of minibatches alone moves them by one standard error: they must stay within their band of 95 %.
LIMITS = {"groups": 0.5, "paths": 2.0, "states": 0.5, "predictions": 0.5}
# Groups of nearly all cells are certain where populations lie apart; a cell in a hundred may still change.
_LEAST_UNCERTAIN = 0.01
# More steps than this are no advice.
_MOST_STEPS = 1_000_000
_NAMES = {
    "groups": "the groups of cells",
    "paths": "the paths of groups",
    "states": "the states of cells",
    "predictions": "predicted values",
}


def group_change(before: Float[NDArray, "cell group"], after: Float[NDArray, "cell group"]) -> float:
    """Share of the cells that change groups, over the share whose group is uncertain."""
    moved = np.abs(np.asarray(after) - np.asarray(before)).sum(1).mean() / 2
    return float(moved / max((1 - np.asarray(after).max(1)).mean(), _LEAST_UNCERTAIN))


def path_change(
    before: Float[NDArray, "group time latent"],
    after: Float[NDArray, "group time latent"],
    cov: Float[NDArray, "group time latent latent"],
    n_cells: Float[NDArray, "group time"],
) -> float:
    """Root mean square of the distance between paths in standard errors; groups with less than one cell do not count."""
    moved = (after - before)[..., None]
    squares = (moved * np.linalg.solve(cov, moved)).sum((-2, -1)) * n_cells / after.shape[-1]
    counted = n_cells >= 1
    return float(np.sqrt(squares[counted].mean())) if counted.any() else 0.0


@dataclass(frozen=True)
class Convergence:
    """Whether the second half of a training still changed what matters.

    Parameters
    ----------
    change
        In units of its uncertainty, by name as in `LIMITS`; all NaN where nothing can be told.
    n_steps, reach
        Steps of the optimiser, and the sum of their sizes: no number can have moved further.
    least
        Of the reach, from which on a change says something.
    risen
        Whether the loss ended above its start.
    """

    change: Mapping[str, float] = field(default_factory=dict)
    n_steps: int = 0
    reach: float = 0.0
    least: float = 0.0
    risen: bool = False

    @property
    def too_short(self) -> bool:
        """Whether there were too few or too small steps to tell."""
        return self.reach < self.least or bool(np.isnan(list(self.change.values())).all())

    @property
    def moving(self) -> tuple[str, ...]:
        """What still changes by more than its limit, or is not finite."""
        return tuple(name for name, value in self.change.items() if not value <= LIMITS[name])

    @property
    def converged(self) -> bool:
        """Whether it was long enough, and nothing moves."""
        return not (self.too_short or self.moving or self.risen)

    @property
    def factor(self) -> int | None:
        """How many times as many steps to try next; None if steps are so small that no number of them would do."""
        if not self.too_short:
            return 2
        needed = 2 * self.least / self.reach if self.reach > 0 else np.inf
        return int(np.ceil(max(needed, 2))) if needed <= _MOST_STEPS / max(self.n_steps, 1) else None

    def message(self, advice: str) -> str:
        """What to say of a fit that has not converged."""
        if self.factor is None:
            advice = "Raise the step size."
        if self.too_short:
            why = (
                f"{self.n_steps} steps of the optimiser, {self.reach:.2g} in sum, are too few to tell whether it ends here "
                f"(from {self.least:g} on)"
            )
        elif self.risen:
            why = "its loss ended above its start"
        else:
            named = ", ".join(
                f"{_NAMES[name]} by {self.change[name]:.2g} (limit {LIMITS[name]:g})" for name in self.moving
            )
            why = f"in units of their uncertainty, the second half of training still changed {named}"
        return f"The fit has not converged: {why}. {advice}"

    def to_arrays(self) -> dict[str, object]:
        """Return plain values; changes are NaN where nothing can be told."""
        return {
            "change": {name: np.nan if self.too_short else float(value) for name, value in self.change.items()},
            "n_steps": int(self.n_steps),
            "reach": float(self.reach),
        }

    @classmethod
    def worst(cls, several: Sequence[Convergence]) -> Convergence:
        """Return the training, among several, that is furthest from its end."""
        short = [one for one in several if one.too_short]
        if short:
            return short[0]
        return max(several, key=lambda one: max(value / LIMITS[name] for name, value in one.change.items()))
