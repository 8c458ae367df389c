"""The network of the dynamic VAE: SCVI's module with a mixture of group dynamics for a prior.

    x_ig | z_i ~ NB(l_i softmax(f(z_i))_g, theta_g)        z_i | t_i ~ sum_k pi_k(t_i) N(mu_k(t_i), S_k(t_i))

Loss per cell, with z drawn once from q(z | x) and the group summed out analytically:

    -log p(x | z) + log q(z | x) - log p(z | t),   plus ridge mean_k ||A_k||^2 + growth_penalty sum_k r_k^2

and, in both phases, decoder_ridge times the squared output weights of the decoder's network.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from scvi import REGISTRY_KEYS
from scvi.module import VAE
from scvi.module.base import LossOutput
from scvi.nn import DecoderSCVI
from torch import Tensor, nn

from dynapath.dynamics.mixture import Growth, LinearMixture, marginal_log_prob

from ._inherited import MarginalModule
from .options import Prior

TIME_KEY = "dynapath_time"


class CountDecoder(DecoderSCVI):
    """SCVI's decoder, optionally with a linear path from the latent space to the logits.

    With `skip`, logits = W z + shift of the batch + network(z, batch). The network starts at zero and its output weights are
    penalised (`nonlinearity`), so it corrects what a log-linear model cannot explain: beyond the training cells, where a
    network is arbitrary, the linear part rules. Heads that the likelihood does not use are left out.

    Libraries come in units of `size_unit`, which only size factors have; proportions are per unit of what was measured.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        *,
        n_batch: int,
        skip: bool,
        zero_inflated: bool,
        size_unit: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(n_input, n_output, n_cat_list=[n_batch], **kwargs)
        self.size_unit = size_unit
        del self.px_r_decoder
        if not zero_inflated:
            del self.px_dropout_decoder
        self.zero_inflated = zero_inflated
        self.skip = nn.Linear(n_input, n_output, bias=False) if skip else None
        self.shift = nn.Embedding(n_batch, n_output) if skip and n_batch > 1 else None
        with torch.no_grad():
            if skip:
                self.px_scale_decoder[0].weight.zero_()
                self.px_scale_decoder[0].bias.zero_()
                self.skip.weight.normal_(std=0.1)
            if self.shift is not None:
                self.shift.weight.zero_()

    def linear_parameters(self) -> list[nn.Parameter]:
        """W and the shifts of the batches; none without `skip`."""
        return [p for part in (self.skip, self.shift) if part is not None for p in part.parameters()]

    def nonlinearity(self) -> Tensor:
        """Squared output weights of the network, summed; zero without `skip`."""
        weight = self.px_scale_decoder[0].weight
        return weight.square().sum() if self.skip is not None else weight.new_zeros(())

    def forward(
        self, dispersion: str, z: Tensor, library: Tensor, batch: Tensor, *cat_list: Tensor | None
    ) -> tuple[Tensor, None, Tensor, Tensor | None]:
        """Proportions, nothing (the dispersion is the gene's), means, and logits of structural zeros."""
        hidden = self.px_decoder(z, batch, *cat_list)
        to_logits, activation = self.px_scale_decoder
        logits = to_logits(hidden)
        if self.skip is not None:
            logits = logits + self.skip(z)
        if self.shift is not None:
            logits = logits + self.shift(batch.long().squeeze(-1))
        scale = activation(logits)
        zeros = self.px_dropout_decoder(hidden) if self.zero_inflated else None
        return scale / self.size_unit, None, library.exp() * scale, zeros


