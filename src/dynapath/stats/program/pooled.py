"""Parameters that all units share, or that come from a normal distribution over the units, in free numbers.

As in the increment model (stats/pooling.py): every unit's loss is expanded around its estimate, the distribution is
estimated given these expansions, then every unit's estimate given the distribution, until nothing moves. A positive
parameter is thus log-normal over units. Shared parameters of residuals minimise the mean over units of each unit's mean
square, so that every unit counts the same; with partially pooled ones, and for likelihoods, units count by likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dynapath._threads import few_threads
from dynapath.stats.increment.errors import covariance_of as pooled_covariance_of
from dynapath.stats.increment.errors import spreads_of
from dynapath.stats.increment.estimate import Estimate as PooledEstimate
from dynapath.stats.increment.estimate import eliminated
from dynapath.stats.pooling import Pooled, VariancePrior, pool

from .errors import small_sample
from .fit import MAX_ITER, NO_DATA, OK, RANK_DEFICIENT, SINGULAR, Found, rank_of
from .newton import Minimum, Pull, minimise
from .parameters import Parameters
from .problem import Expansion, Problem

Pooling = Literal["individual", "global", "partial"]
_MAX_ROUNDS = 100
# A variance this small beside the uncertainty of the mean is none.
_NO_SPREAD = 1e-8


@dataclass(frozen=True)
class Shared:
    """What is known of the units together, in free numbers."""

    modes: NDArray[np.str_]  # individual, global or partial, for each free number
    mean: Float[NDArray, " k"]  # NaN where individual
    mean_covariance: Float[NDArray, "k k"] | None
    spread: Float[NDArray, "k k"]  # covariance over units; 0 where shared
    covariance: Float[NDArray, "unit k k"] | None  # of the units' estimates
    sigma2: Float[NDArray, " unit"]
    rounds: int


def modes_of(pooling: Pooling | Mapping[str, Pooling], parameters: Parameters) -> NDArray[np.str_]:
    """How each free number is pooled; parameters that a mapping leaves out are individual.

    Raises
    ------
    KeyError, ValueError : for a parameter or a way of pooling that does not exist.
    """
    chosen = dict.fromkeys(parameters.names, "individual")
    if isinstance(pooling, Mapping):
        unknown = set(pooling) - set(chosen)
        if unknown:
            names = ", ".join(parameters.names)
            msg = f"pooling names {', '.join(sorted(map(repr, unknown)))}; the parameters are {names}."
            raise KeyError(msg)
        chosen |= pooling
    else:
        chosen = dict.fromkeys(parameters.names, pooling)
    for name, mode in chosen.items():
        if mode not in ("individual", "global", "partial"):
            msg = f"The pooling of {name!r} is {mode!r}; it must be 'individual', 'global' or 'partial'."
            raise ValueError(msg)
    return np.array([chosen[name] for name in parameters.owner])


@few_threads(lambda problem, *_, **__: problem.n_units * problem.size)
def estimate_pooled(
    problem: Problem,
    start: Float[Tensor, "unit k"],
    own: Found,
    modes: NDArray[np.str_],
    *,
    se: str | None,
    max_iter: int,
) -> tuple[Found, Shared]:
    """Estimates given `own`, those of every unit for itself.

    Raises
    ------
    ValueError : with too few units, too few data of each to know the residual variance, or shared parameters that the data
        leave open.
    """
    try:
        return _estimate_pooled(problem, start, own, modes, se=se, max_iter=max_iter)
    except np.linalg.LinAlgError as error:
        msg = (
            "The distribution over units cannot be estimated: the search ran into numbers that are not finite, or units have too "
            "few data for what is pooled. Pool fewer parameters, start closer, or use pooling='individual' to see which units "
            "can be estimated."
        )
        raise ValueError(msg) from error


def _estimate_pooled(
    problem: Problem,
    start: Float[Tensor, "unit k"],
    own: Found,
    modes: NDArray[np.str_],
    *,
    se: str | None,
    max_iter: int,
    of_variances: bool = False,
) -> tuple[Found, Shared]:
    k, single = len(modes), modes == "individual"
    used = (own.n > 0) & np.isfinite(own.f)
    needed = 2 if (modes == "partial").any() else 1
    if used.sum() < needed:
        msg = f"Pooling needs {needed} units with data; there are {int(used.sum())}. Use pooling='individual', or add units."
        raise ValueError(msg)
    residuals = problem.kind == "residuals"
    by_likelihood = not residuals or bool((modes == "partial").any())
    n = own.n.astype(float)
    if not residuals:
        sigma2 = np.ones(len(n))
    elif by_likelihood:
        prior, sigma2 = _variances(problem, start, own, modes, n, max_iter)
    else:
        # A variance proportional to the number of residuals gives each unit's mean square the same weight.
        sigma2 = np.maximum(n, 1.0)
    u = _start(problem, start, own, sigma2, used, single, max_iter)
    converged, n_iter = own.status != MAX_ITER, own.n_iter.copy()
    rounds, before = 0, None
    if (modes == "global").all():
        u, pooled, ok, steps = _all_shared(problem, start, sigma2, used, modes, max_iter)
        converged, n_iter = np.full(len(n), ok), np.full(len(n), steps)
    else:
        while rounds < _MAX_ROUNDS:
            rounds += 1
            pooled = _pool(problem, u, sigma2, used, modes, before)
            u, found = _given(problem, u, pooled, sigma2, used, modes, max_iter)
            converged, n_iter = found.converged.numpy() | ~used, n_iter + found.n_iter.numpy()
            if residuals and by_likelihood:
                left = n.copy()
                left[used] -= pooled.spent + single.sum()
                sigma2 = prior.squeeze(np.where(used, 2.0 * found.at.f.numpy(), 0.0), left)
            if before is not None and _unchanged(pooled, before):
                break
            before = pooled
        else:
            converged[:] = False
    weight = 1.0 / sigma2
    at = problem.expand(torch.from_numpy(u))
    if not of_variances:
        _check_identified(problem, u, sigma2, used, modes)
    if residuals and not by_likelihood:
        left = n - single.sum() - (k - single.sum()) / used.sum()
        with np.errstate(invalid="ignore"):
            sigma2 = np.where(used & (left > 0), 2.0 * at.f.numpy() / np.maximum(left, 1e-9), np.nan)
    status = np.where(used, np.where(converged, OK, MAX_ITER), NO_DATA).astype(object)
    u = u.copy()
    if single.any():
        # What is shared is known from the others.
        H = at.H.numpy()[:, single][:, :, single]
        status[used & (rank_of(H) < single.sum())] = RANK_DEFICIENT
        u[np.ix_(~used, single)] = np.nan
    found = replace(
        own, u=u, status=status, f=at.f.numpy(), H=at.H.numpy(), n_iter=n_iter, fixed=np.zeros_like(own.fixed)
    )
    mean, spread = np.full(k, np.nan), np.zeros((k, k))
    mean[~single] = pooled.mean
    spread[np.ix_(~single, ~single)] = pooled.covariance
    shared = Shared(modes, mean, None, spread, None, sigma2, rounds)
    if se is None:
        return found, shared
    known = PooledEstimate(np.nan_to_num(u), status, n_iter, sigma2, pooled, used, weight, by_likelihood, rounds)
    expanded = Expanded(problem)
    # How uncertain the spread over units is belongs to the errors.
    spreads = spreads_of(expanded, modes, known) if (modes == "partial").any() else None
    parts = _parts(problem, found, se, sigma2)
    covariance, of_means = pooled_covariance_of(expanded, modes, known, se, parts=parts, spreads=spreads)
    mean_covariance = np.full((k, k), np.nan)
    mean_covariance[np.ix_(~single, ~single)] = of_means
    covariance[status == MAX_ITER] = np.nan
    return found, replace(shared, mean_covariance=mean_covariance, covariance=covariance)


def _variances(
    problem: Problem, start: Tensor, own: Found, modes: NDArray[np.str_], n: NDArray, max_iter: int
) -> tuple[VariancePrior, NDArray]:
    """Residual variances of units, each fitted by itself but for what all share, and what they have in common.

    A unit need not tell all parameters apart for that: the effect of what is constant within units is in their fit anyway.
    """
    shared = modes == "global"
    fitted, ended = own, (own.n_iter < max_iter) & (own.n > 0)
    if shared.any():
        apart = np.where(shared, "global", "individual")
        together, _ = _estimate_pooled(problem, start, own, apart, se=None, max_iter=max_iter, of_variances=True)
        known = ~np.isin(together.status, (MAX_ITER, NO_DATA))
        fitted, ended, shared = (together, known, shared) if known.any() else (own, ended, np.zeros_like(shared))
    spent = rank_of(fitted.H[:, ~shared][:, :, ~shared]) + shared.sum() / max(int(ended.sum()), 1)
    left = np.where(ended, np.maximum(n - spent, 0.0), 0.0)
    # Less than half a residual is what the shared ones have spent.
    left[left < 0.5] = 0.0
    if not (left > 0).any():
        rank, most = int((~shared).sum()), int(n.max())
        less = "Share some of these (pooling='global'), or write" if most > 1 and rank > 1 else "Write"
        msg = (
            f"No unit has more residuals ({most}) than parameters that differ between units ({rank}), so that nothing is left of "
            "which to learn the residual variance. To tell it from how units differ needs the marginal likelihood, which partial "
            f"pooling of residuals does not have. {less} the marginal likelihood as the program, with per='all': the user guide "
            "on programs says how, under 'Random effects beside a scale'."
        )
        raise ValueError(msg)
    squares = np.where(left > 0, 2.0 * fitted.f, 0.0)
    prior = VariancePrior.fit(squares / np.where(left > 0, left, 1.0), left)
    return prior, prior.squeeze(squares, left)


def _start(
    problem: Problem,
    start: Tensor,
    own: Found,
    sigma2: NDArray,
    used: NDArray[np.bool_],
    single: NDArray[np.bool_],
    max_iter: int,
) -> NDArray:
    """What all units have in common, and their own parameters given that.

    Their own estimates would be no place to start from: a unit with few data may have run far away.
    """
    good = own.status == OK
    found = _together(problem, start, sigma2, used, max_iter)
    common = found.u[0].numpy()
    if not (bool(found.converged[0]) and np.isfinite(common).all()):
        common = np.median(own.u[good], axis=0) if good.any() else start[0].numpy()
    u = np.where(single & good[:, None], own.u, common)
    if not single.any():
        return u
    free = torch.from_numpy(used[:, None] & single)
    return np.array(minimise(problem, torch.from_numpy(u), free=free, max_iter=max_iter).u.numpy())


def _together(problem: Problem, start: Tensor, sigma2: NDArray, used: NDArray[np.bool_], max_iter: int) -> Minimum:
    """One set of parameters for all: one search for the sum of all losses."""
    together = _Sum(problem, torch.from_numpy(np.where(used, 1.0 / sigma2, 0.0)))
    return minimise(together, start[:1], max_iter=max_iter)


def _all_shared(
    problem: Problem,
    start: Tensor,
    sigma2: NDArray,
    used: NDArray[np.bool_],
    modes: NDArray[np.str_],
    max_iter: int,
) -> tuple[NDArray, Pooled, bool, int]:
    """Estimates when there is nothing but shared parameters."""
    found = _together(problem, start, sigma2, used, max_iter)
    u = np.repeat(found.u.numpy(), len(used), axis=0)
    return u, _pool(problem, u, sigma2, used, modes, None), bool(found.converged[0]), int(found.n_iter[0])


@dataclass(frozen=True)
class _Sum:
    """The loss of all units together, as a problem with one unit."""

    problem: Problem
    weight: Tensor

    @property
    def kind(self) -> str:
        return self.problem.kind

    def take(self, _: Tensor) -> _Sum:
        return self

    def expand(self, u: Tensor) -> Expansion:
        at = self.problem.expand(u.expand(len(self.weight), -1))
        w, some = self.weight, self.weight > 0
        # 0 times what is not finite is not 0.
        return Expansion(
            (w * at.f)[some].sum()[None],
            (w[:, None] * at.g)[some].sum(0)[None],
            (w[:, None, None] * at.H)[some].sum(0)[None],
        )


@dataclass(frozen=True)
class Expanded:
    """A problem as the functions of the increment model know it."""

    problem: Problem

    def expansion(self, u: NDArray, sigma2: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Loss, gradient and curvature for known variances, and the number of residuals."""
        at = self.problem.expand(torch.from_numpy(np.ascontiguousarray(u)))
        w = 1.0 / sigma2
        n = np.full(len(u), float(self.problem.size))
        H = at.H.numpy()
        if self.problem.kind != "residuals":
            H = _without_negative(H)
        return at.f.numpy() * w, at.g.numpy() * w[:, None], H * w[:, None, None], n


