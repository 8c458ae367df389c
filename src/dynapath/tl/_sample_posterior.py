"""dp.tl.sample_posterior: what a fitted count VAE would have measured of the same cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from dynapath import get
from dynapath.models._random import concrete_seed, isolated_seed


def sample_posterior(adata: AnnData, *, key: str | None = None, random_state: int | None = 0) -> AnnData:
    """Every cell measured again: a state from its posterior, values from the decoder (posterior predictive).

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.tl.fit_vae` under `key`, and the values it was fitted to.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    random_state
        Seed; the session's random state is not touched. Draw with several for several replicates.

    Returns
    -------
    AnnData with the rows, `obs` and genes of `adata`, and sampled values in `X` (CSR for counts and binary values). Compare
    statistics of it with those of the data, such as the fraction of zeros of each gene, to see what the model misses.

    Raises
    ------
    KeyError : without a fit under `key`.
    """
    key = get.vae_slots(adata, key).key
    model = get.model(adata, key)
    with isolated_seed(concrete_seed(random_state)):
        values = model.posterior_predictive_sample(n_samples=1, silent=True).todense().astype(np.float32)
    dense = adata.uns[key]["params"]["likelihood"] == "normal"
    return AnnData(
        X=values if dense else csr_matrix(values), obs=adata.obs.copy(), var=pd.DataFrame(index=adata.var_names)
    )
