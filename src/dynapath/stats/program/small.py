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
    H: Float[Tensor, "unit k k"], b: Float[Tensor, "unit k"]
) -> tuple[Float[Tensor, "unit k"], Bool[Tensor, " unit"]]:
    """H^-1 b by the square-root-free Cholesky decomposition H = L D L', and whether H is positive definite."""
    k = H.shape[1]
    if k > _SMALL:
        factor, info = torch.linalg.cholesky_ex(H)
        return torch.cholesky_solve(b[:, :, None], factor)[:, :, 0], info == 0
    L: list[list[Tensor]] = [[] for _ in range(k)]
    D: list[Tensor] = []
    y: list[Tensor] = []
    for i in range(k):
        d, z = H[:, i, i], b[:, i]
        for j in range(i):
            # L[i][j] D[j] first, which is needed twice.
            entry = H[:, i, j]
            for m in range(j):
                entry = entry - L[i][m] * L[j][m] * D[m]
            L[i].append(entry / D[j])
            d = d - L[i][j] * entry
            z = z - L[i][j] * y[j]
        D.append(d)
        y.append(z)
    definite = D[0] > 0
    for d in D[1:]:
        definite = definite & (d > 0)
    x: list[Tensor] = [y[i] / D[i] for i in range(k)]
    for i in reversed(range(k)):
        for j in range(i + 1, k):
            x[i] = x[i] - L[j][i] * x[j]
    return torch.stack(x).movedim(0, 1), definite
