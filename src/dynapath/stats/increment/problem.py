"""A panel with the loss to be minimised on it, and what the reports alone say of each unit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from dynapath.read.panel import Panel

from . import solve
from .recursion import COUNT, CURVATURE, LOSSES, accumulate_all, compiled, reports_of, standardised_squares

OK, CLIPPED, CONSTANT, NO_DATA, RANK_DEFICIENT, MAX_ITER = STATUS = (
    "ok", "clipped", "constant", "no_data", "rank_deficient", "max_iter",
)  # fmt: skip
# Eigenvalues of the scaled information below this mean that coefficients cannot be told apart.
_SINGULAR = 1e-11
# Share of the squared reports below which what is left is rounding.
_EXACT = 1e-20


@dataclass(frozen=True)
class Problem:
    """A panel, the loss of an innovation, and the limits of the search."""

    panel: Panel
    kind: int = LOSSES["squared"]
    gap: bool = False  # squares divided by their variance v, and its logarithm
    tuning: Float[NDArray, " unit"] = field(default=None, repr=False)  # Huber's threshold or overdispersion
    bounds: tuple[float, float] = (-1.0, 0.0)
    max_iter: int = 100
    progress: bool = True

    def __post_init__(self) -> None:
        if self.tuning is None:
            object.__setattr__(self, "tuning", np.zeros(self.panel.n_units))

    @property
    def arrays(self) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """What the compiled functions take first."""
        return self.panel.y, self.panel.z, self.panel.source, self.panel.lag

    @property
    def counts(self) -> bool:
        """Whether the loss is a likelihood of counts, which has no variance of its own."""
        return self.kind >= LOSSES["poisson"]

    def sums(self, params: NDArray, products: int = CURVATURE) -> tuple[NDArray, NDArray, NDArray]:
        """Sums, gradients and products of all units at finite `params`."""
        first = self.panel.first_day
        return accumulate_all(*self.arrays, first, params, self.kind, self.tuning, self.gap, products)

    def expansion(self, params: NDArray, sigma2: Float[NDArray, " unit"]) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """f of every unit for known sigma^2, with its gradient and curvature, and the number of innovations."""
        sums, gradient, curvature = self.sums(params)
        f = solve.objective_all(sums, gradient, curvature, self.gap, 1.0 / sigma2, params)
        return f, gradient, curvature, sums[:, COUNT]

    def minimise(
        self,
        start: Float[NDArray, "unit coefficient"],
        rows: Bool[NDArray, " unit"],
        *,
        free: Bool[NDArray, " coefficient"] | None = None,
        sigma2: Float[NDArray, " unit"] | None = None,
        center: Float[NDArray, " coefficient"] | None = None,
        precision: Float[NDArray, "unit coefficient coefficient"] | None = None,
    ) -> tuple[NDArray, NDArray, NDArray]:
        """Parameters, iterations and outcome of Levenberg-Marquardt on the units `rows`."""
        n_units, k = start.shape
        return solve.levenberg_marquardt(
            *self.arrays,
            start,
            first=self.panel.first_day,
            solve=rows,
            free=np.ones(k, bool) if free is None else free,
            kind=self.kind,
            tuning=self.tuning,
            gap=self.gap,
            scale=np.zeros(n_units) if sigma2 is None else 1.0 / sigma2,
            center=np.zeros(k) if center is None else center,
            precision=precision,
            bounds=self.bounds,
            max_iter=self.max_iter,
            progress=self.progress,
        )

    def residual_variance(
        self, params: Float[NDArray, "unit coefficient"], lost: Float[NDArray, " unit"] | float
    ) -> Float[NDArray, " unit"]:
        """Sum of e^2 / v over the number of innovations less the `lost` degrees of freedom.

        NaN where none is left, or where the fit is exact, which says nothing of the next innovation; 1 for counts.
        """
        if self.counts:
            return np.ones(len(params))
        squares, n, size = standardised_squares(*self.arrays, self.panel.first_day, np.nan_to_num(params))
        left = n - lost
        known = (left > 0) & (squares > _EXACT * size)
        return np.where(known, squares / np.where(left > 0, left, 1.0), np.nan)


def data_status(panel: Panel) -> NDArray[np.object_]:
    """`no_data` (no innovation), `constant`, `rank_deficient` (too few or collinear), or `ok`."""
    n_reports, constant = reports_of(panel.y, panel.first_day)
    k = len(panel.coefficients)
    status = np.full(panel.n_units, OK, dtype=object)
    _, _, H = Problem(panel).sums(np.zeros((panel.n_units, k)))
    status[(n_reports - 1 < k) | singular(H)] = RANK_DEFICIENT
    status[constant] = CONSTANT
    status[n_reports < 2] = NO_DATA
    return status


def singular(H: Float[NDArray, "unit coefficient coefficient"]) -> Bool[NDArray, " unit"]:
    """Whether the information leaves a combination of coefficients open."""
    bad, doubtful = _doubtful(H)
    scaled = H[doubtful]
    root = np.sqrt(np.einsum("ukk->uk", scaled))
    bad[doubtful] |= np.linalg.eigvalsh(scaled / root[:, :, None] / root[:, None])[:, 0] < _SINGULAR
    return bad


@compiled
def _doubtful(H):
    """Units with nothing to scale their information by, and those whose scaled information has a small determinant.

    The smallest eigenvalue is above det / e, as the others add up to less than k; few need a closer look.
    """
    n_units, k = H.shape[0], H.shape[1]
    bad, doubtful = np.zeros(n_units, np.bool_), np.zeros(n_units, np.bool_)
    L, root = np.zeros((k, k)), np.empty(k)
    for u in range(n_units):
        det = 1.0
        for i in range(k):
            bad[u] |= not (0.0 < H[u, i, i] < np.inf)
            root[i] = math.sqrt(H[u, i, i])
        for i in range(k):
            for j in range(i + 1):
                bad[u] |= not math.isfinite(H[u, i, j])
                value = H[u, i, j] / (root[i] * root[j])
                for m in range(j):
                    value -= L[i, m] * L[j, m]
                if i == j:
                    det *= value
                    L[i, i] = math.sqrt(max(value, 1e-300))
                else:
                    L[i, j] = value / L[j, j]
        doubtful[u] = not bad[u] and not det >= 10.0 * _SINGULAR
    return bad, doubtful
