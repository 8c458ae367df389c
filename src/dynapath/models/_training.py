"""What scvi-tools' training needs from us: two step sizes, a guard against NaN, a progress bar, silence."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from scvi.train import TrainingPlan
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

# All hidden units of a network move a logit together, the linear path has one weight per dimension. At equal steps the
# network would be there first and keep what the linear path could explain.
LINEAR_LR = 10.0


class EpochPlan(TrainingPlan):
    """SCVI's plan, but training terms are summed and logged once an epoch: logging each step costs a third of the time."""

    def __init__(self, module: torch.nn.Module, **kwargs: Any):
        super().__init__(module, **kwargs)
        self._sums: dict[str, Any] = {}

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """One minibatch."""
        self.loss_kwargs["kl_weight"] = self.kl_weight
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        n = output.n_obs_minibatch
        terms = {
            "n": torch.as_tensor(float(n)),
            "train_loss": output.loss.detach() * n,
            "reconstruction_loss_train": output.reconstruction_loss_sum.detach(),
            "kl_local_train": output.kl_local_sum.detach(),
        }
        terms |= {f"{name}_train": value.detach() * n for name, value in output.extra_metrics.items()}
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        return output.loss

    def on_train_epoch_end(self) -> None:
        """Log the mean per cell of every term."""
        n = self._sums.pop("n")
        means = {name: total / n for name, total in self._sums.items()}
        means["elbo_train"] = means["reconstruction_loss_train"] + means["kl_local_train"]
        self.log_dict(means, on_step=False, on_epoch=True, sync_dist=self.use_sync_dist)
        self._sums = {}


class DynamicTrainingPlan(EpochPlan):
    """With step sizes of their own for the dynamics and for the decoder's linear path."""

    def __init__(self, module: torch.nn.Module, *, prior_lr: float = 3e-3, **kwargs: Any):
        super().__init__(module, **kwargs)
        self.prior_lr = prior_lr

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam over the networks, and over the dynamics without weight decay (the ridge is in the loss)."""
        prior = [p for p in self.module.prior.parameters() if p.requires_grad]
        linear = [p for p in self.module.decoder.linear_parameters() if p.requires_grad]
        own = {id(p) for p in [*prior, *linear]}
        networks = [p for p in self.module.parameters() if p.requires_grad and id(p) not in own]
        groups: list[dict[str, Any]] = [{"params": networks}]
        if linear:
            groups.append({"params": linear, "lr": LINEAR_LR * self.lr})
        if prior:
            groups.append({"params": prior, "lr": self.prior_lr, "weight_decay": 0.0})
        optimizer = self.get_optimizer_creator()(groups)
        if not self.reduce_lr_on_plateau:
            return {"optimizer": optimizer}
        scheduler = ReduceLROnPlateau(
            optimizer,
            patience=self.lr_patience,
            factor=self.lr_factor,
            threshold=self.lr_threshold,
            min_lr=self.lr_min,
            threshold_mode="abs",
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": self.lr_scheduler_metric},
        }


def watch_plateau(train_kwargs: dict[str, Any]) -> None:
    """Prepare a training in which `reduce_lr_on_plateau` is asked for.

    Raises
    ------
    ValueError : if that is of cells which are held out, and none are.
    """
    plan = train_kwargs["plan_kwargs"]
    metric = plan.get("lr_scheduler_metric", "elbo_validation")
    if not plan.get("reduce_lr_on_plateau") or train_kwargs.get("train_size") != 1:
        return
    if "validation" in metric:
        msg = (
            f"reduce_lr_on_plateau watches {metric!r}, but all cells are trained on. Hold some out with "
            "train_kwargs={'train_size': 0.9, ...}, or watch plan_kwargs={'lr_scheduler_metric': 'elbo_train', ...}."
        )
        raise ValueError(msg)
    # scvi-tools would look at held-out cells after every epoch.
    train_kwargs.setdefault("check_val_every_n_epoch", sys.maxsize)


class FiniteGuard(Callback):
    """Stops at the first loss that is not finite, and keeps the last state in which everything was."""

    def __init__(self) -> None:
        self.epoch = 0
        self.lr = torch.nan
        self.last_finite: dict[str, torch.Tensor] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the parameters of the epoch that has just ended, if they are finite."""
        self.epoch, self.lr = trainer.current_epoch, pl_module.lr
        state = pl_module.module.state_dict()
        if all(bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point()):
            self.last_finite = {name: value.detach().clone() for name, value in state.items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Raise on a loss that is NaN or infinite, in distributed training in all processes: none must wait for the rest."""
        finite = bool(torch.isfinite(outputs["loss"]))
        if not trainer.strategy.reduce_boolean_decision(finite):
            msg = f"The loss is {float(outputs['loss'])} in minibatch {batch_idx}, or not finite in another process."
            raise FloatingPointError(msg)


class PhaseProgress(Callback):
    """One bar over all phases, named after the current one."""

    def __init__(self, n_epochs: int, *, show: bool):
        self.bar = tqdm(total=n_epochs, disable=not show, unit="epoch", leave=False, mininterval=0.5)

    def enter(self, phase: str) -> None:
        """Show the name of the phase that starts."""
        self.bar.set_description(phase)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance by one epoch and show the loss."""
        loss = trainer.callback_metrics.get("train_loss")
        self.bar.set_postfix(loss=f"{float(loss):.4g}" if loss is not None else "?", refresh=False)
        self.bar.update()

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()


def came_from_nan(error: Exception, module: torch.nn.Module) -> bool:
    """Whether training failed since numbers were no longer finite."""
    if isinstance(error, FloatingPointError):
        return True
    finite = all(bool(torch.isfinite(p).all()) for p in module.parameters())
    return not finite or re.search(r"\bnan\b", str(error), re.IGNORECASE) is not None


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's device report and its advice on workers; warnings of ours pass."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # Parts that are held fixed are, on purpose.
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
            warnings.filterwarnings("ignore", message=".*number of training batches.*is smaller than the logging.*")
            warnings.filterwarnings("ignore", message="early_stopping was automatically disabled due to the use of DDP")
            warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.`.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
