"""Embeddings of cells, and arrows in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynapath._keys import embedding_key

from ._fits import cell_slots

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def embedding(adata: AnnData, basis: str) -> tuple[str, NDArray[np.float64]]:
    """Name and coordinates of an embedding: of basis "umap" or "X_umap", "umap" and `obsm["X_umap"]`.

    Raises
    ------
    KeyError : if there is no such embedding, naming those there are.
    """
    name = str(basis).removeprefix(embedding_key(""))
    slot = embedding_key(name)
    if slot not in adata.obsm:
        there = [other.removeprefix(embedding_key("")) for other in adata.obsm if other.startswith(embedding_key(""))]
        msg = (
            f"obsm has no {slot!r} (basis={basis!r}); bases present: {', '.join(there) or 'none'}. Compute it first, e.g. "
            "with sc.pp.neighbors(adata, use_rep=...) and sc.tl.umap(adata)."
        )
        raise KeyError(msg)
    return name, np.asarray(adata.obsm[slot], dtype=float)


def embedded_velocity(
    adata: AnnData, basis: str, key: str | None
) -> tuple[str, NDArray[np.float64], NDArray[np.float64]]:
    """Name and coordinates of an embedding, and the arrows of a fit in it."""
    name, coordinates = embedding(adata, basis)
    slot = cell_slots(adata, key).embedded_velocity(name)
    if slot not in adata.obsm:
        msg = f"obsm has no {slot!r}. Run dp.tl.embed_velocity(adata, basis={name!r}, key={key!r}) first."
        raise KeyError(msg)
    return name, coordinates, np.asarray(adata.obsm[slot], dtype=float)
