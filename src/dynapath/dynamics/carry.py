"""Cells of a group carried from one time to another so that a cloud as wide as the group stays as wide as the group.

    z(t) = mu(t) + G (z - mu(s)),    G = L(t) R L(s)^-1,    R the orthogonal polar factor of L(t)^-1 Phi L(s), t >= s

with Phi the flow from s to t and L L' = S the covariance of the group. Without process noise G is Phi. With noise, Phi alone
would leave the cloud too narrow later and, where dynamics relax, too wide without bound earlier; G S(s) G' = S(t) always, and
the way back undoes the way there. At t = s a carried cell moves by

    dz/dt = mu' + C (z - mu),    C = A + (S' - A S - S A') S^-1 / 2

the probability flow of the group: A (z - mu) and, with noise Q, a drift of Q S^-1 (z - mu) / 2 outwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from . import linear
from .mixture import LinearMixture


@dataclass(frozen=True)
class Carrier:
    """How the groups carry cells from S times to T times, for every draw of a mixture that has several."""

    start: Float[Tensor, "*batch group start latent"]  # mu(s)
    end: Float[Tensor, "*batch group end latent"]  # mu(t)
    matrix: Float[Tensor, "*batch group start end latent latent"]  # G
    end_rate: Float[Tensor, "*batch group end latent"]  # mu'(t)
    rate: Float[Tensor, "*batch group end latent latent"]  # C(t)


@torch.no_grad()
def carrier(mixture: LinearMixture, starts: Float[Tensor, " start"], ends: Float[Tensor, " end"]) -> Carrier:
    """What carries cells of each group from `starts` to `ends` (all >= 0)."""
    before, after = mixture.at(starts), mixture.at(ends)
    root_before, root_after = (torch.linalg.cholesky(now.cov) for now in (before, after))
    dt = ends[None, :] - starts[:, None]
    A, b = mixture.A, mixture.b
    # Forwards in time, where no flow of a group is wider than the group; the way back is its inverse.
    Phi, _ = linear.propagator(A[..., None, None, :, :], b[..., None, None, :], dt.abs())
    early, late = root_before.unsqueeze(-3), root_after.unsqueeze(-4)
    forwards = (dt >= 0)[..., None, None]
    first, last = torch.where(forwards, early, late), torch.where(forwards, late, early)
    white = torch.linalg.solve_triangular(last, Phi @ first, upper=False)
    left, _, right = torch.linalg.svd(white)
    turn = left @ right
    turn = torch.where(forwards, turn, turn.mT)
    # G = L(t) R L(s)^-1, by solving from the right.
    matrix = torch.linalg.solve_triangular(early, late @ turn, upper=False, left=False)
    mean_rate, cov_rate = mixture.rates_at(after)
    A = A.double().unsqueeze(-3)
    excess = cov_rate - A @ after.cov - after.cov @ A.mT
    rate = A + torch.cholesky_solve(excess, root_after).mT / 2
    return Carrier(before.mean, after.mean, matrix, mean_rate, rate)
