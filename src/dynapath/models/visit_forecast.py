"""Fitted models of visits: what they make of a subject, and what they forecast.

Forecasts at a time read the visits of a history and the baseline, and nothing else. Both classes say so by their signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from dynapath._times import same_within
from dynapath._visits import Visits

from .state_space import Belief, StateSpace
from .visit_scale import Scale
from .visit_vae import Batch, VisitVAE


class Described(NamedTuple):
    """States, parameters and items of visits; NaN at padding."""

    smooth: Float[NDArray, "subject visit latent"]
    encoded: Float[NDArray, "subject visit latent"]
    sd: Float[NDArray, "subject visit latent"]
    theta: Float[NDArray, "subject param"]  # in the unit of the visits' times
    items: Float[NDArray, "subject visit item"]


@dataclass(frozen=True)
class FittedStateSpace:
    """Fitted dynamics; forecasts read a subject's history and baseline, and nothing else."""

    model: StateSpace
    scale: Scale
    items: tuple[str, ...]
    kinds: tuple[str, ...]
    covariates: tuple[str, ...]
    history: Float[NDArray, "step member"]
    losses: Float[NDArray, " member"]

    kind: ClassVar[str] = "state_space"

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
        scaled, values, n_visits, baseline = state_space_tensors(self.scale.apply(history), order := falling(history))
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

    @property
    def param_names(self) -> tuple[str, ...]:
        """Rates and drifts of the states, in the order of `describe`."""
        d = range(1, self.model.n_latent + 1)
        return (*(f"rate{i}" for i in d), *(f"drift{i}" for i in d))

    def describe(self, visits: Visits) -> Described:
        """What the model makes of these visits; states are those after each visit, from it and earlier ones."""
        order = falling(visits)
        times, values, n_visits, baseline = state_space_tensors(self.scale.apply(visits), order)
        shape = (*times.shape, self.model.n_latent)
        mean, sd = np.full(shape, np.nan), np.full(shape, np.nan)
        fitted = np.full((*times.shape, len(self.items)), np.nan)
        with torch.no_grad():
            system = self.model.system(baseline)
            beliefs: list[Belief] = []
            self.model.filter(times, values, n_visits, system, keep=beliefs)
            for k, belief in enumerate(beliefs):
                rows = order[: belief.mean.shape[1]]
                mean[rows, k] = belief.mean[0].numpy()
                sd[rows, k] = belief.cov[0].diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt().numpy()
                fitted[rows, k] = self.model.read(belief)[0][0].numpy()
        theta = np.empty((len(order), 2 * self.model.n_latent))
        theta[order] = np.concatenate([system.rate[0].numpy(), system.drift[0].numpy()], axis=1) / self.scale.gap
        return Described(mean, mean, sd, theta, self.scale.restore(fitted, fitted)[0])

    def to_arrays(self) -> dict[str, Any]:
        """Everything that a forecast needs, as arrays."""
        network = {name: value.numpy().copy() for name, value in self.model.state_dict().items()}
        rest = {"history": self.history, "losses": self.losses}
        return {"network": network, "scale": self.scale.to_arrays(), **rest}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Any], items: tuple[str, ...], kinds: tuple[str, ...], covariates: tuple[str, ...]
    ) -> FittedStateSpace:
        """The model that `to_arrays` was called on."""
        network = {name: torch.as_tensor(np.asarray(value)) for name, value in arrays["network"].items()}
        model = StateSpace(len(items), len(covariates), network["rate"].shape[1])
        model.load_state_dict(network)
        history = np.asarray(arrays["history"])
        # Fits of earlier versions did not keep the final losses.
        losses = np.asarray(arrays.get("losses", history[-1]))
        return cls(model, Scale.from_arrays(arrays["scale"]), items, kinds, covariates, history, losses)


def falling(visits: Visits) -> NDArray[np.int64]:
    """Subjects, those with most visits first."""
    return np.argsort(-visits.n_visits, kind="stable")


