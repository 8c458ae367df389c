"""What a minibatch of latent points pays for not keeping its neighbours. Natural logarithms, one number per minibatch.

t-SNE, over pairs i < j of the minibatch, with P the sum of both conditional probabilities divided by the sum over all pairs, and
c the exaggeration:

    sum P_ij log(P_ij / Q_ij), or -sum c P_ij log Q_ij while c > 1        Q_ij ~ 1 / (1 + |z_i - z_j|^2)

UMAP, with W the fuzzy union of both memberships, m negatives per edge as its optimiser draws, and
q_ij = 1 / (1 + a |z_i - z_j|^(2b)):

    -sum W_ij log q_ij / sum W_ij - m mean (1 - W_ij) log(1 - q_ij)

Few pairs are neighbours: what attracts is summed over these alone, what repels over all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Points = Float[Tensor, "cell latent"]

_NEGATIVES = 5.0
# Squared distance added where 1 - q would vanish; UMAP's own gradient has the same.
_APART = 1e-3


@dataclass(frozen=True)
class Edges:
    """Pairs of neighbours in a minibatch, each once, with the weights of both directions (0 where one is none)."""

    i: Int[Tensor, " edge"]
    j: Int[Tensor, " edge"]
    there: Float[Tensor, " edge"]  # w_{j|i}
    back: Float[Tensor, " edge"]  # w_{i|j}


def undirected(row: Int[Tensor, " entry"], column: Int[Tensor, " entry"], weight: Float[Tensor, " entry"]) -> Edges:
    """Edges of directed weights, of which there is at most one from a cell to another, and none to itself."""
    low, high = torch.minimum(row, column), torch.maximum(row, column)
    size = int(high.max()) + 1 if len(high) else 1
    pair, slot = torch.unique(low * size + high, return_inverse=True)
    there, back = weight.new_zeros(len(pair)), weight.new_zeros(len(pair))
    forward = row < column
    there[slot[forward]] = weight[forward]
    back[slot[~forward]] = weight[~forward]
    return Edges(pair // size, pair % size, there, back)


def tsne_cost(z: Points, edges: Edges, exaggeration: float = 1.0) -> Tensor:
    """KL divergence of Q from P; a cross-entropy while `exaggeration` is above one. Zero without any neighbours."""
    p = edges.there + edges.back
    if not p.sum() > 0:
        return 0 * z.sum()
    p = p / p.sum()
    log_sum = (1 + torch.pdist(z).square()).reciprocal().sum().log()
    cross_entropy = (p * torch.log1p(_between(z, edges))).sum() + log_sum
    if exaggeration > 1:
        return exaggeration * cross_entropy
    return cross_entropy + torch.xlogy(p, p).sum()


def umap_cost(z: Points, edges: Edges, a: float, b: float) -> Tensor:
    """Fuzzy cross-entropy, attraction per edge and repulsion per pair. Zero without any neighbours.

    Parameters
    ----------
    a, b
        Of the kernel, see :func:`dynapath.models.neighbours.curve_parameters`.
    """
    w = edges.there + edges.back - edges.there * edges.back
    if not w.sum() > 0:
        return 0 * z.sum()

    def log_odds_of_apart(squared: Tensor) -> Tensor:  # log((1 - q) / q) = log(a d^(2b))
        return torch.log(torch.as_tensor(a)) + b * (squared + _APART).log()

    near, every = log_odds_of_apart(_between(z, edges)), log_odds_of_apart(torch.pdist(z).square())
    attraction = (w * softplus(near)).sum() / w.sum()
    repulsion = softplus(-every).sum() - (w * softplus(-near)).sum()
    return attraction + _NEGATIVES * repulsion / len(every)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); torch's own is a straight line above 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _between(z: Points, edges: Edges) -> Float[Tensor, " edge"]:
    return (z[edges.i] - z[edges.j]).square().sum(-1)
