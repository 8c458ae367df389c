"""What the program is given besides its parameters: tensors with the units along their first axis, and shared ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynapath._names import as_text

from .small import take, units_last


@dataclass(frozen=True)
class Arguments:
    """Tensors by name; those in `shared` are the same for every unit."""

    by_unit: dict[str, Tensor]
    shared: dict[str, Tensor]
    units: pd.Index

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.units)

    def take(self, rows: Tensor) -> Arguments:
        """Some units, possibly repeated."""
        some = {name: take(value, rows) for name, value in self.by_unit.items()}
        return replace(self, by_unit=some, units=self.units[rows.numpy()])

    def shapes(self) -> str:
        """What one unit's arguments look like, for messages."""
        parts = [f"{name} {tuple(value.shape[1:])}" for name, value in self.by_unit.items()]
        parts += [f"{name} {tuple(value.shape)}" for name, value in self.shared.items()]
        return ", ".join(parts) or "none"

    def with_nan(self, row: int) -> list[str]:
        """Names of arguments that are not finite for a unit."""
        values = {name: value[row] for name, value in self.by_unit.items()} | self.shared
        return [name for name, value in values.items() if not bool(torch.isfinite(value).all())]


def arguments_of(
    data: Mapping[str, Any], *, per: str, shared: Sequence[str] = (), units: pd.Index | None = None
) -> Arguments:
    """Tensors of arrays.

    Raises
    ------
    ValueError : if the first axes of the arrays differ (with `per="unit"`), or there are none.
    TypeError : for text and other things that are no numbers.
    """
    unknown = [name for name in shared if name not in data]
    if unknown:
        msg = f"shared names {unknown[0]!r}, which is not in data; there are {', '.join(data) or 'none'}."
        raise KeyError(msg)
    tensors = {str(name): tensor_of(str(name), value) for name, value in data.items()}
    if per == "all":
        return Arguments(
            {name: value.unsqueeze(0) for name, value in tensors.items()}, {}, pd.Index(["all"], dtype=object)
        )
    by_unit = {name: value for name, value in tensors.items() if name not in shared}
    sizes = {name: len(value) if value.ndim else None for name, value in by_unit.items()}
    if not sizes:
        msg = "data has no array with the units along its first axis. Give one, or use per='all'."
        raise ValueError(msg)
    if None in sizes.values() or len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in by_unit.items())
        msg = (
            f"With per='unit' the first axis of every array must be the units; the shapes are {found}. Name arrays that "
            "are the same for all units in shared=(...), or use per='all' for one set of parameters."
        )
        raise ValueError(msg)
    n = next(iter(sizes.values()))
    if n == 0:
        msg = "data has no units: the first axis of its arrays is empty."
        raise ValueError(msg)
    if units is None:
        units = next((value.index for value in data.values() if isinstance(value, pd.Series | pd.DataFrame)), None)
    if units is None or len(units) != n:
        units = pd.RangeIndex(n)
    by_unit = {name: units_last(value) for name, value in by_unit.items()}
    return Arguments(by_unit, {name: tensors[name] for name in shared}, as_text(units))


def tensor_of(name: str, value: Any) -> Tensor:
    """A tensor of float64, or of whole numbers or True and False as they are."""
    if isinstance(value, Tensor):
        array = value.detach().cpu()
    else:
        if hasattr(value, "toarray"):
            value = value.toarray()
        found = np.asarray(value)
        if found.dtype.kind not in "biuf":
            try:
                found = np.asarray(value, dtype=np.float64)
            except (TypeError, ValueError) as error:
                msg = (
                    f"data[{name!r}] holds {found.dtype}, and a program computes with numbers. Recode it first, e.g. "
                    "pd.get_dummies or .cat.codes."
                )
                raise TypeError(msg) from error
        array = torch.from_numpy(np.ascontiguousarray(found if found.dtype.kind != "u" else found.astype(np.int64)))
    return array.to(torch.float64) if array.is_floating_point() else array


def argument_names(program: Callable[..., Tensor]) -> tuple[list[str], list[str], bool]:
    """Names that a program requires besides its parameters, those it can do without, and whether it takes any other.

    Raises
    ------
    TypeError : for something that is no function of parameters.
    """
    if not callable(program):
        msg = f"program must be a function program(params, **data); it is a {type(program).__name__}."
        raise TypeError(msg)
    found = list(inspect.signature(program).parameters.values())
    if not found or found[0].kind == inspect.Parameter.KEYWORD_ONLY:
        msg = "program takes no parameters. Its first argument must be the dict of parameters: program(params, **data)."
        raise TypeError(msg)
    named = [p for p in found[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    optional = [p.name for p in named if p.default is not p.empty]
    return required, optional, any(p.kind == p.VAR_KEYWORD for p in found)


def check_names(program: Callable[..., Tensor], names: Sequence[str]) -> None:
    """Whether the program takes what data offers.

    Raises
    ------
    KeyError : naming what is missing, or too much.
    """
    required, optional, anything = argument_names(program)
    missing = [name for name in required if name not in names]
    if missing:
        msg = f"program asks for {missing[0]!r}, which is not in data; there are {', '.join(names) or 'none'}."
        raise KeyError(msg)
    extra = [name for name in names if name not in (*required, *optional)]
    if extra and not anything:
        msg = (
            f"data has {extra[0]!r}, which program does not take; it takes {', '.join((*required, *optional)) or 'none'}. "
            "Leave it out of data, or add it to the arguments of the program."
        )
        raise KeyError(msg)


def repeated(units: pd.Index, times: int) -> NDArray[np.object_]:
    """Every unit's name `times` times."""
    return np.repeat(units.to_numpy(dtype=object), times)
