"""Methods of scvi-tools' models that know a prior, a library or the AnnData: made right for these models, or refused.

Marginal likelihoods are estimated by importance sampling from q(z | x),

    log p(x | t) = log mean_s p(x | z_s) p(z_s | t) / q(z_s | x),

with the prior of the model, which is N(0, I) in scvi-tools alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS
from scvi.module.base import auto_move_data
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal, StudentT

from dynapath._columns import column_of


class MarginalModule:
    """A module that has its own prior in the marginal likelihood; comes before one of scvi-tools among the bases."""

    def log_prior(self, z: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Log density (sample, cell) of states (sample, cell, latent), before a logistic map: N(0, I)."""
        return Normal(0.0, 1.0).log_prob(z).sum(-1)

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,  # noqa: FBT001, FBT002
        n_mc_samples_per_pass: int = 10,
    ) -> Tensor | float:
        """log p(x) of each cell, with p(z) as the model has it; of counts and group where the group is known."""
        inference = self.inference(**self._get_inference_input(tensors))
        qz, ql, x = inference["qz"], inference["ql"], tensors[REGISTRY_KEYS.X_KEY]
        log_weights = []
        for start in range(0, n_mc_samples, n_mc_samples_per_pass):
            n = min(n_mc_samples_per_pass, n_mc_samples - start)
            u = qz.sample((n,))
            drawn = {**inference, "z": self.z_encoder.z_transformation(u)}
            log_weight = self.log_prior(u, tensors) - qz.log_prob(u).sum(-1)
            if ql is not None:
                drawn["library"] = library = ql.sample((n,))
                mean, variance = self._compute_local_library_params(tensors[REGISTRY_KEYS.BATCH_KEY])
                log_weight = log_weight + (Normal(mean, variance.sqrt()).log_prob(library) - ql.log_prob(library)).sum(
                    -1
                )
            else:
                drawn["library"] = inference["library"].expand(n, -1, -1)
            px = self.generative(**self._get_generative_input(tensors, drawn))["px"]
            log_weights.append(log_weight + px.log_prob(x).sum(-1))
        found = torch.cat(log_weights).logsumexp(0) - np.log(n_mc_samples)
        return found.mean().item() if return_mean else found.cpu()


