"""Linear dynamics dz = (A z + b) dt + Q^(1/2) dW, solved exactly by matrix exponentials.

A is never inverted: exp([[A, b], [0, 0]] t) carries the drift along, so pure drift (A = 0), singular and defective A
need no case of their own. Exponentials are taken in float64 whatever the precision of the states.

Where noise is carried along, a step is halved until A h is small, solved there by a polynomial, and doubled again:

    Phi(2h) = Phi Phi,    c(2h) = Phi c + c,    P(2h) = P + Phi P Phi'

The block exponential of Van Loan (IEEE TAC 1978, doi:10.1109/TAC.1978.1101743) gives P at once, but holds exp(-A t) beside
exp(A t), so that it loses all digits under fast decay. Here covariances are only ever added to covariances.
Source of the doubling: Smith, "Matrix equation XA + BX = C", SIAM J. Appl. Math. 1968, doi:10.1137/0116017.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad


def propagator(
    A: Float[Tensor, "*#batch latent latent"], b: Float[Tensor, "*#batch latent"], dt: Float[Tensor, "*#batch"]
) -> tuple[Float[Tensor, "*batch latent latent"], Float[Tensor, "*batch latent"]]:
    """Phi and c with z(t + dt) = Phi z(t) + c, for singular A and for negative `dt` too.

    Parameters
    ----------
    A, b
        Rates [1/time] and drift [latent/time]; leading dimensions broadcast.
    dt
        Elapsed times, of any sign.

    Returns
    -------
    Phi, c : in float64.
    """
    dt = dt.double()[..., None, None]
    augmented = pad(torch.cat([A, b.unsqueeze(-1)], dim=-1).double(), (0, 0, 0, 1))
    solution = torch.matrix_exp(dt * augmented)
    return solution[..., :-1, :-1], solution[..., :-1, -1]


def flow(
    z: Float[Tensor, "*#batch latent"],
    A: Float[Tensor, "*#batch latent latent"],
    b: Float[Tensor, "*#batch latent"],
    dt: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch latent"]:
    """State `dt` later (earlier for negative `dt`), in the precision of `z`."""
    Phi, c = propagator(A, b, dt)
    return ((Phi @ z.double().unsqueeze(-1)).squeeze(-1) + c).to(z.dtype)


def velocity(
    z: Float[Tensor, "*#batch latent"], A: Float[Tensor, "*#batch latent latent"], b: Float[Tensor, "*#batch latent"]
) -> Float[Tensor, "*batch latent"]:
    """dz/dt = A z + b."""
    return (A @ z.unsqueeze(-1)).squeeze(-1) + b


def noise_covariance(
    A: Float[Tensor, "*#batch latent latent"], Q: Float[Tensor, "*#batch latent latent"], dt: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch latent latent"]:
    """Covariance that the process noise adds over `dt`: the integral of exp(A s) Q exp(A s)' over s from 0 to `dt`.

    Raises
    ------
    ValueError : for a negative `dt`, where the integral is not a covariance.
    """
    return _transition(A, A.new_zeros(A.shape[-1]), Q, dt)[2]


def moments(
    A: Float[Tensor, "*#batch latent latent"],
    b: Float[Tensor, "*#batch latent"],
    mean0: Float[Tensor, "*#batch latent"],
    cov0: Float[Tensor, "*#batch latent latent"],
    Q: Float[Tensor, "*#batch latent latent"],
    times: Float[Tensor, " time"],
) -> tuple[Float[Tensor, "*batch time latent"], Float[Tensor, "*batch time latent latent"]]:
    """Mean and covariance at `times` of a Gaussian cloud that starts as N(mean0, cov0) at time 0, in float64.

    dmu/dt = A mu + b and dS/dt = A S + S A' + Q. The cloud is carried from one time to the next, and steps of equal
    length share one exponential, which is where the cost is.

    Raises
    ------
    ValueError : for a negative time (see `noise_covariance`).
    """
    d = mean0.shape[-1]
    batch = torch.broadcast_shapes(A.shape[:-2], b.shape[:-1], mean0.shape[:-1], cov0.shape[:-2], Q.shape[:-2])
    order = torch.argsort(times)
    steps = torch.diff(times[order].double(), prepend=times.new_zeros(1, dtype=torch.float64))
    moving = steps != 0
    lengths, kind = _distinct_lengths(steps[moving], times)
    Phi, c, P = _transition(A.unsqueeze(-3), b.unsqueeze(-2), Q.unsqueeze(-3), lengths)
    kinds = iter(kind.tolist())
    mean, cov = mean0.double().expand(*batch, d), cov0.double().expand(*batch, d, d)
    means, covs = [], []
    for moves in moving.tolist():
        if moves:
            k = next(kinds)
            forward = Phi[..., k, :, :]
            mean = (forward @ mean.unsqueeze(-1)).squeeze(-1) + c[..., k, :]
            cov = forward @ cov @ forward.mT + P[..., k, :, :]
        means.append(mean)
        covs.append(cov)
    back = torch.argsort(order)
    return torch.stack(means, -2)[..., back, :], torch.stack(covs, -3)[..., back, :, :]


def _distinct_lengths(steps: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of steps, and which of them each step has; steps that differ by the rounding of the times alone have one."""
    eps = torch.finfo(times.dtype if times.is_floating_point() else torch.float64).eps
    by_length, order = steps.sort()
    new = torch.diff(by_length, prepend=by_length[:1]) > 4 * eps * times.abs().max()
    kind = torch.empty_like(order).scatter(0, order, new.cumsum(0))
    n = kind.bincount()
    return torch.zeros_like(n, dtype=steps.dtype).index_add(0, kind, steps) / n, kind


