"""Who is whose neighbour, and how much: what a penalty asks a latent space to keep.

t-SNE (van der Maaten & Hinton 2008, JMLR 9:2579), with beta_i found by bisection so that the entropy of row i is
log(perplexity):

    p_{j|i} = exp(-beta_i d_ij^2) / sum_k exp(-beta_i d_ik^2)

UMAP (McInnes, Healy & Melville 2018, arXiv:1802.03426), with rho_i the distance to the nearest distinct cell and sigma_i
found by bisection so that the memberships of row i sum to log2(n_neighbors):

    w_{j|i} = exp(-max(d_ij - rho_i, 0) / sigma_i)

Both are kept as they are directed, with as many neighbours in every row; a minibatch makes them symmetric for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

FloatArray = NDArray[np.float64]

# Beyond so many cells neighbours are searched approximately.
_EXACT_UP_TO = 30_000
_HALVINGS = 64
_ENTROPY_TOLERANCE = 1e-10
# UMAP keeps every bandwidth above this share of the mean distance, lest duplicates have none.
_LEAST_SIGMA = 1e-3


@dataclass(frozen=True)
class Neighbours:
    """Weights towards the nearest cells, row by row."""

    index: NDArray[np.int64]  # (cell, neighbour), without the cell itself
    weight: FloatArray  # (cell, neighbour)


def tsne_neighbours(points: FloatArray, perplexity: float, random_state: int = 0) -> Neighbours:
    """Conditional probabilities p_{j|i} of t-SNE, on the 3 x perplexity nearest cells.

    Parameters
    ----------
    points
        (cell, dimension).

    Raises
    ------
    ValueError : if there are fewer cells than that.
    """
    n_neighbors = check_neighbours("tsne", len(points), perplexity=perplexity)
    index, distance = nearest(points, n_neighbors, random_state)
    return Neighbours(index, conditional_probabilities(distance**2, perplexity))


def umap_neighbours(points: FloatArray, n_neighbors: int, random_state: int = 0) -> Neighbours:
    """Fuzzy memberships w_{j|i} of UMAP. As there, `n_neighbors` counts the cell itself.

    Raises
    ------
    ValueError : if there are fewer cells than that.
    """
    check_neighbours("umap", len(points), n_neighbors=n_neighbors)
    index, distance = nearest(points, n_neighbors - 1, random_state)
    return Neighbours(index, fuzzy_memberships(distance))


def check_neighbours(kind: str, n_cells: int, perplexity: float = 30.0, n_neighbors: int = 15) -> int:
    """Number of neighbours that each cell is given.

    Raises
    ------
    ValueError : if there are too few cells.
    """
    if kind == "umap":
        if n_neighbors > n_cells:
            msg = (
                f"n_neighbors={n_neighbors} is more than the {n_cells} cells. Lower it: "
                "LatentPenalty('umap', n_neighbors=...)."
            )
            raise ValueError(msg)
        return n_neighbors - 1
    wanted = int(3 * perplexity)
    if wanted > n_cells - 1:
        msg = (
            f"perplexity={perplexity:g} needs {wanted} neighbours of each of {n_cells} cells; it can be at most "
            f"{(n_cells - 1) / 3:.0f} here. Lower it: LatentPenalty('tsne', perplexity=...)."
        )
        raise ValueError(msg)
    return wanted


def nearest(points: FloatArray, n_neighbors: int, random_state: int = 0) -> tuple[NDArray[np.int64], FloatArray]:
    """Nearest other points (cell, neighbour) and their distances, nearest first."""
    if len(points) <= _EXACT_UP_TO:
        from sklearn.neighbors import NearestNeighbors

        distance, index = NearestNeighbors(n_neighbors=n_neighbors).fit(points).kneighbors()
        return index.astype(np.int64), distance
    from pynndescent import NNDescent

    index, distance = NNDescent(points, n_neighbors=n_neighbors + 1, random_state=random_state).neighbor_graph
    # The point itself is among them, though not always first.
    own = index == np.arange(len(points))[:, None]
    own[~own.any(1), -1] = True
    return index[~own].reshape(-1, n_neighbors).astype(np.int64), distance[~own].reshape(-1, n_neighbors).astype(float)


def conditional_probabilities(squared_distance: FloatArray, perplexity: float) -> FloatArray:
    """p_{j|i} (cell, neighbour): rows sum to one and have the entropy log(perplexity), where distances allow it.

    Parameters
    ----------
    squared_distance
        (cell, neighbour).
    """
    # Only differences matter, and large distances would underflow together.
    d2 = squared_distance - squared_distance.min(1, keepdims=True)
    target = np.log(perplexity)
    scale = d2.mean(1)
    beta = np.divide(1.0, scale, out=np.ones_like(scale), where=scale > 0)
    low, high = np.zeros_like(beta), np.full_like(beta, np.inf)
    for _ in range(_HALVINGS):
        p = np.exp(-beta[:, None] * d2)
        total = p.sum(1)
        # H = log sum + beta E[d^2]
        entropy = np.log(total) + beta * (p * d2).sum(1) / total
        off = entropy - target
        if (np.abs(off) < _ENTROPY_TOLERANCE).all():
            break
        low, high = np.where(off > 0, beta, low), np.where(off > 0, high, beta)
        beta = np.where(np.isinf(high), 2 * low, (low + np.where(np.isinf(high), low, high)) / 2)
    p = np.exp(-beta[:, None] * d2)
    return p / p.sum(1, keepdims=True)


def fuzzy_memberships(distance: FloatArray) -> FloatArray:
    """w_{j|i} (cell, neighbour) of UMAP from the distances to the neighbours (cell, neighbour), nearest first."""
    target = np.log2(distance.shape[1] + 1)
    rho = np.where(distance > 0, distance, np.inf).min(1)
    rho = np.where(np.isinf(rho), 0.0, rho)
    gap = np.maximum(distance - rho[:, None], 0)
    sigma = np.ones(len(distance))
    low, high = np.zeros_like(sigma), np.full_like(sigma, np.inf)
    for _ in range(_HALVINGS):
        off = np.exp(-gap / sigma[:, None]).sum(1) - target
        low, high = np.where(off > 0, low, sigma), np.where(off > 0, sigma, high)
        sigma = np.where(np.isinf(high), 2 * low, (low + np.where(np.isinf(high), low, high)) / 2)
    # The mean is over the cell itself too.
    n = distance.shape[1] + 1
    least = np.where(rho > 0, distance.sum(1) / n, distance.sum() / (n * len(distance)))
    sigma = np.maximum(sigma, np.maximum(_LEAST_SIGMA * least, np.finfo(float).tiny))
    return np.exp(-gap / sigma[:, None])


def curve_parameters(min_dist: float, spread: float = 1.0) -> tuple[float, float]:
    """a and b of UMAP's 1 / (1 + a d^(2b)): least squares to 1 up to `min_dist` and exp(-(d - min_dist) / spread) beyond."""
    from scipy.optimize import curve_fit

    d = np.linspace(0, 3 * spread, 300)
    wanted = np.where(d < min_dist, 1.0, np.exp(-(d - min_dist) / spread))
    (a, b), _ = curve_fit(lambda x, a, b: 1 / (1 + a * x ** (2 * b)), d, wanted)
    return float(a), float(b)


def principal_components(
    values: NDArray[np.floating] | sparse.csr_matrix, n_pcs: int, *, log_normalise: bool, random_state: int = 0
) -> FloatArray:
    """First principal components (cell, component), of counts scaled to their median depth and logged first.

    Parameters
    ----------
    values
        (cell, gene). Fewer components where it has fewer rows or columns.
    """
    from sklearn.decomposition import PCA

    if log_normalise:
        depth = np.asarray(values.sum(1), dtype=float).ravel()
        values = sparse.diags(np.median(depth) / np.maximum(depth, 1)) @ sparse.csr_matrix(values)
        values = values.log1p()
    n_pcs = min(n_pcs, *(size - 1 for size in values.shape))
    solver = "arpack" if sparse.issparse(values) else "auto"
    return PCA(n_pcs, svd_solver=solver, random_state=random_state).fit_transform(values).astype(float)
