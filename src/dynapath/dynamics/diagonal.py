"""dz = (rate * z + drift) dt + noise^(1/2) dW, coordinate by coordinate: the closed form without matrix exponentials.

Any system with real distinct rates has these coordinates; where states are read through a free linear map, nothing is lost
by working in them. With phi(x, t) = (exp(x t) - 1) / x, which is t at x = 0:

    mean(t) = exp(rate t) mean + phi(rate, t) drift
    cov(t)_ij = exp((rate_i + rate_j) t) cov_ij + phi(rate_i + rate_j, t) noise_ij
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def growth(rate: Float[Tensor, "*#batch"], dt: Float[Tensor, "*#batch"]) -> Float[Tensor, "*batch"]:
    """phi(rate, dt) = (exp(rate dt) - 1) / rate, smooth through rate = 0."""
    x = rate * dt
    small = x.abs() < 1e-4
    # Both branches are differentiated, so the one not taken must not divide by 0.
    safe = torch.where(small, torch.ones_like(x), x)
    return dt * torch.where(small, 1 + x / 2 + x.square() / 6, torch.expm1(safe) / safe)


def diagonal_mean(
    mean: Float[Tensor, "*#batch latent"],
    rate: Float[Tensor, "*#batch latent"],
    drift: Float[Tensor, "*#batch latent"],
    dt: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch latent"]:
    """State `dt` later, or earlier for negative `dt`."""
    dt = dt.unsqueeze(-1)
    return torch.exp(rate * dt) * mean + growth(rate, dt) * drift


def diagonal_cov(
    cov: Float[Tensor, "*#batch latent latent"],
    rate: Float[Tensor, "*#batch latent"],
    noise: Float[Tensor, "*#batch latent latent"],
    dt: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch latent latent"]:
    """Covariance `dt` later; `dt` must not be negative, as noise cannot be taken back."""
    sums = rate.unsqueeze(-1) + rate.unsqueeze(-2)
    dt = dt[..., None, None]
    return torch.exp(sums * dt) * cov + growth(sums, dt) * noise
