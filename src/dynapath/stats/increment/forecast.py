"""Forecasts of the increment model from the last day of a panel, with the variance of their errors.

The state moves on by s <- s + d. Its variance grows as v <- a^2 v + sigma^2 from 0 at the last report (for counts by the
variance of a count with that mean), and the uncertainty of the coefficients adds D' Cov D with the derivatives D of the
forecast (delta method).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import nbinom, norm

from dynapath.dynamics.increments import IncrementDynamics, floored
from dynapath.read.panel import Panel, check_steps


@dataclass(frozen=True)
class Forecast:
    """Of every unit on every day ahead, in reports."""

    origin: Float[NDArray, " unit"]  # the value that it starts from
    mean: Float[NDArray, "unit ahead"]
    sd: Float[NDArray, "unit ahead"]  # NaN where no variance could be estimated
    lower: Float[NDArray, "unit ahead"]
    upper: Float[NDArray, "unit ahead"]


def forecast(
    dynamics: IncrementDynamics,
    panel: Panel,
    *,
    horizon: int = 1,
    future: Float[NDArray, "covariate unit day"] | None = None,
    start: Literal["state", "locf"] = "state",
    interval: float = 0.9,
) -> Forecast:
    """Forecast `horizon` days from the last day of `panel`.

    Parameters
    ----------
    dynamics
        Of the units of the panel, in their order.
    future
        Covariates of the days after the panel; those before the last step less its lag are needed.
    start
        From the state, in which the model has filled in what was not reported, or from the last report carried forward,
        as in the publication.
    interval
        Probability of the interval from `lower` to `upper`.
    """
    ahead = _extended(panel, horizon, future)
    T = panel.n_days
    known = np.isfinite(dynamics.params).all(1) & panel.observed[:, panel.first_day :].any(1)
    check_steps(ahead, T, T + horizon, known)
    origin, variance, D = _origin(dynamics, panel, start)
    noise = dynamics.sigma2
    mean, spread = np.full((panel.n_units, horizon), np.nan), np.full((panel.n_units, horizon), np.nan)
    state, a = origin.copy(), dynamics.persistence
    for h in range(horizon):
        x = ahead.z[ahead.source, :, T + h - ahead.lag].T
        D = a[:, None] * D + np.column_stack([np.ones(len(state)), state, x])
        change = dynamics.params[:, 0] + dynamics.params[:, 1] * state + (dynamics.params[:, 2:] * x).sum(1)
        state = state + change
        if dynamics.overdispersion is None:
            variance = a * a * variance + noise
        else:
            state, slope = floored(state)
            D = D * slope[:, None]
            variance = a * a * variance + state * (1.0 + dynamics.overdispersion * state)
        mean[:, h] = state
        spread[:, h] = variance
        if dynamics.covariance is not None:
            estimated = np.einsum("ui,uij,uj->u", D, dynamics.covariance, D)
            spread[:, h] += np.where(np.isfinite(estimated), estimated, 0.0)
    sd = np.sqrt(spread)
    return Forecast(origin, mean, sd, *bounds(mean, sd, interval, counts=dynamics.overdispersion is not None))


def bounds(
    mean: Float[NDArray, "..."], sd: Float[NDArray, "..."], interval: float, *, counts: bool
) -> tuple[Float[NDArray, "..."], Float[NDArray, "..."]]:
    """Ends of the central interval: normal, or for counts those of a negative binomial with this mean and variance."""
    tails = (1.0 - interval) / 2.0, (1.0 + interval) / 2.0
    if not counts:
        return mean + norm.ppf(tails[0]) * sd, mean + norm.ppf(tails[1]) * sd
    variance = np.maximum(sd**2, mean * (1.0 + 1e-6))
    r = mean**2 / (variance - mean)
    lower, upper = (nbinom.ppf(tail, r, mean / variance) for tail in tails)
    return lower, upper


def _extended(panel: Panel, horizon: int, future: NDArray | None) -> Panel:
    """With `horizon` more days, on which nothing is reported."""
    z = np.full((*panel.z.shape[:2], horizon), np.nan)
    if future is not None:
        given = min(horizon, future.shape[2])
        z[:, :, :given] = future[:, :, :given]
    days = panel.days.astype(str).append(_names_ahead(panel, horizon))
    y = np.full((panel.n_units, horizon), np.nan)
    return replace(
        panel, y=np.concatenate([panel.y, y], axis=1), z=np.concatenate([panel.z, z], axis=2), days=days, dates=None
    )


def _names_ahead(panel: Panel, horizon: int):
    from pandas import Index

    return Index([f"day {h} after {panel.days[-1]}" for h in range(1, horizon + 1)])


def _origin(dynamics: IncrementDynamics, panel: Panel, start: str) -> tuple[NDArray, NDArray, NDArray]:
    """Value on the last day, its variance, and its derivatives with respect to the coefficients."""
    from .recursion import derivatives, follow

    alpha = dynamics.overdispersion
    state, _, variance = follow(
        panel.y, panel.z, panel.source, panel.lag, dynamics.params, first=panel.first_day, overdispersion=alpha
    )
    value = state[:, -1]
    spread = variance[:, -1] * (dynamics.sigma2 if alpha is None else 1.0)
    spread = np.where(variance[:, -1] == 0.0, 0.0, spread)
    D = derivatives(
        panel.y, panel.z, panel.source, panel.lag, dynamics.params, first=panel.first_day, counts=alpha is not None
    )
    if start == "locf":
        observed = panel.observed
        last = panel.n_days - 1 - observed[:, ::-1].argmax(1)
        value = np.where(observed.any(1), panel.y[np.arange(panel.n_units), last], np.nan)
        # The variance is that of the days since; the value itself does not depend on the coefficients.
        D = np.zeros_like(D)
    elif start != "state":
        msg = f"start must be 'state' or 'locf'; it is {start!r}."
        raise ValueError(msg)
    return value, spread, D
