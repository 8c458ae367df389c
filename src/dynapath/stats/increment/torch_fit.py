"""The same model for any differentiable loss: the recursion as a torch program, all units in one pass over the days.

What a compiled recursion does with hand-written derivatives, automatic differentiation does here for whatever loss it is
given. The search starts at the least-squares estimates and is scaled by the information about each coefficient there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from dynapath._threads import few_threads
from dynapath.dynamics.increments import FLOOR
from dynapath.read.panel import Panel

from .estimate import Estimate, estimate
from .problem import CLIPPED, CONSTANT, MAX_ITER, NO_DATA, OK, RANK_DEFICIENT, Problem
from .recursion import LOSSES

OwnLoss = Callable[[Tensor, Tensor], Tensor]
_ADAM_STEP = 0.01
# Slope of the scaled loss below which a unit has converged.
_FLAT = 1e-4

NAMED: dict[str, OwnLoss] = {
    "squared": lambda predicted, reported: 0.5 * (reported - predicted) ** 2,
    "poisson": lambda predicted, reported: predicted - reported * torch.log(predicted),
}


class Recursion:
    """Predictions of all innovations, in a flat vector with the unit of each."""

    def __init__(self, panel: Panel, *, counts: bool = False):
        first, days = panel.first_day, np.arange(panel.first_day + 1, panel.n_days)
        # Time runs along the first axis. Covariates that are missing are on days without a use.
        z = np.nan_to_num(panel.z, posinf=0.0, neginf=0.0)
        self.x = torch.as_tensor(np.stack([z[s][:, days - lag].T for s, lag in zip(panel.source, panel.lag, strict=True)], 2)
                                 if len(panel.source) else np.zeros((len(days), panel.n_units, 0)))  # fmt: skip
        y = np.nan_to_num(panel.y).T
        observed = panel.observed.T
        self.start, self.y, self.observed = (
            torch.as_tensor(y[first]),
            torch.as_tensor(y[days]),
            torch.as_tensor(observed[days]),
        )
        seen = np.cumsum(observed[first:], axis=0) > 0
        counted = torch.as_tensor(observed[days] & seen[:-1])
        self.day, self.rows = torch.nonzero(counted, as_tuple=True)
        self.reported = self.y[self.day, self.rows]
        self.counts = counts

    def __call__(self, params: Tensor) -> Tensor:
        """Predicted values of all innovations."""
        means, _ = self._run(params, derivatives=False)
        return means[self.day, self.rows]

    def with_derivatives(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted values, and their derivatives with respect to the coefficients (innovation, coefficient)."""
        means, D = self._run(params, derivatives=True)
        return means[self.day, self.rows], D[self.day, self.rows]

    def _run(self, params: Tensor, *, derivatives: bool) -> tuple[Tensor, Tensor]:
        added = params[:, 0] + (self.x * params[:, 2:]).sum(2)
        a = 1.0 + params[:, 1]
        state, D = self.start, torch.zeros_like(params)
        means, slopes = [], []
        # What a unit without a report so far is said to be is neither counted nor carried on: its first report is.
        for t in range(len(self.y)):
            mean = a * state + added[t]
            if derivatives:
                D = a[:, None] * D + torch.cat([torch.ones(len(a), 1), state[:, None], self.x[t]], dim=1)
            if self.counts:
                root = torch.sqrt(mean * mean + FLOOR * FLOOR)
                mean = 0.5 * torch.where(mean > 0, mean + root, FLOOR * FLOOR / (root - mean))
                D = D * (mean / root)[:, None] if derivatives else D
            means.append(mean)
            state = torch.where(self.observed[t], self.y[t], mean)
            if derivatives:
                slopes.append(D)
                D = torch.where(self.observed[t][:, None], 0.0, D)
        return torch.stack(means), torch.stack(slopes) if derivatives else D