def state_space_tensors(visits: Visits, order: NDArray[np.int64] | None = None) -> tuple[torch.Tensor, ...]:
    """Times, values, numbers of visits and baseline, those with most visits first."""
    order = falling(visits) if order is None else order
    arrays = (visits.times, visits.values, visits.n_visits, visits.baseline)
    return tuple(torch.from_numpy(np.ascontiguousarray(array[order])) for array in arrays)


@dataclass(frozen=True)
class FittedVisitVAE:
    """A fitted :class:`VisitVAE`; forecasts start from a subject's last measured visit.

    Errors of forecasts of the visits it was fitted to are known as variance = s0 + s1 * time ahead, for each item.
    """

    model: VisitVAE
    scale: Scale
    items: tuple[str, ...]
    kinds: tuple[str, ...]
    covariates: tuple[str, ...]
    history: Float[NDArray, "epoch term"]
    losses: Float[NDArray, " restart"]
    variance: Float[NDArray, "item 2"]

    kind: ClassVar[str] = "visit_vae"

    @property
    def param_names(self) -> tuple[str, ...]:
        """Parameters of the dynamics."""
        names = getattr(self.model.dynamics, "param_names", None)
        return tuple(f"theta{j + 1}" for j in range(self.model.dynamics.n_params)) if names is None else tuple(names)

    def describe(self, visits: Visits) -> Described:
        """What the model makes of these visits."""
        batch = batch_of(self.scale.apply(visits), self.scale)
        with torch.no_grad():
            mean, log_var = self.model.encoder(batch.values, batch.observed)
            theta = self.model.theta(batch.baseline)
            smooth, cov = self.model.smooth(batch, mean, log_var, theta)
            items = self.means(smooth)[0].numpy()
        # Where the estimator gives no covariance, the encoder's own.
        sd = (log_var / 2).exp() if cov is None else cov.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        states = (_only(visits, x[0].numpy()) for x in (smooth, mean, sd))
        items = _only(visits, self.scale.restore(items, items)[0])
        return Described(*states, theta[0].numpy() / self.scale.gap, items)

    def means(self, z: torch.Tensor) -> torch.Tensor:
        """Means of the items in states `z`, on the scale of the model; probabilities of Bernoulli items."""
        out = self.model.decoder(z)
        return torch.where(self.model.bernoulli, torch.sigmoid(out), out)

    def paths(
        self, visits: Visits, times: Float[NDArray, " time"]
    ) -> tuple[Float[NDArray, "subject time latent"], Float[NDArray, "subject time item"]]:
        """Latent states and items of each subject `times` after its first visit, from all of its visits."""
        batch = batch_of(self.scale.apply(visits), self.scale)
        with torch.no_grad():
            mean, log_var = self.model.encoder(batch.values, batch.observed)
            theta = self.model.theta(batch.baseline)
            start = self.model.smooth(batch, mean, log_var, theta).mean[:, :, :1]
            dt = torch.as_tensor(times / self.scale.gap).float().expand(len(batch.times), -1)
            z = self.model.dynamics.flow(dt, start, theta.unsqueeze(-2))
            items = self.means(z)[0].numpy()
        return z[0].numpy(), self.scale.restore(items, items)[0]

    def predict(
        self, history: Visits, times: Float[NDArray, "subject ahead"]
    ) -> tuple[Float[NDArray, "subject ahead item"], Float[NDArray, "subject ahead item"]]:
        """Mean and standard deviation of new measurements at `times`, from the last visit with any measurement."""
        batch = batch_of(self.scale.apply(history), self.scale)
        wanted = np.isfinite(times)
        known = history.present & history.observed.any(-1)
        n = history.values.shape[1]
        last = np.where(known.any(1), n - 1 - known[:, ::-1].argmax(1), 0)
        rows = np.arange(history.n_subjects)
        since = history.times[rows, last][:, None]
        ahead = np.where(wanted, times - since, 0.0) / self.scale.gap
        with torch.no_grad():
            mean, _ = self.model.encoder(batch.values[rows, last][:, None], batch.observed[rows, last][:, None])
            theta = self.model.theta(batch.baseline).unsqueeze(-2)
            out = self.means(self.model.dynamics.flow(torch.from_numpy(ahead).float(), mean, theta))[0].double().numpy()
        variance = self.variance[:, 0] + self.variance[:, 1] * np.abs(ahead)[..., None]
        binary = np.array([kind == "bernoulli" for kind in self.kinds])
        variance = np.where(binary, out * (1 - out), variance)
        out, sd = self.scale.restore(out, np.sqrt(variance))
        return np.where(wanted[..., None], out, np.nan), np.where(wanted[..., None], sd, np.nan)

    def to_arrays(self) -> dict[str, Any]:
        """Everything that a forecast needs, as arrays."""
        network = {name: value.numpy().copy() for name, value in self.model.state_dict().items()}
        rest = {"history": self.history, "losses": self.losses, "variance": self.variance}
        return {"network": network, "scale": self.scale.to_arrays(), **rest}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        model: VisitVAE,
        items: tuple[str, ...],
        kinds: tuple[str, ...],
        covariates: tuple[str, ...],
    ) -> FittedVisitVAE:
        """The fit that `to_arrays` was called on; `model` is one like it, with one member, whose weights are set here."""
        model.load_state_dict({name: torch.as_tensor(np.asarray(value)) for name, value in arrays["network"].items()})
        rest = (np.asarray(arrays[name], dtype=float) for name in ("history", "losses", "variance"))
        return cls(model, Scale.from_arrays(arrays["scale"]), items, kinds, covariates, *rest)


