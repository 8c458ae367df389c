"""dp.tl.sample_prior: cells drawn from a fitted count VAE itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from dynapath import get
from dynapath._columns import column_of
from dynapath.models._random import concrete_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray


def sample_prior(
    adata: AnnData,
    *,
    n_cells: int = 500,
    batch: str | None = None,
    key: str | None = None,
    random_state: int | None = 0,
) -> AnnData:
    """New cells from the model itself: states from the prior, values from the decoder.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.tl.fit_vae` under `key`, and the values it was fitted to. For a dynamic VAE use
        :func:`dynapath.tl.predict_cells` with `source="prior"`, at any time.
    n_cells
        Number of cells.
    batch
        Draw cells of this batch only; by default of all batches in their shares.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    random_state
        Seed; the session's random state is not touched.

    Returns
    -------
    AnnData with `n_cells` rows. `X`: sampled values, CSR for counts and binary values. `obs`: `library`, where there is one,
    and the batch and label columns of the fit. `obsm["X_{key}"]`: states.

    Notes
    -----
    Batch, label and, where it is observed, library size are those of cells drawn at random; an encoded library size is drawn
    from its log-normal prior. The prior N(0, I) is not the distribution of the encoded cells: where the two differ, as
    between well separated types, the decoder was never trained and draws look like nothing in the data. Compare them.

    Raises
    ------
    KeyError : without a fit under `key`.
    ValueError : for a number of cells below one, or an unknown batch.
    """
    names = get.vae_slots(adata, key)
    key = names.key
    params = adata.uns[key]["params"]
    if n_cells < 1:
        msg = f"n_cells must be at least 1; it is {n_cells}."
        raise ValueError(msg)
    rows = _rows_of_batch(adata, params.get("batch_key"), batch)
    seed = concrete_seed(random_state)
    origin = np.random.default_rng(seed).choice(rows, size=n_cells)
    model = get.model(adata, key)
    z, values, library = model.sample_prior(origin, random_state=seed)
    obs = pd.DataFrame(index=[f"prior_{i}" for i in range(n_cells)])
    for argument in ("batch_key", "labels_key"):
        name = params.get(argument)
        if name is not None:
            obs[str(name)] = column_of(adata.obs, name, argument=argument).to_numpy()[origin]
    if library is not None:
        obs["library"] = library
    return AnnData(
        X=values if params["likelihood"] == "normal" else csr_matrix(values),
        obs=obs,
        var=pd.DataFrame(index=adata.var_names),
        obsm={names.latent: z},
    )


def _rows_of_batch(adata: AnnData, batch_key: str | None, batch: str | None) -> NDArray[np.int64]:
    if batch is None:
        return np.arange(adata.n_obs)
    if batch_key is None:
        msg = f"batch={batch!r} was given, but the fit has no batch_key. Leave it out."
        raise ValueError(msg)
    of_cells = column_of(adata.obs, batch_key, argument="batch_key").astype(str)
    rows = np.flatnonzero(of_cells == str(batch))
    if not len(rows):
        msg = f"obs[{batch_key!r}] has no batch {batch!r}; present: {', '.join(sorted(of_cells.unique()))}."
        raise ValueError(msg)
    return rows
