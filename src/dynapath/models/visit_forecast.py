"""Fitted models of visits: what they make of a subject, and what they forecast.

Forecasts at a time read the visits of a history and the baseline, and nothing else. Both classes say so by their signature, and
have one contract: no forecast before the last visit of the history, NaN for subjects of whom nothing was measured, and visits
without any measurement change nothing.
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
from dynapath.dynamics.changes import Convergence
from dynapath.dynamics.smooth import linearised

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
    convergence: Convergence = Convergence()

    kind: ClassVar[str] = "state_space"

    def predict(
        self, history: Visits, times: Float[NDArray, "subject ahead"]
    ) -> tuple[Float[NDArray, "subject ahead item"], Float[NDArray, "subject ahead item"]]:
        """Mean and standard deviation of new measurements at `times`, not before a subject's last visit.

        NaN for subjects of whom nothing was measured.

        Raises
        ------
        ValueError : for a time before the last visit of the history.
        """
        check_ahead(history, times)
        history = history.measured()
        wanted = np.isfinite(times) & history.observed.any((1, 2))[:, None]
        ahead = np.where(wanted, times - history.last_time()[:, None], 0.0)
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
        """What the model makes of these visits; states are those after each visit, from it and earlier ones.

        NaN before anything of a subject was measured.
        """
        measured = visits.measured()
        order = falling(measured)
        times, values, n_visits, baseline = state_space_tensors(self.scale.apply(measured), order)
        d = self.model.n_latent
        means = np.full((*measured.times.shape, d), np.nan)
        covs = np.full((*measured.times.shape, d, d), np.nan)
        with torch.no_grad():
            system = self.model.system(baseline)
            beliefs: list[Belief] = []
            self.model.filter(times, values, n_visits, system, keep=beliefs)
            for k, belief in enumerate(beliefs):
                rows = order[: belief.mean.shape[1]]
                means[rows, k], covs[rows, k] = belief.mean[0].numpy(), belief.cov[0].numpy()
            # At a visit without a measurement the belief is that of the last one with any, carried on.
            source, since = since_measured(visits, measured)
            known = visits.present & (source >= 0)
            of = np.maximum(source, 0)[..., None]
            means, covs = np.take_along_axis(means, of, axis=1), np.take_along_axis(covs, of[..., None], axis=1)
            mean, sd = np.full_like(means, np.nan), np.full_like(means, np.nan)
            fitted = np.full((*visits.times.shape, len(self.items)), np.nan)
            for k in range(visits.times.shape[1]):
                rows = order[known[order, k]]
                if not len(rows):
                    continue
                belief = Belief(torch.from_numpy(means[rows, k])[None], torch.from_numpy(covs[rows, k])[None])
                dt = since[rows, k] / self.scale.gap
                if dt.any():
                    own = self.model.system(baseline[known[order, k]])
                    belief = self.model.carry(belief, own, torch.from_numpy(dt))
                mean[rows, k] = belief.mean[0].numpy()
                sd[rows, k] = belief.cov[0].diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt().numpy()
                fitted[rows, k] = self.model.read(belief)[0][0].numpy()
        theta = np.empty((len(order), 2 * d))
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


def check_ahead(history: Visits, times: Float[NDArray, "subject ahead"]) -> None:
    """Refuse forecasts of what lies before the last visit, whose reading has it in.

    Raises
    ------
    ValueError : naming the first subject with such a time.
    """
    last = history.last_time()
    before = times < last[:, None]
    if before.any():
        row, column = np.argwhere(before)[0]
        msg = (
            f"Subject {history.subjects[row]!r} is to be forecast at time {times[row, column]:g}, before its last visit "
            f"at {last[row]:g}. Give a history that ends earlier: history.first(k) has the first k visits."
        )
        raise ValueError(msg)


def since_measured(
    visits: Visits, measured: Visits
) -> tuple[Int[NDArray, "subject visit"], Float[NDArray, "subject visit"]]:
    """For each visit the last of the `measured` ones up to it (-1: none), and the time since then (none: since the first)."""
    source = (visits.present & visits.observed.any(2)).cumsum(1) - 1
    since = visits.times - np.take_along_axis(measured.times, np.maximum(source, 0), axis=1)
    return source, since


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
    convergence: Convergence = Convergence()

    kind: ClassVar[str] = "visit_vae"

    @property
    def param_names(self) -> tuple[str, ...]:
        """Parameters of the dynamics."""
        names = getattr(self.model.dynamics, "param_names", None)
        return tuple(f"theta{j + 1}" for j in range(self.model.dynamics.n_params)) if names is None else tuple(names)

    def describe(self, visits: Visits) -> Described:
        """What the model makes of these visits; NaN for subjects of whom nothing was measured.

        The trajectory of a subject is that of the visits with a measurement; the others lie on it.
        """
        measured = visits.measured()
        batch = batch_of(self.scale.apply(measured), self.scale)
        source, since = since_measured(visits, measured)
        of = torch.from_numpy(np.maximum(source, 0))[..., None]
        own = visits.present & visits.observed.any(2)
        with torch.no_grad():
            mean, log_var = self.model.encoder(batch.values, batch.observed)
            theta = self.model.theta(batch.baseline)
            smooth, cov = self.model.smooth(batch, mean, log_var, theta)
            mean, log_var, smooth = (x[0].take_along_dim(of, dim=1) for x in (mean, log_var, smooth))
            # Where the estimator gives no covariance, the encoder's own.
            cov = None if cov is None else cov[0].take_along_dim(of[..., None], dim=1)
            sd = (log_var / 2).exp() if cov is None else cov.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
            if (own != visits.present).any():
                dt = torch.from_numpy(np.where(visits.present, since, 0.0) / self.scale.gap).float()
                between = torch.from_numpy(visits.present & ~own)[..., None]
                carried, spread = self._carry(smooth, cov, dt, theta)
                smooth, sd = torch.where(between, carried, smooth), torch.where(between, spread, sd)
            items = self.means(smooth[None])[0].numpy()
        known = visits.present & visits.observed.any((1, 2))[:, None]
        smooth, sd, items = (
            np.where(known[..., None], x, np.nan)
            for x in (smooth.numpy(), sd.numpy(), self.scale.restore(items, items)[0])
        )
        encoded = np.where(own[..., None], mean.numpy(), np.nan)
        return Described(smooth, encoded, sd, theta[0].numpy() / self.scale.gap, items)

    def _carry(
        self, z: torch.Tensor, cov: torch.Tensor | None, dt: torch.Tensor, theta: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States `dt` later and their standard deviations, NaN without a covariance."""
        dt, theta = dt[None], theta.unsqueeze(-2)
        later = self.model.dynamics.flow(dt, z[None], theta)[0]
        if cov is None:
            return later, torch.full_like(later, torch.nan)
        Phi, _ = linearised(self.model.dynamics, dt, theta, z[None])
        Phi = Phi[0].to(cov.dtype)
        return later, (Phi @ cov @ Phi.mT).diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()

    def means(self, z: torch.Tensor) -> torch.Tensor:
        """Means of the items in states `z`, on the scale of the model; probabilities of Bernoulli items."""
        out = self.model.decoder(z)
        return torch.where(self.model.bernoulli, torch.sigmoid(out), out)

    def paths(
        self, visits: Visits, times: Float[NDArray, " time"]
    ) -> tuple[Float[NDArray, "subject time latent"], Float[NDArray, "subject time item"]]:
        """Latent states and items of each subject `times` after its first visit, from all of its visits.

        NaN for subjects of whom nothing was measured.
        """
        measured = visits.measured()
        batch = batch_of(self.scale.apply(measured), self.scale)
        since = times + visits.times[:, :1] - measured.times[:, :1]
        with torch.no_grad():
            mean, log_var = self.model.encoder(batch.values, batch.observed)
            theta = self.model.theta(batch.baseline)
            start = self.model.smooth(batch, mean, log_var, theta).mean[:, :, :1]
            dt = torch.from_numpy(since / self.scale.gap).float()
            z = self.model.dynamics.flow(dt, start, theta.unsqueeze(-2))
            items = self.means(z)[0].numpy()
        nothing = np.where(visits.observed.any((1, 2)), 0.0, np.nan)[:, None, None]
        return z[0].numpy() + nothing, self.scale.restore(items, items)[0] + nothing

    def predict(
        self, history: Visits, times: Float[NDArray, "subject ahead"]
    ) -> tuple[Float[NDArray, "subject ahead item"], Float[NDArray, "subject ahead item"]]:
        """Mean and standard deviation of new measurements at `times`, from the last visit with any measurement.

        NaN for subjects of whom nothing was measured.

        Raises
        ------
        ValueError : for a time before the last visit of the history.
        """
        check_ahead(history, times)
        history = history.measured()
        batch = batch_of(self.scale.apply(history), self.scale)
        wanted = np.isfinite(times) & history.observed.any((1, 2))[:, None]
        rows, last = np.arange(history.n_subjects), np.maximum(history.n_visits - 1, 0)
        ahead = np.where(wanted, times - history.last_time()[:, None], 0.0) / self.scale.gap
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
    """Mean, standard deviation, and the number of visits with a measurement that were used: those not later than the time.

    NaN where there is none.
    """
    until = times[..., None] + same_within(visits.times[visits.present])
    before = visits.present[:, None, :] & (visits.times[:, None, :] <= until)
    k = before.sum(-1)
    shape = (*times.shape, visits.n_items)
    mean, sd = np.full(shape, np.nan), np.full(shape, np.nan)
    for used in np.unique(k[k > 0]):
        rows = np.flatnonzero((k == used).any(1))
        history = visits.take(rows).first(int(used))
        # A time that means the last visit is not before it by what rounding leaves.
        wanted = np.where(k[rows] == used, np.maximum(times[rows], history.last_time()[:, None]), np.nan)
        m, s = fitted.predict(history, wanted)
        chosen = k[rows] == used
        mean[rows] = np.where(chosen[..., None], m, mean[rows])
        sd[rows] = np.where(chosen[..., None], s, sd[rows])
    return mean, sd, (before & visits.observed.any(2)[:, None, :]).sum(-1)


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
