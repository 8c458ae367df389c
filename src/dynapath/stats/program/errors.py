"""Covariance of the free numbers of every unit.

H^-1 M H^-1, with H the curvature of the loss and M the variance of its gradient. `hessian`: M is that of the model, H
itself for a likelihood and sigma^2 J'J for residuals, sigma^2 = r'r / (n - k). `sandwich`: M sums the observed scores of
rows, of residuals times n / (n - k) (HC1). Numbers at a bound are held fixed and have no error; the others are given them. Where the
curvature is not positive definite there is no standard error.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from dynapath._threads import few_threads

from .fit import AT_BOUND, OK, Found
from .problem import Problem
from .small import invert


def variance_of(problem: Problem, found: Found) -> Float[NDArray, " unit"]:
    """Residual variance; 1 for likelihoods."""
    if problem.kind != "residuals":
        return np.ones(len(found.u))
    left = found.n - (found.u.shape[1] - found.fixed.sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(left > 0, 2.0 * found.f / np.where(left > 0, left, 1), np.nan)


@few_threads(lambda problem, *_, **__: problem.n_units * problem.size)
def covariance_of(problem: Problem, found: Found, kind: str) -> Float[NDArray, "unit k k"]:
    """Of the free numbers; NaN where there is none."""
    known = np.isin(found.status, (OK, AT_BOUND))
    if kind != "sandwich" and known.all() and not found.fixed.any():
        inverse = invert(torch.from_numpy(found.H)).numpy()
        return variance_of(problem, found)[:, None, None] * inverse
    H, M = curvature_and_scores(problem, found, kind)
    return _sandwich(H, M, known, found.fixed)


def curvature_and_scores(problem: Problem, found: Found, kind: str) -> tuple[NDArray, NDArray]:
    """H and M.

    Raises
    ------
    ValueError : for a sandwich of a program that returns one number.
    """
    if kind == "sandwich":
        check_sandwich(problem)
        u = torch.from_numpy(np.ascontiguousarray(np.nan_to_num(found.u)))
        r, J = problem.jacobian(u)
        scores = J * r[:, None, :] if problem.kind == "residuals" else J
        return found.H, (scores @ scores.mT).numpy() * small_sample(problem, found.n)[:, None, None]
    return found.H, variance_of(problem, found)[:, None, None] * found.H


def small_sample(problem: Problem, n: Int[NDArray, " unit"]) -> Float[NDArray, " unit"]:
    """Squares of residuals are too small for having been minimised."""
    if problem.kind != "residuals":
        return np.ones(len(n))
    return n / np.maximum(n - problem.parameters.k, 1)


def check_sandwich(problem: Problem) -> None:
    """Scores of rows need rows."""
    if problem.kind != "residuals" and problem.size == 1:
        msg = (
            "se='sandwich' needs the loss of every row, but the program returns one number. Return the values before they "
            "are summed."
        )
        raise ValueError(msg)


def _sandwich(H: NDArray, M: NDArray, known: NDArray[np.bool_], fixed: NDArray[np.bool_]) -> Float[NDArray, "unit k k"]:
    k = H.shape[1]
    out = np.full(H.shape, np.nan)
    off = fixed[:, :, None] | fixed[:, None, :]
    H, M = np.where(off, np.eye(k), H)[known], np.where(off, 0.0, M)[known]
    if not len(H):
        return out
    inverse = invert(torch.from_numpy(H)).numpy()
    found = inverse @ M @ inverse
    found[off[known]] = np.nan
    out[known] = found
    return out
