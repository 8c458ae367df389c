"""How far the data pin the fitted mixture down: the bootstrap over cells, with the latent states held fixed.

Cells are drawn again, with replacement, within each time. A draw is a set of weights w, so that all draws are fitted side
by side, each from the fitted mixture on, to  -sum_i w_i log p(z_i | t_i) / n + penalties  (`fit_mixture`), until the step
size has fallen to zero. One copy keeps the weights as they are. Since the fit itself, which stems from stochastic steps, is
not quite where that copy ends, a draw is  fit + (refit on drawn cells - refit on all cells).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .fit_mixture import descend, refit_proportions, thin
from .mixture import LinearMixture, marginal_log_prob


def bootstrap_mixture(
    mixture: LinearMixture,
    z: Float[Tensor, "cell latent"],
    time_index: Int[Tensor, " cell"],
    times: Float[Tensor, " time"],
    *,
    n_bootstrap: int = 50,
    labels: Int[Tensor, " cell"] | None = None,
    ridge: float = 0.01,
    growth_penalty: float = 1.0,
    n_steps: int = 200,
    lr: float = 0.03,
    max_cells: int = 5000,
    random_state: int | None = 0,
    on_step: Callable[[int], None] | None = None,
) -> LinearMixture:
    """Refit a mixture to resampled cells.

    Parameters
    ----------
    mixture
        The fit, a single one; it is not changed.
    z, time_index, times, labels, ridge, growth_penalty
        As the fit had them (`fit_mixture`).
    n_bootstrap
        Number of draws. The standard deviation of a draw is known to 1 / sqrt(2 n_bootstrap) of itself: 10 % for 50.
    n_steps, lr
        Steps of the refits, and the size from which they shrink. Where groups have not parted the likelihood is flat, and
        200 steps leave standard deviations there a fifth too small.
    max_cells
        Of more cells than this a part is taken, and deviations from the fit are scaled by sqrt(part / all).

    Returns
    -------
    Mixture with `n_copies=n_bootstrap`; proportions are refitted without penalty, as in the fit.

    Raises
    ------
    FloatingPointError : if a refit leaves the finite numbers.
    """
    rng = np.random.default_rng(random_state)
    kept = thin(time_index, max_cells, rng)
    shrink = float(np.sqrt(len(kept) / len(z)))
    z, time_index = z[kept].detach(), time_index[kept]
    labels = None if labels is None else labels[kept]
    # The first copy sees every cell once.
    weights = torch.cat([torch.ones(1, len(z), device=z.device), _resampled(time_index, n_bootstrap, rng).to(z.device)])

    copies = mixture.like(n_copies=n_bootstrap + 1).to(z.device)
    with torch.no_grad():
        for draw, fitted in zip(copies.parameters(), mixture.parameters(), strict=True):
            draw.copy_(fitted.expand_as(draw))

    def loss(_: int) -> Tensor:
        log_prob = marginal_log_prob(copies.at(times).joint_log_prob(z, time_index), labels)
        penalty = ridge * copies.ridge_penalty() + growth_penalty * copies.growth_penalty()
        return penalty - (weights * log_prob).mean(-1)

    descend(copies, loss, n_steps=n_steps, lr=lr, cooling=True, on_step=on_step)
    refit_proportions(copies, z, time_index, times, labels=labels, weights=weights)
    draws = mixture.like(n_copies=n_bootstrap)
    with torch.no_grad():
        for draw, fitted, refitted in zip(draws.parameters(), mixture.parameters(), copies.parameters(), strict=True):
            draw.copy_(fitted + shrink * (refitted[1:] - refitted[:1]))
    broken = ~torch.stack([p.flatten(1).isfinite().all(1) for p in draws.parameters()]).all(0)
    if broken.any():
        msg = (
            f"{int(broken.sum())} of {n_bootstrap} bootstrap refits diverged at steps of lr={lr:g}. Check the latent space for "
            "outliers, or lower lr."
        )
        raise FloatingPointError(msg)
    return draws


def _resampled(time_index: Tensor, n_bootstrap: int, rng: np.random.Generator) -> Float[Tensor, "draw cell"]:
    """How often each cell is drawn, when as many are drawn at each time as there are."""
    at = time_index.cpu().numpy()
    weights = np.empty((n_bootstrap, len(at)), dtype=np.float32)
    for t in np.unique(at):
        cells = np.flatnonzero(at == t)
        weights[:, cells] = rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), size=n_bootstrap)
    return torch.as_tensor(weights)
