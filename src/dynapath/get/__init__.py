"""Slots -> tidy tables and fitted models."""

from ._embedding import embedded_velocity, embedding
from ._fits import cell_slots, convergence, find_fit, history, members, restarts
from ._genes import counted_genes, gene_names, gene_paths, gene_trajectories, observed_genes
from ._groups import (
    alternatives,
    chosen_groups,
    draws,
    dynamics,
    group_names,
    n_groups,
    observed_proportions,
    stages,
    trajectories,
)
from ._increment import increment_fit, increment_params, increment_slots
from ._model import model
from ._panel import long
from ._vae import loadings, vae_slots
from ._visits import (
    VisitModel,
    is_visit_fit,
    parameters,
    visit_fit,
    visit_model,
    visit_predictions,
    visit_slots,
    visit_times,
)

__all__ = [
    "alternatives",
    "convergence",
    "dynamics",
    "gene_trajectories",
    "history",
    "increment_fit",
    "increment_params",
    "loadings",
    "long",
    "members",
    "model",
    "n_groups",
    "observed_genes",
    "observed_proportions",
    "parameters",
    "restarts",
    "stages",
    "trajectories",
    "visit_model",
]