def _without_negative(H: NDArray) -> NDArray:
    """Away from a unit's own minimum its Hessian may have negative directions, in which the loss is not known to rise.

    Their size says how far the expansion may be trusted (Dauphin et al. 2014, arXiv:1406.2572).
    """
    values, vectors = np.linalg.eigh(H)
    wrong = values[:, 0] < 0
    H[wrong] = (vectors[wrong] * np.abs(values[wrong])[:, None]) @ np.swapaxes(vectors[wrong], 1, 2)
    return H


def _pool(
    problem: Problem,
    u: NDArray,
    sigma2: NDArray,
    used: NDArray[np.bool_],
    modes: NDArray[np.str_],
    before: Pooled | None,
) -> Pooled:
    parts = eliminated(Expanded(problem), modes, u, sigma2, used)
    varies = modes[modes != "individual"] == "partial"
    try:
        return pool(*parts, varies=varies, sigma2=sigma2[used], near=before)
    except np.linalg.LinAlgError as error:
        msg = (
            "The distribution over units cannot be estimated: losses of single units are too far from parabolas. Start closer, "
            "return residuals (kind='residuals') if the model is one of least squares, or share some of the parameters."
        )
        raise ValueError(msg) from error


def _check_identified(
    problem: Problem, u: NDArray, sigma2: NDArray, used: NDArray[np.bool_], modes: NDArray[np.str_]
) -> None:
    """Whether the units together tell the shared numbers, and the means of the pooled ones, from what is each unit's own."""
    pooled = modes != "individual"
    left = eliminated(Expanded(problem), modes, u, sigma2, used)[0] / sigma2[used][:, None, None]
    known = problem.take(torch.from_numpy(np.flatnonzero(used))).expand(torch.from_numpy(u[used])).H.numpy()
    root = np.sqrt(np.maximum(np.einsum("ukk->k", known / sigma2[used][:, None, None])[pooled], 1e-300))
    scaled = left.sum(0) / root[:, None] / root
    if not np.isfinite(scaled).all():
        return
    values, vectors = np.linalg.eigh(scaled)
    if values[0] > SINGULAR:
        return
    names = np.array(problem.parameters.free_names)[pooled][np.abs(vectors[:, 0]) > 0.1]
    open_, own = (
        ", ".join(repr(str(name)) for name in some)
        for some in (names, dict.fromkeys(problem.parameters.owner[~pooled]))
    )
    if own:
        msg = (
            f"The data leave {open_} open beside {own}, of which every unit has its own: other values fit as well. Pool {own} "
            "partially, or leave out what does not change within units."
        )
    else:
        msg = f"The data leave a combination of {open_} open: other values fit as well. Leave one of them out."
    raise ValueError(msg)


