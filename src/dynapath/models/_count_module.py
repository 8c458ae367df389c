"""The networks of count VAEs: SCVI's modules with a shaped latent space and two more heads.

    loss = -log p(x | z) + KL(q(z | x) || N(0, I)) + weight * penalty(s m) + weight * mean_i |m_i - y_i|^2

with m the posterior means of a minibatch, s a learned scale and y the target. Without penalty and target it is SCVI's.

Heads without a library: Bernoulli with logits f(z), and normal with means f(z). Both take the decoder as it is before its
softmax; with a library, the odds of the Bernoulli are the library times the softmax, as in scVI.jl.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from scvi.module import LDVAE, VAE
from scvi.module.base import LossOutput
from scvi.nn import LinearDecoderSCVI
from torch import Tensor, nn

from ._inherited import MarginalModule
from .latent_cost import Edges, tsne_cost, umap_cost, undirected
from .neighbours import Neighbours, curve_parameters
from .vae_options import LatentPenalty, Supervision

CELL_KEY = "dynapath_cell"

# The scale has to go far while the weights of the encoder move little.
_SCALE_SPEED = 10.0

Head = Literal["counts", "normal", "bernoulli"]
Stage = Literal["joint", "encoder", "decoder"]


class Bernoulli(torch.distributions.Bernoulli):
    """The Bernoulli distribution, which also has what scvi-tools asks of a likelihood."""

    @property
    def scale(self) -> Tensor:
        """Probability of a one."""
        return self.probs

    def get_normalized(self, key: str) -> Tensor:
        """Probability of a one, whatever it is called."""
        if key in ("mu", "rate", "scale"):
            return self.probs
        msg = f"A Bernoulli likelihood has no {key!r}; ask for 'scale'."
        raise ValueError(msg)


class Shape(nn.Module):
    """Penalty and target of the training cells. Knows cells by their row; nothing of it but the scale is a parameter."""

    def __init__(self, penalty: LatentPenalty | None, supervision: Supervision | None):
        super().__init__()
        self.penalty, self.supervision = penalty, supervision
        self.raw_scale = nn.Parameter(torch.zeros(())) if penalty is not None and penalty.scaled else None
        self.exaggerated = False
        for name in ("index", "weight", "target"):
            self.register_buffer(name, None, persistent=False)
        if penalty is not None and penalty.kind == "umap":
            self.curve = curve_parameters(penalty.min_dist)

    def set_neighbours(self, neighbours: Neighbours) -> None:
        """Take the neighbours of all cells."""
        self.index = torch.as_tensor(neighbours.index)
        self.weight = torch.as_tensor(neighbours.weight, dtype=torch.float32)

    def set_target(self, target: Tensor) -> None:
        """Take standardised coordinates (cell, dimension), for the first latent dimensions."""
        self.target = target.float()

    def forget(self) -> None:
        """Drop what is about the cells of one training."""
        self.index = self.weight = self.target = None
        self.exaggerated = False

    @property
    def scale(self) -> Tensor:
        """By which the penalty stretches the latent space."""
        return torch.ones(()) if self.raw_scale is None else (_SCALE_SPEED * self.raw_scale).exp()

    def among(self, cells: Tensor) -> Edges:
        """Neighbours within a minibatch of these rows."""
        position = torch.full((len(self.index),), -1, device=cells.device)
        position[cells] = torch.arange(len(cells), device=cells.device)
        column = position[self.index[cells]]
        row, slot = torch.nonzero(column >= 0, as_tuple=True)
        return undirected(row, column[row, slot], self.weight[cells[row], slot])

    def terms(self, mean: Tensor, cells: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Each term by name, neither weighted nor exaggerated, and what the loss has of them (nats per cell)."""
        terms, total = {}, mean.new_zeros(())
        if self.index is not None:
            z, edges = self.scale * mean, self.among(cells)
            if self.penalty.kind == "umap":
                terms["umap"] = cost = umap_cost(z, edges, *self.curve)
            else:
                terms["tsne"] = cost = tsne_cost(z, edges)
                if self.exaggerated:
                    cost = tsne_cost(z, edges, self.penalty.exaggeration)
            total = total + self.penalty.weight * cost
        if self.target is not None:
            y = self.target[cells]
            distance = (mean[:, : y.shape[1]] - y).square().sum(1).mean()
            terms["target"] = distance
            total = total + self.supervision.weight * distance
        return terms, total


class LinearRawDecoder(LinearDecoderSCVI):
    """The linear decoder without its softmax: z -> W z + shift."""

    def forward(self, dispersion: str, z: Tensor, library: Tensor, *cat_list: Tensor) -> tuple:
        """The same values as proportions and as means; neither dispersion nor zero inflation."""
        raw = self.factor_regressor(z, *cat_list)
        return raw, None, raw, None


