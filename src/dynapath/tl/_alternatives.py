"""Restarts with other groups, refitted to the states that the fit ended with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynapath.dynamics import GroupDynamics, LinearMixture
    from dynapath.models.options import Prior


def refitted(
    fit: GroupDynamics,
    candidates: LinearMixture | None,
    states: NDArray[np.floating],
    std: NDArray[np.floating],
    times: NDArray[np.float64],
    known: NDArray[np.int64] | None,
    prior: Prior,
    seed: int,
) -> dict[str, Any] | None:
    """What is stored of the alternatives to a fit; None where there are none.

    Parameters
    ----------
    candidates
        Restarts that came close with other groups. With two snapshots, swapped links are compared too.
    states, std
        Cells where they are now, and their posterior standard deviations: one draw is compared.
    """
    from dynapath.dynamics import LinearMixture, refit_alternatives, swapped_links

    distinct, index = np.unique(times, return_inverse=True)
    if len(distinct) == 2:
        swapped = swapped_links(fit.mixture, fit.model_times(distinct))
        found = [one.select(i) for one in (candidates, swapped) if one is not None for i in range(one.n_copies or 0)]
        candidates = LinearMixture.stack(found) if found else None
    if candidates is None:
        return None
    import torch

    z = states + std * np.random.default_rng(seed).standard_normal(states.shape)
    found = refit_alternatives(
        fit.mixture,
        candidates,
        fit.scaled(z).float(),
        torch.as_tensor(index),
        fit.model_times(distinct),
        labels=None if known is None else torch.as_tensor(known),
        ridge=prior.ridge,
        growth_penalty=prior.growth_penalty,
        random_state=seed,
    )
    return None if found is None else found.to_arrays(fit)
