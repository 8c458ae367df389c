"""dp.tl.embed_velocity: latent velocities -> arrows in a UMAP or another embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynapath import get, write
from dynapath.dynamics import project_velocity

if TYPE_CHECKING:
    from anndata import AnnData


def embed_velocity(
    adata: AnnData, *, basis: str = "umap", key: str | None = None, n_neighbors: int = 30, copy: bool = False
) -> AnnData | None:
    """Arrows in an embedding: where it shows the cells to be heading.

    Parameters
    ----------
    adata
        With a fit under `key` and an embedding of the same cells, best one computed from the states of that fit:
        `sc.pp.neighbors(adata, use_rep="X_dynvae")`, then `sc.tl.umap(adata)`.
    basis
        Name of the embedding: `"umap"` for `obsm["X_umap"]`.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    n_neighbors
        Neighbours in the latent space from which the embedding's derivative is estimated. Many average over its bends,
        few follow its noise.
    copy
        Work on a copy and return it.

    Returns
    -------
    None, or the copy if `copy=True`. Sets the following fields:

    `obsm["{key}_velocity_{basis}"]` : arrow of each cell (cell, dimension), units of the embedding per unit of time.
    `uns["{key}"]["embedded"]` : the embeddings for which there are arrows, and the settings they were made with.

    Raises
    ------
    KeyError : if there is no such fit or embedding.
    ValueError : for an embedding that is not finite, or as many neighbours as there are not.

    Notes
    -----
    The embedding's derivative at each cell is estimated by least squares over the cell's neighbours, and applied to its
    velocity. Arrows are no more than that: a UMAP bends, tears and stretches the latent space, and where it draws cells
    together that are apart, arrows are drawn together too. Read directions within a cloud, not lengths across clouds.

    Computed once: do it again after computing another embedding under the same name. A new fit under `key` removes it.

    `scvelo.pl.velocity_embedding_stream(adata, vkey="dynvae_velocity", basis="umap")` finds these arrows too.

    Examples
    --------
    >>> import dynapath as dp
    >>> import scanpy as sc
    >>> adata = dp.datasets.simulate_snapshots("branching", n_cells=40, n_genes=20)
    >>> quick = dp.models.Training(n_restarts=2, prior_steps=30, progress=False)
    >>> dp.tl.fit_dynamic_vae(adata, time_key="time", use_rep="Z_true", training=quick)  # doctest: +SKIP
    >>> sc.pp.neighbors(adata, use_rep="X_dynvae")  # doctest: +SKIP
    >>> sc.tl.umap(adata)  # doctest: +SKIP
    >>> dp.tl.embed_velocity(adata, basis="umap")  # doctest: +SKIP
    >>> adata.obsm["dynvae_velocity_umap"].shape  # doctest: +SKIP
    (600, 2)
    """
    names = get.cell_slots(adata, key)
    key = names.key
    name, embedding = get.embedding(adata, basis)
    bad = ~np.isfinite(embedding).all(1)
    if bad.any():
        msg = (
            f"obsm of basis {basis!r} has NaN or infinite values for {int(bad.sum())} cells, the first is "
            f"{adata.obs_names[bad][0]!r}. Compute it again for all cells, or drop these."
        )
        raise ValueError(msg)
    arrows = project_velocity(adata.obsm[names.latent], adata.obsm[names.velocity], embedding, n_neighbors=n_neighbors)
    if copy:
        adata = adata.to_memory() if adata.isbacked else adata.copy()
    write.write_embedded_velocity(adata, key, name, arrows, {"n_neighbors": n_neighbors})
    return adata if copy else None
