"""Velocities of a latent space as arrows in an embedding of the same cells, such as a UMAP.

By the chain rule dx/dt = J dz/dt. An embedding x(z) has no formula to take J from, but it shows where the neighbours of a
cell went, so J is estimated by least squares over the k nearest neighbours j of cell i in the latent space, with a small ridge
for directions in which there are no neighbours:

    J_i = argmin_J sum_j |x_j - mean x - J (z_j - mean z)|^2 + ridge |J|^2,        arrow_i = J_i v_i.

Exact where the embedding is linear. The projection of RNA velocity (La Manno et al. 2018, Bergen et al. 2020) weights the steps
to neighbours by the cosine between them and the velocity instead. It has to, as velocities of 2,000 genes do not lie among
neighbours; here they do, and J keeps lengths, needs no width of a kernel, and is not bent at the rim of a cloud.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.neighbors import NearestNeighbors

# Of the neighbours' total spread.
_RIDGE = 1e-3
_CHUNK = 4096


def project_velocity(
    z: ArrayLike, velocity: ArrayLike, embedding: ArrayLike, *, n_neighbors: int = 30
) -> NDArray[np.float64]:
    """Arrows in an embedding for velocities in a latent space.

    Parameters
    ----------
    z
        Latent state of each cell (cell, latent).
    velocity
        dz/dt of each cell (cell, latent).
    embedding
        The same cells (cell, dimension), usually in two dimensions.
    n_neighbors
        Neighbours in the latent space from which the embedding's derivative is estimated: more than latent dimensions.
        Many average over its bends, few follow its noise.

    Returns
    -------
    Arrows (cell, dimension) in embedding units per unit of time.

    Raises
    ------
    ValueError : for arrays that are not of the same cells, values that are not finite, or too few cells.
    """
    z, velocity, embedding = (np.asarray(array, dtype=float) for array in (z, velocity, embedding))
    _check(z, velocity, embedding, n_neighbors)
    neighbors = NearestNeighbors(n_neighbors=n_neighbors).fit(z).kneighbors(return_distance=False)
    arrows = np.empty_like(embedding)
    for start in range(0, len(z), _CHUNK):
        cells = slice(start, start + _CHUNK)
        near, shown = z[neighbors[cells]], embedding[neighbors[cells]]
        near, shown = near - near.mean(1, keepdims=True), shown - shown.mean(1, keepdims=True)
        spread = np.einsum("ijk,ijl->ikl", near, near)
        total = np.trace(spread, axis1=1, axis2=2)
        # Neighbours all in one place say nothing; any ridge then gives the arrow 0.
        ridge = np.where(total > 0, _RIDGE * total, 1.0)
        spread += ridge[:, None, None] * np.eye(z.shape[1])
        weight = np.linalg.solve(spread, velocity[cells, :, None])
        arrows[cells] = np.einsum("ijk,ijl,ik->il", near, shown, weight[..., 0], optimize=True)
    return arrows


def _check(
    z: NDArray[np.float64], velocity: NDArray[np.float64], embedding: NDArray[np.float64], n_neighbors: int
) -> None:
    if z.ndim != 2 or velocity.shape != z.shape or embedding.ndim != 2 or len(embedding) != len(z):
        msg = (
            "z and velocity must have one shape (cell, latent), and embedding as many rows; theirs are "
            f"{z.shape}, {velocity.shape} and {embedding.shape}."
        )
        raise ValueError(msg)
    for name, array in (("z", z), ("velocity", velocity), ("embedding", embedding)):
        bad = np.flatnonzero(~np.isfinite(array).all(1))
        if len(bad):
            msg = f"{name} has NaN or infinite values in {len(bad)} rows, the first is {bad[0]}. Drop these cells."
            raise ValueError(msg)
    if not z.shape[1] < n_neighbors < len(z):
        msg = (
            f"n_neighbors must be more than the {z.shape[1]} latent dimensions and fewer than the {len(z)} cells; it is "
            f"{n_neighbors!r}."
        )
        raise ValueError(msg)
