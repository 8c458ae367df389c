"""Errors and bias of the estimates from refits of simulated panels.

Every simulated panel has the covariates, the first reports and the gaps of the real one. Its days follow the fitted model
with innovations that are normal (or counts) with the fitted variance, or drawn from a unit's own standardised residuals.
The errors of the refits, estimate minus what was simulated from, have the bias of the real estimate as their mean and its
covariance as theirs (Efron and Tibshirani 1993, chapters 6 and 10). Least squares of an autoregression returns too fast
in short series, by about (1 + 3 a) / T (Kendall 1954), which this finds for any covariates and gaps.

Coefficients that are partially pooled are drawn from their posterior, so that those of the simulated units spread as the
real ones do and go with the real starts. Each unit's estimate is then biased on purpose, towards the mean, so it is only
the bias of all units together that counts; and what refits tell of errors is how uncertain the covariance over units is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from tqdm import tqdm

from dynapath.dynamics.increments import floored

from .estimate import Estimate, estimate
from .problem import CLIPPED, MAX_ITER, OK, Problem
from .recursion import LOSSES, follow


@dataclass(frozen=True)
class Bootstrap:
    """How panels are simulated for standard errors and bias correction.

    Attributes
    ----------
    n_refits
        Number of simulated panels.
    kind
        `"parametric"`: normal innovations with the fitted variance (counts: of the fitted distribution). `"residual"`:
        drawn from the unit's own residuals, divided by the standard deviation of their gap, for squared and Huber's loss.
    """

    n_refits: int = 1000
    kind: Literal["parametric", "residual"] = "parametric"

    def __post_init__(self) -> None:
        if self.n_refits < 2:
            msg = f"n_refits={self.n_refits} is too few for a standard error. Use some hundreds."
            raise ValueError(msg)
        if self.kind not in ("parametric", "residual"):
            msg = f"kind must be 'parametric' or 'residual'; it is {self.kind!r}."
            raise ValueError(msg)


@dataclass(frozen=True)
class Refits:
    """What refits say of the errors of an estimate; NaN for units without one."""

    bias: Float[NDArray, "unit coefficient"]
    covariance: Float[NDArray, "unit coefficient coefficient"]  # not of partially pooled coefficients
    pooled_bias: Float[NDArray, " pooled"] | None = None
    pooled_covariance: Float[NDArray, "pooled pooled"] | None = None
    spreads: list[Float[NDArray, "pooled pooled"]] | None = None  # covariances over units


def refit(
    problem: Problem,
    modes: NDArray[np.str_],
    found: Estimate,
    settings: Bootstrap,
    *,
    sigma: Literal["own", "common"],
    posterior: Float[NDArray, "unit coefficient coefficient"],
    rng: np.random.Generator,
) -> Refits:
    """Simulate and refit; `posterior` is the covariance of partially pooled coefficients given the data."""
    if settings.kind == "residual" and problem.counts:
        msg = "Residuals of counts cannot be drawn again, as they depend on the mean. Use Bootstrap(kind='parametric')."
        raise ValueError(msg)
    params = np.nan_to_num(found.params)
    moving = np.isin(found.status, (OK, CLIPPED, MAX_ITER))
    partial = modes == "partial"
    root = _roots(posterior, partial) if partial.any() else None
    draw = _Innovations(problem, params, found.sigma2, settings.kind, len(modes))
    quiet = replace(problem, progress=False)
    total, products = np.zeros_like(params), np.zeros((*params.shape, len(modes)))
    means, spreads = [], []
    for _ in tqdm(range(settings.n_refits), desc="bootstrap", disable=not problem.progress, leave=False):
        truth = params
        if root is not None:
            truth = params + np.einsum("uij,uj->ui", root, rng.standard_normal(params.shape))
            truth[:, 1] = np.clip(truth[:, 1], *problem.bounds)
        y = simulate(problem, truth, draw, moving, rng)
        again = estimate(replace(quiet, panel=problem.panel.with_y(y)), modes, sigma=sigma, near=found)
        error = np.nan_to_num(again.params) - truth
        total += error
        products += error[:, :, None] * error[:, None]
        if again.pooled is not None:
            means.append(again.pooled.mean)
            spreads.append(again.pooled.covariance)
    bias = total / settings.n_refits
    covariance = (products - settings.n_refits * bias[:, :, None] * bias[:, None]) / (settings.n_refits - 1)
    known = np.isfinite(found.params) & (moving[:, None] | (modes != "individual"))
    bias[:, partial] = bias[moving][:, partial].mean(0)
    bias = np.where(known, bias, np.nan)
    covariance = np.where(known[:, :, None] & known[:, None], covariance, np.nan)
    if not means:
        return Refits(bias, covariance)
    pooled_bias = np.mean(means, axis=0) - found.pooled.mean
    varies = partial[modes != "individual"]
    pooled_bias[varies] = total[moving][:, partial].mean(0) / settings.n_refits
    return Refits(bias, covariance, pooled_bias, np.atleast_2d(np.cov(np.transpose(means))), spreads)


def simulate(
    problem: Problem,
    params: Float[NDArray, "unit coefficient"],
    draw: _Innovations,
    moving: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Float[NDArray, "unit day"]:
    """A panel with the covariates, first reports and gaps of the real one; units that are not `moving` stay as they are."""
    panel = problem.panel
    y, observed = panel.y.copy(), panel.observed
    eps = draw(rng)
    state = np.full(panel.n_units, np.nan)
    for t in range(panel.first_day, panel.n_days):
        if t > panel.first_day:
            x = panel.z[panel.source, :, t - panel.lag].T if len(panel.source) else np.empty((panel.n_units, 0))
            mean = state + params[:, 0] + params[:, 1] * state + np.einsum("uj,uj->u", params[:, 2:], x)
            going = np.isfinite(mean) & moving
            state = np.where(going, draw.day(mean, eps, t, rng, going), state)
            y[going & observed[:, t], t] = state[going & observed[:, t]]
        starts = np.isnan(state) & observed[:, t]
        state[starts] = panel.y[starts, t]
    return y


class _Innovations:
    """What one day adds to its mean."""

    def __init__(self, problem: Problem, params: NDArray, sigma2: NDArray, kind: str, k: int):
        self.problem = problem
        self.sd = np.sqrt(np.nan_to_num(sigma2))
        self.shape = problem.panel.y.shape
        self.pool = None
        if kind == "residual":
            self.pool, self.n = _standardised(problem, params, k)

    def __call__(self, rng: np.random.Generator) -> NDArray | None:
        """Of all units and days, where they do not depend on the mean."""
        if self.problem.counts:
            return None
        if self.pool is None:
            return rng.standard_normal(self.shape) * self.sd[:, None]
        chosen = (rng.random(self.shape) * self.n[:, None]).astype(np.int64)
        return np.take_along_axis(self.pool, chosen, axis=1)

    def day(self, mean: NDArray, eps: NDArray | None, t: int, rng: np.random.Generator, going: NDArray) -> NDArray:
        """The values of day t."""
        if eps is not None:
            return mean + eps[:, t]
        mean = np.where(going, floored(np.nan_to_num(mean))[0], 0.0)
        if self.problem.kind == LOSSES["negative_binomial"]:
            alpha = self.problem.tuning
            mean = mean * alpha * rng.gamma(1.0 / alpha)
        return rng.poisson(mean).astype(float)


def _standardised(problem: Problem, params: NDArray, k: int) -> tuple[NDArray, NDArray]:
    """Each unit's residuals over the standard deviation of their gap, centred and corrected for the coefficients."""
    panel = problem.panel
    _, resid, variance = follow(panel.y, panel.z, panel.source, panel.lag, params, first=panel.first_day)
    before = np.concatenate([np.zeros((panel.n_units, 1)), variance[:, :-1]], axis=1)
    resid = resid / np.sqrt((1.0 + params[:, [1]]) ** 2 * np.nan_to_num(before) + 1.0)
    some = np.isfinite(resid)
    n = np.maximum(some.sum(1), 1)
    centred = np.where(some, resid - (np.where(some, resid, 0.0).sum(1) / n)[:, None], 0.0)
    centred *= np.sqrt(n / np.maximum(n - k, 1))[:, None]
    first = np.argsort(~some, axis=1, kind="stable")
    return np.take_along_axis(centred, first, axis=1), n


def _roots(covariance: NDArray, partial: NDArray[np.bool_]) -> NDArray:
    """Roots of the posterior covariances of the partially pooled coefficients; the others are not drawn."""
    kept = np.where(partial[:, None] & partial, np.nan_to_num(covariance), 0.0)
    values, vectors = np.linalg.eigh(kept)
    return vectors * np.sqrt(np.maximum(values, 0.0))[:, None]
