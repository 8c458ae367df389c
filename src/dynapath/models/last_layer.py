"""How far the counts pin the decoder down: a Laplace approximation of its last layer, gene by gene.

The log proportion of gene g is linear in the features phi(z) that the decoder computes from a state (its last hidden layer,
and z itself where it has a linear skip). With the states held fixed, each gene is a regression on h = (1, B phi(z)), B the
leading principal directions of the features, scaled to unit variance. Its weights are known to

    C_g = (I_g + P)^-1 + e_g e_g',    I_g = sum_i m_ig / (1 + m_ig / theta_g) h_i h_i',    e_g = (I_g + P)^-1 s_g

with the Fisher information I_g of the negative binomial, and the prior precision P of each direction from the weights that
all genes have on it (empirical Bayes), so that directions the decoder hardly uses add little. Training stops where
stochastic steps take it, not at the optimum: the score s_g there is not zero, and the step e_g that is left counts as error.

What it leaves out: errors that genes share, of the hidden layer and of the states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

if TYPE_CHECKING:
    from ._dynamic_module import DynamicVAEModule

# Of the level of a gene: silent genes are known to a factor of e^3, not to nothing at all.
_PRECISION_OF_LEVEL = 0.1
_SMALLEST_PRIOR_SD = 1e-3


@dataclass(frozen=True)
class LastLayerError:
    """Covariance of the last layer's weights, gene by gene."""

    centre: NDArray[np.float32]  # (feature,)
    directions: NDArray[np.float32]  # (feature, component): B'
    factor: NDArray[np.float32]  # (gene, 1 + component, 1 + component): a factor F of C = F F'

    def draws(self, n: int, random_state: int) -> NDArray[np.float32]:
        """Errors of the weights (draw, gene, 1 + component)."""
        rng = np.random.default_rng(random_state)
        noise = rng.standard_normal((n, *self.factor.shape[:2]), dtype=np.float32)
        return np.einsum("gqr,ngr->ngq", self.factor, noise, optimize=True)

    def on_logits(self, module: DynamicVAEModule, z: Tensor, batch: Tensor, weights: Tensor) -> Tensor:
        """What errors of the weights (gene, 1 + component) do to the log proportions at states `z` (cell, gene)."""
        phi = last_features(module, z, batch) - torch.as_tensor(self.centre)
        return weights[:, 0] + (phi @ torch.as_tensor(self.directions)) @ weights[:, 1:].mT

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """As arrays."""
        return {"centre": self.centre, "directions": self.directions, "factor": self.factor}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> LastLayerError:
        """Inverse of `to_arrays`."""
        return cls(**{name: np.asarray(arrays[name]) for name in ("centre", "directions", "factor")})


def last_features(module: DynamicVAEModule, z: Tensor, batch: Tensor) -> Tensor:
    """What the decoder's last layer sees of states `z` (cell, latent): (cell, feature)."""
    hidden = module.decoder.px_decoder(z, batch)
    return hidden if module.decoder.skip is None else torch.cat([z, hidden], dim=-1)


def last_weights(module: DynamicVAEModule) -> Tensor:
    """The last layer's weights (gene, feature)."""
    weights = module.decoder.px_scale_decoder[0].weight
    return weights if module.decoder.skip is None else torch.cat([module.decoder.skip.weight, weights], dim=-1)


@torch.no_grad()
def last_layer_error(
    module: DynamicVAEModule,
    counts: csr_matrix,
    z: NDArray[np.floating],
    library: NDArray[np.floating],
    batch: NDArray[np.integer],
    *,
    n_components: int = 16,
    chunk: int = 1024,
) -> LastLayerError:
    """The error of a trained decoder's last layer, given the states of the cells it was trained on.

    Parameters
    ----------
    counts
        (cell, gene).
    z
        States (cell, latent): draws from the posterior, as in training.
    library, batch
        Library size or size factor, and batch code of each cell.
    n_components
        Directions of the features that are kept; what further ones would add is next to nothing under their prior.
    """
    z = torch.as_tensor(np.asarray(z), dtype=torch.float32)
    log_size = module.log_size(torch.as_tensor(np.asarray(library, dtype=float)).reshape(-1, 1))
    batch = torch.as_tensor(np.asarray(batch)).reshape(-1, 1)
    parts = [slice(start, start + chunk) for start in range(0, len(z), chunk)]

    phi = torch.cat([last_features(module, z[part], batch[part]) for part in parts])
    centre = phi.mean(0)
    _, sd, axes = torch.linalg.svd((phi - centre).double() / len(phi) ** 0.5, full_matrices=False)
    kept = min(n_components, int((sd > 1e-4 * sd[0]).sum()))
    directions = axes[:kept].mT / sd[:kept]
    h = torch.cat([torch.ones(len(z), 1), (phi - centre) @ directions.float()], dim=1)
    q = h.shape[1]

    n_genes = counts.shape[1]
    information, score = torch.zeros(n_genes, q * q), torch.zeros(n_genes, q)
    for part in parts:
        px = module.generative(z[part], log_size[part], batch[part], size_factor=log_size[part])["px"]
        mean = px.mean
        # A Poisson distribution has no dispersion.
        damping = 1 + mean / px.theta if hasattr(px, "theta") else torch.ones_like(mean)
        squares = (h[part].unsqueeze(-1) * h[part].unsqueeze(-2)).flatten(1)
        information += (mean / damping).mT @ squares
        score += ((torch.as_tensor(counts[part].toarray()) - mean) / damping).mT @ h[part]

    used = (last_weights(module).double() @ axes[:kept].mT) * sd[:kept]
    prior_sd = used.square().mean(0).sqrt().clamp_min(_SMALLEST_PRIOR_SD)
    precision = torch.cat([torch.tensor([_PRECISION_OF_LEVEL], dtype=torch.float64), prior_sd**-2])
    covariance = torch.linalg.inv(information.reshape(-1, q, q).double() + torch.diag(precision))
    step = covariance @ score.double().unsqueeze(-1)
    factor = torch.linalg.cholesky(covariance + step @ step.mT)
    return LastLayerError(*(x.float().numpy() for x in (centre, directions, factor)))
