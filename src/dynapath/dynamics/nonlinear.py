"""Non-linear latent dynamics: Lotka-Volterra in log-state, and a field that is learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .integrate import solve

_STEPS = {"method": "rk4", "options": {"step_size": 0.05}}


class LotkaVolterra:
    """du1/dt = a u1 - b u1 u2, du2/dt = g u1 u2 - d u2, for z = log u: positive whatever an encoder says.

    theta = (a, d), with b = g = 1 as published, or (a, b, g, d) with `free=4`. In log-state
    dz1/dt = a - b exp(z2), dz2/dt = g exp(z1) - d.
    """

    n_latent = 2

    def __init__(self, free: int = 2) -> None:
        if free not in (2, 4):
            msg = f"Lotka-Volterra has 2 free parameters (a, d) or 4 (a, b, g, d), not {free!r}."
            raise ValueError(msg)
        self.n_params = free
        self.param_names = ("a", "d") if free == 2 else ("a", "b", "g", "d")

    @staticmethod
    def from_unit(raw: Tensor) -> Tensor:
        """Rates start in (0, 2), as published."""
        return 1 + 2 * raw

    def vector_field(self, t: Tensor, z: Tensor, theta: Tensor) -> Tensor:
        """dz/dt; states beyond exp(5) count as exp(5), so that a bad start cannot overflow."""
        one = torch.ones_like(theta[..., 0])
        a, b, g, d = (theta[..., 0], one, one, theta[..., 1]) if self.n_params == 2 else theta.unbind(-1)
        u = z.clamp(max=5.0).exp()
        return torch.stack([a - b * u[..., 1], g * u[..., 0] - d], -1)

    def flow(self, dt: Tensor, z: Tensor, theta: Tensor) -> Tensor:
        """State `dt` later."""
        return solve(self.vector_field, dt, z, theta, **_STEPS)


class LearnedField(nn.Module):
    """dz/dt = W2 tanh(W1 [z, theta] + c): one field for all, with `n_params` numbers of each subject's own.

    Axes of z and theta start with the member: as many fields as there are restarts, or one for all.
    """

    def __init__(self, n_latent: int = 2, n_params: int = 2, n_hidden: int = 16, n_members: int = 1) -> None:
        super().__init__()
        self.n_latent, self.n_params = n_latent, n_params
        self.param_names = tuple(f"theta{j + 1}" for j in range(n_params))
        n_in = n_latent + n_params
        self.w1 = nn.Parameter(torch.randn(n_members, n_in, n_hidden) / n_in**0.5)
        self.c1 = nn.Parameter(torch.zeros(n_members, 1, n_hidden))
        # Starts close to rest.
        self.w2 = nn.Parameter(0.1 * torch.randn(n_members, n_hidden, n_latent) / n_hidden**0.5)

    @staticmethod
    def from_unit(raw: Tensor) -> Tensor:
        """Coordinates among subjects, of size 1."""
        return 2 * raw

    def vector_field(self, t: Tensor, z: Tensor, theta: Tensor) -> Tensor:
        """dz/dt."""
        x = torch.cat([z, theta.expand(*z.shape[:-1], self.n_params)], -1)
        rows = x.reshape(self.w1.shape[0], -1, x.shape[-1])
        return (torch.tanh(rows @ self.w1 + self.c1) @ self.w2).reshape(z.shape)

    def flow(self, dt: Tensor, z: Tensor, theta: Tensor) -> Tensor:
        """State `dt` later."""
        return solve(self.vector_field, dt, z, theta, **_STEPS)
