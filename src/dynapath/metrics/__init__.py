"""Scores. Arrays only."""

from ._recovery import AffineMap, affine_alignment, gene_r2, match_groups, trajectory_error, velocity_cosine

__all__ = ["AffineMap", "affine_alignment", "gene_r2", "match_groups", "trajectory_error", "velocity_cosine"]
