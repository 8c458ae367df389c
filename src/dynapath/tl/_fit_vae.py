"""dp.tl.fit_vae: cells -> a latent space, shaped on request, written into the AnnData."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

from dynapath import write
from dynapath._threads import threads_for
from dynapath.dynamics.changes import Convergence
from dynapath.models._random import concrete_seed, isolated_seed
from dynapath.models.vae_options import LatentPenalty, Network, Supervision
from dynapath.read import cells as read

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import ArrayLike


def fit_vae(
    adata: AnnData,
    *,
    n_latent: int = 10,
    likelihood: Literal["nb", "zinb", "poisson", "normal", "bernoulli"] = "nb",
    decoder: Literal["mlp", "linear"] = "mlp",
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    library: Literal["observed", "encoded", "none"] | None = None,
    dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
    latent_distribution: Literal["normal", "ln"] = "normal",
    latent_penalty: Literal["tsne", "umap"] | LatentPenalty | None = None,
    target: str | pd.DataFrame | ArrayLike | None = None,
    supervision: Supervision | None = None,
    network: Network | None = None,
    max_epochs: int | None = None,
    key_added: str = "vae",
    random_state: int | None = 0,
    copy: bool = False,
    train_kwargs: Mapping[str, Any] | None = None,
) -> AnnData | None:
    """Fit a variational autoencoder of counts, binary or continuous values, with a latent space that can be shaped.

    Without `latent_penalty` and `target` it is scVI, or with `decoder="linear"` its linearly decoded variant: scvi-tools'
    networks and training. What they lack is added: penalties that keep neighbours together, latent dimensions that follow
    given coordinates, a Bernoulli likelihood, and draws from the prior (:func:`dynapath.tl.sample_prior`).

    Parameters
    ----------
    adata
        One row per cell, raw counts unless `likelihood` says otherwise.
    n_latent
        Latent dimensions. Two or three with a penalty.
    likelihood
        Of the values: `"nb"`, `"zinb"` or `"poisson"` for counts; `"bernoulli"` for 0 and 1; `"normal"` for continuous
        values, with one variance per gene.
    decoder
        `"mlp"`, or `"linear"` for factors with loadings of genes (:func:`dynapath.get.loadings`).
    layer
        Layer with the values; None for `X`.
    batch_key, size_factor_key
        As in scvi-tools; the linear decoder takes no size factors.
    labels_key
        Labels of the cells with `dispersion="gene-label"`, by which dispersions differ. The states know nothing of them, so
        other dispersions refuse them.
    library
        What counts are relative to: the `"observed"` total of the cell (default for counts), or an `"encoded"` one, inferred
        with a log-normal prior per batch; neither where there are size factors. `"none"` (default otherwise, and only there): the decoder gives means, or logits, as
        they are.
    dispersion
        Of `"nb"` and `"zinb"`, and the variance of `"normal"`: per gene, also per batch, label or cell. Other likelihoods have
        none.
    latent_distribution
        `"normal"`, or `"ln"`: logistic-normal, cells are points of a simplex.
    latent_penalty
        `"tsne"` or `"umap"`: neighbours in the first 50 principal components shall be neighbours in the latent space, at a
        weight that hardly costs likelihood. See :class:`dynapath.models.LatentPenalty` for weight, perplexity and more.
    target
        Coordinates that the first latent dimensions shall follow: a name in `obsm` such as `"X_umap"`, or an array or
        DataFrame with a row per cell. They are standardised.
    supervision
        How strongly, and whether in one or two stages; see :class:`dynapath.models.Supervision`.
    network
        Widths, norms, activations; see :class:`dynapath.models.Network`.
    max_epochs
        By default scvi-tools' number: 400, fewer above 20,000 cells.
    key_added
        Under which the results are stored. A previous fit under this key is replaced as a whole.
    random_state
        Seed. The same seed gives the same bits on a CPU; the session's random state is not touched.
    copy
        Work on a copy and return it.
    train_kwargs
        Handed to scvi-tools' `train` as they are: `batch_size` (128; 256 with a penalty), `train_size` (1: all cells),
        `early_stopping`, `plan_kwargs`, `accelerator`, ... and `progress=False`.

    Returns
    -------
    None, or the copy if `copy=True`. Sets the following fields:

    `obsm["X_{key}"]` : state of each cell (cell, latent), posterior mean.
    `obsm["{key}_std"]` : its posterior standard deviation.
    `varm["{key}_loadings"]` : with the linear decoder, change of each gene's logit per latent unit (gene, latent), centred over
    genes where proportions are a softmax.
    `uns["{key}"]` : settings, parameters, history and status; :func:`dynapath.get.model` rebuilds the model.

    Raises
    ------
    KeyError, ValueError : for input that cannot be used, before anything is written.
    FloatingPointError : if training diverges; nothing is written.

    Notes
    -----
    The status is `ok` if the second half of training has moved states and predicted values by less than half of their
    uncertainty (:func:`dynapath.get.convergence`), and `not_converged` otherwise, with a warning; always after too few steps.

    The loss is -ELBO + weight * penalty(s m) + weight * mean_i (m_i - y_i)'(m_i - y_i) in nats per cell, with posterior means
    m, a learned scale s and the standardised target y. A target such as a UMAP has seen all cells: what the encoder then says of
    cells it was not trained on is held out from the encoder, not from the target.

    Examples
    --------
    >>> import dynapath as dp
    >>> adata = dp.datasets.simulate_snapshots("rotating", n_cells=60, n_genes=60)
    >>> dp.tl.fit_vae(adata, n_latent=2, latent_penalty="tsne", max_epochs=20)  # doctest: +SKIP
    >>> adata.obsm["X_vae"].shape  # doctest: +SKIP
    (900, 2)
    """
    if not isinstance(n_latent, Integral) or n_latent < 1:
        msg = f"n_latent must be a positive whole number; it is {n_latent!r}."
        raise ValueError(msg)
    if decoder not in ("mlp", "linear"):
        msg = f"decoder must be 'mlp' or 'linear'; it is {decoder!r}."
        raise ValueError(msg)
    if decoder == "linear" and size_factor_key is not None:
        msg = "decoder='linear' takes no size_factor_key. Leave it out: cells are scaled by their total."
        raise ValueError(msg)
    if library is not None and size_factor_key is not None and likelihood in read.COUNTS:
        msg = (
            f"Counts are relative to the size factors of size_factor_key={size_factor_key!r}, so that library={library!r} has no part. "
            "Leave one of them out."
        )
        raise ValueError(msg)
    if dispersion == "gene-label" and labels_key is None:
        msg = "dispersion='gene-label' needs labels_key, the column of obs with the labels."
        raise ValueError(msg)
    if labels_key is not None and dispersion != "gene-label":
        msg = (
            f"labels_key={labels_key!r} says by which labels dispersions differ, and dispersion={dispersion!r} has none. Leave it "
            "out, or use dispersion='gene-label'. (Coordinates that states shall follow are given as target.)"
        )
        raise ValueError(msg)
    if dispersion != "gene" and likelihood in ("poisson", "bernoulli"):
        msg = f"dispersion={dispersion!r} has no part in likelihood={likelihood!r}, which has no dispersion. Leave it out."
        raise ValueError(msg)
    if supervision is not None and target is None:
        msg = "supervision says how a target is learned, but there is none. Give target=, e.g. 'X_umap'."
        raise ValueError(msg)
    penalty = LatentPenalty(latent_penalty) if isinstance(latent_penalty, str) else latent_penalty
    write.check_key_is_free(adata, key_added, kinds=(write.VAE,))
    train_kwargs = dict(train_kwargs or {})
    options = {
        "n_latent": int(n_latent),
        "likelihood": likelihood,
        "decoder": decoder,
        "layer": layer,
        "batch_key": batch_key,
        "labels_key": labels_key,
        "size_factor_key": size_factor_key,
        "dispersion": dispersion,
        "latent_distribution": latent_distribution,
        "random_state": concrete_seed(random_state),
    }
    if copy:
        adata = adata.to_memory() if adata.isbacked else adata.copy()
    network = network or Network()
    # scvi-tools' batch size, or a little more: what counts is whether there are thousands of genes or ten thousands.
    with threads_for(train_kwargs.get("batch_size", 128) * adata.n_vars):
        _fit(adata, options, library, penalty, target, supervision, network, max_epochs, key_added, train_kwargs)
    return adata if copy else None


def _fit(
    adata: AnnData,
    options: dict[str, Any],
    library: str | None,
    penalty: LatentPenalty | None,
    target: str | pd.DataFrame | ArrayLike | None,
    supervision: Supervision | None,
    network: Network,
    max_epochs: int | None,
    key: str,
    train_kwargs: dict[str, Any],
) -> None:
    from dynapath.models import count_vae

    # What needs no data is refused before data are read.
    library = count_vae.check_library(library, options["likelihood"])
    count_vae.check_latent(options["latent_distribution"], penalty, None if target is None else "target")
    count_vae.activation_class(network.activation)
    if options["decoder"] == "linear":
        count_vae.check_linear(options["dispersion"], network)
    cells = read.read_cells(
        adata,
        **{name: options[name] for name in ("likelihood", "layer", "batch_key", "labels_key", "size_factor_key")},
        needs_library=library != "none",
    )
    obsm, name = {}, None
    if target is not None:
        name, obsm["target"] = read.read_target(adata, target, options["n_latent"])
    said = []
    if penalty is not None:
        if penalty.use_rep is not None:
            obsm[penalty.use_rep] = read.read_representation(adata, penalty.use_rep)
        said += _check_penalty(penalty, adata.n_obs, options["n_latent"], train_kwargs.get("batch_size"))
    data, columns = cells.to_anndata()
    data.obsm.update(obsm)
    model_class = count_vae.LinearCountVAE if options["decoder"] == "linear" else count_vae.CountVAE
    seed = options["random_state"]
    # Registering, building and encoding draw random numbers too, not only training.
    with isolated_seed(seed):
        model_class.setup_anndata(data, **columns, counts=options["likelihood"] in read.COUNTS)
        vae = model_class(
            data,
            n_latent=options["n_latent"],
            likelihood=options["likelihood"],
            library=library,
            dispersion=options["dispersion"],
            latent_distribution=options["latent_distribution"],
            network=network,
            latent_penalty=penalty,
            target_key=None if target is None else "target",
            supervision=supervision,
        )
        vae.train(max_epochs, random_state=seed, **train_kwargs)
        mean, std = vae.states()
    history = vae.history_table()
    status, more = _judge(vae.convergence_, int((history["phase"] != "encoder").sum()))
    supervision = None if target is None else supervision or Supervision()
    write.write_vae(
        adata,
        key,
        latent=mean,
        std=std,
        loadings=vae.centred_loadings().to_numpy() if options["decoder"] == "linear" else None,
        fit={
            "params": {
                **options,
                "library": library,
                "latent_penalty": None if penalty is None else asdict(penalty),
                "target": name,
                "supervision": None if supervision is None else asdict(supervision),
                "network": asdict(network),
                "size_unit": vae.module.size_unit,
                "n_cells": adata.n_obs,
                "n_epochs": len(history),
                "genes": list(cells.genes),
                "batches": None if cells.batch is None else list(cells.batch.categories),
                "labels": None if cells.labels is None else list(cells.labels.categories),
            },
            "state": vae.to_arrays(),
            "scale": float(vae.module.shape.scale.detach()) if penalty is not None else None,
            "history": history,
            "convergence": vae.convergence_.to_arrays(),
            "status": status,
            "messages": said + more,
        },
    )


def _check_penalty(penalty: LatentPenalty, n_cells: int, n_latent: int, batch_size: int | None) -> list[str]:
    from dynapath.models import count_vae
    from dynapath.models.neighbours import check_neighbours

    batch_size = min(batch_size or count_vae.BATCH_SIZE_OF_PENALTIES, n_cells)
    count_vae.check_batch(penalty, n_cells, batch_size)
    n_neighbours = check_neighbours(penalty.kind, n_cells, penalty.perplexity, penalty.n_neighbors)
    return read.warn_about_penalty(penalty.kind, n_latent, n_neighbours * batch_size / n_cells, stacklevel=5)


def _judge(convergence: Convergence, n_epochs: int) -> tuple[str, list[str]]:
    """The status of a fit, and what has to be said about it, also as a warning."""
    if convergence.converged:
        return "ok", []
    more = n_epochs * (convergence.factor or 1)
    message = convergence.message(f"Raise max_epochs, to {more} for instance (dp.get.convergence has the figures).")
    warnings.warn(message, UserWarning, stacklevel=4)
    return "not_converged", [message]
