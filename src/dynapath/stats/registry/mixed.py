"""A linear mixed model for each item, with forecasts for patients who were not in the fit.

    y = x' beta + x_time' gamma t + b0 + b1 t + e,    b ~ N(0, G),   e ~ N(0, s^2)

Fixed effects of time, covariates and covariates x time; random intercept and slope; REML by statsmodels. For a new patient
with design Z and residuals r, b | r has covariance (I + G Z'Z / s^2)^-1 G and mean that times Z'r / s^2 (the BLUP), which
holds for singular G too (Laird & Ware 1982, doi:10.2307/2529876).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from .visits import Visits


@dataclass(frozen=True)
class MixedModel:
    """A linear mixed model of each item."""

    def fit(self, visits: Visits) -> FittedMixedModel:
        """By REML, item by item. A covariate that does not vary is left out."""
        subject, visit = np.nonzero(visits.present)
        times = visits.times[subject, visit]
        center, scale = times.mean(), times.std() or 1.0
        baseline = (visits.baseline - visits.baseline.mean(0)) / np.where(
            visits.baseline.std(0) > 1e-9, visits.baseline.std(0), np.inf
        )
        use = np.flatnonzero(baseline.any(0))
        design = Design(
            center, scale, visits.baseline.mean(0)[use], np.maximum(visits.baseline.std(0)[use], 1e-9), tuple(use)
        )
        effects = [self._item(visits, design, item) for item in range(visits.n_items)]
        return FittedMixedModel(design, tuple(effects), visits.gaussian)

    def _item(self, visits: Visits, design: Design, item: int) -> Effects:
        from statsmodels.regression.mixed_linear_model import MixedLM

        subject, visit = np.nonzero(visits.observed[:, :, item])
        y = visits.values[subject, visit, item]
        n_columns = 2 + 2 * len(design.used)
        if len(np.unique(subject)) < 3 or len(y) <= n_columns or not y.std():
            beta = np.zeros(n_columns)
            beta[0] = y.mean() if len(y) else 0.0
            return Effects(beta, np.zeros((2, 2)), max(float(np.var(y)) if len(y) else 1.0, 1e-6))
        x = design.fixed(visits.baseline[subject], visits.times[subject, visit])
        t = (visits.times[subject, visit] - design.center) / design.scale
        z = np.column_stack([np.ones(len(t)), t])
        spread = y.std()
        with warnings.catch_warnings():
            # Variances at their bound, and searches that end where the likelihood is flat, are common and do no harm here.
            warnings.simplefilter("ignore")
            model = MixedLM((y - y.mean()) / spread, x, groups=subject, exog_re=z)
            try:
                result = model.fit(reml=True, method="lbfgs", maxiter=200)
            except np.linalg.LinAlgError:
                result = model.fit(reml=True, method="powell", maxiter=500)
        beta = np.asarray(result.fe_params) * spread
        beta[0] += y.mean()
        return Effects(beta, np.asarray(result.cov_re) * spread**2, float(result.scale) * spread**2)


@dataclass(frozen=True)
class Design:
    """How times and covariates enter."""

    center: float
    scale: float
    covariate_mean: Float[NDArray, " used"]
    covariate_sd: Float[NDArray, " used"]
    used: tuple[int, ...]

    def fixed(
        self, baseline: Float[NDArray, "*row covariate"], times: Float[NDArray, "*row"]
    ) -> Float[NDArray, "*row column"]:
        """1, time, covariates, covariates x time."""
        t = ((times - self.center) / self.scale)[..., None]
        c = (baseline[..., list(self.used)] - self.covariate_mean) / self.covariate_sd
        return np.concatenate([np.ones_like(t), t, c, c * t], axis=-1)


@dataclass(frozen=True)
class Effects:
    """Of one item."""

    beta: Float[NDArray, " column"]
    G: Float[NDArray, "2 2"]
    variance: float


@dataclass(frozen=True)
class FittedMixedModel:
    """Fixed effects and variances of all items."""

    design: Design
    effects: tuple[Effects, ...] = field(repr=False)
    gaussian: NDArray[np.bool_] = field(repr=False)

    def predict(
        self, history: Visits, times: Float[NDArray, "subject ahead"]
    ) -> tuple[Float[NDArray, "subject ahead item"], Float[NDArray, "subject ahead item"]]:
        """Mean and standard deviation of a new measurement, given the history."""
        shape = (*times.shape, len(self.effects))
        mean, sd = np.empty(shape), np.empty(shape)
        x_past = self.design.fixed(_repeated(history.baseline, history.times.shape[1]), history.times)
        x_ahead = self.design.fixed(_repeated(history.baseline, times.shape[1]), times)
        z_past, z_ahead = x_past[..., :2], x_ahead[..., :2]
        for item, fit in enumerate(self.effects):
            observed = history.observed[..., item]
            residual = np.where(observed, history.values[..., item] - x_past @ fit.beta, 0.0)
            z = z_past * observed[..., None]
            information = np.einsum("skp,skq->spq", z, z) / fit.variance
            score = np.einsum("skp,sk->sp", z, residual) / fit.variance
            cov = np.linalg.solve(np.eye(2) + fit.G @ information, np.broadcast_to(fit.G, information.shape))
            b = np.einsum("spq,sq->sp", cov, score)
            mean[..., item] = x_ahead @ fit.beta + np.einsum("sap,sp->sa", z_ahead, b)
            sd[..., item] = np.sqrt(fit.variance + np.einsum("sap,spq,saq->sa", z_ahead, cov, z_ahead).clip(0))
        p = mean[..., ~self.gaussian].clip(0.01, 0.99)
        mean[..., ~self.gaussian], sd[..., ~self.gaussian] = p, np.sqrt(p * (1 - p))
        sd[np.isnan(mean)] = np.nan
        return mean, sd


def _repeated(baseline: Float[NDArray, "subject covariate"], n: int) -> Float[NDArray, "subject n covariate"]:
    return np.broadcast_to(baseline[:, None], (len(baseline), n, baseline.shape[1]))
