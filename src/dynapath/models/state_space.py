"""Latent linear dynamics with process noise, fitted by the exact likelihood of what each visit says about the next.

    dz = (rate_i * z + drift_i) dt + Q^(1/2) dW,    z(first visit) ~ N(start_i, P),    x = W z + noise of each item

rate_i, drift_i and start_i of a subject are linear in its baseline. Coordinates are those in which the dynamics are diagonal:
with a free W every system with real rates has them. Half of the states start slow (what a subject keeps), half fast (what
it loses again): a mixed model and an autoregression are both special cases. The likelihood is that of a Kalman filter, so an
item that was not measured says nothing, and forecasts at any later time have a variance.

All arrays have a leading axis of members: fits of the same data with other starts or weights, computed together.
Source: Jazwinski, Stochastic Processes and Filtering Theory, 1970, chapter 7; here with closed forms between visits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from dynapath.dynamics.diagonal import diagonal_cov, diagonal_mean

SMALLEST_VARIANCE = 1e-3
# Rates per median gap between visits: beyond these, states explode within a few visits or are gone before the next.
RATES = (-5.0, 0.3)


class System(NamedTuple):
    """The dynamics of each subject."""

    rate: Float[Tensor, "member subject latent"]
    drift: Float[Tensor, "member subject latent"]
    start: Float[Tensor, "member subject latent"]
    noise: Float[Tensor, "member 1 latent latent"]
    spread: Float[Tensor, "member 1 latent latent"]

    def first(self, n: int) -> System:
        """Of the first `n` subjects."""
        return System(self.rate[:, :n], self.drift[:, :n], self.start[:, :n], self.noise, self.spread)


class Belief(NamedTuple):
    """What is believed about the states of subjects."""

    mean: Float[Tensor, "member subject latent"]
    cov: Float[Tensor, "member subject latent latent"]

    def first(self, n: int) -> Belief:
        """About the first `n` subjects."""
        return Belief(self.mean[:, :n], self.cov[:, :n])


class StateSpace(nn.Module):
    """Items read linearly from latent states that follow diagonal dynamics with noise.

    Parameters
    ----------
    n_items, n_covariates
        Columns of the visits and of the baseline, all on a scale of about 1.
    n_latent
        States: the first half starts slow, the second fast.
    n_members
        Copies with parameters of their own.
    jitter
        Standard deviation of what is added to the starting values of all members but the first.
    generator
        Source of these random numbers.
    """

    def __init__(
        self,
        n_items: int,
        n_covariates: int,
        n_latent: int,
        *,
        n_members: int = 1,
        jitter: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_latent = n_latent
        slow = n_latent - n_latent // 2
        is_slow = torch.arange(n_latent) < slow
        item = torch.where(is_slow, torch.arange(n_latent), torch.arange(n_latent) - slow)

        def start(value: Tensor) -> nn.Parameter:
            value = value.double().expand(n_members, *value.shape).clone()
            if jitter:
                value[1:] += jitter * torch.randn(value[1:].shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(value)

        # Each item has a slow and a fast state of its own to begin with; with fewer states than items they are shared.
        self.loadings = start((torch.arange(n_items)[:, None] % slow == item).float())
        self.rate = start(torch.where(is_slow, -0.01, -0.3))
        self.rate_slopes = start(torch.zeros(n_covariates, n_latent))
        self.drift = start(torch.zeros(1 + n_covariates, n_latent))
        self.start = start(torch.zeros(1 + n_covariates, n_latent))
        self.spread_root = start(0.6 * torch.eye(n_latent))
        self.noise_root = start(torch.diag(torch.where(is_slow, 0.1, 0.3)))
        self.log_noise = start(torch.full((n_items,), -2.0))

    @property
    def item_variance(self) -> Float[Tensor, "member item"]:
        """Variance of an item about what the state says."""
        return softplus(self.log_noise) + SMALLEST_VARIANCE

    def system(self, baseline: Float[Tensor, "subject covariate"]) -> System:
        """Dynamics of subjects with this baseline."""
        rows = pad(baseline, (1, 0), value=1.0)
        spread, noise = self.spread_root, self.noise_root
        return System(
            rate=(self.rate[:, None] + baseline @ self.rate_slopes).clamp(*RATES),
            drift=rows @ self.drift,
            start=rows @ self.start,
            noise=(noise @ noise.mT)[:, None],
            spread=(spread @ spread.mT)[:, None],
        )

    def before(self, system: System) -> Belief:
        """What the baseline says, before the first visit."""
        n_members, n_subjects, d = system.start.shape
        return Belief(system.start, system.spread.expand(n_members, n_subjects, d, d))

    @staticmethod
    def carry(belief: Belief, system: System, dt: Float[Tensor, " subject"]) -> Belief:
        """The belief `dt` later."""
        return Belief(
            diagonal_mean(belief.mean, system.rate, system.drift, dt),
            diagonal_cov(belief.cov, system.rate, system.noise, dt),
        )

    def update(
        self, belief: Belief, values: Float[Tensor, "subject item"], observed: Bool[Tensor, "subject item"]
    ) -> tuple[Belief, Float[Tensor, "member subject"]]:
        """The belief after a visit, and the log-likelihood of the visit before it was seen.

        NaN where the covariance is not positive definite, as of a member that has diverged: the others go on.
        """
        # An item that was not measured gets no loading, variance 1 and residual 0: it changes nothing.
        H = self.loadings[:, None] * observed[..., None]
        residual = torch.where(observed, values - (H @ belief.mean.unsqueeze(-1)).squeeze(-1), 0.0)
        variance = torch.where(observed, self.item_variance[:, None], 1.0)
        HP = H @ belief.cov
        L, failed = torch.linalg.cholesky_ex(HP @ H.mT + torch.diag_embed(variance))
        L = torch.where(failed[..., None, None] > 0, torch.nan, L)
        solved = torch.linalg.solve_triangular(L, torch.cat([HP, residual.unsqueeze(-1)], -1), upper=False)
        gain, u = solved[..., :-1], solved[..., -1:]
        log_det = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        n_observed = observed.sum(-1)
        log_prob = -0.5 * (u.square().sum((-2, -1)) + log_det + math.log(2 * math.pi) * n_observed)
        return Belief(belief.mean + (gain.mT @ u).squeeze(-1), belief.cov - gain.mT @ gain), log_prob

    def filter(
        self,
        times: Float[Tensor, "subject visit"],
        values: Float[Tensor, "subject visit item"],
        n_visits: Tensor,
        system: System,
        keep: list[Belief] | None = None,
    ) -> tuple[Float[Tensor, "member subject"], Belief]:
        """Log-likelihood of each subject's visits, and the belief after its last.

        Subjects must come in the order of falling `n_visits`, so that those who are done can be left behind. Beliefs after
        every visit are appended to `keep`, about the subjects who have that visit.
        """
        observed = torch.isfinite(values)
        values = torch.nan_to_num(values)
        belief, n_subjects = self.before(system), len(times)
        log_prob = times.new_zeros(system.rate.shape[:2])
        done: list[Belief] = []
        for visit in range(times.shape[1]):
            n = int((n_visits > visit).sum())
            done.append(Belief(belief.mean[:, n:], belief.cov[:, n:]))
            if not n:
                break
            belief = belief.first(n)
            if visit:
                belief = self.carry(belief, system.first(n), times[:n, visit] - times[:n, visit - 1])
            belief, term = self.update(belief, values[:n, visit], observed[:n, visit])
            log_prob = log_prob + pad(term, (0, n_subjects - n))
            if keep is not None:
                keep.append(belief)
        else:
            done.append(belief)
        done.reverse()
        return log_prob, Belief(*(torch.cat(parts, dim=1) for parts in zip(*done, strict=True)))

    def read(self, belief: Belief) -> tuple[Float[Tensor, "member subject item"], Float[Tensor, "member subject item"]]:
        """Mean and variance of the items of a new visit."""
        W = self.loadings[:, None]
        mean = (W @ belief.mean.unsqueeze(-1)).squeeze(-1)
        return mean, ((W @ belief.cov) * W).sum(-1) + self.item_variance[:, None]

    def penalty(self) -> Float[Tensor, " member"]:
        """Minus the log of a normal prior of all parameters, up to a constant: worth a few subjects' visits."""
        weights = {
            self.rate_slopes: 30.0,
            self.drift: 10.0,
            self.start[:, 1:]: 1.0,
            self.loadings: 0.5,
            self.spread_root: 1.0,
            self.noise_root: 5.0,
        }
        return sum(weight * value.square().sum((1, 2)) for value, weight in weights.items())
