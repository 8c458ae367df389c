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

    Van Loan: exp([[-A, Q], [0, A']] dt) = [[., G], [0, H]] gives it as H' G.

    Raises
    ------
    ValueError : for a negative `dt`, where the integral is not a covariance.
    """
    A, Q, dt = torch.broadcast_tensors(A.double(), Q.double(), dt.double()[..., None, None])
    return _van_loan(A, Q, dt)[1]


def _van_loan(A: Tensor, Q: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """exp(A dt) and the noise covariance from one block exponential; all three of one shape."""
    if bool((dt < 0).any()):
        msg = (
            f"A covariance cannot be carried back in time (dt = {float(dt.min()):g}). Use `flow`, which can, for the "
            "states."
        )
        raise ValueError(msg)
    d = A.shape[-1]
    block = torch.cat([torch.cat([-A, Q], dim=-1), torch.cat([torch.zeros_like(A), A.mT], dim=-1)], dim=-2)
    solution = torch.matrix_exp(dt[..., :1, :1] * block)
    Phi = solution[..., d:, d:].mT
    covariance = Phi @ solution[..., :d, d:]
    return Phi, (covariance + covariance.mT) / 2


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
    order = torch.argsort(times)
    steps = torch.diff(times[order].double(), prepend=times.new_zeros(1, dtype=torch.float64))
    # Steps that differ only by the rounding of the times count as equal.
    kinds, kind = torch.unique(torch.round(steps, decimals=6), return_inverse=True)
    lengths = torch.zeros_like(kinds).scatter_reduce(0, kind, steps, "mean", include_self=False)
    moving = kinds != 0
    Phi, c, P = _transition(A, b, Q, lengths[moving])
    column = (moving.long().cumsum(0) - 1).tolist()
    mean, cov = mean0.double(), cov0.double()
    means, covs = [], []
    for k in kind.tolist():
        if moving[k]:
            forward = Phi[..., column[k], :, :]
            mean = (forward @ mean.unsqueeze(-1)).squeeze(-1) + c[..., column[k], :]
            cov = forward @ cov @ forward.mT + P[..., column[k], :, :]
        means.append(mean)
        covs.append(cov)
    back = torch.argsort(order)
    return torch.stack(means, -2)[..., back, :], torch.stack(covs, -3)[..., back, :, :]


def _transition(A: Tensor, b: Tensor, Q: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Phi, c and the noise covariance of steps `dt` (step,): Van Loan's block exponential of the augmented system.

    The constant 1 appended to the state carries the drift, so one exponential of size 2 (d + 1) gives all three.
    """
    d = A.shape[-1]
    augmented = pad(torch.cat([A, b.unsqueeze(-1)], dim=-1).double(), (0, 0, 0, 1))
    noise = pad(Q.double(), (0, 1, 0, 1))
    augmented, noise, dt = torch.broadcast_tensors(augmented.unsqueeze(-3), noise.unsqueeze(-3), dt[:, None, None])
    Phi_c, P = _van_loan(augmented, noise, dt)
    return Phi_c[..., :d, :d], Phi_c[..., :d, d], P[..., :d, :d]
