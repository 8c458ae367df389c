"""Flows without a closed form: every row is integrated over its own time by one call of torchdiffeq.

dz/dt = f(t, z) over [0, dt] becomes dz/ds = dt f(s dt, z) over s in [0, 1], the same interval for all rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
    from torchdiffeq import odeint

    shape = torch.broadcast_shapes(dt.shape, z.shape[:-1], theta.shape[:-1])
    z = z.expand(*shape, z.shape[-1])
    step = dt.unsqueeze(-1)
    ends = torch.tensor([0.0, 1.0], dtype=z.dtype, device=z.device)
    return odeint(
        lambda s, state: step * field(s * dt, state, theta),
        z,
        ends,
        rtol=rtol,
        atol=atol,
        method=method,
        options=options,
    )[-1]
