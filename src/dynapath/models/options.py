"""Options that are rarely changed, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynapath.dynamics.mixture import Share


@dataclass(frozen=True)
class Prior:
    """What is assumed about group dynamics before seeing data.

    Parameters
    ----------
    ridge
        Weight of the mean squared norm of A, in nats per cell with time scaled to [0, 1]. Pulls towards constant drift,
        the path of least energy, where the snapshots do not say more.
    growth_penalty
        Weight of the squared growth rates under `growth="shrunk"`. Left free, groups turn into static clusters that
        take turns instead of moving.
    decoder_ridge
        Weight of the squared output weights of the decoder's network, in nats per cell (`Training(decoder="skip")` only).
        The larger, the closer to log-linear the decoder: extrapolated times need it.
    share
        `"A"`: one matrix A for all groups; `"A,b"`: and one drift.
    tie_initial
        All groups start as one cloud, as when they branch from a common progenitor.
    floor
        Variance added to every group's covariance, in squared latent units.
    relaxation
        Rate kappa, per time from first to last snapshot, of the pull towards A = -kappa I instead of A = 0: groups slow down on
        their way, as cells do that approach a fate; half of the way is behind them after log(2)/kappa if that is short.
        Two snapshots say nothing about it: there it is an assumption, as constant speed (0) is.
    """

    ridge: float = 0.01
    growth_penalty: float = 1.0
    decoder_ridge: float = 0.1
    share: Share = "none"
    tie_initial: bool = False
    floor: float = 1e-3
    relaxation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("ridge", "growth_penalty", "decoder_ridge", "relaxation"):
            _require(self, name, getattr(self, name) >= 0, "must not be negative")
        _require(self, "floor", self.floor > 0, "must be positive")
        _require(self, "share", self.share in ("none", "A", "A,b"), "must be 'none', 'A' or 'A,b'")


@dataclass(frozen=True)
class Training:
    """Network and optimiser.

    Parameters
    ----------
    static_epochs, joint_epochs
        Epochs of the static and of the joint phase. By default as many as give about 1,000 and 800 minibatches, within
        [20, 400] and [20, 300] epochs.
    batch_size
        Cells in a minibatch.
    lr, prior_lr
        Adam step sizes of the networks (both phases) and of the dynamics (joint phase).
    n_restarts, prior_steps
        Restarts of the mixture fit between the two phases, and its full-batch Adam steps.
    finish_steps
        Steps at the end that bring what is linear in the decoder to its optimum, states held fixed; then slopes of genes
        with few counts are shrunk by a prior that the genes have in common (`decoder="skip"` only). 0 for none of both.
    n_hidden, n_layers, dropout_rate
        Encoder and decoder widths and depth; dropout of the encoder.
    decoder
        `"skip"`: logits = W z + a network that corrects it, which extrapolates; `"mlp"`: as in SCVI.
    gradient_clip
        Norm at which gradients are cut in the joint phase.
    n_jobs
        Members of an ensemble trained at a time, in processes of their own; each counts the threads it uses itself.
    keep_stages
        Keep what the model makes of the cells before training and after the static phase too, for
        :func:`dynapath.pl.training_stages`. Adds two arrays of the size of the states, and nothing to the fit.
    progress
        Show a progress bar with the name of the phase.
    """

    static_epochs: int | None = None
    joint_epochs: int | None = None
    batch_size: int = 128
    lr: float = 1e-3
    prior_lr: float = 3e-3
    n_restarts: int = 10
    prior_steps: int = 400
    finish_steps: int = 150
    n_hidden: int = 64
    n_layers: int = 1
    dropout_rate: float = 0.1
    decoder: Literal["skip", "mlp"] = "skip"
    gradient_clip: float = 10.0
    n_jobs: int = 1
    keep_stages: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("static_epochs", "joint_epochs"):
            _require(self, name, getattr(self, name) is None or getattr(self, name) >= 1, "must be at least 1, or None")
        for name in ("batch_size", "n_restarts", "prior_steps", "n_hidden", "n_layers"):
            _require(self, name, getattr(self, name) >= 1, "must be at least 1")
        _require(self, "finish_steps", self.finish_steps >= 0, "must not be negative")
        for name in ("lr", "prior_lr", "gradient_clip"):
            _require(self, name, getattr(self, name) > 0, "must be positive")
        _require(self, "dropout_rate", 0 <= self.dropout_rate < 1, "must lie in [0, 1)")
        _require(self, "decoder", self.decoder in ("skip", "mlp"), "must be 'skip' or 'mlp'")


def _require(options: Prior | Training, name: str, holds: bool, what: str) -> None:  # noqa: FBT001
    if not holds:
        msg = f"{type(options).__name__}({name}=...) {what}; it is {getattr(options, name)!r}."
        raise ValueError(msg)
