"""The latent trajectories of a registry: the visit VAE, fitted to visits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath.dynamics.named import dynamics_by_name
from dynapath.dynamics.nonlinear import LearnedField
from dynapath.dynamics.smooth import Estimator
from dynapath.dynamics.systems import LinearSystem
from dynapath.models._random import isolated_seed
from dynapath.models.visit_forecast import FittedVisitVAE, batch_of
from dynapath.models.visit_scale import Scale
from dynapath.models.visit_vae import VisitVAE
from dynapath.models.weight_trace import WeightTrace

from .convergence import convergence_of, with_convergence
from .training import WEIGHTS, Schedule, final_loss, train
from .visits import Visits


@dataclass(frozen=True)
class VisitVAEForecaster:
    """Encoder, decoder and dynamics whose parameters come from the baseline, see :class:`dynapath.models.visit_vae.VisitVAE`.

    The arguments are those of :func:`dynapath.stats.fit_latent_dynamics`.
    """

    n_latent: int = 2
    dynamics: Any = "full"
    offset: bool = False
    estimator: Estimator = "gls"
    linear_decoder: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    n_restarts: int = 5
    width: float = 0.5
    schedule: Schedule = Schedule()
    random_state: int | None = 0

    def fit(self, visits: Visits) -> FittedVisitVAE:
        """Fit to the visits; the restart with the lowest loss is kept.

        Subjects with one visit teach the encoder and the decoder only; visits without any measurement teach nothing.

        Warns
        -----
        UserWarning : if good restarts disagree in the sign of a rate.
        """
        visits = visits.take(visits.observed.any((1, 2))).measured()
        dynamics = self._dynamics()
        homogeneous = isinstance(dynamics, LinearSystem) and not dynamics.has_offset
        scale = Scale.by_span(visits, centred=not homogeneous)
        batch = batch_of(scale.apply(visits), scale)
        generator = torch.Generator()
        _ = generator.seed() if self.random_state is None else generator.manual_seed(self.random_state)
        model = VisitVAE(
            visits.n_items,
            visits.n_covariates,
            dynamics,
            bernoulli=torch.from_numpy(~visits.gaussian),
            estimator=self.estimator,
            linear_decoder=self.linear_decoder,
            n_members=self.n_restarts,
            width=self.width,
            generator=generator,
        )
        weights = WEIGHTS | dict(self.weights)
        start = final_loss(model, batch, weights)
        history, losses = train(model, batch, weights, self.schedule, generator, trace := WeightTrace())
        best = int(np.argmin(losses))
        if isinstance(dynamics, LinearSystem):
            _warn_of_signs(model, batch.baseline, losses, dynamics)
        one = self._one(model, visits, best)
        fitted = FittedVisitVAE(
            one,
            scale,
            visits.items,
            visits.kinds,
            visits.covariates,
            history[:, :, best],
            losses,
            np.ones((visits.n_items, 2)),
        )
        halfway = trace.halfway()
        earlier = None
        if halfway is not None:
            model.load_state_dict({**model.state_dict(), **halfway})
            earlier = replace(fitted, model=self._one(model, visits, best))
        convergence = convergence_of(fitted, earlier, visits, trace, start=float(start[best]))
        return with_convergence(_with_variance(fitted, visits), convergence)

    def _dynamics(self) -> Any:
        if not isinstance(self.dynamics, str):
            return self.dynamics
        with isolated_seed(0 if self.random_state is None else self.random_state):
            return dynamics_by_name(self.dynamics, self.n_latent, offset=self.offset, n_members=self.n_restarts)

    def _one(self, model: VisitVAE, visits: Visits, member: int) -> VisitVAE:
        """One restart as a model of its own."""
        stacked = model.of_members()
        dynamics = model.dynamics
        if isinstance(dynamics, LearnedField):
            with isolated_seed(0):
                dynamics = LearnedField(dynamics.n_latent, dynamics.n_params)
        one = VisitVAE(
            visits.n_items,
            visits.n_covariates,
            dynamics,
            bernoulli=model.bernoulli,
            estimator=self.estimator,
            linear_decoder=self.linear_decoder,
            width=self.width,
        )
        state = model.state_dict()
        one.load_state_dict({k: v[member : member + 1].clone() if k in stacked else v for k, v in state.items()})
        return one.requires_grad_(requires_grad=False)


def _warn_of_signs(model: VisitVAE, baseline: torch.Tensor, losses: NDArray, dynamics: LinearSystem) -> None:
    """Restarts about as good as the best must agree on whether each direction grows or decays, for most subjects."""
    if not dynamics.entries:
        return
    # Restarts that others beat clearly do not count: of them, half; nor do those that diverged.
    good = losses <= np.median(losses[np.isfinite(losses)])
    best = int(np.argmin(losses))
    signs = np.zeros((len(losses), dynamics.n_latent))
    with torch.no_grad():
        A, _ = dynamics.unpack(model.theta(baseline)[good])
        signs[good] = np.sign(torch.linalg.eigvals(A).real.sort(-1).values.numpy().mean(1))
    other = [r for r in np.flatnonzero(good) if (signs[r] != signs[best]).any()]
    if other:
        warnings.warn(
            f"{len(other)} of {int(good.sum())} good restarts disagree with the best in the sign of a rate (losses "
            f"{', '.join(f'{losses[r]:.2f}' for r in other)}; best {losses[best]:.2f}). Show decoded trajectories, which are "
            "identified, rather than rates; more restarts or epochs may settle it.",
            UserWarning,
            stacklevel=4,
        )


def _with_variance(fitted: FittedVisitVAE, visits: Visits) -> FittedVisitVAE:
    """Variance of forecast errors, s0 + s1 * time ahead for each item, from all pairs of a subject's consecutive visits."""
    squares, gaps, items = [], [], []
    for k in range(1, visits.values.shape[1]):
        later = visits.take(visits.n_visits > k)
        mean, _ = fitted.predict(later.first(k), later.times[:, k : k + 1])
        error = (later.values[:, k] - mean[:, 0]) / fitted.scale.sd
        known = np.isfinite(error)
        squares.append(error[known] ** 2)
        gaps.append(np.broadcast_to((later.times[:, k] - later.times[:, k - 1])[:, None], error.shape)[known])
        items.append(np.nonzero(known)[1])
    square, gap, item = (np.concatenate(x) for x in (squares, gaps, items))
    gap = gap / fitted.scale.gap
    variance = np.array([_line(square[item == j], gap[item == j]) for j in range(visits.n_items)])
    return FittedVisitVAE(**{**fitted.__dict__, "variance": variance})


def _line(square: Float[NDArray, " error"], gap: Float[NDArray, " error"]) -> tuple[float, float]:
    """Least squares with both coefficients kept from being negative."""
    if not len(square):
        return 1.0, 0.0
    centred = gap - gap.mean()
    slope = max(float(centred @ square) / max(float(centred @ centred), 1e-12), 0.0)
    start = square.mean() - slope * gap.mean()
    if start < 0.1 * square.mean():
        start, slope = 0.1 * square.mean(), 0.9 * square.mean() / gap.mean()
    return max(float(start), 1e-6), float(slope)
