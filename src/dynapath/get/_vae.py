"""Count VAEs: loadings of genes, and the model built again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dynapath._keys import VAEKeys
from dynapath.models._random import isolated_seed
from dynapath.write import VAE

from ._fits import find_fit, strings
from ._stored import check_genes, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from dynapath.models import CountVAE, LinearCountVAE


def loadings(adata: AnnData, key: str | None = None) -> pd.DataFrame:
    """Loadings of a linear decoder (gene, latent): change of a gene's logit per unit of a latent dimension.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.tl.fit_vae` with `decoder="linear"` under `key`; genes may have been selected since.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.

    Returns
    -------
    One row per gene, one column per latent dimension, named "vae1", "vae2", ... as scanpy names the axes of `X_vae`. Centred
    over all genes of the fit where proportions are a softmax: a shift common to all genes does not change them.

    Raises
    ------
    KeyError : without such a fit, or if its decoder is not linear.
    """
    key = find_fit(adata, key, (VAE,))
    fit = adata.uns[key]
    names = VAEKeys(key)
    if names.loadings not in adata.varm:
        if fit["params"]["decoder"] == "linear":
            msg = f"varm[{names.loadings!r}] is gone. Run dp.tl.fit_vae again."
        else:
            msg = (
                f"The fit {key!r} has no loadings: its decoder is not linear. Use dp.tl.fit_vae(..., decoder='linear')."
            )
        raise KeyError(msg)
    values = np.asarray(adata.varm[names.loadings], dtype=float)
    return pd.DataFrame(values, index=adata.var_names, columns=[f"{key}{i + 1}" for i in range(values.shape[1])])


def vae_slots(adata: AnnData, key: str | None) -> VAEKeys:
    """Names of the slots of a fit of :func:`dynapath.tl.fit_vae`, once it is there."""
    return VAEKeys(find_fit(adata, key, (VAE,)))


def count_vae(adata: AnnData, key: str) -> CountVAE | LinearCountVAE:
    """The fitted model on the cells of `adata`, built again from arrays."""
    from dynapath.models import CountVAE, LatentPenalty, LinearCountVAE, Network, Supervision
    from dynapath.read.cells import COUNTS, read_cells

    key = find_fit(adata, key, (VAE,))
    fit = adata.uns[key]
    params: Mapping[str, Any] = fit["params"]
    given = {name: params.get(name) for name in ("layer", "batch_key", "labels_key", "size_factor_key")}
    likelihood, library = str(params["likelihood"]), str(params["library"])

    def read(cells: AnnData) -> tuple[AnnData, dict[str, str]]:
        check_genes(cells, strings(params["genes"]), key)
        found = read_cells(
            cells,
            likelihood=likelihood,
            **given,
            needs_library=library != "none",
            batches=strings(params["batches"]) if "batches" in params else None,
            labels=strings(params["labels"]) if "labels" in params else None,
        )
        return found.to_anndata(cells)

    data, columns = read(adata)
    if given["size_factor_key"] is not None:
        columns["size_unit"] = float(params.get("size_unit", 1.0))
    model_class = LinearCountVAE if params["decoder"] == "linear" else CountVAE
    penalty, supervision = params.get("latent_penalty"), params.get("supervision")
    # Registering samples the values and fresh networks draw weights: not from the session's random state.
    with isolated_seed(0):
        model_class.setup_anndata(data, **columns, counts=likelihood in COUNTS)
        model = model_class(
            data,
            n_latent=int(params["n_latent"]),
            likelihood=likelihood,
            library=library,
            dispersion=str(params["dispersion"]),
            latent_distribution=str(params["latent_distribution"]),
            network=Network(**plain(params["network"])),
            latent_penalty=None if penalty is None else LatentPenalty(**plain(penalty)),
            supervision=None if supervision is None else Supervision(**plain(supervision)),
        )
    model.load_arrays(fit["state"])
    model.read_with(lambda cells: read(cells)[0])
    return model