class CarefulModel:
    """Comes before the mixins of scvi-tools among the bases of a model."""

    # Reads other AnnData as the fit was read; None: scvi-tools transfers the setup.
    _reader: Callable[[AnnData], AnnData] | None = None
    _read: AnnData | None = None

    def read_with(self, reader: Callable[[AnnData], AnnData]) -> None:
        """Read AnnData that methods are given by this function, into one that is set up as the model's own."""
        self._reader, self._read = reader, None

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:  # noqa: FBT001, FBT002
        if adata is None or self._reader is None or adata is self.adata or adata is self._read:
            return super()._validate_anndata(adata, copy_if_view)
        # scvi-tools keeps every AnnData that it has seen; here the last one is enough.
        if self._read is not None:
            self._per_instance_manager_store[self.id].pop(self._read.uns["_scvi_uuid"], None)
        self._read = self._reader(adata)
        self._register_manager_for_instance(self.adata_manager.transfer_fields(self._read))
        return self._read

    @property
    def _counts(self) -> bool:
        return self.module.gene_likelihood in ("nb", "zinb")

    # ------------------------------------------------------------------------------------------------ the prior

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Any = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: bool = True,  # noqa: FBT001, FBT002
        **kwargs: Any,
    ) -> float | Tensor:
        """Log-likelihood of the cells, states summed out under the model's own prior (nats; higher is better).

        For a dynamic VAE that prior is the mixture of the groups at the time of the cell; where `labels_key` gives the group
        of a cell, it is the likelihood of counts and group. Biased downwards, the less the larger `n_mc_samples`.

        Parameters
        ----------
        adata, indices, batch_size
            Which cells, as in scvi-tools.
        n_mc_samples
            Draws from q(z | x) of each cell.
        return_mean
            The mean over cells instead of one number a cell.
        kwargs
            `dataloader`, `data_loader_kwargs` and `n_mc_samples_per_pass`, as in scvi-tools.
        """
        found = super().get_marginal_ll(
            adata, indices, n_mc_samples, batch_size=batch_size, return_mean=False, **kwargs
        )
        # A mean over minibatches would give the cells of a small one more weight.
        return float(found.mean()) if return_mean else found

    def get_importance_weights(self, *args: Any, **kwargs: Any) -> NDArray[np.floating]:
        """As in scvi-tools, where its assumptions hold: counts scaled by their total, and states from N(0, I).

        Raises
        ------
        NotImplementedError : elsewhere.
        """
        self._check_importance()
        return super().get_importance_weights(*args, **kwargs)

    def _check_importance(self) -> None:
        module = self.module
        reasons = {
            "its states come from a mixture that depends on time": getattr(module, "phase", "static") == "joint",
            "its latent space is a simplex": module.latent_distribution != "normal",
            f"its likelihood is not that of counts with a dispersion ({module.gene_likelihood!r})": not self._counts,
            "cells are scaled by size factors": module.use_size_factor_key,
            "the library is encoded": not module.use_observed_lib_size,
        }
        wrong = [reason for reason, holds in reasons.items() if holds]
        if wrong:
            msg = f"Importance weights of scvi-tools do not hold for this model: {wrong[0]}. Use weights='uniform'."
            raise NotImplementedError(msg)

    def get_normalized_expression(self, *args: Any, weights: str | None = None, **kwargs: Any) -> Any:
        """As in scvi-tools; per unit of the size factor where there is one.

        Raises
        ------
        NotImplementedError : for `weights="importance"` where it does not hold.
        ValueError : for it without `n_samples_overall`, where scvi-tools would not use it.
        """
        if weights == "importance":
            self._check_importance()
            if kwargs.get("n_samples_overall") is None:
                msg = (
                    "weights='importance' goes with n_samples_overall=..., without which no sample is drawn by weight."
                )
                raise ValueError(msg)
        return super().get_normalized_expression(*args, weights=weights, **kwargs)

    @torch.inference_mode()
    def get_aggregated_posterior(
        self,
        adata: AnnData | None = None,
        indices: Any = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> Distribution:
        """The mixture of the posteriors of cells, each with its standard deviation.

        Parameters
        ----------
        adata, indices, batch_size
            Which cells, as in scvi-tools.
        dof
            Degrees of freedom of Student's t; None for normal ones.
        """
        mean, variance = map(
            torch.as_tensor,
            self.get_latent_representation(adata, indices=indices, batch_size=batch_size, return_dist=True),
        )
        # scvi-tools takes the variance for the scale.
        each = Normal(mean, variance.sqrt()) if dof is None else StudentT(dof, mean, variance.sqrt())
        return MixtureSameFamily(Categorical(logits=torch.zeros(len(mean))), Independent(each, 1))

    @torch.inference_mode()
    def differential_abundance(
        self,
        adata: AnnData | None = None,
        sample_key: str | None = None,
        batch_size: int = 128,
        num_cells_posterior: int | None = None,
        dof: float | None = None,
    ) -> pd.DataFrame:
        """Log density of each cell's state among the cells of each sample (cell, sample); nothing is written.

        Parameters
        ----------
        adata
            Cells; by default those of the model.
        sample_key
            Column of `obs` with the sample of each cell.
        batch_size
            Cells at a time.
        num_cells_posterior
            Cells of a sample that stand for it at most, drawn at random.
        dof
            Degrees of freedom of Student's t; None for normal posteriors.
        """
        adata = self._validate_anndata(adata)
        sample, columns = column_of(adata.obs, sample_key, argument="sample_key"), {}
        states = torch.as_tensor(self.get_latent_representation(adata, batch_size=batch_size))
        for name in sample.unique():
            rows = np.flatnonzero(sample == name)
            if num_cells_posterior is not None and num_cells_posterior < len(rows):
                rows = np.random.choice(rows, num_cells_posterior, replace=False)  # noqa: NPY002
            among = self.get_aggregated_posterior(adata, rows, batch_size=batch_size, dof=dof)
            columns[name] = torch.cat([among.log_prob(part) for part in states.split(batch_size)]).numpy()
        return pd.DataFrame(columns, index=adata.obs_names)

    def minify_adata(self, *args: Any, **kwargs: Any) -> None:
        """Not for these models: library sizes, from which draws take their depth, would go with the counts.

        Raises
        ------
        NotImplementedError : always.
        """
        msg = "minify_adata would drop counts that this model needs. States are in obsm already; drop the counts there: del adata.X."
        raise NotImplementedError(msg)

    @classmethod
    def setup_annbatch(cls, *args: Any, **kwargs: Any) -> None:
        """Not for these models: data that scvi-tools streams from files carry neither times nor the order of the cells.

        Raises
        ------
        NotImplementedError : always.
        """
        msg = f"setup_annbatch registers neither times nor the order of the cells, which {cls.__name__} needs. Use setup_anndata."
        raise NotImplementedError(msg)

    # ------------------------------------------------------------------------------------------------ the likelihood

    def get_likelihood_parameters(self, *args: Any, **kwargs: Any) -> dict[str, NDArray[np.floating]]:
        """Means and dispersions of counts, as in scvi-tools.

        Raises
        ------
        NotImplementedError : for a likelihood without a dispersion.
        """
        self._needs_dispersion(
            "get_likelihood_parameters", "get_normalized_expression(library_size='latent') has the means"
        )
        return super().get_likelihood_parameters(*args, **kwargs)

    def get_feature_correlation_matrix(self, *args: Any, **kwargs: Any) -> pd.DataFrame:
        """Correlations of denoised counts between genes, as in scvi-tools.

        Raises
        ------
        NotImplementedError : for a likelihood without a dispersion.
        """
        self._needs_dispersion("get_feature_correlation_matrix", "use get_normalized_expression(...).corr()")
        return super().get_feature_correlation_matrix(*args, **kwargs)

    def _needs_dispersion(self, method: str, instead: str) -> None:
        if not self._counts:
            likelihood = getattr(self, "likelihood_", self.module.gene_likelihood)
            msg = f"{method} needs a negative binomial likelihood; this model's is {likelihood!r}. Instead, {instead}."
            raise NotImplementedError(msg)

    def get_latent_library_size(self, *args: Any, give_mean: bool = True, **kwargs: Any) -> NDArray[np.floating]:
        """Library size of each cell, inferred or (`give_mean=False`) observed, as in scvi-tools.

        Raises
        ------
        NotImplementedError : for a model whose cells are scaled by something else, or by nothing.
        """
        if self.module.use_size_factor_key or not getattr(self.module, "scaled", True):
            by = "size factors" if self.module.use_size_factor_key else "nothing"
            msg = f"Cells of this model are scaled by {by}, not by a library size. See library_sizes()."
            raise NotImplementedError(msg)
        return super().get_latent_library_size(*args, give_mean=give_mean, **kwargs)
