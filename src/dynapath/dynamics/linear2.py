"""exp(A t) for two latent dimensions without a series in A: the shortcut for many small systems.

With M = A t, s = tr(M) / 2 and N = M - s I, Cayley-Hamilton gives N^2 = w I, w = s^2 - det M, so that

    exp(M) = exp(s) (C(w) I + S(w) N),    C(w) = cosh(sqrt(w)),  S(w) = sinh(sqrt(w)) / sqrt(w)

Both are smooth through w = 0 (equal eigenvalues, defective A) and become cosine and sine for w < 0. What a drift adds,
A^-1 (exp(M) - I) b, loses digits near det A = 0: there, the augmented exponential takes over.
Source: Bernstein & So, IEEE TAC 1993, doi:10.1109/9.233156.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from . import linear

# Below this |det A| t^2 the drift goes through the augmented exponential.
SINGULAR = 0.1
_TERMS = 8


def propagator2(
    A: Float[Tensor, "*#batch 2 2"], b: Float[Tensor, "*#batch 2"] | None, dt: Float[Tensor, "*#batch"]
) -> tuple[Float[Tensor, "*batch 2 2"], Float[Tensor, "*batch 2"] | None]:
    """Phi and c with z(t + dt) = Phi z(t) + c, in the precision of `A`; c is None without a drift."""
    M = A * dt[..., None, None]
    s = (M[..., 0, 0] + M[..., 1, 1]) / 2
    half = (M[..., 0, 0] - M[..., 1, 1]) / 2
    off = M[..., 0, 1] * M[..., 1, 0]
    C, S, grown = _even(half.square() + off)
    N = torch.stack([half, M[..., 0, 1], M[..., 1, 0], -half], -1).unflatten(-1, (2, 2))
    identity = torch.eye(2, dtype=A.dtype, device=A.device)
    Phi = (s + grown).exp()[..., None, None] * (C[..., None, None] * identity + S[..., None, None] * N)
    return Phi, None if b is None else _drift(A, b, dt, M, Phi - identity)


def _even(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C(w) and S(w), both divided by exp(x), and x; a series where the formulas would divide by a small number.

    Under fast decay exp(s) is tiny and C is huge; their product is not.
    """
    near = w.abs() < 1
    small = torch.where(near, w, 0.0)
    C, S = torch.ones_like(w), torch.ones_like(w)
    for k in range(_TERMS, 0, -1):
        C = 1 + C * small / ((2 * k - 1) * (2 * k))
        S = 1 + S * small / ((2 * k) * (2 * k + 1))
    # Values that are not used must not make infinite gradients either.
    root_up = torch.where(w >= 1, w, 1.0).sqrt()
    root_down = torch.where(w <= -1, -w, 1.0).sqrt()
    fading = torch.exp(-2 * root_up)
    C = torch.where(near, C, torch.where(w > 0, (1 + fading) / 2, torch.cos(root_down)))
    S = torch.where(near, S, torch.where(w > 0, (1 - fading) / (2 * root_up), torch.sin(root_down) / root_down))
    return C, S, torch.where(w >= 1, root_up, 0.0)


def _drift(A: Tensor, b: Tensor, dt: Tensor, M: Tensor, step: Tensor) -> Tensor:
    """A^-1 (exp(M) - I) b, by the adjugate of M where that is safe."""
    det = M[..., 0, 0] * M[..., 1, 1] - M[..., 0, 1] * M[..., 1, 0]
    safe = det.abs() >= SINGULAR
    push = (step @ b.unsqueeze(-1)).squeeze(-1) * dt.unsqueeze(-1)
    adjugate = torch.stack([M[..., 1, 1], -M[..., 0, 1], -M[..., 1, 0], M[..., 0, 0]], -1).unflatten(-1, (2, 2))
    c = (adjugate @ push.unsqueeze(-1)).squeeze(-1) / torch.where(safe, det, 1.0).unsqueeze(-1)
    if bool(safe.all()):
        return c
    rest = ~safe
    A, b, dt = A.expand(*rest.shape, 2, 2)[rest], b.expand(*rest.shape, 2)[rest], dt.expand(rest.shape)[rest]
    exact = linear.propagator(A, b, dt)[1].to(c.dtype)
    return c.masked_scatter(rest.unsqueeze(-1), exact)
