"""Genes along the paths of groups: means over the cells of a group carried to a time, and how fast they change.

    m_gk(t) = sum_i w_ik(t) p_g(z_ik(t)) / sum_i w_ik(t),    p the proportions that the decoder gives a state

over the measured cells i, each at one draw z_i of its posterior, carried to t by group k (`dynamics.carry`). A group is as
its cells are: where an exponential decoder meets a wide group, the tails of a Gaussian would count more than all cells do.

A cell weighs by its probability of the group. Snapshot j, with n_jk cells of group k, counts for

    n_jk / (1 + n_jk u^4)    cells,  u from it to t in snapshots (1 from one to the next),

since a path carried over u is off by the order of u^2: over one snapshot it is worth one cell, however many carry it. So a
snapshot that has cells of the group is described by them, and what lies between by both neighbours.

The rate of a mean is exact (a jvp) for cells that move on as their group carries them; weights are held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from dynapath.dynamics.carry import Carrier, carrier

from .last_layer import LastLayerError

if TYPE_CHECKING:
    from dynapath.dynamics import GroupDynamics

    from ._dynamic_module import DynamicVAEModule

COUNTS = 1e4
# Of proportions held at a time.
_ENTRIES = 2**20
# Snapshots that count for less than this share of a mean, and cells this much less probable than others, are left out.
_LEAST_SHARE = 1e-3


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


@dataclass(frozen=True)
class GroupCells:
    """The measured cells, as a fit sees them.

    Attributes
    ----------
    mean, std
        Of the posterior of each state (cell, latent).
    times
        In the unit of the data (cell,).
    groups
        Probability of each group (cell, group).
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    times: NDArray[np.float64]
    groups: NDArray[np.float64]

    def in_own_order(self) -> GroupCells:
        """In an order that does not depend on that of the rows."""
        order = np.lexsort([*self.mean.T, self.times])
        return GroupCells(*(values[order] for values in (self.mean, self.std, self.times, self.groups)))

    def states(self, random_state: int) -> NDArray[np.float64]:
        """One draw of every state, as the decoder saw them in training."""
        return self.mean + self.std * np.random.default_rng(random_state).standard_normal(self.mean.shape)


