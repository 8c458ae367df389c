"""What a forecast must beat.

`FORECASTERS` are for visits of subjects at their own times, by the names of `landmark_forecast`. All else is for panels: simple
rules and regressions on the last values carried forward. Each takes reports y (unit, day), NaN = not reported, and returns levels (unit, step ahead). A day without a report has
the last value before it (LOCF); units without any report have NaN. Regressions also take x (column, unit, day), the
covariates of the step TO each day (those of the day before, at lag 1), and `ahead` (column, unit, step), those of the
steps to be forecast.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from .registry.baselines import Autoregression, Rule
from .registry.mixed import MixedModel
from .registry.visits import Forecaster

Reports = Float[NDArray, "unit day"]
Steps = Float[NDArray, "column unit day"]
Ahead = Float[NDArray, "column unit step"]
Levels = Float[NDArray, "unit step"]
Baseline = Callable[[Reports, Steps, Ahead], Levels]


FORECASTERS: dict[str, Forecaster] = {
    "locf": Rule("locf"),
    "mean": Rule("mean"),
    "ols_shift": Rule("ols_shift"),
    "lmm": MixedModel(),
    "ar_ridge": Autoregression(),
    "ar_boosted": Autoregression(boosted=True),
}


def carry_forward(y: Reports) -> Reports:
    """Last observation carried forward; NaN before the first report."""
    last = np.where(np.isnan(y), 0, np.arange(y.shape[1]))
    np.maximum.accumulate(last, axis=1, out=last)
    return np.take_along_axis(y, last, axis=1)


def zero_before_first(y: Reports) -> Reports:
    """0 for the days before a unit's first report; units without any stay NaN."""
    reported = ~np.isnan(y)
    before = ~np.logical_or.accumulate(reported, axis=1) & reported.any(1, keepdims=True)
    return np.where(before, 0.0, y)


def interpolate(y: Reports) -> Reports:
    """Straight lines between reports; the last one carried forward, NaN before the first."""
    t = np.arange(y.shape[1])
    line = np.full(y.shape, np.nan)
    for unit, reported in enumerate(~np.isnan(y)):
        if reported.any():
            line[unit] = np.interp(t, t[reported], y[unit, reported], left=np.nan)
    return line


def zero(y: Reports, x: Steps, ahead: Ahead) -> Levels:
    """No change from the last report."""
    return np.repeat(carry_forward(y)[:, -1:], ahead.shape[2], axis=1)


def mean(y: Reports, x: Steps, ahead: Ahead) -> Levels:
    """The mean daily change since the first report goes on."""
    return _go_on(y, mean_increment(y), ahead.shape[2])


def modified_mean(y: Reports, x: Steps, ahead: Ahead) -> Levels:
    """The mean change, but none for units that are at 0, as the published code has it."""
    return _go_on(y, np.where(carry_forward(y)[:, -1] == 0, 0.0, mean_increment(y)), ahead.shape[2])


def modified_mean_slide(y: Reports, x: Steps, ahead: Ahead) -> Levels:
    """The mean change, but none for units whose last change was 0, as the slides to the publication have it."""
    filled = carry_forward(y)
    still = filled[:, -1] == filled[:, -2] if y.shape[1] > 1 else np.ones(len(y), dtype=bool)
    return _go_on(y, np.where(still, 0.0, mean_increment(y)), ahead.shape[2])


def ols(y: Reports, x: Steps, ahead: Ahead) -> Levels:
    """Least squares of each change on the level and the covariates before it, on values carried forward."""
    filled = carry_forward(y)
    return _iterate(filled[:, -1], ols_coefficients(y, x), ahead)


def ols_published(y: Reports, x: Steps, ahead: Ahead) -> Levels:
    """The published regression: each change on level and covariates at its END, then used as if they were before it.

    The coefficients answer another question than they are asked. Days before the first report count as 0, as there. Kept
    to reproduce the publication.
    """
    y = zero_before_first(y)
    b = published_coefficients(y, np.concatenate([x, ahead[:, :, :1]], axis=2))
    return _iterate(carry_forward(y)[:, -1], b, ahead)


BASELINES: dict[str, Baseline] = {
    baseline.__name__: baseline for baseline in (zero, mean, modified_mean, modified_mean_slide, ols, ols_published)
}
# Those that use covariates.
REGRESSIONS = ("ols", "ols_published")


def mean_increment(y: Reports) -> Float[NDArray, " unit"]:
    """Mean daily change from the first report to the last day (unit,); 0 if that is the same day."""
    reported = ~np.isnan(y)
    first = np.where(reported.any(1), reported.argmax(1), y.shape[1] - 1)
    n_days = y.shape[1] - 1 - first
    change = carry_forward(y)[:, -1] - y[np.arange(len(y)), first]
    return np.where(n_days > 0, change / np.maximum(n_days, 1), 0.0)


def ols_coefficients(y: Reports, x: Steps) -> Float[NDArray, "unit coefficient"]:
    """Of y[t] - y[t-1] on (1, y[t-1], x[t]), from the first report on."""
    filled = carry_forward(y)
    return _least_squares(filled[:, :-1], x[:, :, 1:], np.diff(filled, axis=1))


def published_coefficients(y: Reports, x: Float[NDArray, "column unit day+1"]) -> Float[NDArray, "unit coefficient"]:
    """Of y[t] - y[t-1] on (1, y[t], x[t+1]); x (column, unit, day + 1) has the step after the last day."""
    filled = carry_forward(y)
    return _least_squares(filled[:, 1:], x[:, :, 2:], np.diff(filled, axis=1))


def _least_squares(level: Reports, x: Steps, change: Reports) -> Float[NDArray, "unit coefficient"]:
    """Per unit, of smallest norm where regressors are collinear; days with a missing value are left out."""
    design = np.stack([np.ones(level.shape), level, *x], axis=-1)
    usable: Bool[NDArray, "unit day"] = np.isfinite(design).all(-1) & np.isfinite(change)
    design = np.where(usable[..., None], design, 0.0)
    return (np.linalg.pinv(design, rcond=1e-10) @ np.where(usable, change, 0.0)[..., None])[..., 0]


def _go_on(y: Reports, increment: Float[NDArray, " unit"], horizon: int) -> Levels:
    return carry_forward(y)[:, -1:] + increment[:, None] * np.arange(1, horizon + 1)


def _iterate(level: Float[NDArray, " unit"], b: Float[NDArray, "unit coefficient"], ahead: Ahead) -> Levels:
    levels = np.empty((len(level), ahead.shape[2]))
    for h in range(ahead.shape[2]):
        level = level + b[:, 0] + b[:, 1] * level + np.einsum("uj,ju->u", b[:, 2:], ahead[:, :, h])
        levels[:, h] = level
    return levels
