r"""What partial pooling leaves out, and how far off that puts what is shared.

Parameters b of a unit that come from a distribution over units should be integrated out before anything shared, theta, is
estimated. Around their most probable value that is (Laplace; Tierney and Kadane 1986, doi:10.1080/01621459.1986.10478240)

    log marginal likelihood(theta) = log joint likelihood(theta, b(theta)) - log det(H(theta) + Sigma^-1) / 2,

with H the curvature of the unit's loss in b. Pooling of expansions knows how the determinant depends on Sigma, but takes H as
given. That is right where theta moves the fitted values, as H of a linear normal model then does not change, and nearly so
for slopes of a Poisson regression. It is wrong where theta changes how much is known of b: for scales, dispersions and shapes,
shared or pooled, which come out as sure as if the fitted b were the true ones. One Newton step of the determinant says by how
much, here against the marginal likelihood by quadrature:

    what is estimated, from 100 to 200 units         joint    joint and step   marginal    truth
    log mean of Poisson counts, 4 a unit              .348         .300                     .300
    log rate of an exponential decay, 8 values       -.240        -.211          -.212     -.223
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath.stats.increment.estimate import eliminated
from dynapath.stats.pooling import pool

from .fit import NO_DATA, Found
from .pooled import Expanded, Shared, precision_of
from .problem import Problem

# With a bias of a quarter of a standard error, an interval of 95 % still covers 94.3 %.
_BIAS = 0.25
# A bias of the mean that is this share of the spread over units is a bias of the units as well.
_OF_SPREAD = 0.25
_STEP = 1e-4


def left_out(
    problem: Problem, u: Float[NDArray, "unit k"], used: NDArray[np.bool_], shared: Shared
) -> tuple[Float[NDArray, " pooled"], Float[NDArray, " pooled"]]:
    """By how much the joint likelihood moves each pooled mean, and the standard error of that mean; in free numbers."""
    modes, sigma2 = shared.modes, shared.sigma2[used]
    problem, u = problem.take(torch.from_numpy(np.flatnonzero(used))), np.nan_to_num(u[used])
    partial, common = modes == "partial", modes == "global"
    of_pooled = modes != "individual"
    spread = shared.spread[np.ix_(of_pooled, of_pooled)]
    every = np.ones(len(u), dtype=bool)
    parts = eliminated(Expanded(problem), modes, u, shared.sigma2[used], every)
    C = pool(*parts, varies=partial[of_pooled], sigma2=sigma2, covariance=spread).mean_covariance
    among = partial[of_pooled]
    precision = np.zeros((len(modes), len(modes)))
    inside = np.ix_(partial, partial)
    precision[inside] = precision_of(spread[np.ix_(among, among)], C[np.ix_(among, among)])

    def curvature(u: NDArray) -> NDArray:
        return problem.expand(torch.from_numpy(np.ascontiguousarray(u))).H.numpy() / sigma2[:, None, None]

    def determinant(u: NDArray) -> float:
        H = curvature(u)[:, partial][:, :, partial] + precision[inside]
        return 0.5 * float(np.linalg.slogdet(H)[1].sum())

    H = curvature(u)
    A = H[:, ~common][:, :, ~common] + precision[np.ix_(~common, ~common)]
    slopes = []
    for j in np.flatnonzero(of_pooled):
        # What is a unit's own follows what is shared.
        right = -H[:, ~common, j] if common[j] else np.broadcast_to(precision[~common, j], (len(u), (~common).sum()))
        way = np.zeros_like(u)
        way[:, ~common] = np.linalg.solve(A, right[:, :, None])[:, :, 0]
        way[:, j] += common[j]
        slopes.append((determinant(u + _STEP * way) - determinant(u - _STEP * way)) / (2 * _STEP))
    return C @ np.array(slopes), np.sqrt(np.diag(C))


def check_against_marginal(problem: Problem, found: Found, shared: Shared, *, errors: bool) -> None:
    """Refuse likelihoods with a biased scale; warn of what is biased by less where errors are asked for.

    Raises
    ------
    ValueError : if the program is a likelihood, and a shared parameter, or the mean of a pooled one, is off by more than a
        quarter of its standard error and of the spread over units.
    """
    used, of_pooled = found.status != NO_DATA, np.flatnonzero(shared.modes != "individual")
    if not np.isfinite(found.u[used][:, of_pooled]).all():
        return
    moved, error = left_out(problem, found.u, used, shared)
    spread = np.sqrt(np.diag(shared.spread))[of_pooled]
    with np.errstate(invalid="ignore", divide="ignore"):
        bias = np.nan_to_num(np.abs(moved) / error)
    refused = (bias > _BIAS) & (np.abs(moved) > _OF_SPREAD * spread) & (problem.kind != "residuals")
    worst = int(np.argmax(np.where(refused, bias, 0.0) if refused.any() else bias))
    if bias[worst] <= _BIAS:
        return
    j = of_pooled[worst]
    name, shared_by_all = problem.parameters.free_names[j], shared.modes[j] == "global"
    off = f"too {'small' if moved[worst] < 0 else 'large'} by about {bias[worst]:.2g} of its standard errors"
    why = (
        "partial pooling maximises the joint likelihood of units and shared parameters, not the marginal one in which the "
        "units' parameters are integrated out"
    )
    section = "the user guide on programs says how, under 'Random effects beside a scale'"
    if not refused.any():
        if not errors:
            return
        what = f"The shared parameter {name!r}" if shared_by_all else f"The mean over units of {name!r}"
        msg = (
            f"{what} is {off}, and its interval is off by as much: {why}. The estimates of units are hardly touched. "
            f"For the interval, write the marginal likelihood as the program, with per='all': {section}."
        )
        warnings.warn(msg[0].upper() + msg[1:], UserWarning, stacklevel=3)
        return
    others = [
        str(owner)
        for owner in problem.parameters.owner[(shared.modes == "partial") & (np.arange(len(shared.modes)) != j)]
    ]
    partial = ", ".join(dict.fromkeys(map(repr, others))) or "this one itself"
    what = "is shared by all units" if shared_by_all else "is partially pooled"
    msg = (
        f"{name!r} {what}, and would be {off}: {why}. A scale, a dispersion or a shape beside partially pooled parameters "
        f"({partial}) needs the marginal likelihood. If the errors are normal with one variance, leave the scale out and return "
        "residuals (kind='residuals'): the variance is estimated with its degrees of freedom, as sigma2. Otherwise write the "
        f"marginal likelihood as the program, with per='all': {section}."
    )
    raise ValueError(msg)
