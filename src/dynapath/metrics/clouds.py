"""Distances between two clouds of cells, and between their counts. Arrays only.

Energy distance, with x, x' from one distribution and y, y' from the other:

    E = 2 E|x - y| - E|x - x'| - E|y - y'|,

zero if and only if the distributions are the same (Székely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018). Means within a
cloud leave out the pairs of a cell with itself (U-statistic), so that a sample of the truth scores 0 on average, at any
number of cells, and single values may be slightly negative.

W2 is the root of the least mean squared distance over all pairings of the cells of two clouds of the same size. It is not
unbiased: two samples of one distribution are apart, the more so the fewer cells there are, and blurred clouds score well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

FloatArray = NDArray[np.float64]
Counts: TypeAlias = NDArray | sparse.csr_matrix | sparse.csr_array

# Cells per block of distances: 2,048 x 20,000 distances are 330 MB.
_BLOCK = 2048


def energy_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Unbiased energy distance between clouds (cell, dimension), by Euclidean distances; in their unit.

    Raises
    ------
    ValueError : for clouds of fewer than two points, of different dimensions, or with NaN.
    """
    x, y = _cloud("x", x, at_least=2), _cloud("y", y, at_least=2)
    _check_same_width(x, y)
    n, m = len(x), len(y)
    between = _distance_sum(x, y) / (n * m)
    return 2 * between - _distance_sum(x, x) / (n * (n - 1)) - _distance_sum(y, y) / (m * (m - 1))


def wasserstein2(x: ArrayLike, y: ArrayLike) -> float:
    """Exact 2-Wasserstein distance between clouds (cell, dimension) of the same number of cells; in their unit.

    Raises
    ------
    ValueError : for clouds of different sizes or dimensions, or with NaN.
    """
    x, y = _cloud("x", x, at_least=1), _cloud("y", y, at_least=1)
    _check_same_width(x, y)
    if len(x) != len(y):
        msg = f"W2 depends on the number of points, so it is given for equal ones; they are {len(x)} and {len(y)}."
        raise ValueError(msg)
    cost = cdist(x, y, "sqeuclidean")
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def zero_error(predicted: Counts, true: Counts) -> float:
    """Mean over genes of the absolute difference between their fractions of zeros, from counts (cell, gene)."""
    predicted, true = _matrix("predicted", predicted), _matrix("true", true)
    _check_same_width(predicted, true)
    return float(np.abs(_zero_fraction(predicted) - _zero_fraction(true)).mean())


def variance_ratio(predicted: Counts, true: Counts) -> float:
    """Median over genes of predicted/true variance of log-normalised values, from counts (cell, gene).

    Genes without variance in the true cells are left out; NaN if that leaves none.
    """
    predicted, true = _matrix("predicted", predicted), _matrix("true", true)
    _check_same_width(predicted, true)
    spread, true_spread = (_variance(log_normalised(counts)) for counts in (predicted, true))
    known = true_spread > 0
    return float(np.median(spread[known] / true_spread[known])) if known.any() else float("nan")


def log_normalised(counts: Counts, *, scale: float = 1e4) -> sparse.csr_matrix:
    """log(1 + scale x / total) of counts (cell, gene), total over the genes of a cell; cells without counts stay zero."""
    values = _matrix("counts", counts).astype(np.float64)
    total = np.asarray(values.sum(1)).ravel()
    values.data *= np.repeat(scale / np.where(total > 0, total, 1), np.diff(values.indptr))
    return values.log1p()


@dataclass(frozen=True)
class PrincipalSpace:
    """Principal components of log-normalised counts, in which clouds are compared."""

    mean: FloatArray  # (gene,)
    axes: FloatArray  # (gene, component), orthonormal

    @classmethod
    def fit(cls, counts: Counts, n_components: int) -> PrincipalSpace:
        """Axes of most variance of these cells, at most one fewer than there are cells or genes.

        Deterministic, and without a dense copy of the cells.
        """
        from sklearn.decomposition import PCA

        values = log_normalised(counts)
        n = max(1, min(n_components, min(values.shape) - 1))
        pca = PCA(n, svd_solver="arpack", random_state=0).fit(values)
        return cls(pca.mean_, pca.components_.T)

    def project(self, counts: Counts) -> FloatArray:
        """Coordinates (cell, component) of cells, in nats of log-normalised expression."""
        return np.asarray(log_normalised(counts) @ self.axes) - self.mean @ self.axes


def _cloud(name: str, points: ArrayLike, *, at_least: int) -> FloatArray:
    points = np.asarray(points, dtype=float)
    if points.ndim != 2 or len(points) < at_least:
        msg = f"{name} must have one row a cell, at least {at_least}, and one column a dimension; its shape is {points.shape}."
        raise ValueError(msg)
    if not np.isfinite(points).all():
        bad = int(np.flatnonzero(~np.isfinite(points).all(1))[0])
        msg = f"{name} has NaN or infinite values, first in row {bad}. Drop these cells."
        raise ValueError(msg)
    return points


def _matrix(name: str, counts: Counts) -> sparse.csr_matrix:
    if counts.ndim != 2 or counts.shape[0] < 1:
        msg = f"{name} must have one row a cell, at least one, and one column a gene; its shape is {counts.shape}."
        raise ValueError(msg)
    return sparse.csr_matrix(counts)


def _check_same_width(one: FloatArray | sparse.csr_matrix, other: FloatArray | sparse.csr_matrix) -> None:
    if one.shape[1] != other.shape[1]:
        msg = f"Both need the same columns; they have {one.shape[1]} and {other.shape[1]}."
        raise ValueError(msg)


def _distance_sum(x: FloatArray, y: FloatArray) -> float:
    return float(sum(cdist(x[start : start + _BLOCK], y).sum() for start in range(0, len(x), _BLOCK)))


def _zero_fraction(counts: sparse.csr_matrix) -> FloatArray:
    positive = np.bincount(counts.indices[counts.data != 0], minlength=counts.shape[1])
    return 1 - positive / counts.shape[0]


def _variance(values: sparse.csr_matrix) -> FloatArray:
    mean = np.asarray(values.mean(0)).ravel()
    square = np.asarray(values.multiply(values).mean(0)).ravel()
    return square - mean**2
