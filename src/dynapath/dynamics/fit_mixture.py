"""Fitting the mixture of group dynamics to points with times: annealed restarts as one batched optimisation.

Minimises, per restart,  -mean_i log p(z_i | t_i) + ridge mean_k ||A_k||^2 + growth_penalty sum_k r_k^2  by Adam on all
points at once. Every restart starts from its own k-means without rates (A = 0), with a drift that is random or leads to a
later snapshot; half of them with tempered responsibilities, so that groups are pulled by the whole of the data before they
specialise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from dynapath._threads import one_thread

from .changes import Convergence, group_change, path_change
from .mixture import LinearMixture, marginal_log_prob

# Restarts this close to the best one (nats per cell) may explain the points as well, in a latent space that can still
# adapt to either; groups that agree this much (adjusted Rand index) are the same.
AS_GOOD = 0.02
SAME_GROUPS = 0.8
# Points spread by about 1: so far in sum must steps go, for paths to have been able to move.
_LEAST_REACH = 1.0


@dataclass(frozen=True)
class MixtureFit:
    """The best restart, and what the others found.

    `log_likelihood` (restart,) is the mean per cell, `agreement` (restart,) the adjusted Rand index between each
    restart's groups and those of the best, `loss` (step,) the loss of the best at every step (annealed at first), `convergence`
    whether its steps were enough.
    """

    mixture: LinearMixture
    log_likelihood: NDArray[np.float64]
    agreement: NDArray[np.float64]
    loss: NDArray[np.float64]
    alternatives: LinearMixture | None = None
    convergence: Convergence = Convergence()

    @property
    def best(self) -> int:
        """Index of the chosen restart."""
        return int(np.argmax(self.log_likelihood))


def fit_mixture(
    mixture: LinearMixture,
    z: Float[Tensor, "cell latent"],
    time_index: Int[Tensor, " cell"],
    times: Float[Tensor, " time"],
    *,
    labels: Int[Tensor, " cell"] | None = None,
    ridge: float = 0.01,
    growth_penalty: float = 1.0,
    n_restarts: int = 8,
    n_steps: int = 400,
    lr: float = 0.03,
    max_cells: int = 5000,
    random_state: int | None = 0,
    on_step: Callable[[int], None] | None = None,
) -> MixtureFit:
    """Fit group dynamics to points seen at a few times.

    Parameters
    ----------
    mixture
        Gives the structure (groups, sharing, growth); its values are not used and not changed.
    z
        Points, in units in which their spread is about 1.
    time_index, times
        Point i was seen at `times[time_index[i]]`; times start at 0 and span about 1.
    labels
        Known group of each point, -1 where unknown.
    ridge, growth_penalty
        Weights of the penalties, in nats per cell.
    n_restarts
        One is not enough: about half of all starts end in a worse optimum.
    max_cells
        More points than this are thinned at random, evenly within each time, but small snapshots are spared: a few
        hundred per group fix its moments.

    Returns
    -------
    MixtureFit : the restart with the highest likelihood, and the spread over all.
    """
    rng = np.random.default_rng(random_state)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    kept = thin(time_index, max_cells, rng)
    z, time_index = z[kept].detach(), time_index[kept]
    labels = None if labels is None else labels[kept]

    copies = mixture.like(n_copies=n_restarts)
    _start(copies, z, time_index, times, labels, rng, generator)
    n_warm = max(1, int(0.4 * n_steps))
    # Annealing finds links that no start suggests, but would melt the good starts: every other restart stays cold.
    hot = torch.where(torch.arange(n_restarts, device=z.device) % 2 == 0, 3.0, 1.0).unsqueeze(-1)

    halfway = copies.like(n_copies=n_restarts).to(z.device)

    def loss(step: int) -> Tensor:
        if step == n_steps // 2:
            halfway.load_state_dict(copies.state_dict())
        temperature = (hot - (hot - 1) * step / n_warm).clamp_min(1.0)
        log_prob = marginal_log_prob(copies.at(times).joint_log_prob(z, time_index), labels, temperature).mean(-1)
        return ridge * copies.ridge_penalty() + growth_penalty * copies.growth_penalty() - log_prob

    losses = descend(copies, loss, n_steps=n_steps, lr=lr, on_step=on_step)
    with torch.no_grad():
        joint = copies.at(times).joint_log_prob(z, time_index)
        reached = marginal_log_prob(joint, labels).mean(-1).double().cpu().numpy()
    # A restart that left the finite numbers has lost, whatever it reached before.
    reached = np.where(np.isfinite(reached), reached, -np.inf)
    if not np.isfinite(reached).any():
        msg = (
            f"All {n_restarts} restarts of the mixture of dynamics diverged at steps of lr={lr:g}. Check the latent space for "
            "outliers, or lower lr."
        )
        raise FloatingPointError(msg)
    groups = joint.argmax(-1).cpu().numpy()
    best = int(np.argmax(reached))
    agreement = np.array([adjusted_rand_score(groups[best], other) for other in groups])
    rivals = _rivals(reached, groups)
    alternatives = copies.take(rivals) if rivals else None
    change = _change(halfway.select(best), copies.select(best), z, time_index, times)
    return MixtureFit(
        copies.select(best),
        reached,
        agreement,
        losses[:, best].double().cpu().numpy(),
        alternatives,
        Convergence(change, n_steps, n_steps * lr, _LEAST_REACH),
    )


@torch.no_grad()
def _change(
    before: LinearMixture, after: LinearMixture, z: Tensor, time_index: Tensor, times: Tensor
) -> dict[str, float]:
    """What the later steps changed, for points that stay where they are."""
    earlier, later = before.at(times), after.at(times)
    groups = [now.joint_log_prob(z, time_index).softmax(-1).double().cpu().numpy() for now in (earlier, later)]
    n_at = torch.bincount(time_index, minlength=len(times))
    moments = (earlier.mean, later.mean, later.cov, later.log_weight.exp() * n_at)
    return {"groups": group_change(*groups), "paths": path_change(*(value.double().cpu().numpy() for value in moments))}


def _rivals(log_likelihood: NDArray[np.float64], groups: NDArray[np.int64]) -> list[int]:
    """Restarts close to the best, each with groups unlike those of all better ones."""
    order = np.argsort(-log_likelihood, kind="stable")
    kept = [int(order[0])]
    for i in order[1:]:
        close = log_likelihood[i] > log_likelihood[kept[0]] - AS_GOOD
        if close and all(adjusted_rand_score(groups[i], groups[other]) < SAME_GROUPS for other in kept):
            kept.append(int(i))
    return kept[1:]


def refit_proportions(
    mixture: LinearMixture,
    z: Float[Tensor, "cell latent"],
    time_index: Int[Tensor, " cell"],
    times: Float[Tensor, " time"],
    *,
    labels: Int[Tensor, " cell"] | None = None,
    weights: Float[Tensor, "*batch cell"] | None = None,
    n_rounds: int = 20,
) -> None:
    """Maximum-likelihood a and r with the dynamics held fixed, in place: proportions free of the growth penalty.

    Expectation-maximisation; each M step is a multinomial logistic regression on time, solved by Newton steps on the
    responsibilities summed over the cells of a time. Copies are refitted side by side, each with its own weights of the
    cells if there are any.
    """
    K, T = mixture.n_groups, len(times)
    fixed_r = mixture.growth == "off"
    with torch.no_grad():
        component = mixture.at(times).joint_log_prob(z, time_index).double()
        component = component - mixture.log_proportions(times)[..., time_index].mT
    design = torch.stack([torch.ones_like(times), torch.zeros_like(times) if fixed_r else times], -1).double()
    beta = torch.stack([mixture.log_weight0, mixture.growth_rate], -1).detach().double()  # (*batch, group, 2)
    batch = beta.shape[:-2]
    weight = torch.ones(len(z), dtype=torch.float64, device=z.device) if weights is None else weights.double()
    n_cells = weight.new_zeros(*weight.shape[:-1], T).index_add(-1, time_index, weight)[..., None]
    # A pseudo-count keeps groups that a snapshot lacks from rates of minus infinity.
    tiny = 1e-3 * torch.eye(2 * K, dtype=torch.float64, device=z.device)
    for _ in range(n_rounds):
        joint = component + (design @ beta.mT).log_softmax(-1)[..., time_index, :]
        resp = joint.softmax(-1)
        if labels is not None:
            known = torch.nn.functional.one_hot(labels.clamp_min(0), K).double()
            resp = torch.where((labels >= 0).unsqueeze(-1), known, resp)
        mass = weight.new_zeros(*batch, T, K).index_add(-2, time_index, weight[..., None] * resp)
        for _ in range(5):
            p = (design @ beta.mT).softmax(-1)
            gradient = ((mass - n_cells * p).mT @ design).flatten(-2) - (tiny @ beta.flatten(-2)[..., None])[..., 0]
            spread = n_cells[..., None] * (torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2))
            hessian = torch.einsum("...tkl,ti,tj->...kilj", spread, design, design).reshape(*batch, 2 * K, 2 * K) + tiny
            step = torch.linalg.solve(hessian, gradient).reshape(*batch, K, 2)
            beta = beta + step.clamp(-2, 2)
    beta = beta - beta.mean(-2, keepdim=True)
    with torch.no_grad():
        mixture._a.copy_(beta[..., 0])
        if not fixed_r:
            mixture._r.copy_(beta[..., 1])


def descend(
    copies: LinearMixture,
    loss: Callable[[int], Float[Tensor, " copy"]],
    *,
    n_steps: int,
    lr: float,
    cooling: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Float[Tensor, "step copy"]:
    """Adam on all copies at once, none of which sees the others; their losses at every step.

    Parameters
    ----------
    loss
        One value for each copy, at a step.
    cooling
        Let the step size fall to zero along a half cosine: where the steps are to end matters then, not how they got there.
    """
    parameters = [p for p in copies.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    losses = []
    with one_thread():
        for step in range(n_steps):
            if cooling:
                optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / n_steps)) / 2
            optimizer.zero_grad()
            now = loss(step)
            losses.append(now.detach())
            now.sum().backward()
            _clip_each(parameters, max_norm=10.0)
            optimizer.step()
            if on_step is not None:
                on_step(step)
    return torch.stack(losses)


# Of a snapshot, however large the others are: among too few cells k-means would find no centres to start from.
_KEPT_AT_LEAST = 100


def thin(time_index: Tensor, max_cells: int, rng: np.random.Generator) -> Tensor:
    """Rows of at most about `max_cells` points, at random within each time; small snapshots are spared."""
    n = len(time_index)
    if n <= max_cells:
        return torch.arange(n, device=time_index.device)
    at = time_index.cpu().numpy()
    kept = [
        rng.permutation(cells)[: max(_KEPT_AT_LEAST, round(max_cells * len(cells) / n))]
        for cells in (np.flatnonzero(at == t) for t in np.unique(at))
    ]
    return torch.as_tensor(np.sort(np.concatenate(kept)), device=time_index.device)


@torch.no_grad()
def _start(
    copies: LinearMixture,
    z: Tensor,
    time_index: Tensor,
    times: Tensor,
    labels: Tensor | None,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> None:
    """k-means of the first snapshot, no rates, half the overall spread; a random drift, or one towards a later snapshot.

    Three of four restarts drift towards the k-means centres of a random later snapshot, each group to the centre that
    the cheapest assignment gives it. Random drifts find links that no such assignment suggests.
    """
    K, R = copies.n_groups, copies.n_copies or 1
    sd = z.std(0)
    first = int(torch.argmin(times))

    def centres(t: int) -> NDArray[np.float64]:
        points = z[time_index == t].cpu().double().numpy()
        with warnings.catch_warnings():
            # Points that coincide are no clusters; whether groups were found is said at the end.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return KMeans(K, n_init=1, random_state=int(rng.integers(2**31))).fit(points).cluster_centers_

    start = np.stack([centres(first) for _ in range(R)])
    if labels is not None:
        for k in range(K):
            known = z[(time_index == first) & (labels == k)]
            if len(known):
                start[:, k] = known.mean(0).cpu().numpy()
    drift = torch.randn(R, K, copies.n_latent, generator=generator).double().numpy() * sd.cpu().numpy()
    later = [t for t in range(len(times)) if t != first]
    for i in range(R):
        if i % 4 == 0:
            continue
        t = later[int(rng.integers(len(later)))]
        there = centres(t)
        _, goal = linear_sum_assignment(cdist(start[i], there, "sqeuclidean"))
        drift[i] = _drift_between(start[i], there[goal], float(times[t] - times[first]), copies.relaxation)

    # Drifts are velocities so far; b is what A = -kappa I does not give at the start.
    drift += copies.relaxation * start

    def stored(value: NDArray[np.float64], like: Tensor) -> Tensor:
        if like.shape[1] == 1:
            value = value.mean(1, keepdims=True)
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)

    copies._m.copy_(stored(start, copies._m))
    copies._b.copy_(stored(drift, copies._b))
    copies._L.copy_(torch.diag_embed((sd / 2).log()).expand_as(copies._L))
    copies._log_q.fill_(-2.0)


def _drift_between(
    start: NDArray[np.float64], goal: NDArray[np.float64], duration: float, relaxation: float
) -> NDArray[np.float64]:
    """Velocity at `start` of the path under A = -kappa I that is at `goal` after `duration`."""
    effective = -np.expm1(-relaxation * duration) / relaxation if relaxation else duration
    return (goal - start) / effective


def _clip_each(parameters: list[Tensor], max_norm: float) -> None:
    """Clip the gradient of every restart by its own norm, so that none slows the others."""
    norm = sum(p.grad.flatten(1).square().sum(1) for p in parameters if p.grad is not None).sqrt()
    scale = (max_norm / norm.clamp_min(max_norm)).nan_to_num(0.0)
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(scale.view(-1, *[1] * (p.grad.dim() - 1)))
