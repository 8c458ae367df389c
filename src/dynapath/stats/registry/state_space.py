"""The latent dynamics that forecast: the state-space model, fitted to visits."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath.models.state_space import StateSpace
from dynapath.models.visit_forecast import FittedStateSpace, state_space_tensors
from dynapath.models.visit_scale import Scale

from .visits import Visits

MOST_STATES = 16


@dataclass(frozen=True)
class StateSpaceForecaster:
    """Latent linear dynamics with process noise, see :class:`dynapath.models.StateSpace`.

    Parameters
    ----------
    n_latent
        States; by default two for each item, at most 16.
    n_steps, lr
        Steps of Adam and their largest size.
    batch_size
        Subjects in a step; registries below this size are taken whole.
    n_restarts
        Starts, fitted together; the one with the lowest loss is kept.
    random_state
        Seed of the starts and of the batches.
    """

    n_latent: int | None = None
    n_steps: int = 100
    lr: float = 0.05
    batch_size: int = 1000
    n_restarts: int = 1
    random_state: int | None = 0

    def fit(self, visits: Visits) -> FittedStateSpace:
        """Fit to the visits; nothing but these is used, for scales too."""
        scale = Scale.of(visits)
        generator = torch.Generator()
        _ = generator.seed() if self.random_state is None else generator.manual_seed(self.random_state)
        n_latent = min(2 * visits.n_items, MOST_STATES) if self.n_latent is None else self.n_latent
        model = StateSpace(
            visits.n_items,
            visits.n_covariates,
            n_latent,
            n_members=self.n_restarts,
            jitter=0.1,
            generator=generator,
        )
        history = self._train(model, state_space_tensors(scale.apply(visits)), generator)
        best = int(np.argmin(history[-1]))
        return FittedStateSpace(_member(model, best), scale, visits.items, visits.kinds, visits.covariates, history)

    def _train(self, model: StateSpace, data: tuple, generator: torch.Generator) -> Float[NDArray, "step member"]:
        times, values, n_visits, baseline = data
        n_subjects, n_values = len(times), torch.isfinite(values).sum()
        optimizer = torch.optim.Adam(model.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=self.n_steps, pct_start=0.2)
        history = []
        for step in range(self.n_steps):
            rows = slice(None)
            if n_subjects > self.batch_size:
                # Kept in order: the filter wants those with most visits first.
                rows = torch.randperm(n_subjects, generator=generator)[: self.batch_size].sort().values
            share = 1.0 if n_subjects <= self.batch_size else self.batch_size / n_subjects
            log_prob, _ = model.filter(times[rows], values[rows], n_visits[rows], model.system(baseline[rows]))
            loss = (model.penalty() - log_prob.sum(1) / share) / n_values
            if not bool(torch.isfinite(loss).all()):
                msg = (
                    f"The loss of the state-space model is not finite at step {step}. Look for extreme values or times in "
                    "the visits, or lower lr."
                )
                raise RuntimeError(msg)
            optimizer.zero_grad()
            loss.sum().backward()
            # Each member by itself, so that one restart cannot slow the others.
            for parameter in model.parameters():
                size = parameter.grad.flatten(1).norm(dim=1).clamp_min(5.0)
                parameter.grad.mul_((5.0 / size).reshape(-1, *[1] * (parameter.ndim - 1)))
            optimizer.step()
            schedule.step()
            history.append(loss.detach().numpy().copy())
        return np.array(history)


def _member(model: StateSpace, index: int) -> StateSpace:
    """One member, as a model of its own."""
    one = copy.deepcopy(model)
    for name, value in model.named_parameters():
        getattr(one, name).data = value.data[index : index + 1].clone()
    return one
