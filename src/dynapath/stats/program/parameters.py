"""Named parameters of any shape, and the flat vector of free numbers in which the search moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.func import jacfwd, vmap

from .constraints import Constraint, constraints_of


@dataclass(frozen=True)
class Parameters:
    """Names, starting values and constraints; k free numbers stand for `n_elements` numbers of the parameters."""

    start: dict[str, NDArray[np.float64]]
    constraints: dict[str, Constraint]
    names: tuple[str, ...] = field(init=False)
    free_shapes: dict[str, tuple[int, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.start))
        shapes = {name: self.constraints[name].free_shape(value.shape) for name, value in self.start.items()}
        object.__setattr__(self, "free_shapes", shapes)

    @classmethod
    def of(cls, given: str | Sequence[str] | Mapping[str, Any], constraints: Mapping[str, object] | None) -> Parameters:
        """From what the user gave: names, or names with starting values.

        Raises
        ------
        ValueError : for starting values that are not numbers, or break their constraint.
        """
        if isinstance(given, str):
            given = [given]
        if not isinstance(given, Mapping):
            given = dict.fromkeys(given)
        if not given:
            msg = "params is empty. Name the parameters with their starting values, e.g. params={'a': 0.0, 'b': np.zeros(3)}."
            raise ValueError(msg)
        names = tuple(given)
        for name in names:
            if not isinstance(name, str) or not name or "/" in name:
                msg = f"params has the name {name!r}; names must be strings without a slash."
                raise ValueError(msg)
        found = constraints_of(constraints, names)
        start = {name: _start_of(name, given[name], found[name]) for name in names}
        return cls(start, found)

    @property
    def k(self) -> int:
        """Number of free numbers."""
        return sum(prod(shape) for shape in self.free_shapes.values())

    @property
    def elementwise(self) -> bool:
        """Whether every element of every parameter has a free number of its own."""
        return all(constraint.elementwise for constraint in self.constraints.values())

    @property
    def elements(self) -> list[str]:
        """Names of all numbers: "a", "beta[0]", "A[0,1]"."""
        return [f"{name}{_at(i)}" for name, value in self.start.items() for i in np.ndindex(value.shape)]

    @property
    def free_names(self) -> list[str]:
        """Names of the free numbers, by the parameter they belong to."""
        return [
            f"{name}{_at(i)}" for name, shape in self.free_shapes.items() for i in product(*(range(n) for n in shape))
        ]

    @property
    def owner(self) -> NDArray[np.str_]:
        """Name of the parameter of each free number."""
        return np.repeat(self.names, [prod(shape) for shape in self.free_shapes.values()])

    @property
    def element_owner(self) -> NDArray[np.str_]:
        """Name of the parameter of each element."""
        return np.repeat(self.names, [value.size for value in self.start.values()])

    def free_start(self) -> Float[Tensor, " k"]:
        """The start in free numbers."""
        return torch.from_numpy(
            np.concatenate([self.constraints[name].invert(value).ravel() for name, value in self.start.items()])
        )

    def unpack(self, u: Float[Tensor, "*batch k"]) -> dict[str, Tensor]:
        """Parameters as the program sees them."""
        out, at = {}, 0
        for name, shape in self.free_shapes.items():
            n = prod(shape)
            # A single number by its index: a slice with a reshape costs twice as much under vmap.
            part = u[..., at] if not shape else u[..., at : at + n].reshape(*u.shape[:-1], *shape)
            out[name] = self.constraints[name].apply(part)
            at += n
        return out

    def flat(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch element"]:
        """All numbers of the parameters in one row."""
        values = self.unpack(u)
        return torch.cat([values[name].reshape(*u.shape[:-1], self.start[name].size) for name in self.names], dim=-1)

    def natural(self, u: Float[NDArray, "unit k"]) -> Float[NDArray, "unit element"]:
        """`flat` for arrays."""
        return self.flat(torch.from_numpy(np.ascontiguousarray(u))).numpy()

    def derivative(self, u: Float[NDArray, "unit k"]) -> Float[NDArray, "unit element k"] | None:
        """Of the parameters by the free numbers; None where they are the same."""
        if all(constraint.kind == "free" for constraint in self.constraints.values()):
            return None
        return vmap(jacfwd(self.flat))(torch.from_numpy(np.ascontiguousarray(u))).numpy()

    def by_name(self, flat: Float[NDArray, "unit element"]) -> dict[str, NDArray[np.float64]]:
        """Arrays (unit, shape of the parameter)."""
        out, at = {}, 0
        for name, value in self.start.items():
            out[name] = flat[:, at : at + value.size].reshape(len(flat), *value.shape)
            at += value.size
        return out

    def at_bound(self, u: Float[NDArray, "unit k"]) -> NDArray[np.bool_]:
        """Which free numbers (unit, k) stand for a parameter that has run to its boundary."""
        values = self.by_name(self.natural(u))
        parts = []
        for name, shape in self.free_shapes.items():
            constraint = self.constraints[name]
            if constraint.elementwise:
                parts.append(constraint.at_bound(values[name], self.start[name]).reshape(len(u), -1))
            else:
                parts.append(np.zeros((len(u), prod(shape)), dtype=bool))
        return np.concatenate(parts, axis=1)


def _at(index: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, index))}]" if index else ""


def _start_of(name: str, given: Any, constraint: Constraint) -> NDArray[np.float64]:
    if given is None:
        if not constraint.elementwise:
            msg = f"{name!r} is constrained ({constraint}) and needs starting values, which also say how many it has."
            raise ValueError(msg)
        middle = (constraint.low + constraint.high) / 2
        near = constraint.low + 1.0 if np.isfinite(constraint.low) else constraint.high - 1.0
        return np.asarray(middle if np.isfinite(middle) else near if np.isfinite(near) else 0.0)
    given = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
    try:
        value = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"The starting value of {name!r} is {given!r}; it must be a number or an array of numbers."
        raise ValueError(msg) from error
    if not value.size or not np.isfinite(value).all():
        msg = f"The starting value of {name!r} is {given!r}; it must be finite, and at least one number."
        raise ValueError(msg)
    if not constraint.holds(value):
        msg = f"The starting value of {name!r}, {value.tolist()}, is not inside its constraint ({constraint})."
        raise ValueError(msg)
    return value
