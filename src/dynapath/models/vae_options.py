"""Options of count VAEs that are rarely changed, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

# Options of one kind of penalty, which the other does not have.
_OF_TSNE = ("perplexity", "exaggeration", "exaggeration_epochs")
_OF_UMAP = ("n_neighbors", "min_dist")


@dataclass(frozen=True)
class LatentPenalty:
    """What a latent space pays for tearing neighbours apart.

    Neighbours are those in the first principal components of log-normalised counts (of the values themselves for other
    likelihoods), found once before training. The penalty acts on s m, the posterior means times a learned scale: t-SNE and
    UMAP want wider clouds than the prior does, and without s most of the cost is a KL divergence.

    Parameters
    ----------
    kind
        `"tsne"`: KL divergence between Student similarities and perplexity-calibrated neighbours. `"umap"`: UMAP's fuzzy
        cross-entropy.
    weight
        Nats per cell for one unit of the penalty. With 3, neighbourhoods gain and the ELBO hardly loses; the published 150, of
        scVI.jl, gains little more and costs several times as much.
    perplexity
        Of t-SNE: effective number of neighbours.
    exaggeration, exaggeration_epochs
        Of t-SNE: attraction is multiplied by this for so many epochs, at most a quarter of all.
    n_neighbors, min_dist
        Of UMAP, as in scanpy.
    n_pcs
        Principal components in which neighbours are sought.
    scaled
        Whether the penalty acts on s m with a learned s, or on m itself. Without s the latent space itself has to grow, which
        the prior makes dear.
    use_rep
        Seek them in this `obsm` instead of principal components, e.g. one in which batches have been aligned.
    """

    kind: Literal["tsne", "umap"]
    weight: float = 3.0
    perplexity: float = 30.0
    exaggeration: float = 12.0
    exaggeration_epochs: int = 50
    n_neighbors: int = 15
    min_dist: float = 0.5
    n_pcs: int = 50
    scaled: bool = True
    use_rep: str | None = None

    def __post_init__(self) -> None:
        _require(self, "kind", self.kind in ("tsne", "umap"), "must be 'tsne' or 'umap'")
        for name in ("weight", "exaggeration_epochs", "min_dist"):
            _require(self, name, getattr(self, name) >= 0, "must not be negative")
        _require(self, "perplexity", self.perplexity > 1, "must be above 1")
        _require(self, "exaggeration", self.exaggeration >= 1, "must be at least 1")
        _require(self, "n_neighbors", self.n_neighbors >= 2, "must be at least 2")
        _require(self, "n_pcs", self.n_pcs >= 1, "must be at least 1")
        others, other = (_OF_UMAP, "umap") if self.kind == "tsne" else (_OF_TSNE, "tsne")
        unused = dict.fromkeys(others, f"is an option of {other!r}, and kind is {self.kind!r}: leave it out")
        if self.use_rep is not None:
            unused["n_pcs"] = f"has no part where neighbours are sought in obsm[{self.use_rep!r}]: leave it out"
        for field in fields(self):
            if field.name in unused:
                _require(self, field.name, getattr(self, field.name) == field.default, unused[field.name])


@dataclass(frozen=True)
class Supervision:
    """How latent dimensions are tied to target coordinates.

    Parameters
    ----------
    weight
        Nats per cell for a squared distance of one between posterior mean and target, whose columns are standardised. A
        weight w is a Gaussian likelihood of the target with variance 1 / (2 w).
    stages
        1: the ELBO and the distance are minimised together. 2: first the encoder's means learn the target alone; then they
        are fixed, and variances and decoder learn from the ELBO. Closer to the target, and the ELBO has no say in the means.
    """

    weight: float = 30.0
    stages: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        _require(self, "weight", self.weight > 0, "must be positive")
        _require(self, "stages", self.stages in (1, 2), "must be 1 or 2")


@dataclass(frozen=True)
class Network:
    """Encoder and decoder, with the defaults of scvi-tools.

    Parameters
    ----------
    n_hidden, n_layers
        Width and depth, of the encoder and, unless it is linear, of the decoder.
    dropout_rate
        Of the encoder.
    batch_norm, layer_norm
        `"both"`, `"encoder"`, `"decoder"` or `"none"`.
    activation
        Name of a class in :mod:`torch.nn`, such as `"ReLU"` or `"ELU"`.
    bias
        Which sides have biases in their hidden layers.
    log_input
        Whether the encoder sees log(1 + x). By default for counts only.
    variance
        How the encoder's variances are made positive: `"exp"` or `"softplus"`.
    variance_floor
        Added to them.
    """

    n_hidden: int = 128
    n_layers: int = 1
    dropout_rate: float = 0.1
    batch_norm: Literal["both", "encoder", "decoder", "none"] = "both"
    layer_norm: Literal["both", "encoder", "decoder", "none"] = "none"
    activation: str = "ReLU"
    bias: Literal["both", "encoder", "decoder", "none"] = "both"
    log_input: bool | None = None
    variance: Literal["exp", "softplus"] = "exp"
    variance_floor: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("n_hidden", "n_layers"):
            _require(self, name, getattr(self, name) >= 1, "must be at least 1")
        _require(self, "dropout_rate", 0 <= self.dropout_rate < 1, "must lie in [0, 1)")
        for name in ("batch_norm", "layer_norm", "bias"):
            allowed = ("both", "encoder", "decoder", "none")
            _require(self, name, getattr(self, name) in allowed, "must be 'both', 'encoder', 'decoder' or 'none'")
        _require(self, "variance", self.variance in ("exp", "softplus"), "must be 'exp' or 'softplus'")
        _require(self, "variance_floor", self.variance_floor >= 0, "must not be negative")
        _require(self, "activation", isinstance(self.activation, str), "must be the name of a class in torch.nn")


def _require(options: Any, name: str, holds: bool, what: str) -> None:  # noqa: FBT001
    if not holds:
        msg = f"{type(options).__name__}({name}=...) {what}; it is {getattr(options, name)!r}."
        raise ValueError(msg)
