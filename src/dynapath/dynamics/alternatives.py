"""Other explanations of the same points: restarts that found other groups, refitted to the points as they are now.

A restart is compared with the fit when both have converged, by the total log-likelihood with proportions at their maximum.
Within 2 units the points do not tell them apart. In a latent space that has adapted to the fit this is a strict test: another
explanation had no chance to bend the space its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from .fit_mixture import SAME_GROUPS, descend, refit_proportions, thin
from .group_dynamics import GroupDynamics
from .mixture import LinearMixture, marginal_log_prob

# Units of log-likelihood, of all points together.
EQUIVALENT = 2.0


@dataclass(frozen=True)
class Alternatives:
    """Explanations other than the fit, best first.

    Attributes
    ----------
    mixture
        One copy for each; group k is the one that shares most points with group k of the fit.
    log_likelihood
        Of all points, minus that of the fit refitted in the same way.
    agreement
        Adjusted Rand index between its groups and those of the fit.
    """

    mixture: LinearMixture
    log_likelihood: NDArray[np.float64]
    agreement: NDArray[np.float64]

    def to_arrays(self, fit: GroupDynamics) -> dict[str, Any]:
        """As arrays, with the units of `fit`."""
        table = {"log_likelihood": self.log_likelihood, "agreement": self.agreement}
        return {**table, "dynamics": fit.with_mixture(self.mixture).to_arrays()}


def table_of(arrays: Mapping[str, Any] | None) -> dict[str, NDArray]:
    """Columns with one entry per alternative of `Alternatives.to_arrays`; empty for None."""
    arrays = {"log_likelihood": (), "agreement": ()} if arrays is None else arrays
    difference, agreement = (np.asarray(arrays[name], dtype=float) for name in ("log_likelihood", "agreement"))
    return {
        "alternative": np.arange(len(difference)),
        "log_likelihood": difference,
        "agreement": agreement,
        "equivalent": difference > -EQUIVALENT,
    }


@torch.no_grad()
def swapped_links(mixture: LinearMixture, times: Float[Tensor, " time"]) -> LinearMixture | None:
    """Candidates in which two groups trade their ends: each drifts straight to where the other is at the last time.

    Two snapshots cannot tell such links apart, and restarts do not look for them, since they start on the shortest ways.

    Returns
    -------
    One copy for each pair of groups; None for a single group, and where groups share their rates.
    """
    if mixture.n_groups < 2 or mixture.share != "none":
        return None
    span = times.max()
    end = mixture.at(span.reshape(1)).mean[:, 0]
    candidates = []
    for pair in combinations(range(mixture.n_groups), 2):
        one = LinearMixture.stack([mixture]).select(0)
        for k, other in (pair, pair[::-1]):
            one._A[k] = 0
            one._b[k] = (end[other] - one.initial_mean[k]) / span
        candidates.append(one)
    return LinearMixture.stack(candidates)


def refit_alternatives(
    mixture: LinearMixture,
    candidates: LinearMixture,
    z: Float[Tensor, "cell latent"],
    time_index: Int[Tensor, " cell"],
    times: Float[Tensor, " time"],
    *,
    labels: Int[Tensor, " cell"] | None = None,
    ridge: float = 0.01,
    growth_penalty: float = 1.0,
    n_steps: int = 300,
    lr: float = 0.03,
    max_cells: int = 5000,
    random_state: int | None = 0,
) -> Alternatives | None:
    """Refit candidates, and the fit with them, from where they are until they have converged.

    Parameters
    ----------
    mixture
        The fit; it is not changed.
    candidates
        Copies such as `MixtureFit.alternatives`.
    z, time_index, times, labels, ridge, growth_penalty
        As the fit had them, the points where they are now.
    n_steps, lr, max_cells
        As in `bootstrap_mixture`.

    Returns
    -------
    What is left after candidates that ran into the fit, into each other or out of the finite numbers are dropped; None if
    nothing is.
    """
    kept = thin(time_index, max_cells, np.random.default_rng(random_state))
    n_all = len(z)
    z, time_index = z[kept].detach(), time_index[kept]
    labels = None if labels is None else labels[kept]
    copies = LinearMixture.stack([mixture, *(candidates.select(i) for i in range(candidates.n_copies or 0))])

    def loss(_: int) -> Tensor:
        log_prob = marginal_log_prob(copies.at(times).joint_log_prob(z, time_index), labels).mean(-1)
        return ridge * copies.ridge_penalty() + growth_penalty * copies.growth_penalty() - log_prob

    descend(copies, loss, n_steps=n_steps, lr=lr, cooling=True)
    refit_proportions(copies, z, time_index, times, labels=labels)
    with torch.no_grad():
        joint = copies.at(times).joint_log_prob(z.double(), time_index)
        reached = marginal_log_prob(joint, labels).sum(-1).numpy() * n_all / len(z)
        shared = mixture.at(times).joint_log_prob(z.double(), time_index).softmax(-1).mT @ joint.softmax(-1)
    groups = joint.argmax(-1).numpy()
    found, others = [], [groups[0]]
    for i in 1 + np.argsort(-np.nan_to_num(reached[1:], nan=-np.inf), kind="stable"):
        unlike = all(adjusted_rand_score(groups[i], other) < SAME_GROUPS for other in others)
        if np.isfinite(reached[i]) and unlike:
            found.append(int(i))
            others.append(groups[i])
    if not found:
        return None
    chosen = []
    for i in found:
        one = copies.select(i)
        one.reorder(linear_sum_assignment(-shared[i].numpy())[1].tolist())
        chosen.append(one)
    agreement = np.array([adjusted_rand_score(groups[0], groups[i]) for i in found])
    return Alternatives(LinearMixture.stack(chosen), reached[found] - reached[0], agreement)