@few_threads(lambda problem, *_, **__: problem.panel.n_units * problem.panel.n_days)
def estimate_with_torch(
    problem: Problem,
    modes: NDArray[np.str_],
    loss: str | OwnLoss,
    method: Literal["adam", "lbfgs"],
    learning_rate: float | tuple[float, ...] | None,
) -> Estimate:
    """Minimise each unit's mean loss, or the mean of these over units where coefficients are shared."""
    own_loss = NAMED[loss] if isinstance(loss, str) else loss
    squares = replace(problem, kind=LOSSES["squared"], max_iter=100)
    start = estimate(squares, modes)
    used = np.isin(start.status, (OK, CLIPPED, MAX_ITER))
    solved = used | (start.status == RANK_DEFICIENT)
    if not used.any():
        return start
    shared = modes == "global"
    panel = problem.panel
    recursion = Recursion(panel.take(solved), counts=problem.counts)
    information, level = _scales(panel.take(solved), start.params[solved], own_loss, counts=problem.counts)
    information[:, shared] = information[used[solved]][:, shared].mean(0)
    if shared.any():
        # All units count the same in what they share.
        level = np.where(used[solved], level[used[solved]].mean(), np.inf)
    weight = torch.as_tensor(1.0 / level)
    objective = _Objective(recursion, own_loss, shared, information, weight)
    theta = objective.pack(start.params[solved] * information)
    bounds = objective.bounds(problem.bounds)
    if method == "lbfgs":
        low, high = bounds
        found = minimize(
            objective.numpy, theta, jac=True, method="L-BFGS-B", bounds=np.column_stack([low, high]),
            options={"maxiter": problem.max_iter, "maxfun": 10 * problem.max_iter, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20},
        )  # fmt: skip
        theta, n_iter = found.x, int(found.nit)
    else:
        theta, n_iter = _adam(objective, theta, bounds, problem.max_iter, _one(learning_rate)), problem.max_iter
    params = start.params.copy()
    params[solved] = objective.unpack(theta) / information
    # Read off the scaled coefficients, since a bound that was scaled and scaled back may differ from itself by rounding.
    at_bound = np.zeros(panel.n_units, dtype=bool)
    for bound, reached in zip(problem.bounds, objective.at_bounds(theta, bounds), strict=True):
        params[np.flatnonzero(solved)[reached], 1] = bound
        at_bound[solved] |= reached
    params[np.ix_(start.status == NO_DATA, shared)] = params[np.flatnonzero(solved)[0], shared]
    params[np.ix_(start.status == CONSTANT, shared)] = params[np.flatnonzero(solved)[0], shared]
    status = np.where(used, OK, start.status).astype(object)
    status[np.flatnonzero(solved)[~objective.flat(theta, bounds)]] = MAX_ITER
    status[(status == OK) & at_bound] = CLIPPED
    status[start.status == RANK_DEFICIENT] = RANK_DEFICIENT
    sigma2 = np.where(used, problem.residual_variance(params, float((~shared).sum())), np.nan)
    return Estimate(params, status, np.where(solved, n_iter, 0), sigma2)


def _scales(panel: Panel, params: NDArray, loss: OwnLoss, *, counts: bool) -> tuple[NDArray, NDArray]:
    """Roots of the curvature of each unit's mean loss, and how much it can fall: the scales of a good search."""
    H, M = curvature_and_scores(panel, params, loss, counts=counts)
    n = np.maximum(panel.observed[:, panel.first_day :].sum(1) - 1.0, 1.0)
    curvature = np.maximum(np.einsum("ukk->uk", H), 0.0) / n[:, None]
    scores = np.nan_to_num(np.einsum("ukk->uk", M)) / n[:, None]
    # The variance of the scores over their curvature is a loss, whatever its units.
    level = np.median(scores / np.maximum(curvature, 1e-300), axis=1) if len(n) else n
    level = np.where((level > 0) & np.isfinite(level), level, 1.0)
    return np.sqrt(np.maximum(curvature / level[:, None], 1e-12)), level


def curvature_and_scores(
    panel: Panel, params: Float[NDArray, "unit coefficient"], loss: OwnLoss, *, counts: bool = False
) -> tuple[NDArray, NDArray]:
    """Sums of l'' D D' and of l'^2 D D' of every unit, for the sandwich."""
    recursion = Recursion(panel, counts=counts)
    n_units, k = params.shape
    b = torch.as_tensor(np.nan_to_num(params))
    predicted, D = recursion.with_derivatives(b)
    reported, rows = recursion.reported, recursion.rows
    predicted = predicted.detach().requires_grad_(True)  # noqa: FBT003
    (slope,) = torch.autograd.grad(_checked(loss(predicted, reported), predicted).sum(), predicted, create_graph=True)
    second = torch.zeros_like(slope)
    if slope.requires_grad:
        (second,) = torch.autograd.grad(slope.sum(), predicted)
    outer = D[:, :, None] * D[:, None]
    H = torch.zeros(n_units, k, k, dtype=b.dtype).index_add(0, rows, second[:, None, None] * outer)
    M = torch.zeros(n_units, k, k, dtype=b.dtype).index_add(0, rows, (slope.detach() ** 2)[:, None, None] * outer)
    n = np.bincount(rows.numpy(), minlength=n_units).astype(float)
    return H.numpy(), M.numpy() * np.where(n > k, n / np.maximum(n - k, 1.0), np.nan)[:, None, None]


def mean_loss(panel: Panel, params: Float[NDArray, "unit coefficient"], loss: OwnLoss) -> Float[NDArray, " unit"]:
    """Of the innovations of every unit; NaN without one."""
    with torch.no_grad():
        recursion = Recursion(panel)
        predicted = recursion(torch.as_tensor(np.nan_to_num(params)))
        losses = _checked(loss(predicted, recursion.reported), predicted).numpy()
    rows = recursion.rows.numpy()
    n = np.bincount(rows, minlength=len(params))
    return np.where(n > 0, np.bincount(rows, losses, minlength=len(params)) / np.maximum(n, 1), np.nan)


