"""Fitted group dynamics in the user's units: time as it was measured, states as they are stored.

Inside, time runs from 0 to 1 over the observed snapshots and states are centred and scaled; here is the only place that
converts, so shifting the time or changing its unit changes nothing but the units of what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dynapath._times import in_decimals, same_within

from .mixture import LinearMixture

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class TimeScale:
    """Measured time t and the model's time s = (t - origin) / span, rounded so that units cannot leak in by rounding."""

    origin: float
    span: float
    digits: int = 9

    @classmethod
    def of(cls, times: ArrayLike) -> TimeScale:
        """The scale on which the observed times run from 0 to 1.

        Model times keep nine digits. They keep more where that is more than a millionth of the smallest gap, and fewer where
        the times themselves are not known to that many, as seconds since 1970 are not within a few seconds.
        """
        times = np.unique(in_decimals(times))
        origin, span = float(times[0]), float(times[-1] - times[0])
        if not span:
            return cls(origin, span)
        # One digit is 10. What lies on a limit but for rounding is on it.
        gap = np.log10(np.diff(times).min() / span)
        known = -np.log10(4 * np.finfo(float).eps * np.abs(times).max() / span)
        digits = min(max(9, np.ceil(6 - gap - 1e-6)), np.floor(known + 1e-6))
        return cls(origin, span, int(np.clip(digits, np.ceil(1 - gap), 15)))

    def scaled(self, times: ArrayLike) -> FloatArray:
        """Model time of measured times."""
        return np.round((in_decimals(times) - self.origin) / self.span, self.digits)


@dataclass(frozen=True)
class Trajectories:
    """Moments of K groups at T times, and their proportions, in the user's units; draws come first where there are any."""

    times: FloatArray  # (time,)
    mean: FloatArray  # (*draw, group, time, latent)
    cov: FloatArray  # (*draw, group, time, latent, latent)
    velocity: FloatArray  # (*draw, group, time, latent), of the mean
    proportions: FloatArray  # (*draw, group, time)


