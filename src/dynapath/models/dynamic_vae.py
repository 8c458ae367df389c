"""Dynamic VAE: counts of snapshots -> groups, their latent dynamics and cell states, inferred together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix, vstack
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField
from scvi.model.base import BaseModelClass, RNASeqMixin, UnsupervisedTrainingMixin, VAEMixin

from dynapath._threads import threads_for
from dynapath.dynamics.changes import Convergence
from dynapath.dynamics.choose_groups import candidate_groups, choose_n_groups
from dynapath.dynamics.fit_mixture import refit_proportions
from dynapath.dynamics.group_dynamics import GroupDynamics, TimeScale
from dynapath.dynamics.mixture import Growth, LinearMixture
from dynapath.models._random import concrete_seed, isolated_seed

from ._dynamic_module import TIME_KEY, DynamicVAEModule
from ._finish_decoder import finish_decoder, shrink_slopes
from ._inherited import CarefulModel
from ._size_factor_field import SizeFactorField, unit_of
from ._take_over import check_can_be_taken_over, check_same_data, module_kwargs_of
from ._time_field import TimeField
from ._training import DynamicTrainingPlan, FiniteGuard, PhaseProgress, came_from_nan, quiet, watch_plateau
from .convergence import TraceWeights, convergence_of
from .options import Prior, Training
from .stage import Stage
from .weight_trace import WeightTrace

UNLABELLED = "unlabelled"


class DynamicVAE(CarefulModel, RNASeqMixin, VAEMixin, UnsupervisedTrainingMixin, BaseModelClass):
    """Count VAE whose prior is a mixture of group-specific linear dynamics in the time of the snapshots.

    An scvi-tools model: `setup_anndata`, `train`, `get_latent_representation`, `get_normalized_expression`, `save` and
    `load` are scvi-tools' own. `dp.tl.fit_dynamic_vae` is the function around it.

    Parameters
    ----------
    adata
        Registered by `DynamicVAE.setup_anndata`.
    n_groups
        Number of groups. Or several to choose from, `"auto"` for 1 to 6: training takes the one with the lowest BIC on
        the latent space of the static phase, and from then on the model has that number.
    n_latent
        Number of latent dimensions.
    likelihood
        `"nb"`, `"zinb"` or `"poisson"`.
    growth
        Whether proportions of groups may change log-linearly in time: `"shrunk"`, `"free"` or `"off"`.
    prior, training
        Rarer options; `training` here gives the network, its optimiser part is the default of `train`.
    module_kwargs
        Handed to :class:`scvi.module.VAE` as they are; LayerNorm replaces BatchNorm unless they say otherwise, because
        states of unobserved times must not be decoded by running statistics of observed ones.
    """

    _module_cls = DynamicVAEModule
    _training_plan_cls = DynamicTrainingPlan

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        n_groups: int | Sequence[int] | Literal["auto"] = 3,
        n_latent: int = 2,
        likelihood: Literal["nb", "zinb", "poisson"] = "nb",
        growth: Growth = "shrunk",
        prior: Prior | None = None,
        training: Training | None = None,
        module_kwargs: dict[str, Any] | None = None,
    ):
        super().__init__(adata, registry)
        prior, training = prior or Prior(), training or Training()
        setup = self.registry_["setup_args"]
        self._candidates = candidate_groups(n_groups, self.group_labels)
        self._module_kwargs = {
            "n_groups": self._candidates[0],
            "n_latent": n_latent,
            "gene_likelihood": likelihood,
            "growth": growth,
            "prior": prior,
            "decoder": training.decoder,
            "n_hidden": training.n_hidden,
            "n_layers": training.n_layers,
            "dropout_rate": training.dropout_rate,
            "use_batch_norm": "none",
            "use_layer_norm": "both",
            "use_size_factor_key": setup.get("size_factor_key") is not None,
            "size_unit": unit_of(self.registry_),
            "label_to_group": self._label_codes_to_groups(),
            **(module_kwargs or {}),
        }
        self.module = self._module_cls(
            self.summary_stats.n_vars,
            n_batch=self.summary_stats.n_batch,
            n_labels=self.summary_stats.n_labels,
            **self._module_kwargs,
        )
        self.training, self.prior_options = training, prior
        self.phase_history_: list[pd.DataFrame] = []
        self.restarts_: dict[str, np.ndarray] = {}
        self.stages_: list[Stage] = []
        self.rivals_: LinearMixture | None = None
        self.group_choice_: dict[str, np.ndarray] = {}
        self.convergence_ = Convergence()
        self._summarise()
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        time_key: str,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        observed_times: Sequence[float] | None = None,
        size_unit: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Register counts and times.

        Parameters
        ----------
        adata
            One row per cell.
        time_key
            Column of `obs` with the time of each cell: numbers, or categories that read as numbers.
        layer
            Layer with raw counts; None for `X`.
        batch_key, size_factor_key
            As in :class:`scvi.model.SCVI`.
        labels_key
            Column with known groups of some cells; cells of the category "unlabelled" are free. Group k is the k-th of
            the other categories.
        observed_times
            The times that set the model's time scale; by default those in `adata`.
        size_unit
            What size factors are divided by, so that their unit does not matter; by default their mean.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=True),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
            SizeFactorField(size_factor_key, size_unit),
            TimeField(TIME_KEY, time_key, observed_times),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _summarise(self) -> None:
        self._model_summary_string = (
            f"Dynamic VAE: {' or '.join(map(str, self._candidates))} groups of linear dynamics in {self.module.n_latent} "
            f"latent dimensions, {self.module.gene_likelihood} likelihood, growth {self.module.prior.growth}."
        )

    @property
    def observed_times(self) -> NDArray[np.float64]:
        """Distinct times of the registered snapshots, as they were measured."""
        return np.asarray(self.registry_["field_registries"][TIME_KEY]["state_registry"]["observed_times"], dtype=float)

    @property
    def group_labels(self) -> list[str]:
        """Names of the groups that `labels_key` gave, in the order of the groups."""
        return [name for name in self._categories(REGISTRY_KEYS.LABELS_KEY, "labels_key") if name != UNLABELLED]

    def _categories(self, registry_key: str, argument: str) -> list[str]:
        if self.registry_["setup_args"].get(argument) is None:
            return []
        return list(map(str, self.registry_["field_registries"][registry_key]["state_registry"]["categorical_mapping"]))

    def _label_codes_to_groups(self) -> tuple[int, ...] | None:
        names = self.group_labels
        if not names:
            return None
        coded = self._categories(REGISTRY_KEYS.LABELS_KEY, "labels_key")
        return tuple(names.index(name) if name in names else -1 for name in coded)

    # ------------------------------------------------------------------------------------------------ training

    def train(
        self,
        max_epochs: int | None = None,
        *,
        training: Training | None = None,
        skip_static: bool = False,
        static_only: bool = False,
        random_state: int | None = 0,
        **train_kwargs: Any,
    ) -> None:
        """Static VAE, then the mixture on its latent space, then both together, then the decoder's linear part to the end.

        In the end slopes of genes with few counts are shrunk (`dynapath.models._finish_decoder`).

        Parameters
        ----------
        max_epochs
            Epochs of the static phase; the joint phase takes four fifths as many. Overrules `training`.
        training
            Optimiser options; the network is fixed when the model is built.
        skip_static
            The networks are trained already (`from_scvi`).
        static_only
            Stop before the dynamics: a VAE with the prior N(0, I), trained for the epochs of both phases.
        random_state
            Seed; the session's random state is not touched.
        train_kwargs
            Handed to scvi-tools' `train` in both phases: `accelerator`, `devices`, `strategy`, `plan_kwargs`,
            `train_size`, `early_stopping`, ...

        Raises
        ------
        FloatingPointError : if the loss is not finite; the model keeps its last finite state.
        """
        options = training or self.training
        n_static, n_joint = _epochs(self.adata.n_obs, options, max_epochs)
        n_static = 0 if skip_static else n_static
        if static_only:
            n_static, n_joint = n_static + n_joint, 0
        progress = PhaseProgress(n_static + n_joint, show=options.progress and rank_zero_only.rank == 0)
        try:
            with quiet(), isolated_seed(concrete_seed(random_state)):
                self.stages_ = []
                if n_static:
                    if options.keep_stages:
                        self._keep_stage("untrained")
                    self._start_from_genes()
                    self._run_phase("static", n_static, options, progress, train_kwargs)
                if static_only:
                    return
                progress.enter("mixture")
                self._fit_prior(options)
                if options.keep_stages:
                    self._keep_stage("static", self.dynamics)
                trace = self._run_phase("joint", n_joint, options, progress, train_kwargs)
                self.convergence_ = self._of_first_process(convergence_of(self, trace, self._measured_times()))
                self._finish_decoder(options)
                # Encoding the cells draws a sample too.
                self._settle()
        finally:
            progress.close()

    def _start_from_genes(self, chunk: int = 1024) -> None:
        """Means and dispersions of the genes, for the decoder to start from: one pass over the counts, in chunks."""
        counts = self.counts()
        size = self.library_sizes() / self.module.size_unit
        n_cells, n_genes = counts.shape
        # A tenth of a count keeps silent genes finite.
        proportion = np.maximum(np.asarray(counts.sum(0)).ravel(), 0.1) / size.sum()
        mean = proportion * size.mean()
        square = np.zeros(n_genes)
        for start in range(0, n_cells, chunk):
            part = counts[start : start + chunk]
            scale = np.repeat(size[start : start + chunk] / size.mean(), np.diff(part.indptr))
            square += np.bincount(part.indices, (part.data / scale) ** 2, minlength=n_genes) / n_cells
        dispersion = np.clip((square - mean**2 - mean) / mean**2, 0.05, 20.0)
        self.module.start_from_genes(
            torch.as_tensor(proportion, dtype=torch.float32), torch.as_tensor(dispersion, dtype=torch.float32)
        )

    def _run_phase(
        self,
        phase: Literal["static", "joint"],
        n_epochs: int,
        options: Training,
        progress: PhaseProgress,
        train_kwargs: Mapping[str, Any],
    ) -> WeightTrace:
        self.module.set_phase(phase)
        progress.enter(phase)
        guard, tracer = FiniteGuard(), TraceWeights()
        plan: dict[str, Any] = {"lr": options.lr, "prior_lr": options.prior_lr, "eps": 1e-8}
        # scvi-tools warms the KL up over 400 epochs unless told otherwise: longer than the whole fit.
        if phase == "static":
            plan["n_epochs_kl_warmup"] = max(1, n_epochs // 2)
        else:
            plan |= {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": None, "min_kl_weight": 1.0}
        kwargs: dict[str, Any] = {
            "batch_size": options.batch_size,
            "train_size": 1.0,
            "enable_progress_bar": False,
            "gradient_clip_val": options.gradient_clip if phase == "joint" else None,
            **train_kwargs,
        }
        kwargs["plan_kwargs"] = {**plan, **(kwargs.get("plan_kwargs") or {})}
        watch_plateau(kwargs)
        kwargs["callbacks"] = [guard, progress, tracer, *kwargs.get("callbacks", ())]
        # Each phase has a history of its own: the loss means something else in each.
        self.history_, self.is_trained_ = None, False
        # scvi-tools leaves a trained module in evaluation mode, and Lightning would train it so.
        self.module.train()
        try:
            with threads_for(kwargs["batch_size"] * self.summary_stats.n_vars):
                super().train(max_epochs=n_epochs, **kwargs)
        except (FloatingPointError, ValueError, RuntimeError) as error:
            if not came_from_nan(error, self.module):
                raise
            if guard.last_finite is not None:
                self.module.load_state_dict(guard.last_finite)
            self.module.eval()
            self._keep_history(phase)
            given = train_kwargs.get("plan_kwargs") or {}
            which = "train_kwargs={'plan_kwargs': {'lr': ...}}" if "lr" in given else "Training(lr=...)"
            msg = (
                f"Training left the finite numbers in epoch {guard.epoch + 1} of the {phase} phase; the model keeps the "
                f"state before it. Likely causes: a step size that is too large (lr={kwargs['plan_kwargs']['lr']:g}, "
                f"prior_lr={kwargs['plan_kwargs']['prior_lr']:g}), or cells with extreme counts. Lower {which} or filter cells."
            )
            raise FloatingPointError(msg) from error
        # Only the first process logs.
        self.history_ = self._of_first_process(self.history_)
        self._keep_history(phase)
        return tracer.trace

    def _of_first_process(self, value: Any) -> Any:
        """What the first process of distributed training has, in all of them; in other training `value` itself."""
        trainer = getattr(self, "trainer", None)
        return value if trainer is None else trainer.strategy.broadcast(value)

    def _keep_history(self, phase: str) -> None:
        if not self.history_:
            return
        names = {
            "train_loss": "loss",
            "elbo_train": "elbo",
            "reconstruction_loss_train": "reconstruction",
            "kl_local_train": "kl",
            "ridge_train": "ridge",
            "decoder_train": "decoder",
            "growth_train": "growth",
            "elbo_validation": "elbo_validation",
        }
        columns = {
            name: frame.iloc[:, 0].to_numpy(dtype=float)
            for key, name in names.items()
            if (frame := self.history_.get(key)) is not None
        }
        length = min(map(len, columns.values()))
        table = pd.DataFrame({name: values[:length] for name, values in columns.items()})
        table.insert(0, "phase", phase)
        self.phase_history_.append(table)

    @torch.no_grad()
    def _sampled_states(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """One draw from q(z | x) of every cell, its time index, the distinct times, and known groups."""
        mean, variance = self.get_latent_representation(return_dist=True)
        mean, variance = torch.as_tensor(mean), torch.as_tensor(variance)
        z = mean + variance.sqrt() * torch.randn(mean.shape)
        times, index = np.unique(self._scaled_times(), return_inverse=True)
        return z, torch.as_tensor(index), torch.as_tensor(times), self._known_groups()

    def _known_groups(self) -> torch.Tensor | None:
        """Group of each cell as far as labels give it, -1 elsewhere."""
        if self.module.label_to_group is None:
            return None
        codes = torch.tensor(np.array(self.adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY)).ravel())
        return self.module.label_to_group.cpu()[codes.long()]

    def _fit_prior(self, options: Training) -> None:
        z, index, times, labels = self._sampled_states()
        choice = choose_n_groups(
            z,
            index,
            times,
            candidates=self._candidates,
            structure=self.module.prior,
            labels=labels,
            ridge=self.module.ridge,
            growth_penalty=self.module.growth_penalty,
            n_restarts=options.n_restarts,
            n_steps=options.prior_steps,
            random_state=int(torch.randint(2**31, ())),
        )
        # Processes have fitted the same, but for the last digits on different machines: they must not choose differently.
        choice = self._of_first_process(choice)
        self.module.start_from_mixture(choice.fit.mixture)
        self.restarts_ = {"log_likelihood": choice.fit.log_likelihood, "agreement": choice.fit.agreement}
        self.rivals_ = choice.fit.alternatives
        self.group_choice_ = choice.table()
        # What is saved, and trained again, has the chosen number.
        self._candidates = (choice.chosen,)
        self.init_params_["non_kwargs"]["n_groups"] = choice.chosen
        self._summarise()

    def _keep_stage(self, name: str, dynamics: GroupDynamics | None = None) -> None:
        """Encode the cells as they are now, on random numbers other than those of the training."""
        trained, self.is_trained_ = self.is_trained_, True
        self.module.eval()
        with torch.random.fork_rng():
            z = self.get_latent_representation()
        self.is_trained_ = trained
        self.stages_.append(Stage(name, len(self.history_table()), z, dynamics))

    def _finish_decoder(self, options: Training) -> None:
        if not options.finish_steps:
            return
        mean, variance = (torch.as_tensor(value) for value in self.get_latent_representation(return_dist=True))
        cells = (
            self.counts(),
            mean,
            variance,
            torch.as_tensor(self.library_sizes() / self.module.size_unit, dtype=torch.float32),
            torch.as_tensor(self.batch_codes()),
        )
        finish_decoder(self.module, *cells, n_steps=options.finish_steps)
        shrink_slopes(self.module, *cells)
        self.module.load_state_dict(self._of_first_process(self.module.state_dict()))

    @torch.no_grad()
    def _settle(self) -> None:
        """Proportions without the growth penalty, and groups in a reproducible order."""
        prior = deepcopy(self.module.prior).cpu()
        z = torch.as_tensor(self.get_latent_representation()).double()
        times, index = np.unique(self._scaled_times(), return_inverse=True)
        times, known = torch.as_tensor(times), self._known_groups()
        refit_proportions(prior, z, torch.as_tensor(index), times, labels=known)
        if known is None:
            order = prior.reorder_by_start()
            for stage in self.stages_:
                if stage.dynamics is not None:
                    stage.dynamics.mixture.reorder(order)
        self.module.prior.load_state_dict(prior.state_dict())
        # After the joint phase nothing has kept the processes of distributed training together.
        state = {name: value.cpu() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self._of_first_process(state))

    # ------------------------------------------------------------------------------------------------ results

    def _scaled_times(self, adata: AnnData | None = None) -> NDArray[np.float64]:
        manager = self.adata_manager if adata is None else self.get_anndata_manager(adata, required=True)
        return np.asarray(manager.get_from_registry(TIME_KEY), dtype=float).ravel()

    def _measured_times(self) -> NDArray[np.float64]:
        scale = TimeScale.of(self.observed_times)
        return scale.origin + scale.span * self._scaled_times()

    @property
    def dynamics(self) -> GroupDynamics:
        """The fitted groups in the units of the data."""
        return GroupDynamics(deepcopy(self.module.prior), self.observed_times)

    def history_table(self) -> pd.DataFrame:
        """One row per epoch: phase, loss and each of its named terms (nats per cell)."""
        if not self.phase_history_:
            return pd.DataFrame({"phase": pd.Series(dtype=str)})
        return pd.concat(self.phase_history_, ignore_index=True)

    def library_sizes(self) -> NDArray[np.float64]:
        """What each registered cell is scaled by: its size factor, or its total counts."""
        if self.module.use_size_factor_key:
            given = np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY), dtype=float)
            return given.ravel() * self.module.size_unit
        return np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY).sum(1), dtype=float).ravel()

    def counts(self) -> csr_matrix:
        """Counts of the registered cells (cell, gene)."""
        return csr_matrix(self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY))

    def known_groups(self) -> NDArray[np.int64] | None:
        """Group of each registered cell as far as labels give it, -1 elsewhere; None without labels."""
        known = self._known_groups()
        return None if known is None else known.numpy()

    def batch_codes(self) -> NDArray[np.int64]:
        """Batch of each registered cell, as the decoder takes it."""
        return np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY), dtype=np.int64).ravel()

    @torch.no_grad()
    def decode(
        self,
        z: ArrayLike,
        library: ArrayLike,
        batch: ArrayLike | None = None,
        *,
        random_state: int | None = None,
        expected: bool = False,
        chunk: int = 4096,
    ) -> csr_matrix:
        """Counts of cells with states `z`.

        Parameters
        ----------
        z
            States (cell, latent).
        library
            Library size of each cell, or its size factor where the model was set up with one.
        batch
            Batch code of each cell; all zero by default.
        expected
            Means instead of sampled counts.

        Returns
        -------
        Sparse float32 (cell, gene); integers unless `expected`.
        """
        z, library = np.asarray(z, dtype=np.float32), np.asarray(library, dtype=float).reshape(-1, 1)
        log_sizes = self.module.log_size(torch.as_tensor(library))
        batch = np.zeros(len(z)) if batch is None else np.asarray(batch)
        batch = batch.astype(np.int64).reshape(-1, 1)
        rows = []
        with nullcontext() if random_state is None else isolated_seed(random_state):
            for start in range(0, len(z), chunk):
                part = slice(start, start + chunk)
                log_size = log_sizes[part]
                outputs = self.module.generative(
                    torch.as_tensor(z[part]), log_size, torch.as_tensor(batch[part]), size_factor=log_size
                )
                px = outputs["px"]
                rows.append(csr_matrix((px.mean if expected else px.sample()).cpu().numpy().astype(np.float32)))
        return vstack(rows, format="csr")

    # ------------------------------------------------------------------------------------------------ other ways in

    @classmethod
    def from_scvi(
        cls,
        model: Any,
        adata: AnnData,
        *,
        n_groups: int | Sequence[int] | Literal["auto"],
        growth: Growth,
        prior: Prior | None,
    ) -> DynamicVAE:
        """A dynamic VAE with the networks of a trained :class:`scvi.model.SCVI`, for `train(skip_static=True)`.

        Parameters
        ----------
        model
            Trained on the same genes in the same order, with the same batch column.
        adata
            Registered by `DynamicVAE.setup_anndata`.

        Raises
        ------
        ValueError : if the model cannot be taken over, naming why.
        """
        check_can_be_taken_over(model)
        theirs = model.module
        ours = cls(
            adata,
            n_groups=n_groups,
            n_latent=theirs.n_latent,
            likelihood=theirs.gene_likelihood,
            growth=growth,
            prior=prior,
            training=Training(
                n_hidden=theirs.n_hidden,
                n_layers=theirs.n_layers,
                decoder=model.training.decoder if isinstance(model, DynamicVAE) else "mlp",
            ),
            module_kwargs=module_kwargs_of(model),
        )
        check_same_data(model.registry_, ours.registry_)
        if unit_of(model.registry_) != ours.module.size_unit:
            msg = (
                f"model= measures size factors in units of {unit_of(model.registry_):g}, but they are registered in units of "
                f"{ours.module.size_unit:g}. Use DynamicVAE.setup_anndata(..., size_unit={unit_of(model.registry_):g})."
            )
            raise ValueError(msg)
        wanted = {k for k in ours.module.state_dict() if not k.startswith("prior.")}
        ours.module.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in wanted}, strict=False)
        # As scvi-tools leaves a trained module: encoding must not drop units out.
        ours.module.eval()
        ours.is_trained_ = True
        return ours

    def settings(self) -> dict[str, Any]:
        """What to build this model with again, beyond the arguments of `dp.tl.fit_dynamic_vae`."""
        given = self.init_params_["non_kwargs"].get("module_kwargs") or {}
        return {
            "likelihood": self.module.gene_likelihood,
            "prior": asdict(self.prior_options),
            "network": {
                name: getattr(self.training, name) for name in ("n_hidden", "n_layers", "dropout_rate", "decoder")
            },
            "module_kwargs": given,
            "observed_times": self.observed_times,
            "size_unit": self.module.size_unit,
            "batches": self._categories(REGISTRY_KEYS.BATCH_KEY, "batch_key"),
            "group_labels": self.group_labels,
        }

    def to_arrays(self) -> dict[str, Any]:
        """Network weights, dynamics, and what is needed to build the model again, as arrays and scalars."""
        state = {
            name: value.detach().cpu().numpy().copy()
            for name, value in self.module.state_dict().items()
            if not name.startswith("prior.")
        }
        return {"module": state, "dynamics": self.dynamics.to_arrays()}

    def load_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Inverse of `to_arrays`, into a model built with the same settings."""
        self.module.load_state_dict(
            {k: torch.as_tensor(np.asarray(v)) for k, v in arrays["module"].items()}, strict=False
        )
        mixture = GroupDynamics.from_arrays(arrays["dynamics"]).mixture
        self.module.prior.load_state_dict(mixture.state_dict())
        self.module.set_phase("joint")
        self.module.eval()
        self.is_trained_ = True


def _epochs(n_cells: int, options: Training, max_epochs: int | None) -> tuple[int, int]:
    """Epochs of the static and the joint phase."""
    if max_epochs is not None:
        if max_epochs < 1:
            msg = f"max_epochs must be at least 1; it is {max_epochs}."
            raise ValueError(msg)
        return max_epochs, max(1, round(0.8 * max_epochs))
    batches = max(1, -(-n_cells // options.batch_size))
    static = int(np.clip(round(1000 / batches), 20, 400))
    joint = int(np.clip(round(800 / batches), 20, 300))
    return options.static_epochs or static, options.joint_epochs or joint
