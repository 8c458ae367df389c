"""Group dynamics fitted directly to an existing representation of cells, without a VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from tqdm import tqdm

from dynapath._times import in_decimals

from .choose_groups import GroupChoice, candidate_groups, choose_n_groups
from .fit_mixture import refit_proportions
from .group_dynamics import GroupDynamics, TimeScale
from .mixture import Growth, LinearMixture, Share


def fit_representation(
    points: ArrayLike,
    times: ArrayLike,
    *,
    n_groups: int | Sequence[int] | Literal["auto"],
    growth: Growth = "shrunk",
    labels: ArrayLike | None = None,
    share: Share = "none",
    tie_initial: bool = False,
    floor: float = 1e-3,
    relaxation: float = 0.0,
    ridge: float = 0.01,
    growth_penalty: float = 1.0,
    n_restarts: int = 12,
    n_steps: int = 400,
    random_state: int | None = 0,
    progress: bool = False,
) -> tuple[GroupDynamics, GroupChoice]:
    """Fit the mixture of group dynamics to points of any scale, seen at any times.

    Parameters
    ----------
    points
        (cell, dimension). Centred, and scaled by one number for all dimensions, inside.
    times
        (cell,), in any unit.
    n_groups
        Number of groups K; or several, of which the one with the lowest BIC is taken, `"auto"` for 1 to 6.
    labels
        Known group of each cell; any number outside 0..K-1, for the smallest K, for unknown.
    share, tie_initial, floor, relaxation, ridge, growth_penalty
        As in :class:`dynapath.models.Prior`.

    Returns
    -------
    The dynamics in the units of `points` and `times`, and what the restarts found (in the scaled units) for each number of
    groups that was tried.
    """
    candidates = candidate_groups(n_groups)
    points, times = np.asarray(points, dtype=float), in_decimals(times)
    centre, scale = points.mean(0), float(np.sqrt(points.var(0).mean()))
    # Coordinates that are all the same differ from their mean by rounding: no scale must blow that up.
    scale = scale if scale > 1e-12 * np.abs(points).max() else 1.0
    time_scale = TimeScale.of(times)
    distinct, index = np.unique(time_scale.scaled(times), return_inverse=True)
    z = torch.as_tensor((points - centre) / scale, dtype=torch.float32)
    index, distinct = torch.as_tensor(index), torch.as_tensor(distinct)
    known = None
    if labels is not None:
        codes = np.asarray(labels, dtype=np.int64)
        known = torch.as_tensor(np.where((codes >= 0) & (codes < candidates[0]), codes, -1))
    shape = {"share": share, "tie_initial": tie_initial, "growth": growth, "floor": floor, "relaxation": relaxation}
    structure = LinearMixture(1, points.shape[1], **shape)
    with tqdm(
        total=len(candidates) * n_steps, desc="mixture", disable=not progress, leave=False, mininterval=0.5
    ) as bar:
        choice = choose_n_groups(
            z,
            index,
            distinct,
            candidates=candidates,
            structure=structure,
            labels=known,
            ridge=ridge,
            growth_penalty=growth_penalty,
            n_restarts=n_restarts,
            n_steps=n_steps,
            random_state=random_state,
            on_step=lambda _: bar.update(),
        )
    mixture = choice.fit.mixture
    refit_proportions(mixture, z.double(), index, distinct, labels=known)
    if known is None:
        mixture.reorder_by_start()
    return GroupDynamics(mixture, times, centre, scale), choice
