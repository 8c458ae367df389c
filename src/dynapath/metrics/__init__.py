"""Scores. Arrays only."""

from ._recovery import AffineMap, affine_alignment, gene_r2, match_groups, trajectory_error, velocity_cosine
from .clouds import energy_distance, variance_ratio, wasserstein2, zero_error

__all__ = [
    "AffineMap",
    "affine_alignment",
    "energy_distance",
    "gene_r2",
    "match_groups",
    "trajectory_error",
    "variance_ratio",
    "velocity_cosine",
    "wasserstein2",
    "zero_error",
]
