"""Scores. Arrays only."""

from ._recovery import AffineMap, affine_alignment, gene_r2, match_groups, trajectory_error, velocity_cosine
from .clouds import energy_distance, variance_ratio, wasserstein2, zero_error
from .forecasts import forecast_scores, gaussian_crps

__all__ = [
    "AffineMap",
    "affine_alignment",
    "energy_distance",
    "forecast_scores",
    "gaussian_crps",
    "gene_r2",
    "match_groups",
    "trajectory_error",
    "variance_ratio",
    "velocity_cosine",
    "wasserstein2",
    "zero_error",
]