class _Objective:
    """Mean loss as a function of scaled coefficients: first the shared ones, then each unit's own."""

    def __init__(
        self, recursion: Recursion, loss: OwnLoss, shared: NDArray[np.bool_], information: NDArray, weight: Tensor
    ):
        self.recursion, self.loss, self.shared, self.information, self.weight = (
            recursion,
            loss,
            shared,
            information,
            weight,
        )
        self.n_units = len(information)

    def pack(self, params: NDArray) -> NDArray:
        return np.concatenate([params[:, self.shared].mean(0), params[:, ~self.shared].ravel()])

    def unpack(self, theta: NDArray) -> NDArray:
        params = np.empty((self.n_units, len(self.shared)))
        s = int(self.shared.sum())
        params[:, self.shared] = theta[:s]
        params[:, ~self.shared] = theta[s:].reshape(self.n_units, -1)
        return params

    def bounds(self, of_state: tuple[float, float]) -> tuple[NDArray, NDArray]:
        ends = []
        for bound, other in zip(of_state, (-np.inf, np.inf), strict=True):
            table = np.full((self.n_units, len(self.shared)), other)
            table[:, 1] = bound * self.information[:, 1]
            ends.append(self.pack(table))
        return ends[0], ends[1]

    def tensor(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Objective, and each unit's mean loss."""
        s = int(self.shared.sum())
        columns = torch.empty(self.n_units, len(self.shared), dtype=theta.dtype)
        columns[:, torch.as_tensor(self.shared)] = theta[:s].expand(self.n_units, s)
        columns[:, torch.as_tensor(~self.shared)] = theta[s:].reshape(self.n_units, -1)
        predicted = self.recursion(columns / torch.as_tensor(self.information))
        losses = _checked(self.loss(predicted, self.recursion.reported), predicted)
        rows = self.recursion.rows
        n = torch.bincount(rows, minlength=self.n_units)
        mean = torch.zeros(self.n_units, dtype=theta.dtype).index_add(0, rows, losses) / n.clamp(min=1)
        return (self.weight * mean).sum() / (self.n_units if self.shared.any() else 1), mean

    def numpy(self, theta: NDArray) -> tuple[float, NDArray]:
        x = torch.as_tensor(theta).requires_grad_(True)  # noqa: FBT003
        value, _ = self.tensor(x)
        (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient.numpy()

    def at_bounds(self, theta: NDArray, bounds: tuple[NDArray, NDArray]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Units whose state coefficient is at its lower bound, and at its upper one."""
        low, high = (self.unpack(at)[:, 1].astype(bool) for at in (theta <= bounds[0], theta >= bounds[1]))
        return low, high

    def flat(self, theta: NDArray, bounds: tuple[NDArray, NDArray]) -> NDArray[np.bool_]:
        """Whether each unit's loss has no slope left that leads to where it may go."""
        _, gradient = self.numpy(theta)
        blocked = ((theta <= bounds[0]) & (gradient > 0)) | ((theta >= bounds[1]) & (gradient < 0))
        return np.abs(self.unpack(np.where(blocked, 0.0, gradient))).max(1) <= _FLAT


def _adam(
    objective: _Objective, theta: NDArray, bounds: tuple[NDArray, NDArray], steps: int, learning_rate: float
) -> NDArray:
    x = torch.as_tensor(theta.copy()).requires_grad_(True)  # noqa: FBT003
    low, high = (torch.as_tensor(bound) for bound in bounds)
    optimizer = torch.optim.Adam([x], lr=learning_rate)
    # Towards the end steps shrink, so that the last ones do not circle around the minimum.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.tensor(x)[0].backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return x.detach().numpy()


def _one(learning_rate: float | tuple[float, ...] | None) -> float:
    if learning_rate is None:
        return _ADAM_STEP
    if np.ndim(learning_rate) or not learning_rate > 0:
        msg = f"learning_rate={learning_rate!r} of 'adam' must be one positive number, relative to each coefficient's scale."
        raise ValueError(msg)
    return float(learning_rate)


def _checked(losses: Tensor, predicted: Tensor) -> Tensor:
    if not isinstance(losses, Tensor) or losses.shape != predicted.shape:
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        msg = (
            f"The loss must return one value for each of {len(predicted)} reports; it returned {shape}. Losses of torch do "
            "with reduction='none'."
        )
        raise ValueError(msg)
    if not torch.isfinite(losses).all():
        bad = int(torch.nonzero(~torch.isfinite(losses))[0])
        msg = f"The loss is {losses[bad].item():g} where {predicted[bad].item():g} was predicted. It must be finite everywhere."
        raise ValueError(msg)
    return losses
