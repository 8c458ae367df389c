"""K groups of linear dynamics as a time-dependent Gaussian mixture.

    p(z | t) = sum_k pi_k(t) N(z; mu_k(t), S_k(t)),    pi_k(t) = softmax_k(a_k + r_k t)

with the moments mu_k, S_k transported by the linear system of group k (`linear.moments`). Snapshots identify only these
marginals: nothing here pairs cells of different times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from . import linear

Growth = Literal["shrunk", "free", "off"]
Share = Literal["none", "A", "A,b"]


@dataclass(frozen=True)
class Marginals:
    """The mixture at T times: what a snapshot is compared with."""

    log_weight: Float[Tensor, "*batch group time"]
    mean: Float[Tensor, "*batch group time latent"]
    cov: Float[Tensor, "*batch group time latent latent"]

    def joint_log_prob(
        self, z: Float[Tensor, "cell latent"], time_index: Int[Tensor, " cell"]
    ) -> Float[Tensor, "*batch cell group"]:
        """log pi_k(t_i) + log N(z_i; mu_k(t_i), S_k(t_i)) for every cell and group."""
        d = z.shape[-1]
        chol = _cholesky_or_nan(self.cov)
        whiten = torch.linalg.solve_triangular(chol, torch.eye(d, dtype=chol.dtype, device=chol.device), upper=False)
        offset = (whiten @ self.mean.unsqueeze(-1)).squeeze(-1).to(z.dtype)
        log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = (self.log_weight - log_det - d / 2 * math.log(2 * math.pi)).to(z.dtype)
        whiten = whiten.to(z.dtype)
        # Cells of one time share their K Gaussians, so they are whitened together instead of one matrix a cell.
        order = torch.argsort(time_index, stable=True)
        sizes = torch.bincount(time_index, minlength=self.mean.shape[-2]).tolist()
        rows = []
        for t, cells in enumerate(z[order].split(sizes)):
            if len(cells):
                white = cells @ whiten[..., t, :, :].mT - offset[..., t, None, :]
                rows.append(constant[..., t, None] - white.square().sum(-1) / 2)
        by_time = torch.cat(rows, dim=-1).mT
        return by_time[..., torch.argsort(order), :]


def _cholesky_or_nan(cov: Float[Tensor, "*batch latent latent"]) -> Float[Tensor, "*batch latent latent"]:
    """Cholesky factors, NaN where there is none: one restart that diverged must not end the others."""
    chol, failed = torch.linalg.cholesky_ex(cov)
    return torch.where(failed[..., None, None] == 0, chol, torch.nan)


def marginal_log_prob(
    joint: Float[Tensor, "*batch cell group"],
    labels: Int[Tensor, " cell"] | None = None,
    temperature: float | Tensor = 1.0,
) -> Float[Tensor, "*batch cell"]:
    """log p(z_i | t_i), the group summed out; where a cell's group is known, log p(z_i, c_i | t_i) instead.

    Parameters
    ----------
    joint
        `Marginals.joint_log_prob`.
    labels
        Known group of each cell, -1 where unknown.
    temperature
        Above 1, cells are shared more evenly between groups (annealing): tau logsumexp(joint / tau). One number, or one
        per mixture of a batch, with a trailing dimension for the cells.
    """
    tau = torch.as_tensor(temperature, dtype=joint.dtype, device=joint.device)
    summed = tau * (joint / tau.unsqueeze(-1)).logsumexp(-1)
    if labels is None:
        return summed
    known = joint.gather(-1, labels.clamp_min(0).expand(joint.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return torch.where(labels >= 0, known, summed)


class LinearMixture(nn.Module):
    """Parameters of K groups of linear dynamics, and the mixture they imply at any time.

    Parameters
    ----------
    n_groups, n_latent
        K and d.
    share
        `"A"`: all groups have one A; `"A,b"`: and one b.
    tie_initial
        All groups start as one cloud (branching from a common progenitor).
    growth
        `"off"` holds the proportions constant in time; `"shrunk"` and `"free"` let log pi_k change linearly
        (the penalty that makes the difference is `growth_penalty`).
    floor
        Variance added to every covariance, in squared latent units; keeps a group from collapsing onto a cell.
    relaxation
        Rate kappa [1/time]: A starts at, and the ridge pulls it towards, -kappa I instead of 0.
    n_copies
        Number of independent copies held side by side (restarts); None for one without a leading dimension.

    Notes
    -----
    Time is in the unit of the times that are passed in; the system starts at time 0.
    """

    def __init__(
        self,
        n_groups: int,
        n_latent: int,
        *,
        share: Share = "none",
        tie_initial: bool = False,
        growth: Growth = "shrunk",
        floor: float = 1e-3,
        relaxation: float = 0.0,
        n_copies: int | None = None,
    ):
        super().__init__()
        self.n_groups, self.n_latent, self.n_copies = n_groups, n_latent, n_copies
        self.share, self.tie_initial, self.growth, self.floor = share, tie_initial, growth, floor
        self.relaxation = relaxation
        batch = () if n_copies is None else (n_copies,)
        K, d = n_groups, n_latent
        of_A, of_b = (1 if share != "none" else K), (1 if share == "A,b" else K)
        of_start = 1 if tie_initial else K
        self._A = nn.Parameter(torch.zeros(*batch, of_A, d, d) - relaxation * torch.eye(d))
        self._b = nn.Parameter(torch.zeros(*batch, of_b, d))
        self._m = nn.Parameter(torch.zeros(*batch, of_start, d))
        # Lower triangle of the start's Cholesky factor; its diagonal is kept as a logarithm.
        self._L = nn.Parameter(torch.zeros(*batch, of_start, d, d))
        self._log_q = nn.Parameter(torch.full((*batch, K, d), -2.0))
        self._a = nn.Parameter(torch.zeros(*batch, K))
        self._r = nn.Parameter(torch.zeros(*batch, K), requires_grad=growth != "off")

    def _by_group(self, value: Tensor, n_trailing: int) -> Tensor:
        shape = list(value.shape)
        shape[-1 - n_trailing] = self.n_groups
        return value.expand(shape)

    @property
    def A(self) -> Float[Tensor, "*batch group latent latent"]:
        """Rates of each group [1/time]."""
        return self._by_group(self._A, 2)

    @property
    def b(self) -> Float[Tensor, "*batch group latent"]:
        """Drift of each group [latent/time]."""
        return self._by_group(self._b, 1)

    @property
    def initial_mean(self) -> Float[Tensor, "*batch group latent"]:
        """Mean of each group at time 0."""
        return self._by_group(self._m, 1)

    @property
    def initial_tril(self) -> Float[Tensor, "*batch group latent latent"]:
        """Cholesky factor of each group's covariance at time 0, without the floor."""
        below = self._L.tril(-1)
        return self._by_group(below + torch.diag_embed(self._L.diagonal(dim1=-2, dim2=-1).exp()), 2)

    @property
    def Q(self) -> Float[Tensor, "*batch group latent latent"]:
        """Process noise of each group, diagonal [latent^2/time]."""
        return torch.diag_embed(self._log_q.exp())

    @property
    def log_weight0(self) -> Float[Tensor, "*batch group"]:
        """a_k, centred: only differences between groups are identified."""
        return self._a - self._a.mean(-1, keepdim=True)

    @property
    def growth_rate(self) -> Float[Tensor, "*batch group"]:
        """r_k [1/time], centred: relative net growth."""
        if self.growth == "off":
            return torch.zeros_like(self._r)
        return self._r - self._r.mean(-1, keepdim=True)

    def log_proportions(self, times: Float[Tensor, " time"]) -> Float[Tensor, "*batch group time"]:
        """log pi_k(t), in float64."""
        logit = self.log_weight0.double().unsqueeze(-1) + self.growth_rate.double().unsqueeze(-1) * times.double()
        return logit.log_softmax(-2)

    def at(self, times: Float[Tensor, " time"]) -> Marginals:
        """The mixture at `times` (all >= 0)."""
        L = self.initial_tril.double()
        mean, cov = linear.moments(self.A, self.b, self.initial_mean, L @ L.mT, self.Q, times)
        cov = cov + self.floor * torch.eye(self.n_latent, dtype=cov.dtype, device=cov.device)
        return Marginals(self.log_proportions(times), mean, cov)

    def responsibilities(
        self, z: Float[Tensor, "cell latent"], time_index: Int[Tensor, " cell"], times: Float[Tensor, " time"]
    ) -> Float[Tensor, "*batch cell group"]:
        """Probability of each group given the state and the time of a cell; rows sum to one."""
        return self.at(times).joint_log_prob(z, time_index).softmax(-1)

    def velocity(
        self, z: Float[Tensor, "cell latent"], responsibilities: Float[Tensor, "*batch cell group"]
    ) -> Float[Tensor, "*batch cell latent"]:
        """v_i = sum_k r_ik (A_k z_i + b_k) [latent/time]."""
        A, b = self.A.to(z.dtype).unsqueeze(-4), self.b.to(z.dtype).unsqueeze(-3)
        by_group = linear.velocity(z.unsqueeze(-2), A, b)
        return (responsibilities.unsqueeze(-1) * by_group).sum(-2)

    def push(
        self, z: Float[Tensor, "cell latent"], group: Int[Tensor, " cell"], dt: Float[Tensor, " cell"]
    ) -> Float[Tensor, "cell latent"]:
        """Each cell carried along its group's flow by its own `dt`, back in time where that is negative."""
        pairs, member = torch.unique(torch.stack([group.double(), dt.double()], -1), dim=0, return_inverse=True)
        of_pair = pairs[:, 0].long()
        Phi, c = linear.propagator(self.A[of_pair], self.b[of_pair], pairs[:, 1])
        return ((Phi[member] @ z.double().unsqueeze(-1)).squeeze(-1) + c[member]).to(z.dtype)

    def sample(
        self, times: Float[Tensor, " time"], n_cells: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "time cell latent"], Int[Tensor, "time cell"]]:
        """States and groups of `n_cells` cells drawn from the mixture at each time."""
        now = self.at(times)
        T = len(times)
        group = torch.multinomial(now.log_weight.exp().mT, n_cells, replacement=True, generator=generator)
        t = torch.arange(T, device=group.device).unsqueeze(-1)
        noise = torch.randn(T, n_cells, self.n_latent, dtype=now.mean.dtype, generator=generator)
        chol = torch.linalg.cholesky(now.cov)[group, t]
        return now.mean[group, t] + (chol @ noise.unsqueeze(-1)).squeeze(-1), group

    def n_parameters(self) -> int:
        """Free parameters for an information criterion: A, b, m, L, a, r. Q and the floor are not counted."""
        K, d = self.n_groups, self.n_latent
        n_start = (1 if self.tie_initial else K) * (d + d * (d + 1) // 2)
        n_rates = (1 if self.share != "none" else K) * d * d + (1 if self.share == "A,b" else K) * d
        # a and r are identified up to a constant each.
        return n_start + n_rates + (K - 1) * (1 if self.growth == "off" else 2)

    def ridge_penalty(self) -> Float[Tensor, "*batch"]:
        """Mean over groups of ||A_k + kappa I||_F^2; kappa = 0 pulls towards constant drift, the path of least energy."""
        wished = -self.relaxation * torch.eye(self.n_latent, dtype=self._A.dtype, device=self._A.device)
        return (self.A - wished).square().sum((-2, -1)).mean(-1)

    def growth_penalty(self) -> Float[Tensor, "*batch"]:
        """Sum over groups of r_k^2, centred; zero unless growth is shrunk."""
        rate = self.growth_rate
        return rate.square().sum(-1) if self.growth == "shrunk" else torch.zeros_like(rate[..., 0])

    def rates_at(self, now: Marginals) -> tuple[Tensor, Tensor]:
        """How fast the moments of the groups change: dmu/dt = A mu + b and dS/dt = A S + S A' + Q.

        Parameters
        ----------
        now
            The moments, of `at`.

        Returns
        -------
        Rates of the means `(*batch, group, time, latent)` and of the covariances `(*batch, group, time, latent, latent)`.
        """
        A, b, Q = self.A.double().unsqueeze(-3), self.b.double().unsqueeze(-2), self.Q.double().unsqueeze(-3)
        # The floor is added to what moves and does not move itself.
        moving = now.cov - self.floor * torch.eye(self.n_latent, dtype=now.cov.dtype, device=now.cov.device)
        return linear.velocity(now.mean, A, b), A @ moving + moving @ A.mT + Q

    @torch.no_grad()
    def select(self, copy: int) -> LinearMixture:
        """One of the copies, without the leading dimension."""
        one = self.like(n_copies=None)
        for mine, its in zip(one.parameters(), self.parameters(), strict=True):
            mine.copy_(its[copy])
        return one

    @torch.no_grad()
    def take(self, copies: Sequence[int]) -> LinearMixture:
        """Some of the copies, in the given order."""
        some = self.like(n_copies=len(copies))
        for mine, its in zip(some.parameters(), self.parameters(), strict=True):
            mine.copy_(its[list(copies)])
        return some

    @classmethod
    @torch.no_grad()
    def stack(cls, mixtures: Sequence[LinearMixture]) -> LinearMixture:
        """Single mixtures of one structure as copies side by side."""
        copies = mixtures[0].like(n_copies=len(mixtures))
        for mine, theirs in zip(
            copies.parameters(), zip(*(m.parameters() for m in mixtures), strict=True), strict=True
        ):
            mine.copy_(torch.stack(theirs))
        return copies

    @torch.no_grad()
    def reorder_by_start(self) -> list[int]:
        """Name the groups of a single mixture reproducibly: by falling proportion at time 0, then by where they start.

        Returns which group each of them was.
        """
        share = self.log_proportions(torch.zeros(1))[:, 0].exp().round(decimals=2)
        keys = torch.cat([-share[:, None], self.initial_mean.double()], dim=1).tolist()
        order = sorted(range(self.n_groups), key=keys.__getitem__)
        self.reorder(order)
        return order

    @torch.no_grad()
    def reorder(self, order: Sequence[int]) -> None:
        """Name the groups of a single mixture anew: group k becomes what group `order[k]` was."""
        chosen = torch.as_tensor(order)
        for parameter in self.parameters():
            # What the groups share has one row and stays.
            if parameter.shape[0] == self.n_groups:
                parameter.copy_(parameter[chosen].clone())

    def like(self, *, n_copies: int | None = None, n_groups: int | None = None) -> LinearMixture:
        """An untrained mixture with the same structure, and as many groups unless another number is given."""
        return LinearMixture(
            self.n_groups if n_groups is None else n_groups,
            self.n_latent,
            share=self.share,
            tie_initial=self.tie_initial,
            growth=self.growth,
            floor=self.floor,
            relaxation=self.relaxation,
            n_copies=n_copies,
        )
