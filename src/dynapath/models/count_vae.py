"""Count VAEs: SCVI and LinearSCVI, with a latent space that can be shaped, two more heads, and draws from the prior."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import ArrayLike, NDArray
from scvi import REGISTRY_KEYS
from scvi.data.fields import NumericalObsField
from scvi.model import SCVI, LinearSCVI

from dynapath._threads import threads_for
from dynapath.dynamics.changes import Convergence
from dynapath.models._random import concrete_seed, isolated_seed

from ._count_module import CELL_KEY, CountModule, LinearCountModule
from ._inherited import CarefulModel
from ._size_factor_field import SizeFactorField, unit_of
from ._training import EpochPlan, FiniteGuard, PhaseProgress, came_from_nan, quiet, watch_plateau
from .convergence import TraceWeights, convergence_of
from .neighbours import principal_components, tsne_neighbours, umap_neighbours
from .vae_options import LatentPenalty, Network, Supervision
from .weight_trace import WeightTrace

Likelihood = Literal["nb", "zinb", "poisson", "normal", "bernoulli"]
Library = Literal["observed", "encoded", "none"]

COUNT_LIKELIHOODS = ("nb", "zinb", "poisson")
BATCH_SIZE = 128
# A minibatch must hold some true neighbours of its cells.
BATCH_SIZE_OF_PENALTIES = 256


class CellField(NumericalObsField):
    """Rows of the registered AnnData, by which penalties and targets know their cells."""

    def __init__(self) -> None:
        super().__init__(CELL_KEY, f"_scvi_{CELL_KEY}")

    def register_field(self, adata: AnnData) -> dict:
        """Number the rows."""
        adata.obs[self.attr_key] = np.arange(adata.n_obs)
        return super().register_field(adata)

    def validate_field(self, adata: AnnData) -> None:
        """Nothing is asked of the AnnData."""

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        """Number the rows of another AnnData."""
        return self.register_field(adata_target)


class EndExaggeration(Callback):
    """Early exaggeration ends after so many epochs."""

    def __init__(self, shape: torch.nn.Module, n_epochs: int):
        self.shape, self.n_epochs = shape, n_epochs

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch it on or off."""
        self.shape.exaggerated = trainer.current_epoch < self.n_epochs