def _given(
    problem: Problem,
    u: NDArray,
    pooled: Pooled,
    sigma2: NDArray,
    used: NDArray[np.bool_],
    modes: NDArray[np.str_],
    max_iter: int,
) -> tuple[NDArray, object]:
    """Every unit's estimate when the distribution of the pooled numbers is known."""
    k = len(modes)
    center, precision = np.zeros(k), np.zeros((k, k))
    center[modes != "individual"] = pooled.mean
    partial = modes == "partial"
    if partial.any():
        varies = modes[modes != "individual"] == "partial"
        inside = np.ix_(varies, varies)
        precision[np.ix_(partial, partial)] = precision_of(pooled.covariance[inside], pooled.mean_covariance[inside])
    u = np.where(modes == "global", center, u)
    u[np.ix_(~used, modes != "individual")] = pooled.mean
    free = torch.from_numpy(used[:, None] & (modes != "global"))
    pull = Pull(torch.from_numpy(1.0 / sigma2), torch.from_numpy(center), torch.from_numpy(precision))
    found = minimise(problem, torch.from_numpy(u), free=free, pull=pull, max_iter=max_iter)
    return np.array(found.u.numpy()), found


def precision_of(spread: NDArray, uncertainty: NDArray) -> NDArray:
    """Inverse of a covariance that may have directions without spread."""
    scale = np.sqrt(np.maximum(np.diag(spread), _NO_SPREAD * np.diag(uncertainty)))
    scale = np.where(scale > 0, scale, 1e-12)
    values, vectors = np.linalg.eigh(spread / scale[:, None] / scale)
    return vectors / np.maximum(values, _NO_SPREAD) @ vectors.T / scale[:, None] / scale


