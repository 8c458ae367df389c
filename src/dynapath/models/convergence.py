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
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from dynapath.dynamics.changes import Convergence, group_change, path_change
from dynapath.dynamics.group_dynamics import GroupDynamics
from dynapath.metrics import affine_alignment

from .weight_trace import LEAST_REACH, WeightTrace

_MOST_CELLS = 1000
_MOST_VALUES = 4_000_000


class TraceWeights(Callback):
    """Keeps the trace of a training by Lightning."""

    def __init__(self) -> None:
        self.trace = WeightTrace()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Add the weights of one minibatch."""
        steps = [float(group["lr"]) for group in trainer.optimizers[0].param_groups]
        self.trace.add(steps, pl_module.module.state_dict())


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
        names = ("states", "predictions") if times is None else ("groups", "paths", "states", "predictions")
        return Convergence(dict.fromkeys(names, np.nan), trace.n_minibatches, shortest, LEAST_REACH)
    n_cells, n_genes = model.adata.n_obs, model.adata.n_vars
    rows = cells_to_compare(n_cells, n_genes)
    before, after = moment_of(model, rows, earlier), moment_of(model, rows)
    change = changes(before, after, None if times is None else times[rows], n_cells)
    return Convergence(change, trace.n_minibatches, shortest, LEAST_REACH)
