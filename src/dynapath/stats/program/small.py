"""Linear algebra of many small matrices, as elementwise operations over the units.

For some ten thousand matrices of 3 x 3 this is several times faster than a call of LAPACK for each. It needs the numbers
of all units to lie next to each other in memory (`units_last`), which is also what makes the vectorised program fast.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Larger matrices go to LAPACK.
_SMALL = 8


def units_last(x: Tensor) -> Tensor:
    """The same tensor, with the numbers of all units next to each other in memory."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Some units of a tensor, in the same order in memory."""
    return x.movedim(0, -1).index_select(-1, rows).movedim(-1, 0)


def gram(
    J: Float[Tensor, "unit k size"], r: Float[Tensor, "unit size"]
) -> tuple[Float[Tensor, "unit k"], Float[Tensor, "unit k k"]]:
    """J r and J J'."""
    k = J.shape[1]
    if k > _SMALL:
        return (J @ r[:, :, None])[:, :, 0], J @ J.mT
    g = torch.stack([(J[:, i] * r).sum(1) for i in range(k)]).movedim(0, 1)
    H = [[None] * k for _ in range(k)]
    for i in range(k):
        for j in range(i + 1):
            H[i][j] = H[j][i] = (J[:, i] * J[:, j]).sum(1)
    return g, torch.stack([entry for row in H for entry in row]).reshape(k, k, -1).movedim(-1, 0)


def solve(
    H: Float[Tensor, "unit k k"], b: Float[Tensor, "unit k"], extra: Float[Tensor, "unit k"]
) -> tuple[Float[Tensor, "unit k"], Bool[Tensor, " unit"]]:
    """(H + diag(extra))^-1 b, and whether the matrix is positive definite."""
    k = H.shape[1]
    if k > _SMALL:
        damped = H + torch.diag_embed(extra)
        # Cholesky's rounding does not depend on scales, but its LAPACK routine compares with them.
        root = torch.diagonal(damped, dim1=1, dim2=2).abs().clamp_min(1e-300).rsqrt()
        factor, info = torch.linalg.cholesky_ex(damped * root[:, :, None] * root[:, None])
        return torch.cholesky_solve((b * root)[:, :, None], factor)[:, :, 0] * root, info == 0
    L, D = _decompose(H, extra)
    definite = D[0] > 0
    for d in D[1:]:
        definite = definite & (d > 0)
    return torch.stack(_substitute(L, D, [b[:, i] for i in range(k)])).movedim(0, 1), definite


def invert(H: Float[Tensor, "unit k k"]) -> Float[Tensor, "unit k k"]:
    """Of positive definite matrices."""
    k = H.shape[1]
    if k > _SMALL:
        root = torch.diagonal(H, dim1=1, dim2=2).rsqrt()
        scale = root[:, :, None] * root[:, None]
        return torch.linalg.inv(H * scale) * scale
    L, D = _decompose(H, None)
    columns = []
    for j in range(k):
        unit = [torch.full_like(D[0], float(i == j)) for i in range(k)]
        columns.append(torch.stack(_substitute(L, D, unit)))
    return torch.stack(columns).movedim(-1, 0)


def relative_determinant(H: Float[Tensor, "unit k k"]) -> Float[Tensor, " unit"]:
    """Determinant over the product of the diagonal.

    The smallest eigenvalue of the matrix with unit diagonal is above a third of it.
    """
    _, D = _decompose(H, None)
    out = torch.ones_like(D[0])
    for i, d in enumerate(D):
        # A negative or undefined factor makes the matrix none of the good ones, whatever the others.
        out = torch.where(d > 0, out * d / H[:, i, i], 0.0)
    return torch.where(torch.stack(D).amin(0) > 0, out, 0.0)


def _decompose(H: Tensor, extra: Tensor | None) -> tuple[list[list[Tensor]], list[Tensor]]:
    """H + diag(extra) = L D L' without square roots."""
    k = H.shape[1]
    L: list[list[Tensor]] = [[] for _ in range(k)]
    D: list[Tensor] = []
    for i in range(k):
        d = H[:, i, i] if extra is None else H[:, i, i] + extra[:, i]
        for j in range(i):
            entry = H[:, i, j]
            for m in range(j):
                entry = entry - L[i][m] * L[j][m] * D[m]
            L[i].append(entry / D[j])
            d = d - L[i][j] * entry
        D.append(d)
    return L, D


def _substitute(L: list[list[Tensor]], D: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    k = len(D)
    y: list[Tensor] = []
    for i in range(k):
        z = b[i]
        for j in range(i):
            z = z - L[i][j] * y[j]
        y.append(z)
    x = [y[i] / D[i] for i in range(k)]
    for i in reversed(range(k)):
        for j in range(i + 1, k):
            x[i] = x[i] - L[j][i] * x[j]
    return x
