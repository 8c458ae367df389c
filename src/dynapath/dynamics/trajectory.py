r"""States of a differential equation at given times, to be used inside of programs.

Linear equations du/dt = A u + b are solved by the matrix exponential (linear.py). For du/dt = f(t, u) every interval
between two times is cut into equal steps of Dormand and Prince's fifth-order formula (1980,
doi:10.1016/0771-050X(80)90013-3): a fixed number of them, so that many units can be solved at once and derivatives of any
order pass through. Adaptive steps are those of torchdiffeq (Chen et al. 2018, arXiv:1806.07366).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .integrate import odeint_within
from .linear import propagator

# Stages of the formula: the weights of the slopes before, and those of the result.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
_RESULT = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)


def solve(
    system: Tensor | tuple[Tensor, Tensor] | Callable[[Tensor, Tensor], Tensor],
    u0: Float[Tensor, "*#batch state"],
    times: Float[Tensor, "*#batch time"],
    *,
    t0: float = 0.0,
    method: str = "auto",
    n_steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Float[Tensor, "*batch time state"]:
    """States at `times` of a system that is in `u0` at `t0`.

    Parameters
    ----------
    system
        A matrix A for du/dt = A u, a pair (A, b) for du/dt = A u + b, or a function f(t, u) for du/dt.
    u0
        State at `t0`; leading dimensions broadcast with those of A, b and `times`.
    times
        In any order, before `t0` too, and the same time more than once. With `"steps"`, the steps go from each time to the
        next as they are given, so that sorted times take the shortest way.
    t0
        When the system is in `u0`.
    method
        `"auto"`: exact for linear systems, `"steps"` for functions. `"steps"`: a fixed number of steps, which is what
        :func:`dynapath.stats.estimate` can vectorise. A solver of torchdiffeq, such as `"dopri5"`: adaptive steps, outside
        of such programs, with `times` that all rows share. None asks the function for a time outside of the range of `t0`
        and `times`.
    n_steps
        Steps of `"steps"` from one time to the next, by default 10. The error falls with the fifth power: compare with twice as many.
    rtol, atol
        Tolerances of adaptive solvers, by default 1e-8 and 1e-10.

    Returns
    -------
    (..., time, state)

    Raises
    ------
    TypeError : for a system that is neither.
    ValueError : for shapes that do not fit, and for steps or tolerances that the method does not have.

    Examples
    --------
    >>> import torch, dynapath as dp
    >>> A = torch.tensor([[-1.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
    >>> u0 = torch.tensor([2.0, 1.0], dtype=torch.float64)
    >>> dp.dynamics.solve(A, u0, torch.tensor([0.0, 1.0], dtype=torch.float64))
    tensor([[2.0000, 1.0000],
            [0.7358, 3.8935]], dtype=torch.float64)
    """
    if u0.ndim < 1 or times.ndim < 1:
        msg = f"u0 needs an axis of states and times an axis of times; their shapes are {tuple(u0.shape)} and {tuple(times.shape)}."
        raise ValueError(msg)
    if callable(system):
        in_steps = method in ("auto", "steps")
        _refuse(
            {"rtol": rtol, "atol": atol} if in_steps else {"n_steps": n_steps},
            "a fixed number of steps has no tolerances" if in_steps else f"method={method!r} chooses its steps itself",
        )
        n_steps, rtol, atol = (
            default if value is None else value for value, default in ((n_steps, 10), (rtol, 1e-8), (atol, 1e-10))
        )
        if in_steps:
            return _in_steps(system, u0, times, t0, n_steps)
        if times.ndim > 1:
            msg = f"method={method!r} needs times that all rows share, of one axis; they have the shape {tuple(times.shape)}."
            raise ValueError(msg)
        return _adaptively(system, u0, times, t0, method, rtol, atol)
    if method != "auto":
        msg = f"A linear system is solved exactly; method={method!r} is for functions f(t, u)."
        raise ValueError(msg)
    _refuse({"n_steps": n_steps, "rtol": rtol, "atol": atol}, "a linear system is solved exactly")
    return _exactly(system, u0, times, t0)


def _refuse(unused: Mapping[str, object], reason: str) -> None:
    """Arguments that have no meaning for the method, if any was given."""
    for name, value in unused.items():
        if value is not None:
            msg = f"{name}={value!r} has no part here: {reason}. Leave it out."
            raise ValueError(msg)


def _exactly(system: Tensor | tuple[Tensor, Tensor], u0: Tensor, times: Tensor, t0: float) -> Tensor:
    A, b = system if isinstance(system, tuple | list) else (system, None)
    if not isinstance(A, Tensor) or A.ndim < 2:
        msg = f"system must be a matrix A, a pair (A, b), or a function f(t, u); it is {type(system).__name__}."
        raise TypeError(msg)
    d = u0.shape[-1]
    if A.shape[-2:] != (d, d) or (b is not None and b.shape[-1] != d):
        msg = f"A has the shape {tuple(A.shape)}, b {'none' if b is None else tuple(b.shape)}, but u0 has {d} states."
        raise ValueError(msg)
    elapsed = times - t0
    if b is None:
        flow = torch.matrix_exp(elapsed[..., None, None] * A.unsqueeze(-3))
        return (flow @ u0[..., None, :, None])[..., 0]
    flow, drift = propagator(A.unsqueeze(-3), b.unsqueeze(-2).expand(*b.shape[:-1], 1, d), elapsed)
    return ((flow @ u0.double()[..., None, :, None])[..., 0] + drift).to(u0.dtype)


def _adaptively(
    field: Callable[[Tensor, Tensor], Tensor],
    u0: Tensor,
    times: Tensor,
    t0: float,
    method: str,
    rtol: float,
    atol: float,
) -> Tensor:
    """Solved forwards and backwards from `t0` to the distinct times."""
    if not torch.isfinite(times).all():
        msg = f"times must be finite; the one in position {int((~torch.isfinite(times)).nonzero()[0])} is not."
        raise ValueError(msg)
    order = torch.argsort(times, stable=True)
    ordered = times[order]
    new = torch.diff(ordered, prepend=ordered[:1] - 1) > 0
    distinct, place = ordered[new].detach(), torch.empty_like(order).scatter(0, order, new.cumsum(0) - 1)
    start = torch.as_tensor(t0, dtype=times.dtype, device=times.device)[None]

    def leg(there: Tensor) -> Tensor:
        if not len(there):
            return u0.new_empty(0, *u0.shape)
        return odeint_within(field, u0, torch.cat([start, there]), rtol=rtol, atol=atol, method=method)[1:]

    before, after = leg(distinct[distinct < start].flip(0)).flip(0), leg(distinct[distinct > start])
    found = torch.cat([before, u0.expand(int((distinct == start).sum()), *u0.shape), after])
    found = found[place]
    if times.requires_grad:
        # Times that are the same have derivatives of their own: the field where they are.
        fixed = times.detach()
        rates = torch.stack([field(t, u) for t, u in zip(fixed, found, strict=True)])
        found = found + (times - fixed).reshape(-1, *[1] * u0.ndim) * rates
    return found.movedim(0, -2)


def _in_steps(field: Callable[[Tensor, Tensor], Tensor], u0: Tensor, times: Tensor, t0: float, n_steps: int) -> Tensor:
    if n_steps < 1:
        msg = f"n_steps must be at least 1; it is {n_steps!r}."
        raise ValueError(msg)
    # Times of rows get an axis beside the states, so that t and u broadcast.
    at = lambda j: times[..., j].unsqueeze(-1) if times.ndim > 1 else times[j]
    t, u, out = torch.as_tensor(t0, dtype=times.dtype), u0, []
    for j in range(times.shape[-1]):
        h = (at(j) - t) / n_steps
        for i in range(n_steps):
            u = _step(field, t + i * h, u, h)
        t = at(j)
        out.append(u)
    out = torch.broadcast_tensors(*out)
    return torch.stack(out, dim=-2)


def _step(field: Callable[[Tensor, Tensor], Tensor], t: Tensor, u: Tensor, h: Tensor) -> Tensor:
    slopes = [field(t, u)]
    for weights, node in zip(_STAGES, _NODES[1:], strict=True):
        there = u + h * sum(w * k for w, k in zip(weights, slopes, strict=True))
        slopes.append(field(t + node * h, there))
    return u + h * sum(w * k for w, k in zip(_RESULT, slopes, strict=True) if w)