def at_times(
    fitted: FittedVisitVAE | FittedStateSpace, visits: Visits, times: Float[NDArray, "subject time"]
) -> tuple[Float[NDArray, "subject time item"], Float[NDArray, "subject time item"], Int[NDArray, "subject time"]]:
    """Mean, standard deviation, and the number of visits used: those not later than the time."""
    until = times[..., None] + same_within(visits.times[visits.present])
    k = (visits.present[:, None, :] & (visits.times[:, None, :] <= until)).sum(-1)
    shape = (*times.shape, visits.n_items)
    mean, sd = np.full(shape, np.nan), np.full(shape, np.nan)
    for used in np.unique(k[k > 0]):
        rows = np.flatnonzero((k == used).any(1))
        wanted = np.where(k[rows] == used, times[rows], np.nan)
        m, s = fitted.predict(visits.take(rows).first(int(used)), wanted)
        chosen = k[rows] == used
        mean[rows] = np.where(chosen[..., None], m, mean[rows])
        sd[rows] = np.where(chosen[..., None], s, sd[rows])
    return mean, sd, k


def half_widths(
    quantiles: Float[NDArray, "level item stratum"], level: float, k: Int[NDArray, " row"]
) -> Float[NDArray, "row item"]:
    """Of intervals after `k` visits, in standard deviations: `quantiles` at levels .01 to .99 for 1, 2, and 3 or more visits.

    Between two levels it is that of the higher one; infinite where too few subjects calibrate it.
    """
    at = int(np.ceil(100 * level - 1e-9)) - 1
    return np.nan_to_num(quantiles[at], nan=np.inf, posinf=np.inf)[:, np.clip(k, 1, quantiles.shape[2]) - 1].T


def batch_of(visits: Visits, scale: Scale) -> Batch:
    """Scaled visits as tensors; an item that was not measured has its mean in the visits of the fit."""
    filled = np.where(visits.observed, visits.values, scale.filling)
    return Batch(
        times=torch.from_numpy(visits.times).float(),
        values=torch.from_numpy(filled).float(),
        observed=torch.from_numpy(visits.observed),
        present=torch.from_numpy(visits.present),
        baseline=torch.from_numpy(visits.baseline).float(),
    )


def _only(visits: Visits, values: NDArray) -> NDArray:
    return np.where(visits.present[..., None], values, np.nan)
