"""The latent dynamics that forecast: the state-space model, fitted to visits."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath.models.state_space import StateSpace
from dynapath.models.visit_forecast import FittedStateSpace, state_space_tensors
from dynapath.models.visit_scale import Scale
from dynapath.models.weight_trace import WeightTrace

from .convergence import convergence_of, with_convergence
from .training import diverged, one_cycle
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
        """Fit to the visits; nothing but these is used, for scales too. Visits without any measurement teach nothing."""
        visits = visits.take(visits.observed.any((1, 2))).measured()
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
        data = state_space_tensors(scale.apply(visits))
        history, losses = self._train(model, data, generator, trace := WeightTrace())
        best = int(np.argmin(losses))
        fitted = FittedStateSpace(
            _member(model, best), scale, visits.items, visits.kinds, visits.covariates, history, losses
        )
        halfway = trace.halfway()
        earlier = None
        if halfway is not None:
            model.load_state_dict(halfway)
            earlier = replace(fitted, model=_member(model, best))
        return with_convergence(fitted, convergence_of(fitted, earlier, visits, trace, start=float(history[0, best])))

    def _train(
        self, model: StateSpace, data: tuple, generator: torch.Generator, trace: WeightTrace | None = None
    ) -> tuple[Float[NDArray, "step member"], Float[NDArray, " member"]]:
        """The loss of every restart at each step, and in the end of all subjects.

        A restart whose loss is no longer finite is left out: its curve is NaN from there on, and its final loss infinite.

        Raises
        ------
        RuntimeError : if all restarts diverge, naming the step and the step size.
        """
        n_subjects = len(data[0])
        optimizer = torch.optim.Adam(model.parameters(), self.lr)
        schedule = one_cycle(optimizer, self.lr, self.n_steps, warm_up=0.2)
        alive = torch.ones(self.n_restarts, dtype=torch.bool)
        history = []
        for step in range(self.n_steps):
            rows = None
            if n_subjects > self.batch_size:
                # Kept in order: the filter wants those with most visits first.
                rows = torch.randperm(n_subjects, generator=generator)[: self.batch_size].sort().values
            loss = _loss(model, data, rows)
            alive &= torch.isfinite(loss.detach())
            if not bool(alive.any()):
                raise diverged(f"in step {step}", self.lr)
            optimizer.zero_grad()
            loss[alive].sum().backward()
            _clip(model, alive)
            optimizer.step()
            if trace is not None:
                trace.add([group["lr"] for group in optimizer.param_groups], model.state_dict())
            schedule.step()
            history.append(np.where(alive.numpy(), loss.detach().numpy(), np.nan))
        with torch.no_grad():
            final = _loss(model, data).numpy()
        final = np.where(alive.numpy() & np.isfinite(final), final, np.inf)
        if not np.isfinite(final).any():
            raise diverged(f"in the last step, {self.n_steps - 1}", self.lr)
        return np.array(history), final


def _loss(model: StateSpace, data: tuple, rows: torch.Tensor | None = None) -> Float[torch.Tensor, " member"]:
    """Minus the log-posterior for each measured value, from some of the subjects or from all."""
    times, values, n_visits, baseline = data if rows is None else (array[rows] for array in data)
    log_prob, _ = model.filter(times, values, n_visits, model.system(baseline))
    share = len(times) / len(data[0])
    return (model.penalty() - log_prob.sum(1) / share) / torch.isfinite(data[1]).sum()


def _clip(model: StateSpace, alive: torch.Tensor, largest: float = 5.0) -> None:
    """Cut the gradient of each parameter and restart by its own norm; a restart with one that is not finite gets none."""
    norms = [p.grad.flatten(1).norm(dim=1) for p in model.parameters()]
    sound = alive & torch.isfinite(torch.stack(norms)).all(0)
    for parameter, norm in zip(model.parameters(), norms, strict=True):
        factor = torch.where(sound, largest / norm.clamp_min(largest), 0.0)
        parameter.grad.nan_to_num_().mul_(factor.reshape(-1, *[1] * (parameter.ndim - 1)))


def _member(model: StateSpace, index: int) -> StateSpace:
    """One member, as a model of its own."""
    one = copy.deepcopy(model)
    for name, value in model.named_parameters():
        getattr(one, name).data = value.data[index : index + 1].clone()
    return one
