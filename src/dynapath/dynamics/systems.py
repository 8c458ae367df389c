"""Linear systems dz/dt = A z + b with parameters of each subject's own: which entries are free is the system's form.

A dynamics object has `n_latent`, `n_params`, `param_names`, `from_unit(raw)` (unconstrained numbers about (-.5, .5), as a
network makes them, to parameters: the soft prior) and `flow(dt, z, theta)`; one whose flow is Phi z + c also has
`propagator(dt, theta)`. An object of your own needs the first three names and `flow`.
Axes: theta (..., param), z (..., latent), dt (...); leading axes broadcast. Time is in the unit of dt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from . import linear
from .diagonal import growth
from .linear2 import propagator2

Form = Literal["drift", "diagonal", "offdiagonal", "full"]


class Dynamics(Protocol):
    """What moves the latent state of a subject."""

    n_latent: int
    n_params: int

    def flow(
        self, dt: Float[Tensor, "*#batch"], z: Float[Tensor, "*#batch latent"], theta: Float[Tensor, "*#batch param"]
    ) -> Float[Tensor, "*batch latent"]:
        """State `dt` later; `dt` may be negative."""


@dataclass(frozen=True)
class LinearSystem:
    """dz/dt = A z + b.

    Parameters
    ----------
    n_latent
        Latent dimensions.
    form
        Free entries of A: none (`"drift"`, where b alone moves), `"diagonal"`, `"offdiagonal"`, or all (`"full"`).
    offset
        Whether b is free; always so for `"drift"`.
    """

    n_latent: int = 2
    form: Form = "full"
    offset: bool = False

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            msg = f"The form of a linear system is one of {', '.join(get_args(Form))}; it is {self.form!r}."
            raise ValueError(msg)
        if self.n_latent < 1:
            msg = f"n_latent must be at least 1; it is {self.n_latent!r}."
            raise ValueError(msg)

    @property
    def entries(self) -> list[tuple[int, int]]:
        """Free entries of A, row by row."""
        d, on = range(self.n_latent), {"diagonal": True, "offdiagonal": False}.get(self.form)
        return [(i, j) for i in d for j in d if self.form == "full" or (on is not None and (i == j) is on)]

    @property
    def has_offset(self) -> bool:
        """Whether there is a b."""
        return self.offset or self.form == "drift"

    @property
    def param_names(self) -> tuple[str, ...]:
        """`A11`, ..., then `b1`, ..."""
        offsets = range(self.n_latent) if self.has_offset else ()
        return (*(f"A{i + 1}{j + 1}" for i, j in self.entries), *(f"b{i + 1}" for i in offsets))

    @property
    def n_params(self) -> int:
        """Length of theta."""
        return len(self.entries) + self.n_latent * self.has_offset

    @staticmethod
    def from_unit(raw: Tensor) -> Tensor:
        """Rates are what the network gives."""
        return raw

    def unpack(self, theta: Float[Tensor, "*batch param"]) -> tuple[Tensor, Tensor]:
        """A (..., latent, latent) and b (..., latent)."""
        d, entries = self.n_latent, self.entries
        A = theta.new_zeros(*theta.shape[:-1], d * d)
        if entries:
            A[..., [i * d + j for i, j in entries]] = theta[..., : len(entries)]
        b = theta[..., len(entries) :] if self.has_offset else theta.new_zeros(*theta.shape[:-1], d)
        return A.unflatten(-1, (d, d)), b

    def vector_field(self, t: Tensor, z: Tensor, theta: Tensor) -> Tensor:
        """A z + b."""
        return linear.velocity(z, *self.unpack(theta))

    def propagator(
        self, dt: Float[Tensor, "*#batch"], theta: Float[Tensor, "*#batch param"]
    ) -> tuple[Float[Tensor, "*batch latent latent"], Float[Tensor, "*batch latent"]]:
        """Phi and c with z(t + dt) = Phi z(t) + c, in the precision of `theta`."""
        d, n = self.n_latent, len(self.entries)
        if self.form in ("drift", "diagonal"):
            rate = theta[..., :n] if n else torch.zeros_like(theta)
            step = dt.unsqueeze(-1)
            Phi = torch.diag_embed((rate * step).exp())
            return Phi, growth(rate, step) * theta[..., n:] if self.has_offset else Phi.new_zeros(Phi.shape[:-1])
        A, b = self.unpack(theta)
        if d == 2:
            Phi, c = propagator2(A, b if self.has_offset else None, dt)
            return Phi, Phi.new_zeros(Phi.shape[:-1]) if c is None else c
        Phi, c = linear.propagator(A, b, dt)
        return Phi.to(theta.dtype), c.to(theta.dtype)

    def flow(self, dt: Tensor, z: Tensor, theta: Tensor) -> Tensor:
        """State `dt` later, or earlier for negative `dt`."""
        Phi, c = self.propagator(dt, theta)
        return (Phi @ z.unsqueeze(-1)).squeeze(-1) + c