class DynamicVAEModule(MarginalModule, VAE):
    """See the head of this file.

    Parameters
    ----------
    n_groups, growth, prior
        The mixture of dynamics.
    label_to_group
        Group of each label code, -1 for cells whose group is unknown.
    decoder
        `"skip"` or `"mlp"`.
    size_unit
        What size factors are divided by.
    kwargs
        Of :class:`scvi.module.VAE`.
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_groups: int = 3,
        growth: Growth = "shrunk",
        prior: Prior | None = None,
        label_to_group: tuple[int, ...] | None = None,
        decoder: Literal["skip", "mlp"] = "skip",
        size_unit: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(n_input, **kwargs)
        options = prior or Prior()
        self.size_unit = size_unit
        # The library is observed; an unused encoder would only trouble distributed training.
        self.l_encoder = None
        # A Poisson distribution has no dispersion.
        self.px_r.requires_grad_(self.gene_likelihood != "poisson")
        batch_norm, layer_norm = kwargs.get("use_batch_norm", "both"), kwargs.get("use_layer_norm", "none")
        self.decoder = CountDecoder(
            self.n_latent,
            n_input,
            skip=decoder == "skip",
            zero_inflated=self.gene_likelihood == "zinb",
            n_batch=self.n_batch,
            size_unit=size_unit,
            n_layers=self.n_layers,
            n_hidden=self.n_hidden,
            inject_covariates=kwargs.get("deeply_inject_covariates", True),
            use_batch_norm=batch_norm in ("decoder", "both"),
            use_layer_norm=layer_norm in ("decoder", "both"),
            scale_activation="softplus" if self.use_size_factor_key else "softmax",
            **(kwargs.get("extra_decoder_kwargs") or {}),
        )
        self.prior = LinearMixture(
            n_groups,
            self.n_latent,
            share=options.share,
            tie_initial=options.tie_initial,
            growth=growth,
            floor=options.floor,
            relaxation=options.relaxation,
        )
        self.ridge, self.growth_penalty = options.ridge, options.growth_penalty
        self.decoder_ridge = options.decoder_ridge
        self.register_buffer(
            "label_to_group",
            torch.tensor(label_to_group, dtype=torch.long) if label_to_group else None,
            persistent=False,
        )
        self._learns_dynamics = {name: p.requires_grad for name, p in self.prior.named_parameters()}
        self.set_phase("static")

    @torch.no_grad()
    def start_from_genes(self, proportion: Tensor, dispersion: Tensor) -> None:
        """Let the decoder start at the genes' own means and variances instead of having to walk there.

        Parameters
        ----------
        proportion
            Mean of each gene as a share of the library (or per size factor of `size_unit`).
        dispersion
            Squared biological coefficient of variation of each gene, the inverse of theta.
        """
        bias = self.decoder.px_scale_decoder[0].bias
        # The inverse of softplus without expm1(p), which overflows above 88 in single precision.
        inverse = proportion + (-torch.expm1(-proportion)).log() if self.use_size_factor_key else proportion.log()
        bias.copy_(inverse)
        log_theta = -dispersion.log()
        self.px_r.copy_(log_theta if self.px_r.dim() == 1 else log_theta.unsqueeze(-1).expand_as(self.px_r))

    def log_size(self, library: Tensor) -> Tensor:
        """Logarithm of libraries or size factors, as they were measured, in the unit in which networks take them."""
        return (library.double() / self.size_unit).float().log()

    def start_from_mixture(self, mixture: LinearMixture) -> None:
        """Let the prior be this mixture, whatever its number of groups."""
        self.prior = mixture.to(self.device)
        self._learns_dynamics = {name: p.requires_grad for name, p in mixture.named_parameters()}
        self.set_phase(self.phase)

    def set_phase(self, phase: Literal["static", "joint"]) -> None:
        """`"static"`: the prior is N(0, I); `"joint"`: it is the mixture, which is then learned too."""
        self.phase = phase
        for name, parameter in self.prior.named_parameters():
            parameter.requires_grad_(phase == "joint" and self._learns_dynamics[name])

    def on_load(self, model: Any, **kwargs: Any) -> None:
        """A model that is loaded goes on where it was saved: trained ones with the mixture for a prior."""
        super().on_load(model, **kwargs)
        self.set_phase("joint" if model.is_trained_ else "static")

    def groups_of(self, labels: Tensor) -> Tensor | None:
        """Known groups of cells by their label codes, or None where no labels were given."""
        return None if self.label_to_group is None else self.label_to_group[labels.long().flatten()]

    def log_prior(self, z: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """log p(z | t), and with the group where it is known, of states (cell, latent) or (sample, cell, latent)."""
        if self.phase == "static":
            return super().log_prior(z, tensors)
        times, time_index = torch.unique(tensors[TIME_KEY].flatten(), return_inverse=True)
        groups = self.groups_of(tensors[REGISTRY_KEYS.LABELS_KEY])
        n = z.shape[:-2].numel()
        joint = self.prior.at(times).joint_log_prob(z.reshape(-1, z.shape[-1]), time_index.repeat(n))
        return marginal_log_prob(joint, None if groups is None else groups.repeat(n)).reshape(z.shape[:-1])

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float | Tensor = 1.0,
    ) -> LossOutput:
        """The negative ELBO of a minibatch, and its named terms."""
        decoder = self.decoder_ridge * self.decoder.nonlinearity()
        if self.phase == "static":
            output = super().loss(tensors, inference_outputs, generative_outputs, kl_weight=kl_weight)
            return replace(output, loss=output.loss + decoder, extra_metrics={"decoder": decoder})
        z, qz = inference_outputs["z"], inference_outputs["qz"]
        kl = qz.log_prob(z).sum(-1) - self.log_prior(z, tensors)
        reconstruction = -generative_outputs["px"].log_prob(tensors[REGISTRY_KEYS.X_KEY]).sum(-1)
        ridge = self.ridge * self.prior.ridge_penalty()
        growth = self.growth_penalty * self.prior.growth_penalty()
        return LossOutput(
            loss=(reconstruction + kl_weight * kl).mean() + ridge + growth + decoder,
            reconstruction_loss=reconstruction,
            kl_local=kl,
            extra_metrics={"ridge": ridge, "growth": growth, "decoder": decoder},
        )