# Up to this norm of A h, the polynomials of this degree and so many nodes leave no more than the error of rounding.
_SMALL, _DEGREE, _NODES = 0.75, 16, 7


def _coefficients() -> Tensor:
    """How the powers of X add up to what is needed.

    First exp(X s) at the nodes s of a quadrature on [0, 1], each times the root of its weight; then exp(X); then the
    integral of exp(X s).
    """
    s, weight = np.polynomial.legendre.leggauss(_NODES)
    power = np.arange(_DEGREE + 1)
    factorial = np.array([math.factorial(k) for k in power], dtype=float)
    at_nodes = np.sqrt(weight / 2)[:, None] * ((1 + s[:, None]) / 2) ** power / factorial
    return torch.tensor(np.vstack([at_nodes, 1 / factorial, 1 / (factorial * (power + 1))]))


_COEFFICIENTS = _coefficients()


def _transition(A: Tensor, b: Tensor, Q: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Phi, c and the noise covariance of steps `dt`, in float64; leading dimensions broadcast."""
    if bool((dt < 0).any()):
        msg = (
            f"A covariance cannot be carried back in time (dt = {float(dt.min()):g}). Use `flow`, which can, for the "
            "states."
        )
        raise ValueError(msg)
    A, b, Q, dt = A.double(), b.double().unsqueeze(-1), Q.double(), dt.double()
    with torch.no_grad():
        halvings = torch.log2(A.abs().sum(-1).amax(-1) * dt / _SMALL).ceil()
        halvings = halvings.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp_min(0.0)
    h = torch.ldexp(dt, -halvings)[..., None, None]
    at_nodes, Phi, average = _exponentials(A * h).split([_NODES, 1, 1])
    Phi, c, P = Phi[0], h * (average[0] @ b), h * (at_nodes @ Q @ at_nodes.mT).sum(0)
    for done in range(int(halvings.max()) if halvings.numel() else 0):
        doubled = Phi @ Phi, Phi @ c + c, Phi @ P @ Phi.mT + P
        left = (halvings > done)[..., None, None]
        Phi, c, P = (torch.where(left, new, old) for new, old in zip(doubled, (Phi, c, P), strict=True))
    return Phi, c.squeeze(-1), (P + P.mT) / 2


def _exponentials(X: Float[Tensor, "*batch latent latent"]) -> Float[Tensor, "row *batch latent latent"]:
    """The sums of `_coefficients`. Powers are made of all powers before them, so few products are needed."""
    powers = X.unsqueeze(0)
    while len(powers) < _DEGREE:
        powers = torch.cat([powers, powers[-1] @ powers])
    coefficients = _COEFFICIENTS.to(X.device)
    constant = coefficients[:, 0].reshape(-1, *[1] * X.ndim) * torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    return (coefficients[:, 1:] @ powers.flatten(1)).unflatten(1, X.shape) + constant
