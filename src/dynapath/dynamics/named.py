"""Dynamics by name, as fits store them."""

from __future__ import annotations

from typing import Any, get_args

from .nonlinear import LearnedField, LotkaVolterra
from .systems import Form, LinearSystem

NAMES = (*get_args(Form), "lotka_volterra", "learned")


def dynamics_by_name(name: str, n_latent: int, *, offset: bool = False, n_members: int = 1) -> Any:
    """A linear system, Lotka-Volterra, or a learned field with as many parameters of its own as latent dimensions.

    Raises
    ------
    ValueError : for an unknown name, or Lotka-Volterra with another number of dimensions than 2.
    """
    if name in get_args(Form):
        return LinearSystem(n_latent, name, offset)
    if name == "lotka_volterra":
        if n_latent != LotkaVolterra.n_latent:
            msg = f"Lotka-Volterra dynamics have 2 latent dimensions; n_latent is {n_latent}."
            raise ValueError(msg)
        return LotkaVolterra()
    if name == "learned":
        return LearnedField(n_latent, n_latent, n_members=n_members)
    msg = f"dynamics must be one of {', '.join(map(repr, NAMES))}, or an object with a flow; it is {name!r}."
    raise ValueError(msg)
