"""Flows without a closed form: every row is integrated over its own time by one call of torchdiffeq.

dz/dt = f(t, z) over [0, dt] becomes dz/ds = dt f(s dt, z) over s in [0, 1], the same interval for all rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")


def solve(
    field: Callable[[Tensor, Tensor, Tensor], Tensor],
    dt: Tensor,
    z: Tensor,
    theta: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    method: str = "dopri5",
    options: dict | None = None,
) -> Tensor:
    """State `dt` later under dz/dt = field(t, z, theta); leading axes broadcast, `dt` may be negative."""
    shape = torch.broadcast_shapes(dt.shape, z.shape[:-1], theta.shape[:-1])
    z = z.expand(*shape, z.shape[-1])
    step = dt.unsqueeze(-1)
    ends = torch.tensor([0.0, 1.0], dtype=z.dtype, device=z.device)
    rows = lambda s, state: step * field(s * dt, state, theta)
    return odeint_within(rows, z, ends, rtol=rtol, atol=atol, method=method, options=options)[-1]


def odeint_within(
    field: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    times: Tensor,
    *,
    rtol: float,
    atol: float,
    method: str,
    options: dict | None = None,
) -> Tensor:
    """torchdiffeq's odeint, which never asks the field for a time outside of those from the first to the last of `times`.

    An adaptive solver would step over the last time and interpolate, and try a step of any length to find the first one.
    """
    from torchdiffeq import odeint

    low, high = (float(t) for t in times.detach().aminmax())
    if method in _ADAPTIVE:
        options = {"step_t": times.detach()[-1:], **(options or {})}
    inside = lambda t, state: field(t.clamp(low, high), state)
    return odeint(inside, z, times, rtol=rtol, atol=atol, method=method, options=options)
