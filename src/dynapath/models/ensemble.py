"""Members that differ only in their seed: their spread is what data and training leave open.

Each member has a latent space of its own. Members encode the same cells, so an affine map by least squares carries states
and velocities of one into the latent space of the first, the reference; groups are matched by the cells they share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from dynapath.metrics import AffineMap

from .dynamic_vae import DynamicVAE


@dataclass(frozen=True)
class Ensemble:
    """Fitted members on the same cells, and the way from each latent space to the reference's.

    Attributes
    ----------
    members
        The first is the reference, whose states stand in `obsm`. Group k is the same group in all of them.
    to_reference
        For each member, the affine map of its latent space to that of the reference.
    """

    members: tuple[DynamicVAE, ...]
    to_reference: tuple[AffineMap, ...]

    def __len__(self) -> int:
        """Number of members."""
        return len(self.members)

    def __repr__(self) -> str:
        """How many members, and what each is."""
        return f"Ensemble of {len(self)} members. {self.members[0]._model_summary_string}"


def member_seed(seed: int, member: int) -> int:
    """Seed of a member. The first takes the fit's own, so the reference is the fit without an ensemble."""
    return seed if member == 0 else int(np.random.SeedSequence([seed, member]).generate_state(1)[0])


def matching_order(reference: ArrayLike, other: ArrayLike) -> NDArray[np.int64]:
    """For each group of the reference, the group of another member with which it shares most cells.

    Parameters
    ----------
    reference, other
        Responsibilities (cell, group) of the same cells.
    """
    shared = np.asarray(reference, dtype=float).T @ np.asarray(other, dtype=float)
    return linear_sum_assignment(-shared)[1]
