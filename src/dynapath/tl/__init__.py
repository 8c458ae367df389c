"""Verbs on AnnData: fit, predict and evaluate."""

from ._bootstrap import bootstrap
from ._embed_velocity import embed_velocity
from ._evaluate_heldout import evaluate_heldout
from ._fit_dynamic_vae import fit_dynamic_vae
from ._fit_vae import fit_vae
from ._predict_cells import predict_cells
from ._rank_dynamic_genes import rank_dynamic_genes
from ._sample_posterior import sample_posterior
from ._sample_prior import sample_prior

__all__ = [
    "bootstrap",
    "embed_velocity",
    "evaluate_heldout",
    "fit_dynamic_vae",
    "fit_vae",
    "predict_cells",
    "rank_dynamic_genes",
    "sample_posterior",
    "sample_prior",
]
