"""Verbs on AnnData: fit and predict."""

from ._fit_dynamic_vae import fit_dynamic_vae
from ._predict_cells import predict_cells

__all__ = ["fit_dynamic_vae", "predict_cells"]
