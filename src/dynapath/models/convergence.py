"""Whether training has ended: what its second half still changed, in units of what is uncertain anyway.

Two models encode and decode the same cells: the one at the end of training, and the one when half of the steps' lengths were
spent, its weights averaged over a stretch of training so that the noise of minibatches is gone. Latent spaces may have moved
as a whole, so states and paths of the earlier model are first mapped to those of the later one by the best affine map.

    groups        mean_i sum_k |r'_ik - r_ik| / 2          over  mean_i (1 - max_k r_ik), at least 1 %
    paths         root mean_kt (mu' - mu)' S^-1 (mu' - mu)    over  root of d / (cells of the group at that time)
    states        root mean_i |(m'_i - m_i) / s_i|^2          over  root of d
    predictions   root mean_i sum_g (x'_ig - x_ig)^2 / v_ig   over  the same between x and a draw of the cell, plus G / n

Primes are the earlier model; r probabilities of groups, mu and S mean and covariance of group k at time t, m and s posterior
mean and standard deviation of a cell, x and v mean and variance of its values. G / n is the error of the means of G genes.

The later half of training moves the fit about as far as as many steps again would. Distance is measured along the steps'
lengths, not along epochs: with steps that shrink to nothing, the last epochs change nothing wherever they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from dynapath.dynamics.changes import Convergence, group_change, path_change
from dynapath.dynamics.group_dynamics import GroupDynamics
from dynapath.metrics import affine_alignment

# So far weights must have been able to move, twice the size that they have at the start (one over the root of 64 inputs). Adam
# moves each by the step size at most: 250 minibatches at the default step size.
LEAST_REACH = 0.25
_MOST_CELLS = 1000
_MOST_VALUES = 4_000_000


class WeightTrace(Callback):
    """Mean weights over a handful of stretches of training, however long it turns out to be."""

    def __init__(self, n_stretches: int = 6):
        self.n_stretches = n_stretches
        self.length = 1  # minibatches in a full stretch
        self.n_minibatches = 0
        self.reach: Float[NDArray, " group"] = np.zeros(1)  # summed step sizes of every group of parameters
        self._stretches: list[tuple[float, dict[str, torch.Tensor]]] = []  # reach in the middle, summed weights
        self._start, self._n, self._sums = 0.0, 0, {}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Add the weights of one minibatch."""
        steps = np.array([group["lr"] for group in trainer.optimizers[0].param_groups], dtype=float)
        self.reach = self.reach + steps if self.n_minibatches else steps
        self.n_minibatches += 1
        weights = {k: v.detach() for k, v in pl_module.module.state_dict().items() if v.is_floating_point()}
        if self._n:
            torch._foreach_add_(list(self._sums.values()), list(weights.values()))
        else:
            self._sums = {name: value.clone() for name, value in weights.items()}
        self._n += 1
        if self._n == self.length:
            self._end_stretch()

    def _end_stretch(self) -> None:
        now = float(self.reach[0])
        self._stretches.append(((self._start + now) / 2, self._sums))
        self._start, self._n, self._sums = now, 0, {}
        if len(self._stretches) == 2 * self.n_stretches:
            pairs = zip(self._stretches[::2], self._stretches[1::2], strict=True)
            merged = []
            for (first, one), (second, other) in pairs:
                torch._foreach_add_(list(one.values()), list(other.values()))
                merged.append(((first + second) / 2, one))
            self._stretches = merged
            self.length *= 2

    def halfway(self) -> dict[str, torch.Tensor] | None:
        """Mean weights when half of the steps' lengths were spent; None after fewer minibatches than there are stretches."""
        if len(self._stretches) < self.n_stretches:
            return None
        middles = np.array([middle for middle, _ in self._stretches])
        # Where two are as near, the earlier: the later one overlaps with the end.
        chosen = int(np.argmin(np.abs(middles - self.reach[0] / 2)))
        return {name: total / self.length for name, total in self._stretches[chosen][1].items()}


@dataclass(frozen=True)
class Moment:
    """What a model says of some cells."""

    mean: NDArray[np.floating]  # (cell, latent), as is std
    std: NDArray[np.floating]
    expected: NDArray[np.floating]  # (cell, gene), as are the next two
    variance: NDArray[np.floating]
    drawn: NDArray[np.floating]  # expected values at a posterior draw of the state
    dynamics: GroupDynamics | None = None


