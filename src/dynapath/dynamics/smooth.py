"""One trajectory of a subject from all its visits.

Each visit k says mu_k about the state, with a precision. A flow carries what it says to every other visit.

`gls`: the trajectory Phi_k x0 + c_k closest to all mu_k, x0 = (sum_k Phi_k' P_k Phi_k + r I)^-1 sum_k Phi_k' P_k (mu_k - c_k).
The offset c_k = flow of 0 must be taken off before, and added after: m_k = Phi_k x0 + c_k.

`inverse_variance` (Hackenberg et al. 2023): the mean of all u_kl, visit k carried to visit l, but l itself, with weights
1 / variance of the u_jl of all visits j from k to l. It needs a guard: two equal solutions have variance 0.
"""

from __future__ import annotations

from functools import partial
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
    """Phi and c with flow(dt, z) = Phi z + c: exact for affine flows, else to first order at `around`.

    In float64, but for dynamics with weights of their own, which compute in the precision of these.
    """
    if not isinstance(dynamics, torch.nn.Module):
        dt, theta, around = dt.double(), theta.double(), around.double()
    if hasattr(dynamics, "propagator"):
        return dynamics.propagator(dt, theta)
    shape = torch.broadcast_shapes(dt.shape, theta.shape[:-1], around.shape[:-1])
    learns = torch.is_grad_enabled()
    with torch.enable_grad():
        around = around.expand(*shape, around.shape[-1])
        around = around if around.requires_grad and learns else around.detach().requires_grad_()
        here = dynamics.flow(dt, around, theta)
        # Each state moves on its own, so the gradients of their sum are the rows of Phi, whichever state they belong to.
        # torch.func.jvp gives the columns, but takes seven times as long where it meets numbers that do not move.
        grad = partial(torch.autograd.grad, create_graph=learns, retain_graph=True, materialize_grads=True)
        rows = [grad(x.sum(), around)[0] for x in here.unbind(-1)]
    Phi = torch.stack(rows, -2)
    here, around = (here, around) if learns else (here.detach(), around.detach())
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

    Both are NaN where Phi is not finite, so that one of many fits computed together does not end the others.
    """
    T, _, weighted = _whitened(Phi.double(), precision.double(), ridge)
    x0 = T @ _said(weighted, mean - c)
    return x0.squeeze(-1).to(mean.dtype), (T @ T.mT).to(mean.dtype)


def _whitened(Phi: Tensor, precision: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """A root T of the covariance at time 0, G = Phi T for each visit, and G' P.

    Under fast growth or decay the information holds numbers as far apart as exp(2 rate t). Its Cholesky factor, made to
    exist by some rounding errors more, is coarse then; but in the coordinates that it gives, numbers are closer together,
    and in those of the next they are of one size (Fukaya et al. 2020, doi:10.1137/18M1218212).
    """
    T = torch.eye(Phi.shape[-1], dtype=Phi.dtype, device=Phi.device)
    with torch.no_grad():
        # Which coordinates are used changes nothing of the result.
        for _ in range(2):
            T = _inverse_root(Phi, precision, ridge, T)
    T = _inverse_root(Phi, precision, ridge, T)
    G = Phi @ T.unsqueeze(-3)
    return T, G, G.mT * precision.unsqueeze(-2)


def _inverse_root(Phi: Tensor, precision: Tensor, ridge: float, T: Tensor) -> Tensor:
    """A root of the inverse information, found in the coordinates T; NaN where there is none."""
    d = Phi.shape[-1]
    G = Phi @ T.unsqueeze(-3)
    information = ((G.mT * precision.unsqueeze(-2)) @ G).sum(-3) + ridge * (T.mT @ T)
    rounding = 10 * d * torch.finfo(T.dtype).eps * information.detach().diagonal(dim1=-2, dim2=-1).sum(-1)
    L, failed = torch.linalg.cholesky_ex(
        information + torch.diag_embed(rounding.unsqueeze(-1).expand(*rounding.shape, d))
    )
    L = torch.where(failed[..., None, None] > 0, torch.nan, L)
    return torch.linalg.solve_triangular(L, T.mT.expand_as(L), upper=False).mT


def _said(weighted: Tensor, gap: Tensor) -> Tensor:
    """What all visits say together: the sum of G' P gap, as a column."""
    return (weighted @ gap.to(weighted.dtype).unsqueeze(-1)).sum(-3)


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
        Phi, c = Phi.double(), c.double()
        # Carried from time 0, the state and its covariance would be differences of large numbers.
        _, G, weighted = _whitened(Phi, (precision * present.unsqueeze(-1)).double(), ridge)
        smooth = (G @ _said(weighted, mean - c).unsqueeze(-3)).squeeze(-1) + c
        return Smoothed(smooth.to(mean.dtype), (G @ G.mT).to(mean.dtype))
    dt = times.unsqueeze(-2) - times.unsqueeze(-1)
    carried = dynamics.flow(dt, mean.unsqueeze(-2), theta.unsqueeze(-2))
    combine = inverse_variance if estimator == "inverse_variance" else equal
    return Smoothed(combine(carried, present), None)
