"""Linear dynamics dz = (A z + b) dt + Q^(1/2) dW, solved exactly by matrix exponentials.

A is never inverted: exp([[A, b], [0, 0]] t) carries the drift along, so pure drift (A = 0), singular and defective A
need no case of their own. Exponentials are taken in float64 whatever the precision of the states.
Source: Van Loan, "Computing integrals involving the matrix exponential", IEEE TAC 1978, doi:10.1109/TAC.1978.1101743.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad


def propagator(
    A: Float[Tensor, "*batch latent latent"], b: Float[Tensor, "*batch latent"], dt: Float[Tensor, "*batch"]
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
    z: Float[Tensor, "*batch latent"],
    A: Float[Tensor, "*batch latent latent"],
    b: Float[Tensor, "*batch latent"],
    dt: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch latent"]:
    """State `dt` later (earlier for negative `dt`), in the precision of `z`."""
    Phi, c = propagator(A, b, dt)
    return ((Phi @ z.double().unsqueeze(-1)).squeeze(-1) + c).to(z.dtype)


def velocity(
    z: Float[Tensor, "*batch latent"], A: Float[Tensor, "*batch latent latent"], b: Float[Tensor, "*batch latent"]
) -> Float[Tensor, "*batch latent"]:
    """dz/dt = A z + b."""
    return (A @ z.unsqueeze(-1)).squeeze(-1) + b


def noise_covariance(
    A: Float[Tensor, "*batch latent latent"], Q: Float[Tensor, "*batch latent latent"], dt: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch latent latent"]:
    """Covariance that the process noise adds over `dt`: the integral of exp(A s) Q exp(A s)' over s from 0 to `dt`.

    Van Loan: exp([[-A, Q], [0, A']] dt) = [[., G], [0, H]] gives it as H' G.

    Raises
    ------
    ValueError : for a negative `dt`, where the integral is not a covariance.
    """
    if bool((dt < 0).any()):
        earliest = float(dt.min())
        msg = f"A covariance cannot be carried back in time (dt = {earliest:g}). Use `flow`, which can, for the states."
        raise ValueError(msg)
    d = A.shape[-1]
    A, Q, dt = torch.broadcast_tensors(A.double(), Q.double(), dt.double()[..., None, None])
    block = torch.cat([torch.cat([-A, Q], dim=-1), torch.cat([torch.zeros_like(A), A.mT], dim=-1)], dim=-2)
    solution = torch.matrix_exp(dt[..., :1, :1] * block)
    covariance = solution[..., d:, d:].mT @ solution[..., :d, d:]
    return (covariance + covariance.mT) / 2


def moments(
    A: Float[Tensor, "*batch latent latent"],
    b: Float[Tensor, "*batch latent"],
    mean0: Float[Tensor, "*batch latent"],
    cov0: Float[Tensor, "*batch latent latent"],
    Q: Float[Tensor, "*batch latent latent"],
    times: Float[Tensor, " time"],
) -> tuple[Float[Tensor, "*batch time latent"], Float[Tensor, "*batch time latent latent"]]:
    """Mean and covariance at `times` of a Gaussian cloud that starts as N(mean0, cov0) at time 0, in float64.

    dmu/dt = A mu + b and dS/dt = A S + S A' + Q.

    Raises
    ------
    ValueError : for a negative time (see `noise_covariance`).
    """
    A, b, Q = A.unsqueeze(-3), b.unsqueeze(-2), Q.unsqueeze(-3)
    Phi, c = propagator(A, b, times)
    mean = (Phi @ mean0.double()[..., None, :, None]).squeeze(-1) + c
    cov = Phi @ cov0.double().unsqueeze(-3) @ Phi.mT + noise_covariance(A, Q, times)
    return mean, cov