def cells_to_compare(n_cells: int, n_genes: int) -> NDArray[np.int64]:
    """Rows, evenly over the data: as many as fit into memory with all their genes."""
    most = min(n_cells, _MOST_CELLS, max(100, _MOST_VALUES // n_genes))
    return np.unique(np.linspace(0, n_cells - 1, most).astype(np.int64))


@torch.no_grad()
def moment_of(model: Any, rows: NDArray[np.int64], weights: Mapping[str, torch.Tensor] | None = None) -> Moment:
    """What a model of scvi-tools says of registered cells, with other weights if there are any; the model stays as it is.

    Draws are the same at every call, and not from the session's random numbers.
    """
    module = model.module
    kept = {name: value.clone() for name, value in module.state_dict().items()} if weights else {}
    if weights:
        module.load_state_dict({**kept, **weights})
    module.eval()
    device = next(module.parameters()).device
    parts: list[tuple[torch.Tensor, ...]] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for tensors in model._make_data_loader(adata=model.adata, indices=rows, batch_size=256):
            tensors = {name: value.to(device) for name, value in tensors.items()}
            inferred = module.inference(**module._get_inference_input(tensors))
            q, to_state = inferred["qz"], module.z_encoder.z_transformation
            if inferred.get("ql") is not None:
                inferred["library"] = inferred["ql"].loc

            def values_at(z: torch.Tensor) -> Any:
                outputs = {**inferred, "z": to_state(z)}  # noqa: B023
                return module.generative(**module._get_generative_input(tensors, outputs))["px"]  # noqa: B023

            px = values_at(q.loc)
            drawn = values_at(q.loc + q.scale * torch.randn_like(q.loc))
            parts.append((q.loc, q.scale, px.mean, px.variance, drawn.mean))
    dynamics = getattr(model, "dynamics", None)
    if weights:
        module.load_state_dict(kept)
    return Moment(*(torch.cat(part).cpu().double().numpy() for part in zip(*parts, strict=True)), dynamics)


def changes(
    before: Moment, after: Moment, times: NDArray[np.float64] | None = None, n_cells: int | None = None
) -> dict[str, float]:
    """How far the model has moved, in the units above.

    Parameters
    ----------
    times
        When each cell was measured, for models with dynamics.
    n_cells
        In the data, where the moments hold fewer.
    """
    n, d = after.mean.shape
    n_all = n if n_cells is None else n_cells
    to_after = affine_alignment(before.mean, after.mean)
    change = {}
    if times is not None:
        change["groups"] = group_change(
            before.dynamics.responsibilities(before.mean, times), after.dynamics.responsibilities(after.mean, times)
        )
        distinct, n_at = np.unique(times, return_counts=True)
        earlier, later = (moment.dynamics.trajectories(distinct) for moment in (before, after))
        change["paths"] = path_change(
            to_after.points(earlier.mean), later.mean, later.cov, later.proportions * n_at * (n_all / n)
        )
    moved = (to_after.points(before.mean) - after.mean) / after.std
    change["states"] = float(np.sqrt(np.square(moved).sum(1).mean() / d))
    tiny = np.finfo(float).tiny
    squares = [
        np.mean(np.sum(np.square(other - after.expected) / np.maximum(after.variance, tiny), axis=1))
        for other in (before.expected, after.drawn)
    ]
    change["predictions"] = float(np.sqrt(squares[0] / (squares[1] + after.expected.shape[1] / n_all)))
    return change


def convergence_of(model: Any, trace: WeightTrace, times: NDArray[np.float64] | None = None) -> Convergence:
    """Whether the training that `trace` has watched had ended.

    Parameters
    ----------
    times
        When each cell of `model.adata` was measured, for models with dynamics.
    """
    earlier = trace.halfway()
    shortest = float(np.min(trace.reach))
    if earlier is None or shortest < LEAST_REACH:
        return Convergence({}, trace.n_minibatches, shortest, LEAST_REACH)
    n_cells, n_genes = model.adata.n_obs, model.adata.n_vars
    rows = cells_to_compare(n_cells, n_genes)
    before, after = moment_of(model, rows, earlier), moment_of(model, rows)
    change = changes(before, after, None if times is None else times[rows], n_cells)
    return Convergence(change, trace.n_minibatches, shortest, LEAST_REACH)
