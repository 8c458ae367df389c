"""The latent dynamics that forecast: fitting the state-space model to visits, and forecasts from a subject's history."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath.models.state_space import StateSpace

from .scale import Scale
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
        history = self._train(model, _tensors(scale.apply(visits)), generator)
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


@dataclass(frozen=True)
class FittedStateSpace:
    """Fitted dynamics; forecasts read a subject's history and baseline, and nothing else."""

    model: StateSpace
    scale: Scale
    items: tuple[str, ...]
    kinds: tuple[str, ...]
    covariates: tuple[str, ...]
    history: Float[NDArray, "step member"]

    def predict(
        self, history: Visits, times: Float[NDArray, "subject ahead"]
    ) -> tuple[Float[NDArray, "subject ahead item"], Float[NDArray, "subject ahead item"]]:
        """Mean and standard deviation of new measurements at `times`, not before a subject's last visit.

        Raises
        ------
        ValueError : for a time before the last visit of the history.
        """
        wanted = np.isfinite(times)
        ahead = np.where(wanted, times - history.last_time()[:, None], 0.0)
        if (ahead < 0).any():
            row, column = np.argwhere(ahead < 0)[0]
            msg = (
                f"Subject {history.subjects[row]!r} is to be forecast at time {times[row, column]:g}, before its last visit "
                f"at {history.last_time()[row]:g}. Give a history that ends earlier."
            )
            raise ValueError(msg)
        scaled, values, n_visits, baseline = _tensors(self.scale.apply(history), order := _falling(history))
        ahead = torch.from_numpy(ahead / self.scale.gap)[order]
        with torch.no_grad():
            system = self.model.system(baseline)
            _, belief = self.model.filter(scaled, values, n_visits, system)
            forecasts = [self.model.read(self.model.carry(belief, system, ahead[:, j])) for j in range(ahead.shape[1])]
        shape = (*times.shape, len(self.items))
        mean, sd = np.full(shape, np.nan), np.full(shape, np.nan)
        for j, (m, v) in enumerate(forecasts):
            mean[order, j], sd[order, j] = m[0].numpy(), v[0].sqrt().numpy()
        mean, sd = self.scale.restore(mean, sd)
        # A Bernoulli item is treated as a number: its mean is a probability only once it is kept within bounds.
        binary = np.array([kind == "bernoulli" for kind in self.kinds])
        mean[..., binary] = mean[..., binary].clip(0.01, 0.99)
        sd[..., binary] = np.sqrt(mean[..., binary] * (1 - mean[..., binary]))
        return np.where(wanted[..., None], mean, np.nan), np.where(wanted[..., None], sd, np.nan)

    def to_arrays(self) -> dict[str, Any]:
        """Everything that a forecast needs, as arrays."""
        network = {name: value.numpy().copy() for name, value in self.model.state_dict().items()}
        return {"network": network, "scale": self.scale.to_arrays(), "history": self.history}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Any], items: tuple[str, ...], kinds: tuple[str, ...], covariates: tuple[str, ...]
    ) -> FittedStateSpace:
        """The model that `to_arrays` was called on."""
        network = {name: torch.as_tensor(np.asarray(value)) for name, value in arrays["network"].items()}
        model = StateSpace(len(items), len(covariates), network["rate"].shape[1])
        model.load_state_dict(network)
        return cls(model, Scale.from_arrays(arrays["scale"]), items, kinds, covariates, np.asarray(arrays["history"]))


def _falling(visits: Visits) -> NDArray[np.int64]:
    return np.argsort(-visits.n_visits, kind="stable")


def _tensors(visits: Visits, order: NDArray[np.int64] | None = None) -> tuple[torch.Tensor, ...]:
    """Times, values, numbers of visits and baseline, those with most visits first."""
    order = _falling(visits) if order is None else order
    arrays = (visits.times, visits.values, visits.n_visits, visits.baseline)
    return tuple(torch.from_numpy(np.ascontiguousarray(array[order])) for array in arrays)


def _member(model: StateSpace, index: int) -> StateSpace:
    """One member, as a model of its own."""
    one = copy.deepcopy(model)
    for name, value in model.named_parameters():
        getattr(one, name).data = value.data[index : index + 1].clone()
    return one
