"""How well a fit recovers a known truth. Arrays only.

A latent space is identified up to a smooth map, and groups up to their names. So encoded cells are first mapped to the true
states by the best affine map, and groups are matched; or the comparison is made in gene space, where nothing is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class AffineMap:
    """z -> z @ matrix + offset."""

    matrix: FloatArray  # (encoded latent, true latent)
    offset: FloatArray  # (true latent,)

    def points(self, z: ArrayLike) -> FloatArray:
        """Mapped states (..., true latent)."""
        return np.asarray(z, dtype=float) @ self.matrix + self.offset

    def velocities(self, v: ArrayLike) -> FloatArray:
        """Mapped velocities: differences do not see the offset."""
        return np.asarray(v, dtype=float) @ self.matrix


def affine_alignment(encoded: ArrayLike, true: ArrayLike) -> AffineMap:
    """The affine map from encoded cells (cell, latent) to their true states that leaves the least squared error."""
    encoded, true = np.asarray(encoded, dtype=float), np.asarray(true, dtype=float)
    design = np.column_stack([encoded, np.ones(len(encoded))])
    solution, *_ = np.linalg.lstsq(design, true, rcond=None)
    return AffineMap(solution[:-1], solution[-1])


def match_groups(found: ArrayLike, true: ArrayLike) -> NDArray[np.int64]:
    """Found group of each true group, such that their means (group, ...) differ least in total.

    With more found than true groups the surplus is left out.
    """
    found, true = np.asarray(found, dtype=float), np.asarray(true, dtype=float)
    cost = np.square(true[:, None] - found[None]).reshape(len(true), len(found), -1).mean(-1)
    return linear_sum_assignment(cost)[1]


def trajectory_error(mean: ArrayLike, true_mean: ArrayLike, encoded: ArrayLike, true: ArrayLike) -> float:
    """Root mean squared error of group mean paths after alignment, in standard deviations of the true states.

    Parameters
    ----------
    mean, true_mean
        Paths (group, time, latent), in any order of groups.
    encoded, true
        Cells (cell, latent), from which the alignment is estimated and the unit is taken.
    """
    true, true_mean = np.asarray(true, dtype=float), np.asarray(true_mean, dtype=float)
    aligned = affine_alignment(encoded, true).points(mean)
    aligned = aligned[match_groups(aligned, true_mean)]
    return float(np.sqrt(np.square(aligned - true_mean).mean() / true.var(0).mean()))


def velocity_cosine(velocity: ArrayLike, true_velocity: ArrayLike, encoded: ArrayLike, true: ArrayLike) -> float:
    """Mean over cells of the cosine between aligned and true velocities; 1 is perfect, 0 is chance."""
    aligned = affine_alignment(encoded, true).velocities(velocity)
    true_velocity = np.asarray(true_velocity, dtype=float)
    norms = np.linalg.norm(aligned, axis=1) * np.linalg.norm(true_velocity, axis=1)
    return float(np.mean((aligned * true_velocity).sum(1) / np.maximum(norms, np.finfo(float).tiny)))


def gene_r2(predicted: ArrayLike, true: ArrayLike, *, scale: float = 1e4) -> float:
    """R2 of log1p(scale * proportions) over group-time profiles (profile, gene), about each gene's own mean."""
    predicted, true = (np.log1p(scale * np.asarray(profiles, dtype=float)) for profiles in (predicted, true))
    return float(1 - np.square(predicted - true).sum() / np.square(true - true.mean(0)).sum())