class _ShapedLoss(MarginalModule):
    """What both modules have in common; comes before a module of scvi-tools among the bases."""

    head: Head
    scaled: bool
    shape: Shape
    stage: Stage = "joint"
    # What size factors are divided by.
    size_unit: float = 1.0

    def generative(
        self, z: Tensor, library: Tensor, batch_index: Tensor, *, transform_batch: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As scvi-tools, then the head that it lacks. It looks for `transform_batch` among the arguments."""
        if not self.scaled:
            library = torch.zeros_like(library)
        outputs = super().generative(z, library, batch_index, transform_batch=transform_batch, **kwargs)
        if self.use_size_factor_key and self.head == "counts":
            # Proportions are per unit of what was measured.
            outputs["px"].scale = outputs["px"].scale / self.size_unit
        if self.head == "bernoulli":
            mean = outputs["px"].loc
            outputs["px"] = Bernoulli(logits=mean.log() if self.scaled else mean)
        return outputs

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: Tensor | float = 1.0,
    ) -> LossOutput:
        """Negative ELBO, plus what shapes the latent space while cells are those of the training."""
        output = super().loss(tensors, inference_outputs, generative_outputs, kl_weight=kl_weight)
        if self.stage == "decoder" or (self.shape.index is None and self.shape.target is None):
            return output
        terms, total = self.shape.terms(inference_outputs["qz"].loc, tensors[CELL_KEY].flatten().long())
        return replace(output, loss=total if self.stage == "encoder" else output.loss + total, extra_metrics=terms)

    def log_size(self, library: Tensor) -> Tensor:
        """Logarithm of libraries or size factors, as they were measured, in the unit in which networks take them."""
        return (library.double() / self.size_unit).float().log()

    def set_stage(self, stage: Stage) -> None:
        """`"encoder"`: its means learn the target; `"decoder"`: they are fixed, the rest learns; `"joint"`: all at once."""
        if self.stage == "joint":
            # What is fixed for other reasons, as in a model that is adapted to new data, stays fixed.
            self._learned = [p for p in self.parameters() if p.requires_grad]
        self.stage = stage
        means = [*self.z_encoder.encoder.parameters(), *self.z_encoder.mean_encoder.parameters()]
        own = {id(p) for p in means}
        for p in self._learned:
            p.requires_grad_(stage == "joint" or (id(p) in own) == (stage == "encoder"))

    def train(self, mode: bool = True) -> nn.Module:  # noqa: FBT001, FBT002
        """As in torch, but fixed means neither drop units out nor move their running statistics."""
        super().train(mode)
        if self.stage == "decoder":
            self.z_encoder.encoder.eval()
        return self


class CountModule(_ShapedLoss, VAE):
    """See the head of this file.

    Parameters
    ----------
    head
        `"counts"`: what `gene_likelihood` says. `"bernoulli"` and `"normal"` go with `gene_likelihood="normal"`.
    scaled
        Whether means (or odds) are the library times proportions; else they are the decoder's own.
    penalty, supervision
        What shapes the latent space.
    kwargs
        Of :class:`scvi.module.VAE`.
    """

    def __init__(
        self,
        n_input: int,
        *,
        head: Head = "counts",
        scaled: bool = True,
        penalty: LatentPenalty | None = None,
        supervision: Supervision | None = None,
        **kwargs: Any,
    ):
        super().__init__(n_input, **kwargs)
        self.head, self.scaled = head, scaled
        if not scaled:
            self.decoder.px_scale_decoder[1] = nn.Identity()
        self.shape = Shape(penalty, supervision)


class LinearCountModule(_ShapedLoss, LDVAE):
    """The same with a linear decoder.

    Parameters
    ----------
    kwargs
        Of :class:`scvi.module.LDVAE`; the rest as in :class:`CountModule`.
    """

    def __init__(
        self,
        n_input: int,
        *,
        head: Head = "counts",
        scaled: bool = True,
        penalty: LatentPenalty | None = None,
        supervision: Supervision | None = None,
        **kwargs: Any,
    ):
        super().__init__(n_input, **kwargs)
        self.head, self.scaled = head, scaled
        if not scaled:
            self.decoder = LinearRawDecoder(
                self.n_latent,
                n_input,
                n_cat_list=[self.n_batch],
                use_batch_norm=self.use_batch_norm,
                bias=kwargs.get("bias", False),
            )
        self.shape = Shape(penalty, supervision)
