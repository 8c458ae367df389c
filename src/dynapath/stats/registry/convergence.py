"""Whether a fit of visits has ended: what the second half of its steps still changed, in units of what is uncertain anyway.

    predictions   root mean ((x' - x) / e)^2 over measurements    divided by    root of min(1, d / visits of a subject)

x is the fitted value of an item and e the standard deviation of its residuals; the prime is the model when half of the steps'
lengths were spent, its weights averaged over a stretch of training. From n visits d numbers of a subject are known to about e
times the root of d / n. States and rates are not compared: a decoder can bend them without a change in any fitted value.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath._visits import Visits
from dynapath.dynamics.changes import Convergence
from dynapath.models.visit_forecast import Described, FittedStateSpace, FittedVisitVAE
from dynapath.models.weight_trace import LEAST_REACH, WeightTrace

OK, NOT_CONVERGED, DIVERGED = "ok", "not_converged", "restarts_diverged"


def convergence_of(
    after: FittedStateSpace | FittedVisitVAE,
    before: FittedStateSpace | FittedVisitVAE | None,
    visits: Visits,
    trace: WeightTrace,
    *,
    start: float,
) -> Convergence:
    """Compare a fit with itself at half of its steps.

    Parameters
    ----------
    before
        The fit at half of the steps, None if there were too few of them.
    start
        The loss before the first step: a fit that ends above it has gone the wrong way.
    """
    reach = float(np.min(trace.reach))
    if before is None or reach < LEAST_REACH:
        return Convergence({"predictions": np.nan}, trace.n_minibatches, reach, LEAST_REACH)
    change = {"predictions": prediction_change(before.describe(visits), after.describe(visits), visits)}
    risen = not float(np.min(after.losses)) < start
    return Convergence(change, trace.n_minibatches, reach, LEAST_REACH, risen=risen)


def prediction_change(before: Described, after: Described, visits: Visits) -> float:
    """How far fitted values have moved, in the unit above."""
    measured = np.isfinite(visits.values) & np.isfinite(before.items) & np.isfinite(after.items)
    squares = []
    for j in range(visits.values.shape[-1]):
        known = measured[..., j]
        if known.any():
            noise = np.square(visits.values[..., j] - after.items[..., j])[known].mean()
            moved = np.square(before.items[..., j] - after.items[..., j])[known]
            squares.append(moved / max(noise, np.finfo(float).tiny))
    share = min(1.0, after.smooth.shape[-1] / max(float(np.mean(visits.n_visits)), 1.0))
    return float(np.sqrt(np.concatenate(squares).mean() / share))


def judge(convergence: Convergence, losses: Float[NDArray, " restart"], n_epochs: int) -> tuple[str, list[str]]:
    """The status of a fit, and what has to be said about it."""
    said = []
    status = OK
    lost = int((~np.isfinite(losses)).sum())
    if lost:
        status = DIVERGED
        said.append(
            f"{lost} of {len(losses)} restarts diverged and were left out. Lower schedule=dp.stats.Schedule(lr=...), or look for "
            "extreme values in the items."
        )
    if not convergence.converged:
        status = NOT_CONVERGED
        more = n_epochs * (convergence.factor or 1)
        advice = f"Raise the epochs: schedule=dp.stats.Schedule(n_epochs={more}), for instance (dp.get.convergence has the figures)."
        if convergence.risen:
            advice = "Lower the step size: schedule=dp.stats.Schedule(lr=...)."
        said.append(convergence.message(advice))
    return status, said


def with_convergence(
    fitted: FittedStateSpace | FittedVisitVAE, convergence: Convergence
) -> FittedStateSpace | FittedVisitVAE:
    """The fit, with what is known of its training."""
    return replace(fitted, convergence=convergence)