def gene_paths(
    module: DynamicVAEModule,
    dynamics: GroupDynamics,
    cells: GroupCells,
    times: ArrayLike,
    *,
    fit: GroupDynamics | None = None,
    genes: ArrayLike | None = None,
    error: LastLayerError | None = None,
    random_state: int = 0,
    n_points: int = 256,
) -> GenePaths:
    """Decoded group means at `times`, for every draw of the dynamics.

    Parameters
    ----------
    module
        The trained network. With several batches, proportions are averaged over them, each with the same weight.
    dynamics
        A fit (one draw), or its bootstrap.
    cells
        Those that stand for the groups.
    times
        In the unit of the data, not before the first snapshot.
    fit
        What the draws of a bootstrap are draws of. With it, each draw has its own probabilities of groups and its own
        sample of cells; without, cells are as they are.
    genes
        Columns that are returned; all by default.
    error
        With it, each draw decodes by a last layer of its own.
    n_points
        Cells that stand for a group in a snapshot that has more, evenly spread over its longest axis.
    """
    columns = slice(None) if genes is None else torch.as_tensor(np.asarray(genes))
    times = dynamics.from_first_snapshot(times)
    observed = dynamics.observed_times
    cells = cells.in_own_order()
    snapshot = np.abs(cells.times[:, None] - observed).argmin(1)
    states = cells.states(random_state)
    carry = carrier(dynamics.mixture, dynamics.model_times(observed), dynamics.model_times(times))
    if dynamics.n_draws is None:
        carry = Carrier(*(value.unsqueeze(0) for value in vars(carry).values()))
    n_draws, n_groups = carry.end.shape[:2]
    rng = np.random.default_rng(random_state)
    groups = cells.groups if fit is None else _groups_of_draws(dynamics, fit, cells)
    # A group that has lost all its cells is an even mixture of them, not a division by zero.
    groups = np.broadcast_to(np.maximum(groups, np.finfo(float).tiny), (n_draws, *cells.groups.shape))
    apart = _distances(observed, times)
    weights = None if error is None else torch.as_tensor(error.draws(n_draws, random_state))

    shape = (n_draws, n_groups, len(times), module.n_input if genes is None else len(np.atleast_1d(genes)))
    mean, rate = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for k in range(n_groups):
        rows, counts = _representatives(states, groups[..., k].mean(0), snapshot, n_points)
        own = groups[:, rows, k] * (counts / groups[:, rows, k].mean(0))
        if fit is not None:
            own = own * _resampled(counts, n_draws, rng)
        shares = _shares(own, snapshot[rows], apart)
        for i in range(n_draws):
            used = np.argwhere(shares[i] > 0)
            points = states[rows][used[:, 1]]
            z, v = _carried(carry, i, k, points, snapshot[rows][used[:, 1]], used[:, 0])
            total = shares[i][tuple(used.T)]
            width = max(1, _ENTRIES // module.n_input)
            layer = None if weights is None else weights[i]
            # Not all at once: with many genes, their proportions would fill the memory.
            for part in (slice(start, start + width) for start in range(0, len(used), width)):
                at, change = _decoded(module, z[part], v[part], error, layer, columns)
                of_time = csr_matrix(
                    (total[part], (used[part, 0], np.arange(len(z[part])))), (len(times), len(z[part]))
                )
                mean[i, k] += of_time @ at
                rate[i, k] += of_time @ change
    return GenePaths(mean, rate / np.float32(dynamics.time_scale.span))


def rates(module: DynamicVAEModule, z: Tensor, batch: Tensor) -> Tensor:
    """Mean counts per unit of library or size factor at states `z` (cell, gene), before any excess of zeros."""
    return module.decoder(module.dispersion, z, torch.zeros(len(z), 1), batch)[0]


def _groups_of_draws(dynamics: GroupDynamics, fit: GroupDynamics, cells: GroupCells) -> NDArray[np.float64]:
    """Probabilities of the groups (draw, cell, group) by each draw; what is certain, as by a label, stays certain."""
    log = lambda one: np.log(np.maximum(one.responsibilities(cells.mean, cells.times), 1e-12))
    moved = cells.groups * np.exp(log(dynamics) - log(fit))
    return moved / moved.sum(-1, keepdims=True)


def _distances(observed: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """From every time to every snapshot (time, snapshot), counted in snapshots; the last interval goes on after the end."""
    index = np.arange(len(observed), dtype=float)
    position = np.interp(times, observed, index)
    beyond = np.maximum(times - observed[-1], 0) / (observed[-1] - observed[-2])
    return np.abs((position + beyond)[:, None] - index)


def _representatives(
    states: NDArray[np.float64], weight: NDArray[np.float64], snapshot: NDArray[np.intp], n_points: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Cells of a group, at most `n_points` from each snapshot, and how many cells each of them stands for.

    All of them where there are no more. Else those that weigh more than an equal part, for themselves, and of the others a
    systematic sample along the longest axis of the group.
    """
    kept = np.flatnonzero(weight >= _LEAST_SHARE * weight.max())
    rows, counts = [], []
    for j in np.unique(snapshot[kept]):
        here = kept[snapshot[kept] == j]
        if len(here) > n_points:
            centred = states[here] - np.average(states[here], axis=0, weights=weight[here])
            axis = np.linalg.svd(np.sqrt(weight[here, None]) * centred, full_matrices=False)[2][0]
            # A direction has no sign of its own.
            here = here[np.argsort(centred @ axis * np.sign(axis[np.abs(axis).argmax()]), kind="stable")]
            chance = np.minimum(1.0, n_points * weight[here] / weight[here].sum())
            ends = np.cumsum(chance) + 0.5
            drawn = np.floor(ends) > np.floor(ends - chance)
            here, chance = here[drawn], chance[drawn]
        else:
            chance = np.ones(len(here))
        rows.append(here)
        counts.append(weight[here] / chance)
    return np.concatenate(rows), np.concatenate(counts)


def _resampled(counts: NDArray[np.float64], n_draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """By what cells that stand for so many weigh in a sample drawn anew (Rubin's Bayesian bootstrap): (draw, cell)."""
    shape = np.maximum(counts, 1.0)
    return rng.gamma(shape, 1 / shape, size=(n_draws, len(counts)))


def _shares(weight: NDArray[np.float64], snapshot: NDArray[np.intp], apart: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each cell in the mean at each time (draw, time, cell); see the head of this file."""
    n_times, n_snapshots = apart.shape
    member = np.eye(n_snapshots)[snapshot]
    n_cells = weight @ member
    worth = n_cells[:, None] / (1 + n_cells[:, None] * apart**4)
    worth = np.where(worth < _LEAST_SHARE * worth.sum(-1, keepdims=True), 0, worth)
    worth = worth / worth.sum(-1, keepdims=True)
    of_own = weight / n_cells[:, snapshot]
    return worth[..., snapshot] * of_own[:, None]


def _carried(
    carry: Carrier, draw: int, k: int, z: NDArray[np.float64], start: NDArray[np.intp], end: NDArray[np.intp]
) -> tuple[Tensor, Tensor]:
    """States at their times, and how fast they move there per unit of model time."""
    from_centre = torch.as_tensor(z) - carry.start[draw, k, start]
    off = (carry.matrix[draw, k, start, end] @ from_centre.unsqueeze(-1)).squeeze(-1)
    moving = carry.end_rate[draw, k, end] + (carry.rate[draw, k, end] @ off.unsqueeze(-1)).squeeze(-1)
    return (carry.end[draw, k, end] + off).float(), moving.float()


@torch.no_grad()
def _decoded(
    module: DynamicVAEModule,
    z: Tensor,
    v: Tensor,
    error: LastLayerError | None,
    weights: Tensor | None,
    columns: slice | Tensor,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Expected counts per 1e4 at states `z` that move at `v`, and their rates, averaged over the batches (cell, gene)."""

    def mean_of(z: Tensor) -> Tensor:
        total = 0.0
        for code in range(module.n_batch):
            batch = torch.full((len(z), 1), code)
            p = rates(module, z, batch)
            if error is not None:
                p = p * error.on_logits(module, z, batch, weights).exp()
                p = p if module.use_size_factor_key else p / p.sum(-1, keepdim=True)
            total = total + p
        return total[:, columns] * (COUNTS / module.n_batch)

    value, rate = torch.func.jvp(mean_of, (z,), (v,))
    return value.numpy(), rate.numpy()
