"""What a model makes of the cells at one moment of its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynapath.dynamics.group_dynamics import GroupDynamics


@dataclass(frozen=True)
class Stage:
    """One moment of the training of a dynamic VAE.

    Parameters
    ----------
    name
        `"untrained"`; `"static"`: after the static phase, with the mixture fitted to its latent space, which is where the
        joint phase starts; `"joint"`: the fit itself.
    epoch
        Number of epochs before it.
    z
        Encoded cells (cell, latent), posterior means.
    dynamics
        The groups; None before there are any, when the prior is N(0, I).
    """

    name: str
    epoch: int
    z: NDArray[np.floating]
    dynamics: GroupDynamics | None

    def to_arrays(self) -> dict[str, Any]:
        """All but the cells, which are stored on their own rows."""
        return {"epoch": self.epoch, "dynamics": None if self.dynamics is None else self.dynamics.to_arrays()}

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, Any], z: NDArray[np.floating]) -> Stage:
        """Inverse of `to_arrays`."""
        known = arrays.get("dynamics")
        return cls(name, int(arrays["epoch"]), z, None if known is None else GroupDynamics.from_arrays(known))
