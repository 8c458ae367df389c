"""Figures. They read what a fit wrote, draw it, and return the Axes."""

from ._backtest import backtest
from ._elephant import elephant
from ._gene_trajectories import gene_trajectories
from ._group_proportions import group_proportions
from ._heldout import heldout
from ._history import history
from ._increment_params import increment_params
from ._increment_trajectory import increment_trajectory
from ._latent_phase import latent_phase
from ._latent_trajectories import latent_trajectories
from ._loadings import loadings
from ._loss_profile import loss_profile
from ._missing_reports import missing_reports
from ._n_groups import n_groups
from ._registry_scores import calibration, landmarks
from ._subject_fit import subject_fit
from ._training_stages import training_stages
from ._velocity_embedding import velocity_embedding

__all__ = [
    "backtest",
    "calibration",
    "elephant",
    "gene_trajectories",
    "group_proportions",
    "heldout",
    "history",
    "increment_params",
    "increment_trajectory",
    "landmarks",
    "latent_phase",
    "latent_trajectories",
    "loadings",
    "loss_profile",
    "missing_reports",
    "n_groups",
    "subject_fit",
    "training_stages",
    "velocity_embedding",
]
