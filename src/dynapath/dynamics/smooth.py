"""One trajectory of a subject from all its visits.

Each visit k says mu_k about the state, with a precision. A flow carries what it says to every other visit.

`gls`: the trajectory Phi_k x0 + c_k closest to all mu_k, x0 = (sum_k Phi_k' P_k Phi_k + r I)^-1 sum_k Phi_k' P_k (mu_k - c_k).
The offset c_k = flow of 0 must be taken off before, and added after: m_k = Phi_k x0 + c_k.

`inverse_variance` (Hackenberg et al. 2023): the mean of all u_kl, visit k carried to visit l, but l itself, with weights
1 / variance of the u_jl of all visits j from k to l. It needs a guard: two equal solutions have variance 0.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Estimator = Literal["gls", "inverse_variance", "equal", "first"]


class Smoothed(NamedTuple):
    """State at each visit; `cov` is None where the estimator gives none."""

    mean: Float[Tensor, "*batch visit latent"]
    cov: Float[Tensor, "*batch visit latent latent"] | None


def linearised(dynamics: Any, dt: Tensor, theta: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
    """Phi and c with flow(dt, z) = Phi z + c: exact for affine flows, else to first order at `around`."""
    if hasattr(dynamics, "propagator"):
        return dynamics.propagator(dt, theta)
    shape = torch.broadcast_shapes(dt.shape, theta.shape[:-1], around.shape[:-1])
    around = around.expand(*shape, around.shape[-1])
    here = dynamics.flow(dt, around, theta)
    h = 1e-2 if around.dtype == torch.float32 else 1e-5
    unit = torch.eye(around.shape[-1], dtype=around.dtype, device=around.device)
    columns = [
        (dynamics.flow(dt, around + h * e, theta) - dynamics.flow(dt, around - h * e, theta)) / (2 * h) for e in unit
    ]
    Phi = torch.stack(columns, -1)
    return Phi, here - (Phi @ around.unsqueeze(-1)).squeeze(-1)


def gls(
    Phi: Float[Tensor, "*batch visit latent latent"],
    c: Float[Tensor, "*batch visit latent"],
    mean: Float[Tensor, "*batch visit latent"],
    precision: Float[Tensor, "*batch visit latent"],
    *,
    ridge: float = 1e-4,
) -> tuple[Float[Tensor, "*batch latent"], Float[Tensor, "*batch latent latent"]]:
    """State at time 0 and its covariance by generalised least squares; visits with precision 0 do not count.

    Both are NaN where the information is singular, so that one of many fits computed together does not end the others.
    """
    weighted = Phi.mT * precision.unsqueeze(-2)
    d = mean.shape[-1]
    information = (weighted @ Phi).sum(-3) + ridge * torch.eye(d, dtype=mean.dtype, device=mean.device)
    right = (weighted @ (mean - c).unsqueeze(-1)).sum(-3)
    cov, singular = torch.linalg.inv_ex(information)
    cov = torch.where(singular[..., None, None] > 0, torch.nan, cov)
    return (cov @ right).squeeze(-1), cov


def inverse_variance(
    carried: Float[Tensor, "*batch start visit latent"], present: Bool[Tensor, "*#batch visit"], *, floor: float = 1e-6
) -> Float[Tensor, "*batch visit latent"]:
    """The combined estimator of all solutions `carried[k, l]`, visit k carried to visit l; k = l is what visit l says.

    `floor` is added to the variances.
    """
    own = carried.diagonal(dim1=-3, dim2=-2).mT
    among = present.unsqueeze(-1) & present.unsqueeze(-2)
    gap = torch.where(among.unsqueeze(-1), carried - own.unsqueeze(-3), 0.0)
    # Sums over the visits from k to l: up to the target and down to it, differences of running sums.
    count = torch.where(among, 1.0, 0.0).to(carried.dtype).unsqueeze(-1)
    n, first, second = (_between(x) for x in (count, gap, gap.square()))
    variance = (second - first.square() / n.clamp_min(1)) / (n - 1).clamp_min(1)
    V = own.shape[-2]
    others = among & ~torch.eye(V, dtype=torch.bool, device=own.device)
    weight = torch.where(others.unsqueeze(-1), 1 / (variance.clamp_min(0) + floor), 0.0)
    return _weighted(carried, weight, own)


def equal(
    carried: Float[Tensor, "*batch start visit latent"], present: Bool[Tensor, "*#batch visit"]
) -> Float[Tensor, "*batch visit latent"]:
    """The plain mean of all solutions at a visit but its own."""
    own = carried.diagonal(dim1=-3, dim2=-2).mT
    others = present.unsqueeze(-1) & present.unsqueeze(-2)
    others = others & ~torch.eye(own.shape[-2], dtype=torch.bool, device=own.device)
    return _weighted(carried, others.unsqueeze(-1).to(carried.dtype), own)


def _between(x: Tensor) -> Tensor:
    """Sum over j from k to l inclusive of x[j, l], for all k and l."""
    V = x.shape[-2]
    up = x.cumsum(-3)
    total = up[..., -1:, :, :]
    diagonal = torch.arange(V, device=x.device)
    up_to_l = up[..., diagonal, diagonal, :].unsqueeze(-3)
    own = x[..., diagonal, diagonal, :].unsqueeze(-3)
    down = total - up + x  # from k to the end
    from_l = total - up_to_l + own
    before = (diagonal[:, None] <= diagonal[None, :]).unsqueeze(-1)
    return torch.where(before, down - from_l + own, up - up_to_l + own)


def _weighted(carried: Tensor, weight: Tensor, own: Tensor) -> Tensor:
    total = weight.sum(-3)
    alone = total == 0
    mean = (weight * torch.nan_to_num(carried)).sum(-3) / torch.where(alone, 1.0, total)
    return torch.where(alone, own, mean)


def pool(
    dynamics: Any,
    estimator: Estimator,
    times: Float[Tensor, "*#batch visit"],
    mean: Float[Tensor, "*batch visit latent"],
    precision: Float[Tensor, "*batch visit latent"],
    theta: Float[Tensor, "*batch param"],
    present: Bool[Tensor, "*#batch visit"],
    *,
    ridge: float = 1e-4,
) -> Smoothed:
    """The state at each visit, times counted from the first."""
    theta = theta.unsqueeze(-2)
    if estimator == "first":
        return Smoothed(dynamics.flow(times, mean[..., :1, :], theta), None)
    if estimator == "gls":
        Phi, c = linearised(dynamics, times, theta, mean[..., :1, :])
        x0, cov = gls(Phi, c, mean, precision * present.unsqueeze(-1), ridge=ridge)
        smooth = (Phi @ x0[..., None, :, None]).squeeze(-1) + c
        return Smoothed(smooth, Phi @ cov.unsqueeze(-3) @ Phi.mT)
    dt = times.unsqueeze(-2) - times.unsqueeze(-1)
    carried = dynamics.flow(dt, mean.unsqueeze(-2), theta.unsqueeze(-2))
    combine = inverse_variance if estimator == "inverse_variance" else equal
    return Smoothed(combine(carried, present), None)
