"""The number of groups by the Bayesian information criterion, on points that stay as they are.

    BIC(K) = -2 sum_i log p_K(z_i | t_i) + p(K) log n,        p(K) = K (d^2 + 2 d + d (d + 1) / 2 + 2) - 2,

the smaller the better; p counts A, b, m, L, a and r, fewer where they are shared or held (`LinearMixture.n_parameters`).
All candidates see the same n points. The latent space must be frozen: one that adapts to K groups would confirm K. The
likelihood is that of the fit which is to be used, so A is where its ridge leaves it; a and r are freed from theirs.
Source: Schwarz, "Estimating the dimension of a model", Ann. Stat. 1978, doi:10.1214/aos/1176344136.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from .fit_mixture import MixtureFit, fit_mixture, refit_proportions, thin
from .mixture import LinearMixture, marginal_log_prob

# Differences up to this are "not worth more than a bare mention" (Kass & Raftery 1995, doi:10.1080/01621459.1995.10476572).
TIED = 2.0
# A group with a smaller share of the points is more often a handful of outliers than a population.
TINY = 0.02
_AUTO = 6


def candidate_groups(n_groups: int | Iterable[int] | Literal["auto"], labels: Sequence[str] = ()) -> tuple[int, ...]:
    """The numbers of groups to try, increasing: one, those given, or 1 to 6; not fewer than there are labels.

    Raises
    ------
    ValueError : for anything but one or several positive whole numbers or "auto", and where all are fewer than the labels.
    """
    if isinstance(n_groups, str) and n_groups == "auto":
        return tuple(range(max(1, len(labels)), max(_AUTO, len(labels)) + 1))
    given = list(n_groups) if isinstance(n_groups, Iterable) else [n_groups]
    if not given or not all(isinstance(number, Integral) and number >= 1 for number in given):
        msg = (
            f"n_groups must be a positive whole number, 'auto', or several numbers to choose from; it is {n_groups!r}."
        )
        raise ValueError(msg)
    numbers = sorted({int(number) for number in given})
    if len(labels) > numbers[-1]:
        msg = f"{len(labels)} labels ({', '.join(labels)}) do not fit into n_groups={numbers[-1]}. Raise n_groups."
        raise ValueError(msg)
    return tuple(number for number in numbers if number >= len(labels))


@dataclass(frozen=True)
class GroupChoice:
    """Fits with different numbers of groups to the same points, and which of them is enough.

    Attributes
    ----------
    n_groups
        Numbers of groups that were tried, increasing.
    log_likelihood
        Sum over the `n_cells` points, with the proportions at their maximum and the penalties left out.
    n_parameters
        As the criterion counts them.
    n_cells
        Points in the likelihood, after thinning.
    smallest_share
        Share of the points in the smallest group. Numbers with a group below 2 % are not chosen, unless all have one.
    fits
        The fit of each.
    """

    n_groups: NDArray[np.int64]  # (candidate,), as are the next three
    log_likelihood: NDArray[np.float64]
    n_parameters: NDArray[np.int64]
    smallest_share: NDArray[np.float64]
    n_cells: int
    fits: tuple[MixtureFit, ...]

    @property
    def bic(self) -> NDArray[np.float64]:
        """The criterion (candidate,), in units of twice the log-likelihood."""
        return -2 * self.log_likelihood + self.n_parameters * np.log(self.n_cells)

    @property
    def eligible(self) -> NDArray[np.bool_]:
        """Which could be chosen (candidate,): no group is tiny, or a tiny one is there whatever the number."""
        large = self.smallest_share >= TINY
        return large if large.any() else ~large

    @property
    def chosen(self) -> int:
        """The smallest eligible number of groups whose BIC is within 2 of the lowest of these."""
        return int(self.n_groups[self._chosen])

    @property
    def fit(self) -> MixtureFit:
        """The fit with the chosen number of groups."""
        return self.fits[self._chosen]

    @property
    def _chosen(self) -> int:
        bic = np.where(self.eligible, self.bic, np.inf)
        return int(np.argmax(bic <= bic.min() + TIED))

    def table(self) -> dict[str, NDArray]:
        """Columns with one entry per candidate.

        `n_groups`, `log_likelihood`, `n_parameters`, `bic`, `delta_bic` (above the lowest), `chosen`, `n_cells`,
        `smallest_share`, `eligible`; of the restarts, `agreement` (mean adjusted Rand index of the others with the best) and
        `restart_gap` (by how much the BIC of the second best is higher; with one restart both are NaN).
        """
        reached = [np.sort(fit.log_likelihood)[::-1] for fit in self.fits]
        gap = [2 * self.n_cells * (best[0] - best[1]) if len(best) > 1 else np.nan for best in reached]
        others = [np.delete(fit.agreement, fit.best) for fit in self.fits]
        return {
            "n_groups": self.n_groups,
            "log_likelihood": self.log_likelihood,
            "n_parameters": self.n_parameters,
            "bic": self.bic,
            "delta_bic": self.bic - self.bic.min(),
            "chosen": self.n_groups == self.chosen,
            "n_cells": np.full(len(self.fits), self.n_cells),
            "smallest_share": self.smallest_share,
            "eligible": self.eligible,
            "agreement": np.array([other.mean() if len(other) else np.nan for other in others]),
            "restart_gap": np.array(gap),
        }


def choose_n_groups(
    z: Float[Tensor, "cell latent"],
    time_index: Int[Tensor, " cell"],
    times: Float[Tensor, " time"],
    *,
    candidates: Sequence[int] = range(1, 7),
    structure: LinearMixture | None = None,
    labels: Int[Tensor, " cell"] | None = None,
    ridge: float = 0.01,
    growth_penalty: float = 1.0,
    n_restarts: int = 10,
    n_steps: int = 400,
    lr: float = 0.03,
    max_cells: int = 5000,
    random_state: int | None = 0,
    on_step: Callable[[int], None] | None = None,
) -> GroupChoice:
    """Fit mixtures with more and more groups, until two in a row have not lowered the BIC.

    Parameters
    ----------
    z, time_index, times, labels, ridge, growth_penalty, n_restarts, n_steps, lr, on_step
        As in `fit_mixture`. Labels must be below the smallest candidate.
    candidates
        Numbers of groups to try, in increasing order.
    structure
        A mixture that gives sharing, growth and floor; its number of groups is not used. By default nothing is shared.
    max_cells
        More points than this are thinned, once for all candidates; the BIC is that of the points kept. With very many
        points it would see any departure from Gaussian groups as one more group.
    random_state
        Each candidate is fitted with this seed, so it does not matter to a fit which others were tried.

    Returns
    -------
    GroupChoice : all fits, and the smallest number of groups whose BIC is within 2 of the lowest, none of them tiny.
    """
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if random_state is None else random_state
    structure = LinearMixture(1, z.shape[-1]) if structure is None else structure
    kept = thin(time_index, max_cells, np.random.default_rng(seed))
    z, time_index = z[kept].detach(), time_index[kept]
    labels = None if labels is None else labels[kept]
    n = len(z)

    tried: list[int] = []
    fits, likelihoods, n_parameters, shares = [], [], [], []
    lowest, n_above = np.inf, 0
    for n_groups in candidates:
        fit = fit_mixture(
            structure.like(n_groups=n_groups),
            z,
            time_index,
            times,
            labels=labels,
            ridge=ridge,
            growth_penalty=growth_penalty,
            n_restarts=n_restarts,
            n_steps=n_steps,
            lr=lr,
            max_cells=n,
            random_state=seed,
            on_step=on_step,
        )
        likelihood, share = _at_maximum(fit.mixture, z, time_index, times, labels)
        tried.append(n_groups)
        fits.append(fit)
        likelihoods.append(likelihood)
        n_parameters.append(fit.mixture.n_parameters())
        shares.append(share)
        bic = -2 * likelihood + n_parameters[-1] * np.log(n)
        n_above = 0 if bic < lowest else n_above + 1
        lowest = min(lowest, bic)
        if n_above == 2:
            break
    return GroupChoice(np.array(tried), np.array(likelihoods), np.array(n_parameters), np.array(shares), n, tuple(fits))


@torch.no_grad()
def _at_maximum(
    mixture: LinearMixture, z: Tensor, time_index: Tensor, times: Tensor, labels: Tensor | None
) -> tuple[float, float]:
    """Log-likelihood of all points, a and r freed from their penalty as the counted parameters they are; smallest share."""
    free = deepcopy(mixture).double()
    z = z.double()
    refit_proportions(free, z, time_index, times, labels=labels)
    joint = free.at(times).joint_log_prob(z, time_index)
    return float(marginal_log_prob(joint, labels).sum()), float(joint.softmax(-1).mean(0).min())
