"""Genes along the paths of groups: means over a group, and how fast they change.

    m_gk(t) = E p_g(z),   z ~ N(mu_k(t), S_k(t)),   p the proportions that the decoder gives a state

The expectation is taken over the points mu + S^(1/2) e with one fixed set of e for all groups, times and draws, symmetric and
with unit covariance, so that differences between them are free of sampling noise. The derivative in time is exact for that
sum: a jvp along dmu/dt = A mu + b and dS/dt = A S + S A' + Q.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, qmc
from torch import Tensor

from .last_layer import LastLayerError

if TYPE_CHECKING:
    from dynapath.dynamics import GroupDynamics

    from ._dynamic_module import DynamicVAEModule

COUNTS = 1e4
# Of proportions held at a time.
_ENTRIES = 2**20


@dataclass(frozen=True)
class GenePaths:
    """Expected counts of each gene per 1e4 counts of a cell (or size factors), and their rate per unit of measured time."""

    mean: NDArray[np.float32]  # (draw, group, time, gene)
    velocity: NDArray[np.float32]  # (draw, group, time, gene)


@dataclass(frozen=True)
class FoundGenes:
    """An estimate of gene paths, and the draws of each member that show how sure it is."""

    mean: NDArray[np.float64]  # (group, time, gene)
    velocity: NDArray[np.float64]  # (group, time, gene)
    draws: tuple[GenePaths, ...]  # of each member


def gene_paths(
    module: DynamicVAEModule,
    dynamics: GroupDynamics,
    times: ArrayLike,
    *,
    genes: ArrayLike | None = None,
    error: LastLayerError | None = None,
    random_state: int = 0,
    n_points: int = 32,
) -> GenePaths:
    """Decoded group means at `times`, for every draw of the dynamics.

    Parameters
    ----------
    module
        The trained network. With several batches, proportions are averaged over them, each with the same weight.
    dynamics
        A fit (one draw), or its bootstrap.
    times
        In the unit of the data, not before the first snapshot.
    genes
        Columns that are returned; all by default.
    error
        With it, each draw decodes by a last layer of its own.
    n_points
        Points that stand for a group at a time.
    """
    columns = slice(None) if genes is None else torch.as_tensor(np.asarray(genes))
    points = torch.as_tensor(gaussian_points(dynamics.n_latent, n_points))
    batches = [torch.full((1, 1), code) for code in range(module.n_batch)]
    with torch.no_grad():
        now = dynamics.mixture.at(dynamics.model_times(dynamics.from_first_snapshot(times)))
        change = dynamics.mixture.rates_at(now)
    single = dynamics.n_draws is None
    state = [x.unsqueeze(0) if single else x for x in (now.mean, now.cov, *change)]
    n_draws = len(state[0])
    weights = None if error is None else torch.as_tensor(error.draws(n_draws, random_state))

    n_groups, n_times = state[0].shape[1:3]
    width = max(1, _ENTRIES // (n_groups * len(points) * module.n_input))
    parts = [slice(start, start + width) for start in range(0, n_times, width)]
    means, slopes = [], []
    for i in range(n_draws):
        mean, cov, mean_rate, cov_rate = (x[i] for x in state)

        def decoded(mean: Tensor, cov: Tensor, i: int = i) -> Tensor:
            root = torch.linalg.cholesky(cov).unsqueeze(-3)
            z = (mean.unsqueeze(-2) + (root @ points.unsqueeze(-1)).squeeze(-1)).float()
            flat = z.flatten(0, -2)
            total = 0.0
            for code in batches:
                batch = code.expand(len(flat), 1)
                p = rates(module, flat, batch)
                if error is not None:
                    p = p * error.on_logits(module, flat, batch, weights[i]).exp()
                    p = p if module.use_size_factor_key else p / p.sum(-1, keepdim=True)
                total = total + p
            p = total[:, columns].reshape(*z.shape[:-1], -1)
            return p.mean(-2) * (COUNTS / len(batches))

        # Not all times at once: with many genes, their points would fill the memory.
        with torch.no_grad():
            at = [
                torch.func.jvp(decoded, (mean[:, part], cov[:, part]), (mean_rate[:, part], cov_rate[:, part]))
                for part in parts
            ]
        means.append(torch.cat([value for value, _ in at], 1))
        slopes.append(torch.cat([rate for _, rate in at], 1))
    return GenePaths(torch.stack(means).numpy(), (torch.stack(slopes) / dynamics.time_scale.span).numpy())


def rates(module: DynamicVAEModule, z: Tensor, batch: Tensor) -> Tensor:
    """Mean counts per unit of library or size factor at states `z` (cell, gene), before any excess of zeros."""
    return module.decoder(module.dispersion, z, torch.zeros(len(z), 1), batch)[0]


def gaussian_points(n_latent: int, n_points: int) -> NDArray[np.float64]:
    """Points (point, latent) with the first three moments of N(0, I), spread evenly: Sobol points and their mirror images.

    At least four for each dimension are taken, since fewer have no covariance of full rank.
    """
    n_half = 2 ** int(np.ceil(np.log2(max(n_points // 2, 2 * n_latent))))
    # The first Sobol point is the corner; the shift puts all of them in the middle of their cells.
    half = norm.ppf(qmc.Sobol(n_latent, scramble=False).random(n_half) + 0.5 / n_half)
    points = np.concatenate([half, -half])
    root = np.linalg.cholesky(points.T @ points / len(points))
    return points @ np.linalg.inv(root).T
