"""Fitted models, built again from the arrays in `uns`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dynapath.models._random import isolated_seed
from dynapath.write import ESTIMATE, INCREMENT, LATENT_DYNAMICS, VAE

from ._fits import find_fit, strings
from ._groups import dynamics
from ._increment import increments
from ._stored import check_genes, plain
from ._vae import count_vae
from ._visits import VisitModel, visit_model

if TYPE_CHECKING:
    from anndata import AnnData

    from dynapath.dynamics import GroupDynamics, IncrementDynamics
    from dynapath.models import CountVAE, DynamicVAE, Ensemble, LinearCountVAE


def model(
    adata: AnnData, key: str | None = None
) -> DynamicVAE | Ensemble | GroupDynamics | IncrementDynamics | CountVAE | LinearCountVAE | VisitModel:
    """The fitted model, built again from the arrays in `uns[key]`.

    Parameters
    ----------
    adata
        The AnnData that was fitted, a copy or a subset of its cells; the genes must be those of the fit.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.

    Returns
    -------
    A :class:`dynapath.models.DynamicVAE` on these cells, whose methods read other AnnData as the fit read this one; for a fit with several members a
    :class:`dynapath.models.Ensemble` of them; for a fit with `use_rep` its :class:`dynapath.dynamics.GroupDynamics`.
    For a fit of :func:`dynapath.tl.fit_vae` its :class:`dynapath.models.CountVAE` or `LinearCountVAE` on these cells.
    For a fit of latent dynamics of visits a `VisitModel`, as from :func:`visit_model`.
    For a fit of the increment model its :class:`dynapath.dynamics.IncrementDynamics`, with the units of this AnnData.

    Raises
    ------
    KeyError : if there is no fit under `key`.
    ValueError : if genes or counts are no longer those of the fit.
    """
    key = find_fit(adata, key)
    kind = adata.uns[key]["kind"]
    if kind == INCREMENT:
        return increments(adata, key)
    if kind == LATENT_DYNAMICS:
        return visit_model(adata, key)
    if kind == VAE:
        return count_vae(adata, key)
    if kind == ESTIMATE:
        msg = (
            f"{key!r} holds the parameters of a program, which cannot be stored itself. Use "
            f"dp.stats.Estimate.from_adata(adata, key={key!r}, program=...)."
        )
        raise KeyError(msg)
    fit = adata.uns[key]
    if fit["kind"] == "group_dynamics":
        return dynamics(adata, key)
    states = [fit["state"], *fit["state"].get("members", {}).values()]
    rebuilt = _untrained(adata, key, fit["params"], copies=len(states))
    for one, state in zip(rebuilt, states, strict=True):
        one.load_arrays(state)
    if len(rebuilt) == 1:
        return rebuilt[0]
    from dynapath.metrics import AffineMap
    from dynapath.models import Ensemble

    d = rebuilt[0].module.n_latent
    maps = [AffineMap(np.eye(d), np.zeros(d))]
    for state in states[1:]:
        stored = state["to_reference"]
        maps.append(AffineMap(np.asarray(stored["matrix"], float), np.asarray(stored["offset"], float)))
    return Ensemble(tuple(rebuilt), tuple(maps))


def _untrained(adata: AnnData, key: str, params: Mapping[str, Any], copies: int) -> list[DynamicVAE]:
    """Models as the fit built them, on the counts of these cells, which are read once."""
    from dynapath.models import DynamicVAE, Prior, Training
    from dynapath.read.counts import Remembered, read_snapshots

    keys = {name: params.get(name) for name in ("time_key", "layer", "batch_key", "labels_key", "size_factor_key")}
    remembered = Remembered(strings(params.get("batches", ())), strings(params.get("group_labels", ())))

    def read(cells: AnnData) -> tuple[AnnData, dict[str, str]]:
        check_genes(cells, strings(params["genes"]), key)
        return read_snapshots(cells, **keys, remembered=remembered).to_anndata(cells)

    data, columns = read(adata)
    # Registering samples the counts and fresh networks draw weights: not from the session's random state.
    with isolated_seed(0):
        DynamicVAE.setup_anndata(
            data,
            **columns,
            observed_times=np.asarray(params["observed_times"]).tolist(),
            size_unit=float(params.get("size_unit", 1.0)),
        )
        untrained = [
            DynamicVAE(
                data,
                n_groups=int(params["n_groups"]),
                n_latent=int(params["n_latent"]),
                likelihood=str(params["likelihood"]),
                growth=str(params["growth"]),
                prior=Prior(**plain(params["prior"])),
                training=Training(**plain(params["network"])),
                module_kwargs=plain(params.get("module_kwargs", {})),
            )
            for _ in range(copies)
        ]
    for model in untrained:
        model.read_with(lambda cells: read(cells)[0])
    return untrained
