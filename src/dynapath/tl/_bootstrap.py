"""dp.tl.bootstrap: how far the cells pin a finished fit down."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from dynapath import get, write
from dynapath._threads import threads_for
from dynapath.models._random import concrete_seed, isolated_seed
from dynapath.models.options import Prior
from dynapath.read import counts as read

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from dynapath.dynamics import GroupDynamics
    from dynapath.models import DynamicVAE


def bootstrap(
    adata: AnnData,
    *,
    key: str | None = None,
    n_bootstrap: int = 50,
    random_state: int | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Refit the dynamics to resampled cells, with the states of the cells held fixed.

    Afterwards :func:`dynapath.get.trajectories`, :func:`dynapath.get.gene_trajectories` and
    :func:`dynapath.tl.rank_dynamic_genes` have bands. `dp.tl.fit_dynamic_vae(n_bootstrap=50)` does the same at once.

    Parameters
    ----------
    adata
        The AnnData that was fitted, with all its cells; a subset would give the bands of a smaller experiment. The bands stay
        readable in subsets afterwards.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    n_bootstrap
        Number of draws, at least 2. Bands follow from standard deviations: 50 draws know those to 10 %.
    random_state
        Seed. The same seed gives the same bits on a CPU; the session's random state is not touched.
    copy
        Work on a copy and return it.

    Returns
    -------
    None, or the copy if `copy=True`. Sets `uns[key]["bootstrap"]`: the draws of each member of the fit as arrays, and for a
    fit of counts the error of the decoder's last layer. An earlier bootstrap is replaced.

    Raises
    ------
    KeyError : without a fit under `key`, or if its cell states were removed.
    ValueError : for fewer than two draws, other cells than those of the fit, or states that are not finite.
    FloatingPointError : if refits diverge; nothing is written.

    Notes
    -----
    Cells are drawn with replacement within each time, and the mixture is refitted to one posterior draw of their states, from
    the fit on; proportions are refitted without penalty. Cells are taken for independent: with several donors or libraries
    per time, bands are too narrow. What two seeds do differently is not in it either; `n_members` adds that.

    In the space of genes the decoder's own error dominates. It is added by a Laplace approximation of the decoder's last
    layer, gene by gene (`dynapath.models.last_layer`), and so is the sampling of the cells that stand for a group.

    Examples
    --------
    >>> import dynapath as dp
    >>> dp.tl.bootstrap(adata)  # doctest: +SKIP
    >>> dp.get.trajectories(adata)[["group", "time", "mean", "mean_lower", "mean_upper"]]  # doctest: +SKIP
    """
    check_n_bootstrap(n_bootstrap)
    if n_bootstrap == 0:
        msg = "n_bootstrap must be at least 2; it is 0."
        raise ValueError(msg)
    slots = get.cell_slots(adata, key)
    key = slots.key
    params = adata.uns[key]["params"]
    n_fitted = int(params.get("n_cells", adata.n_obs))
    if adata.n_obs != n_fitted:
        msg = (
            f"The fit {key!r} used {n_fitted} cells, but this AnnData has {adata.n_obs}. Bootstrap the fitted AnnData before "
            "taking a subset: the bands then stay with it."
        )
        raise ValueError(msg)
    states, std = (np.asarray(adata.obsm[slot], dtype=float) for slot in (slots.latent, slots.std))
    for slot, values in ((slots.latent, states), (slots.std, std)):
        if not np.isfinite(values).all():
            bad = adata.obs_names[~np.isfinite(values).all(1)][0]
            msg = f"obsm[{slot!r}] has NaN or infinite values, first in cell {bad!r}. Run dp.tl.fit_dynamic_vae again."
            raise ValueError(msg)
    if copy:
        adata = adata.to_memory() if adata.isbacked else adata.copy()

    seed = concrete_seed(random_state)
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(2)]
    times = read.read_times(adata, params["time_key"])
    labels = read.read_labels(
        adata, params.get("labels_key"), names=list(map(str, params.get("group_labels", ()))) or None
    )
    known = None if labels is None else read.known_groups(labels, int(params["n_groups"]))
    # Draws must not depend on the order of the rows, so cells are taken in one of their own.
    order = np.lexsort([*states.T, times])
    times, known = times[order], None if known is None else known[order]
    penalties = {name: float(params.get("prior", {}).get(name, getattr(Prior(), name))) for name in _PENALTIES}
    fitted = get.model(adata, key)
    models = getattr(fitted, "members", None)
    models = (fitted,) if not isinstance(models, tuple) else models
    content: dict[str, Any] = {"n_bootstrap": int(n_bootstrap), "random_state": seed}
    with threads_for(128 * adata.n_vars):
        for m, (model, draws) in enumerate(zip(models, get.draws(adata, key), strict=True)):
            if m:
                # Only the states of the first member are stored. Encoding draws a sample: not from the session's random state.
                with isolated_seed(0):
                    states, variance = model.get_latent_representation(return_dist=True)
                std = np.sqrt(variance)
            states, std = states[order], std[order]
            z = states + std * np.random.default_rng(seeds[0]).standard_normal(states.shape)
            one = {"dynamics": _refits(draws.fit, z, times, known, n_bootstrap, penalties, seeds[1]).to_arrays()}
            if adata.uns[key]["kind"] == "dynamic_vae":
                one["last_layer"] = _last_layer(model, z, order)
            content[str(m)] = one
    write.write_bootstrap(adata, key, content)
    return adata if copy else None


_PENALTIES = ("ridge", "growth_penalty")


def check_n_bootstrap(n_bootstrap: int) -> None:
    """Raise unless it is a number of draws that have a spread, or 0 for none."""
    if not isinstance(n_bootstrap, Integral) or n_bootstrap < 0 or n_bootstrap == 1:
        msg = f"n_bootstrap must be 0 (none) or a whole number of at least 2; it is {n_bootstrap!r}."
        raise ValueError(msg)


def _refits(
    fit: GroupDynamics,
    z: NDArray[np.floating],
    times: NDArray[np.float64],
    known: NDArray[np.int64] | None,
    n_bootstrap: int,
    penalties: dict[str, float],
    seed: int,
) -> GroupDynamics:
    import torch

    from dynapath.dynamics import bootstrap_mixture

    distinct, index = np.unique(times, return_inverse=True)
    draws = bootstrap_mixture(
        fit.mixture,
        fit.scaled(z).float(),
        torch.as_tensor(index),
        fit.model_times(distinct),
        n_bootstrap=int(n_bootstrap),
        labels=None if known is None else torch.as_tensor(known),
        random_state=seed,
        **penalties,
    )
    return fit.with_mixture(draws)


def _last_layer(model: DynamicVAE, z: NDArray[np.floating], order: NDArray[np.intp]) -> dict[str, NDArray[np.float32]]:
    from dynapath.models.last_layer import last_layer_error

    counts, library, batch = model.counts(), model.library_sizes(), model.batch_codes()
    return last_layer_error(model.module, counts[order], z, library[order], batch[order]).to_arrays()
