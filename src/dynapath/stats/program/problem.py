"""The program, vectorised over units and differentiated.

`torch.func.vmap` runs the program for all units at once, `torch.func.jvp` carries a derivative along. Of residuals r the
loss is f = r'r / 2, with g = J'r and the curvature of Gauss and Newton, H = J'J. Of a negative log-likelihood it is the
sum f, with its gradient and its Hessian (forward over reverse).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value, jvp, vmap

from .arguments import Arguments
from .parameters import Parameters
from .small import gram, take

Kind = Literal["nll", "loglik", "residuals"]
# Numbers that one evaluation may hold at once; more units are taken in parts.
_MOST = 3e7


@dataclass(frozen=True)
class Expansion:
    """Loss, gradient and curvature of each unit at some point."""

    f: Float[Tensor, " unit"]
    g: Float[Tensor, "unit k"]
    H: Float[Tensor, "unit k k"]

    def take(self, rows: Tensor) -> Expansion:
        """Some units."""
        return Expansion(self.f[rows], take(self.g, rows), take(self.H, rows))


@dataclass(frozen=True)
class Problem:
    """A program with its data, as a loss of free numbers u (unit, k)."""

    program: Callable[..., Tensor]
    arguments: Arguments
    parameters: Parameters
    kind: Kind
    size: int = 1  # numbers that the program returns for one unit
    shift: Float[Tensor, "unit size"] | None = None  # added to the residuals: a simulated data set
    seed: int | None = None  # of a program that draws random numbers

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.arguments.n_units

    def take(self, rows: Tensor) -> Problem:
        """Some units, possibly repeated."""
        shift = None if self.shift is None else self.shift.index_select(0, rows)
        return replace(self, arguments=self.arguments.take(rows), shift=shift)

    def run(self, u: Float[Tensor, " k"], by_unit: dict[str, Tensor]) -> Tensor:
        """The program for one unit, as it is."""
        return self.program(self.parameters.unpack(u), **by_unit, **self.arguments.shared)

    def terms(self, u: Float[Tensor, " k"], by_unit: dict[str, Tensor]) -> Float[Tensor, " size"]:
        """Residuals of one unit, or its terms of the negative log-likelihood."""
        out = self.run(u, by_unit).reshape(-1)
        return -out if self.kind == "loglik" else out

    def loss(self, u: Float[Tensor, "unit k"]) -> Float[Tensor, " unit"]:
        """F of every unit."""

        def one(u: Tensor, by_unit: dict[str, Tensor], shift: Tensor | None) -> Tensor:
            terms = self.terms(u, by_unit)
            if self.kind != "residuals":
                return terms.sum()
            terms = terms if shift is None else terms + shift
            return 0.5 * (terms * terms).sum()

        (found,) = self._map(lambda *unit: (one(*unit),), u, numbers=self.size)
        return found

    def values(self, u: Float[Tensor, "unit k"]) -> Float[Tensor, "unit size"]:
        """Terms of every unit."""
        (found,) = self._map(lambda u, by_unit, _: (self.terms(u, by_unit),), u, numbers=self.size)
        return found if self.shift is None else found + self.shift

    def jacobian(self, u: Float[Tensor, "unit k"]) -> tuple[Float[Tensor, "unit size"], Float[Tensor, "unit k size"]]:
        """Terms of every unit, and their derivatives."""
        eye = torch.eye(u.shape[1], dtype=u.dtype)

        def one(u: Tensor, by_unit: dict[str, Tensor], _: Tensor | None) -> tuple[Tensor, Tensor]:
            terms = lambda u: self.terms(u, by_unit)
            value, slope = vmap(lambda v: jvp(terms, (u,), (v,)))(eye)
            return value[0], slope

        value, slope = self._map(one, u, numbers=self.size * (u.shape[1] + 1))
        return value if self.shift is None else value + self.shift, slope

    def gradient(self, u: Float[Tensor, "unit k"]) -> tuple[Float[Tensor, " unit"], Float[Tensor, "unit k"]]:
        """F and its gradient, in reverse mode: for many parameters."""

        def one(u: Tensor, by_unit: dict[str, Tensor], shift: Tensor | None) -> tuple[Tensor, Tensor]:
            slope, value = grad_and_value(lambda u: self._total(u, by_unit, shift))(u)
            return value, slope

        return self._map(one, u, numbers=self.size * 4)

    def expand(self, u: Float[Tensor, "unit k"]) -> Expansion:
        """Loss, gradient and curvature of every unit."""
        if self.kind == "residuals":
            r, J = self.jacobian(u)
            return Expansion(0.5 * (r * r).sum(1), *gram(J, r))
        eye = torch.eye(u.shape[1], dtype=u.dtype)

        def one(u: Tensor, by_unit: dict[str, Tensor], shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            both = grad_and_value(lambda u: self._total(u, by_unit, shift))
            (g, f), (H, _) = vmap(lambda v: jvp(both, (u,), (v,)))(eye)
            return f[0], g[0], H

        f, g, H = self._map(one, u, numbers=self.size * 4 * (u.shape[1] + 1))
        return Expansion(f, g, (H + H.mT) / 2)

    def _total(self, u: Tensor, by_unit: dict[str, Tensor], shift: Tensor | None) -> Tensor:
        terms = self.terms(u, by_unit)
        if self.kind != "residuals":
            return terms.sum()
        terms = terms if shift is None else terms + shift
        return 0.5 * (terms * terms).sum()

    def _map(self, one: Callable, u: Tensor, *, numbers: int) -> tuple[Tensor, ...]:
        """A function of one unit for all of them, in parts that fit into memory."""
        random = "error" if self.seed is None else "different"
        mapped = vmap(one, in_dims=(0, 0, None if self.shift is None else 0), randomness=random)
        n = len(u)
        part = max(1, int(_MOST / max(numbers, 1)))
        if part >= n:
            return mapped(u, self.arguments.by_unit, self.shift)
        found = []
        for first in range(0, n, part):
            rows = slice(first, first + part)
            some = {name: value[rows] for name, value in self.arguments.by_unit.items()}
            found.append(mapped(u[rows], some, None if self.shift is None else self.shift[rows]))
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))
