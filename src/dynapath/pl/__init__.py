"""Figures. They read what a fit wrote, draw it, and return the Axes."""

from ._heldout import heldout
from ._latent_phase import latent_phase
from ._latent_trajectories import latent_trajectories
from ._velocity_embedding import velocity_embedding

__all__ = ["heldout", "latent_phase", "latent_trajectories", "velocity_embedding"]