class _ShapedVAE(CarefulModel):
    """What both models have in common; comes before a model of scvi-tools among the bases."""

    _training_plan_cls = EpochPlan

    def _prepare(self, library: Library | None, likelihood: Likelihood, **options: Any) -> None:
        """Keep the options, and an empty history."""
        self.library_ = check_library(library, likelihood)
        self.likelihood_ = likelihood
        self.penalty_, self.supervision_, self.network_ = (
            options["latent_penalty"],
            options["supervision"],
            options["network"],
        )
        self.target_key_ = options["target_key"]
        self.phase_history_: list[pd.DataFrame] = []
        self.convergence_ = Convergence()

    def _module_options(self) -> dict[str, Any]:
        """What our modules take beyond those of scvi-tools."""
        return {
            "head": "counts" if self.likelihood_ in COUNT_LIKELIHOODS else self.likelihood_,
            "scaled": self.library_ != "none",
            "penalty": self.penalty_,
            "supervision": self.supervision_ if self.target_key_ is not None else None,
        }

    def _log_input(self) -> bool:
        given = self.network_.log_input
        return self.likelihood_ in COUNT_LIKELIHOODS if given is None else given

    # ------------------------------------------------------------------------------------------------ training

    def train(
        self, max_epochs: int | None = None, *, random_state: int | None = 0, progress: bool = True, **train_kwargs: Any
    ) -> None:
        """Train as scvi-tools does, on all cells unless told otherwise, with the KL weight rising over half of the epochs.

        Parameters
        ----------
        max_epochs
            By default scvi-tools' number: 400, fewer above 20,000 cells. With `Supervision(stages=2)` the encoder's means
            are trained for half as many before.
        random_state
            Seed; the session's random state is not touched.
        progress
            Show a progress bar.
        train_kwargs
            Handed to scvi-tools' `train`: `batch_size`, `train_size`, `early_stopping`, `plan_kwargs`, `accelerator`, ...

        Raises
        ------
        FloatingPointError : if the loss is not finite; the model keeps its last finite state.
        """
        n_epochs = default_epochs(self.adata.n_obs) if max_epochs is None else int(max_epochs)
        if n_epochs < 1:
            msg = f"max_epochs must be at least 1; it is {max_epochs}."
            raise ValueError(msg)
        batch_size = train_kwargs.setdefault(
            "batch_size", BATCH_SIZE if self.penalty_ is None else BATCH_SIZE_OF_PENALTIES
        )
        two_stages = self.target_key_ is not None and self.supervision_.stages == 2
        n_first = max(1, n_epochs // 2) if two_stages else 0
        bar = PhaseProgress(n_first + n_epochs, show=progress and rank_zero_only.rank == 0)
        try:
            with quiet(), isolated_seed(seed := concrete_seed(random_state)):
                if self.penalty_ is not None:
                    check_batch(self.penalty_, self.adata.n_obs, batch_size)
                    self.module.shape.set_neighbours(self._neighbours(seed))
                if self.target_key_ is not None:
                    self.module.shape.set_target(torch.as_tensor(standardised(self.adata.obsm[self.target_key_])))
                if two_stages:
                    self._run_stage("encoder", n_first, bar, train_kwargs)
                    trace = self._run_stage("decoder", n_epochs, bar, train_kwargs)
                else:
                    trace = self._run_stage("joint", n_epochs, bar, train_kwargs)
                self.convergence_ = convergence_of(self, trace)
        finally:
            bar.close()
            self.module.set_stage("joint")
            # They know the cells of this training only.
            self.module.shape.forget()
            self.module.eval()

    def _neighbours(self, seed: int) -> Any:
        penalty = self.penalty_
        if penalty.use_rep is not None:
            points = np.asarray(self.adata.obsm[penalty.use_rep], dtype=float)
        else:
            values = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
            counts = self.likelihood_ in COUNT_LIKELIHOODS
            points = principal_components(values, penalty.n_pcs, log_normalise=counts, random_state=seed)
        if penalty.kind == "tsne":
            return tsne_neighbours(points, penalty.perplexity, seed)
        return umap_neighbours(points, penalty.n_neighbors, seed)

    def _run_stage(self, stage: str, n_epochs: int, bar: PhaseProgress, train_kwargs: Mapping[str, Any]) -> WeightTrace:
        self.module.set_stage(stage)
        bar.enter(stage)
        guard, tracer = FiniteGuard(), TraceWeights()
        kwargs: dict[str, Any] = {"train_size": 1.0, "enable_progress_bar": False, **train_kwargs}
        # scvi-tools warms up over 400 epochs unless told otherwise, so that its last epoch would be the first with all of it.
        kwargs["plan_kwargs"] = {"n_epochs_kl_warmup": max(1, n_epochs // 2), **(kwargs.get("plan_kwargs") or {})}
        watch_plateau(kwargs)
        kwargs["callbacks"] = [guard, bar, tracer, *kwargs.get("callbacks", ())]
        if self.penalty_ is not None and self.penalty_.kind == "tsne":
            n_early = min(self.penalty_.exaggeration_epochs, n_epochs // 4)
            kwargs["callbacks"].append(EndExaggeration(self.module.shape, n_early))
        share = kwargs["train_size"]
        if share is not None and 0 < np.ceil(share * self.adata.n_obs) % kwargs["batch_size"] < 3:
            # One cell has no variance to normalise by.
            kwargs["datasplitter_kwargs"] = {"drop_last": True, **(kwargs.get("datasplitter_kwargs") or {})}
        self.history_, self.is_trained_ = None, False
        # scvi-tools leaves a trained module in evaluation mode, and Lightning would train it so.
        self.module.train()
        try:
            # Here and not around all: a search of neighbours by numba raises torch's number of threads.
            with threads_for(kwargs["batch_size"] * self.summary_stats.n_vars):
                super().train(max_epochs=n_epochs, **kwargs)
        except (FloatingPointError, ValueError, RuntimeError) as error:
            if not came_from_nan(error, self.module):
                raise
            if guard.last_finite is not None:
                self.module.load_state_dict(guard.last_finite)
            self._keep_history(stage)
            msg = (
                f"Training left the finite numbers in epoch {guard.epoch + 1}; the model keeps the state before it. Likely "
                f"causes: a step size that is too large (lr={guard.lr:g}), or cells with extreme values. Lower it by "
                "train_kwargs={'plan_kwargs': {'lr': ...}}, or filter cells."
            )
            raise FloatingPointError(msg) from error
        self._keep_history(stage)
        return tracer.trace

    def _keep_history(self, stage: str) -> None:
        if not self.history_:
            return
        names = {"train_loss": "loss", "elbo_train": "elbo", "reconstruction_loss_train": "reconstruction"}
        names |= {"kl_local_train": "kl"}
        names |= {f"{term}_train": term for term in ("tsne", "umap", "target")}
        names |= {"validation_loss": "loss_validation", "elbo_validation": "elbo_validation"}
        names |= {"reconstruction_loss_validation": "reconstruction_validation", "kl_local_validation": "kl_validation"}
        names |= {f"{term}_validation": f"{term}_validation" for term in ("tsne", "umap", "target")}
        columns = {
            name: frame.iloc[:, 0].to_numpy(dtype=float)
            for key, name in names.items()
            if (frame := self.history_.get(key)) is not None and len(frame)
        }
        length = min(map(len, columns.values()))
        table = pd.DataFrame({name: values[:length] for name, values in columns.items()})
        if stage == "encoder":
            # Only the target is learned; what the untrained decoder would say means nothing.
            table = table[[name for name in table if name.startswith(("loss", "target"))]]
        table.insert(0, "phase", "vae" if stage == "joint" else stage)
        self.phase_history_.append(table)

    # ------------------------------------------------------------------------------------------------ results

    def history_table(self) -> pd.DataFrame:
        """One row per epoch: phase, loss and each of its named terms, unweighted (nats per cell)."""
        if not self.phase_history_:
            return pd.DataFrame({"phase": pd.Series(dtype=str)})
        return pd.concat(self.phase_history_, ignore_index=True)

    @torch.no_grad()
    def states(self, n_draws: int = 200) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Posterior mean and standard deviation of each registered cell (cell, latent).

        Those of a logistic-normal latent space, which have no closed form, come from `n_draws` draws.
        """
        mean, variance = self.get_latent_representation(return_dist=True)
        if self.module.latent_distribution == "normal":
            return mean, np.sqrt(variance)
        first, second = np.zeros_like(mean), np.zeros_like(mean)
        for _ in range(n_draws):
            z = torch.as_tensor(mean) + torch.as_tensor(variance).sqrt() * torch.randn(mean.shape)
            z = torch.softmax(z, -1).numpy()
            first += z / n_draws
            second += z**2 / n_draws
        return first, np.sqrt(np.maximum(second - first**2, 0))

    def _codes(self, key: str) -> NDArray[np.int64]:
        return np.asarray(self.adata_manager.get_from_registry(key), dtype=np.int64).ravel()

    def library_sizes(self) -> NDArray[np.float64] | None:
        """What each registered cell is scaled by, None where nothing is: its size factor, or its total counts."""
        if self.library_ == "none":
            return None
        if self.module.use_size_factor_key:
            given = np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY), dtype=float)
            return given.ravel() * self.module.size_unit
        return np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY).sum(1), dtype=float).ravel()

    @torch.no_grad()
    def sample_prior(
        self, origin: ArrayLike, *, random_state: int | None = 0, chunk: int = 4096
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64] | None]:
        """Cells drawn from the model itself.

        Parameters
        ----------
        origin
            Rows of registered cells (n,), which lend batch, label and, unless it is encoded, library size.

        Returns
        -------
        States (n, latent), values (n, gene), library sizes (n,) or None. An encoded library size is drawn from its log-normal
        prior.
        """
        origin = np.asarray(origin)
        batch = torch.as_tensor(self._codes(REGISTRY_KEYS.BATCH_KEY)[origin]).reshape(-1, 1)
        label = torch.as_tensor(self._codes(REGISTRY_KEYS.LABELS_KEY)[origin]).reshape(-1, 1)
        with isolated_seed(concrete_seed(random_state)):
            z = torch.randn(len(origin), self.module.n_latent)
            z = self.module.z_encoder.z_transformation(z)
            if self.library_ == "encoded":
                mean, variance = self.module._compute_local_library_params(batch)
                log_library = mean + variance.sqrt() * torch.randn_like(mean)
                library = log_library.exp().numpy().ravel().astype(float)
            else:
                sizes = self.library_sizes()
                library = None if sizes is None else sizes[origin]
                log_library = torch.zeros(len(origin), 1)
                if library is not None:
                    log_library = self.module.log_size(torch.as_tensor(library)).reshape(-1, 1)
            values = []
            for start in range(0, len(origin), chunk):
                part = slice(start, start + chunk)
                px = self.module.generative(
                    z[part], log_library[part], batch[part], size_factor=log_library[part], y=label[part]
                )["px"]
                values.append(px.sample().cpu().numpy())
        return z.numpy(), np.concatenate(values).astype(np.float32), library

    def to_arrays(self) -> dict[str, Any]:
        """Everything learned, as arrays."""
        return {"module": {name: v.detach().cpu().numpy().copy() for name, v in self.module.state_dict().items()}}

    def load_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Inverse of `to_arrays`, into a model built with the same settings."""
        state = {name: torch.as_tensor(np.asarray(v)) for name, v in arrays["module"].items()}
        wanted = self.module.state_dict()
        self.module.load_state_dict({name: v.reshape(wanted[name].shape) for name, v in state.items()})
        self.module.eval()
        self.is_trained_ = True


class CountVAE(_ShapedVAE, SCVI):
    """Count VAE with a neural decoder: :class:`scvi.model.SCVI`, with a latent space that can be shaped.

    Without penalty and target, and with the same arguments, it is SCVI's model to the last bit. `dp.tl.fit_vae` is the function
    around it.

    Parameters
    ----------
    adata
        Registered by `CountVAE.setup_anndata`.
    n_latent
        Latent dimensions.
    likelihood
        `"nb"`, `"zinb"`, `"poisson"`, `"normal"` or `"bernoulli"`.
    library
        `"observed"`: means are the cell's total times proportions. `"encoded"`: its log-normal size is inferred. `"none"`:
        means, or logits, are the decoder's own (normal and Bernoulli only, and their default).
    dispersion
        `"gene"`, `"gene-batch"`, `"gene-label"` or `"gene-cell"`.
    latent_distribution
        `"normal"`, or `"ln"` for points of the simplex.
    network
        Widths, norms and activations.
    latent_penalty
        t-SNE's or UMAP's cost of the latent space.
    target_key, supervision
        `obsm` with coordinates for the first latent dimensions, and how they are learned.
    """

    _module_cls = CountModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        n_latent: int = 10,
        likelihood: Likelihood = "nb",
        library: Library | None = None,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        latent_distribution: Literal["normal", "ln"] = "normal",
        network: Network | None = None,
        latent_penalty: LatentPenalty | None = None,
        target_key: str | None = None,
        supervision: Supervision | None = None,
    ):
        network, supervision = network or Network(), supervision or Supervision()
        self._prepare(
            library,
            likelihood,
            latent_penalty=latent_penalty,
            supervision=supervision,
            network=network,
            target_key=target_key,
        )
        check_latent(latent_distribution, latent_penalty, target_key)
        activation = activation_class(network.activation)

        def side(name: str) -> dict[str, Any]:
            return {"activation_fn": activation, "bias": network.bias in (name, "both")}

        super().__init__(
            adata,
            registry,
            n_hidden=network.n_hidden,
            n_latent=n_latent,
            n_layers=network.n_layers,
            dropout_rate=network.dropout_rate,
            dispersion=dispersion,
            gene_likelihood=likelihood if likelihood in COUNT_LIKELIHOODS else "normal",
            use_observed_lib_size=self.library_ != "encoded",
            latent_distribution=latent_distribution,
            log_variational=self._log_input(),
            use_batch_norm=network.batch_norm,
            use_layer_norm=network.layer_norm,
            var_activation=None if network.variance == "exp" else torch.nn.functional.softplus,
            extra_encoder_kwargs={**side("encoder"), "var_eps": network.variance_floor},
            extra_decoder_kwargs=side("decoder"),
            **self._module_options(),
        )
        self.module.size_unit = unit_of(self.registry_)
        self._model_summary_string = _summary("Count VAE", self, n_latent)
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        *,
        size_unit: float | None = None,
        counts: bool = True,
        **kwargs: Any,
    ) -> None:
        """Register values, as :meth:`scvi.model.SCVI.setup_anndata` does, and the rows.

        Size factors are divided by `size_unit`, by default their mean, so that their unit does not matter. With
        `counts=False`, scvi-tools does not warn of values that are no counts.
        """
        with _warnings_of_values(shown=counts):
            super().setup_anndata(
                adata,
                layer=layer,
                batch_key=batch_key,
                labels_key=labels_key,
                size_factor_key=size_factor_key,
                **kwargs,
            )
        fields = [CellField()]
        if size_factor_key is not None:
            # A model that is loaded keeps its own.
            source = kwargs.get("source_registry")
            fields.append(SizeFactorField(size_factor_key, size_unit if source is None else unit_of(source)))
        cls._get_most_recent_anndata_manager(adata).register_new_fields(fields)


class LinearCountVAE(_ShapedVAE, LinearSCVI):
    """Count VAE with a linear decoder: :class:`scvi.model.LinearSCVI`, with a latent space that can be shaped.

    Parameters
    ----------
    adata
        Registered by `LinearCountVAE.setup_anndata`.
    network
        Width, depth and dropout of the encoder, and whether the decoder has batch normalisation (`batch_norm`). The rest is
        LinearSCVI's own and cannot be changed.

    Notes
    -----
    The other parameters are those of :class:`CountVAE`.
    """

    _module_cls = LinearCountModule

    def __init__(
        self,
        adata: AnnData,
        *,
        n_latent: int = 10,
        likelihood: Likelihood = "nb",
        library: Library | None = None,
        dispersion: Literal["gene", "gene-batch", "gene-label"] = "gene",
        latent_distribution: Literal["normal", "ln"] = "normal",
        network: Network | None = None,
        latent_penalty: LatentPenalty | None = None,
        target_key: str | None = None,
        supervision: Supervision | None = None,
    ):
        network, supervision = network or Network(), supervision or Supervision()
        self._prepare(
            library,
            likelihood,
            latent_penalty=latent_penalty,
            supervision=supervision,
            network=network,
            target_key=target_key,
        )
        check_latent(latent_distribution, latent_penalty, target_key)
        check_linear(dispersion, network)
        decoder_norm = network.batch_norm == "both"
        super().__init__(
            adata,
            n_hidden=network.n_hidden,
            n_latent=n_latent,
            n_layers=network.n_layers,
            dropout_rate=network.dropout_rate,
            dispersion=dispersion,
            gene_likelihood=likelihood if likelihood in COUNT_LIKELIHOODS else "normal",
            use_observed_lib_size=self.library_ != "encoded",
            latent_distribution=latent_distribution,
            log_variational=self._log_input(),
            use_batch_norm=decoder_norm,
            # The normalisation has a shift of its own.
            bias=not decoder_norm,
            **_with_labels(adata, dispersion),
            **self._module_options(),
        )
        self._model_summary_string = _summary("Linear count VAE", self, n_latent)
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        batch_key: str | None = None,
        labels_key: str | None = None,
        layer: str | None = None,
        *,
        counts: bool = True,
        **kwargs: Any,
    ) -> None:
        """Register values, as :meth:`scvi.model.LinearSCVI.setup_anndata` does, and the rows.

        With `counts=False`, scvi-tools does not warn of values that are no counts.
        """
        with _warnings_of_values(shown=counts):
            super().setup_anndata(adata, batch_key=batch_key, labels_key=labels_key, layer=layer, **kwargs)
        cls._get_most_recent_anndata_manager(adata).register_new_fields([CellField()])

    def centred_loadings(self) -> pd.DataFrame:
        """Change of each gene's logit per unit of each latent dimension (gene, latent).

        Centred over genes where proportions are a softmax, which a shift common to all genes does not change.
        """
        loadings = self.get_loadings()
        return loadings - loadings.mean() if self.library_ != "none" else loadings


@contextmanager
def _warnings_of_values(*, shown: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        if not shown:
            warnings.filterwarnings("ignore", message=".*does not contain unnormalized count data.*")
        yield


def default_epochs(n_cells: int) -> int:
    """scvi-tools' number: 400, from 20,000 cells on as many as give the same number of minibatches."""
    return max(1, min(400, round(20_000 / n_cells * 400)))


def check_library(library: str | None, likelihood: str) -> Library:
    """The library that goes with a likelihood."""
    allowed = (*COUNT_LIKELIHOODS, "normal", "bernoulli")
    if likelihood not in allowed:
        msg = f"likelihood must be one of {', '.join(map(repr, allowed))}; it is {likelihood!r}."
        raise ValueError(msg)
    if library is None:
        return "observed" if likelihood in COUNT_LIKELIHOODS else "none"
    if library not in ("observed", "encoded", "none"):
        msg = f"library must be 'observed', 'encoded' or 'none'; it is {library!r}."
        raise ValueError(msg)
    if library == "none" and likelihood in COUNT_LIKELIHOODS:
        msg = f"library='none' goes with likelihood 'normal' or 'bernoulli'; counts ({likelihood!r}) need their depth."
        raise ValueError(msg)
    return library


def check_latent(latent_distribution: str, penalty: LatentPenalty | None, target_key: str | None) -> None:
    """Raise where a shape is asked of a simplex."""
    if latent_distribution not in ("normal", "ln"):
        msg = f"latent_distribution must be 'normal' or 'ln'; it is {latent_distribution!r}."
        raise ValueError(msg)
    if latent_distribution == "ln" and (penalty is not None or target_key is not None):
        msg = "latent_distribution='ln' puts cells on a simplex, which cannot be shaped. Leave penalty and target out."
        raise ValueError(msg)


def check_linear(dispersion: str, network: Network) -> None:
    """Raise for what a linear decoder does not have."""
    if dispersion == "gene-cell":
        msg = "dispersion='gene-cell' needs a decoder with hidden units. Use decoder='mlp', or another dispersion."
        raise ValueError(msg)
    own = Network()
    fixed = ("layer_norm", "activation", "bias", "variance", "variance_floor")
    other = [name for name in fixed if getattr(network, name) != getattr(own, name)]
    if network.batch_norm not in ("both", "encoder"):
        other.append("batch_norm")
    if other:
        msg = (
            f"decoder='linear' is LinearSCVI's network, in which {other[0]} cannot be {getattr(network, other[0])!r}. "
            "Leave it out, or use decoder='mlp'."
        )
        raise ValueError(msg)


def check_batch(penalty: LatentPenalty, n_cells: int, batch_size: int) -> None:
    """Raise for a perplexity that no minibatch can have."""
    size = min(batch_size, n_cells)
    if penalty.kind == "tsne" and penalty.perplexity > size - 1:
        msg = (
            f"perplexity={penalty.perplexity:g} is more than the {size - 1} other cells of a minibatch. Raise "
            "train_kwargs={'batch_size': ...}, or lower LatentPenalty('tsne', perplexity=...)."
        )
        raise ValueError(msg)


def activation_class(name: str) -> type[torch.nn.Module]:
    """A class of torch.nn by its name."""
    found = getattr(torch.nn, name, None)
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        msg = f"Network(activation={name!r}): torch.nn has no such class. Use e.g. 'ReLU', 'ELU', 'Tanh'."
        raise ValueError(msg)
    return found


def standardised(target: ArrayLike) -> NDArray[np.float64]:
    """Columns with mean 0 and variance 1; constant ones are only centred."""
    target = np.asarray(target, dtype=float)
    spread = target.std(0)
    return (target - target.mean(0)) / np.where(spread > 0, spread, 1.0)


def _with_labels(adata: AnnData, dispersion: str) -> dict[str, int]:
    """LinearSCVI does not count the labels that it registers."""
    if dispersion != "gene-label":
        return {}
    return {"n_labels": LinearCountVAE._get_most_recent_anndata_manager(adata).summary_stats.n_labels}


def _summary(name: str, model: _ShapedVAE, n_latent: int) -> str:
    shaped = f", {model.penalty_.kind} penalty with weight {model.penalty_.weight:g}" if model.penalty_ else ""
    towards = f", towards obsm[{model.target_key_!r}]" if model.target_key_ else ""
    return f"{name}: {n_latent} latent dimensions, {model.likelihood_} likelihood, {model.library_} library{shaped}{towards}."
