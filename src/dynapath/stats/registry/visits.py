"""Visits, and what a model must do to forecast them."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float
from numpy.typing import NDArray

from dynapath._visits import Visits, from_rows

__all__ = ["FittedForecaster", "Forecaster", "Visits", "from_rows"]


class FittedForecaster(Protocol):
    """A fitted model, which forecasts subjects that it may never have seen."""

    def predict(
        self, history: Visits, times: Float[NDArray, "subject ahead"]
    ) -> tuple[Float[NDArray, "subject ahead item"], Float[NDArray, "subject ahead item"]]:
        """Mean and standard deviation of every item at `times`, given all visits in `history` and nothing else.

        The mean of a Bernoulli item is its probability. NaN in `times` (no forecast wanted) gives NaN. Times are not before
        the last visit of a history. Of subjects of whom nothing was measured a model may give NaN, as the latent ones do, or
        what it expects of the population, as the mixed model does: no score counts them.
        """


class Forecaster(Protocol):
    """A model with its settings; fitting it leaves it as it is."""

    def fit(self, visits: Visits) -> FittedForecaster:
        """The model fitted to the visits."""