def _unchanged(now: Pooled, before: Pooled) -> bool:
    """The mean beside its own error, and the spread. Flat likelihoods of the spread are not searched to the last digit."""
    spread = np.sqrt(np.diag(now.covariance))
    if not spread.any():
        size = np.abs(now.mean) + np.sqrt(np.diag(now.mean_covariance))
        return bool((np.abs(now.mean - before.mean) <= 1e-9 * size).all())
    moved = np.abs(now.mean - before.mean) <= 0.01 * np.sqrt(np.diag(now.mean_covariance))
    return bool(moved.all() and (np.abs(spread - np.sqrt(np.diag(before.covariance))) <= 0.01 * spread + 1e-12).all())


def _parts(problem: Problem, found: Found, se: str, sigma2: NDArray) -> tuple[NDArray, NDArray]:
    """H and M of every unit, without the weights."""
    H = found.H.copy()
    if se != "sandwich":
        return H, np.where(np.isfinite(sigma2), sigma2, 0.0)[:, None, None] * H
    r, J = problem.jacobian(torch.from_numpy(np.ascontiguousarray(np.nan_to_num(found.u))))
    scores = J * r[:, None, :] if problem.kind == "residuals" else J
    return H, (scores @ scores.mT).numpy() * small_sample(problem, found.n)[:, None, None]