class GroupDynamics:
    """A mixture of group dynamics together with the units it was fitted in.

    Parameters
    ----------
    mixture
        In model time and scaled states. With `n_copies` it stands for as many draws, and what is asked for has a leading
        axis for them; cells are carried and sampled by a single one (`select`).
    observed_times
        The distinct times of the snapshots.
    centre, scale
        Scaled states are (z - centre) / scale.
    """

    def __init__(
        self, mixture: LinearMixture, observed_times: ArrayLike, centre: ArrayLike | None = None, scale: float = 1.0
    ):
        self.mixture = mixture.cpu()
        self.observed_times = np.unique(in_decimals(observed_times))
        self.time_scale = TimeScale.of(self.observed_times)
        self.centre = np.zeros(mixture.n_latent) if centre is None else np.asarray(centre, dtype=float)
        self.scale = float(scale)

    @property
    def n_groups(self) -> int:
        """Number of groups K."""
        return self.mixture.n_groups

    @property
    def n_latent(self) -> int:
        """Number of latent dimensions d."""
        return self.mixture.n_latent

    @property
    def n_draws(self) -> int | None:
        """Number of draws, None for a single mixture without an axis for them."""
        return self.mixture.n_copies

    def select(self, draw: int) -> GroupDynamics:
        """One of the draws."""
        return self.with_mixture(self.mixture.select(draw))

    def with_mixture(self, mixture: LinearMixture) -> GroupDynamics:
        """Another mixture in the same units."""
        return GroupDynamics(mixture, self.observed_times, self.centre, self.scale)

    def scaled(self, z: ArrayLike) -> Tensor:
        """States as the mixture sees them."""
        return torch.as_tensor((np.asarray(z, dtype=float) - self.centre) / self.scale)

    def model_times(self, times: ArrayLike) -> Tensor:
        """Times as the mixture sees them."""
        return torch.as_tensor(self.time_scale.scaled(times))

    def from_first_snapshot(self, times: ArrayLike) -> FloatArray:
        """`times` as an array, if a covariance can be had at all of them."""
        times, first = np.atleast_1d(in_decimals(times)), self.observed_times[0]
        if self.is_before(times).any():
            msg = (
                f"Groups have no covariance before the first snapshot ({first:g}); asked for {times.min():g}. "
                "Cells can be carried further back with dp.tl.predict_cells."
            )
            raise ValueError(msg)
        return np.maximum(times, first)

    def is_before(self, times: ArrayLike) -> NDArray[np.bool_]:
        """Which times are before the first snapshot, by more than rounding."""
        return in_decimals(times) < self.observed_times[0] - same_within(self.observed_times)

    def is_after(self, times: ArrayLike) -> NDArray[np.bool_]:
        """Which times are after the last snapshot, by more than rounding."""
        return in_decimals(times) > self.observed_times[-1] + same_within(self.observed_times)

    @torch.no_grad()
    def trajectories(self, times: ArrayLike) -> Trajectories:
        """Group means, covariances and proportions at `times`.

        Raises
        ------
        ValueError : for a time before the first snapshot, where a covariance cannot be had.
        """
        times = self.from_first_snapshot(times)
        now = self.mixture.at(self.model_times(times))
        return Trajectories(
            times=times,
            mean=now.mean.numpy() * self.scale + self.centre,
            cov=now.cov.numpy() * self.scale**2,
            velocity=self.mixture.rates_at(now)[0].numpy() * self.scale / self.time_scale.span,
            proportions=now.log_weight.exp().numpy(),
        )

    @torch.no_grad()
    def proportions(self, times: ArrayLike) -> FloatArray:
        """pi_k(t) `(*draw, group, time)`, at any time."""
        return self.mixture.log_proportions(self.model_times(np.atleast_1d(times))).exp().numpy()

    @torch.no_grad()
    def responsibilities(self, z: ArrayLike, times: ArrayLike, known: ArrayLike | None = None) -> FloatArray:
        """Probability of each group `(*draw, cell, group)`, given the state and the time of each cell.

        `known` are groups of cells (cell,) that need not be inferred, -1 for all others.
        """
        distinct, index = np.unique(in_decimals(times), return_inverse=True)
        index = torch.as_tensor(index)
        found = self.mixture.responsibilities(self.scaled(z), index, self.model_times(distinct)).numpy()
        if known is not None:
            known = np.asarray(known)
            found[..., known >= 0, :] = np.eye(self.n_groups)[known[known >= 0]]
        return found

    @torch.no_grad()
    def velocity(self, z: ArrayLike, responsibilities: ArrayLike) -> FloatArray:
        """dz/dt of each cell `(*draw, cell, latent)` in stored state per measured time, averaged over its groups."""
        v = self.mixture.velocity(self.scaled(z), torch.as_tensor(np.asarray(responsibilities, dtype=float)))
        return v.numpy() * self.scale / self.time_scale.span

    @torch.no_grad()
    def push(self, z: ArrayLike, group: ArrayLike, start: ArrayLike, end: ArrayLike) -> FloatArray:
        """Carry each cell along its group's flow from its time `start` to `end`, forwards or backwards."""
        dt = self.model_times(end) - self.model_times(start)
        moved = self.mixture.push(self.scaled(z), torch.as_tensor(np.asarray(group)), dt)
        return moved.numpy() * self.scale + self.centre

    @torch.no_grad()
    def sample(
        self, times: ArrayLike, n_cells: int, random_state: int | None = 0
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """`n_cells` states and groups drawn from the mixture at each time: (time, cell, latent) and (time, cell).

        Raises
        ------
        ValueError : for a time before the first snapshot, where a covariance cannot be had.
        """
        times = self.from_first_snapshot(times)
        seed = int(np.random.default_rng(random_state).integers(2**31))
        generator = torch.Generator().manual_seed(seed)
        z, group = self.mixture.sample(self.model_times(times), n_cells, generator)
        return z.numpy() * self.scale + self.centre, group.numpy()

    def to_arrays(self) -> dict[str, Any]:
        """Everything needed to rebuild it, as arrays and scalars."""
        m = self.mixture
        return {
            "observed_times": self.observed_times,
            "centre": self.centre,
            "scale": self.scale,
            "structure": {
                "n_groups": m.n_groups,
                "n_latent": m.n_latent,
                "share": m.share,
                "tie_initial": m.tie_initial,
                "growth": m.growth,
                "floor": m.floor,
                "relaxation": m.relaxation,
                **({} if m.n_copies is None else {"n_copies": m.n_copies}),
            },
            "parameters": {name.removeprefix("_"): p.detach().cpu().numpy().copy() for name, p in m.named_parameters()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> GroupDynamics:
        """Inverse of `to_arrays`."""
        s = arrays["structure"]
        mixture = LinearMixture(
            int(s["n_groups"]),
            int(s["n_latent"]),
            share=str(s["share"]),
            tie_initial=bool(s["tie_initial"]),
            growth=str(s["growth"]),
            floor=float(s["floor"]),
            relaxation=float(s.get("relaxation", 0.0)),
            n_copies=int(s["n_copies"]) if "n_copies" in s else None,
        )
        with torch.no_grad():
            for name, p in mixture.named_parameters():
                p.copy_(torch.as_tensor(np.asarray(arrays["parameters"][name.removeprefix("_")])))
        return cls(mixture, arrays["observed_times"], arrays["centre"], float(arrays["scale"]))
