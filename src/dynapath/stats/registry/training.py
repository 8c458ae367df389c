"""Fitting the visit VAE: one short loop, all restarts at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch.optim.lr_scheduler import OneCycleLR

from dynapath.models.visit_vae import TERMS, Batch, VisitVAE
from dynapath.models.weight_trace import WeightTrace

WEIGHTS = {"reconstruction": 1.0, "kl": 0.5, "prediction": 1.0, "consistency": 1.0, "decoder": 0.01}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; what is left out is the model's own default.

    Parameters
    ----------
    n_epochs
        Passes over the subjects, by default 150. With process noise these are steps, by default 100.
    lr
        Peak of the one-cycle schedule, by default .0045, with process noise .05.
    batch_size
        Subjects in a step; by default a tenth of them, within [10, 500], and with process noise all up to 1000.
    weight_decay
        Of the baseline network, by default 1. The model with process noise has no such network and refuses it.

    Raises
    ------
    TypeError, ValueError : for numbers that no fit can use.
    """

    n_epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        for name in ("n_epochs", "batch_size"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                msg = f"{name} of a Schedule is a whole number; it is {value!r}."
                raise TypeError(msg)
            if value < 1:
                msg = f"{name} of a Schedule must be at least 1; it is {value!r}."
                raise ValueError(msg)
        for name, smallest in (("lr", np.nextafter(0.0, 1.0)), ("weight_decay", 0.0)):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= smallest):
                bound = "positive" if smallest else "at least 0"
                msg = f"{name} of a Schedule must be a finite number, {bound}; it is {value!r}."
                raise ValueError(msg)

    def over(self, other: Schedule) -> Schedule:
        """What is given here, and what `other` says of the rest."""
        own = {name: value for name, value in self.__dict__.items() if value is not None}
        return replace(other, **own)


DEFAULT = Schedule(n_epochs=150, lr=4.5e-3, weight_decay=1.0)


def one_cycle(optimizer: torch.optim.Optimizer, lr: float, n_steps: int, *, warm_up: float = 0.3) -> OneCycleLR:
    """Step sizes that rise to `lr` during a share `warm_up` of the steps and then fall.

    A cycle has at least ten steps, so that it has a warm-up at all; a fit of fewer steps ends within one. (The last step of a
    cycle has next to no size: it cannot be the only one.)
    """
    return OneCycleLR(optimizer, lr, total_steps=max(n_steps, 10), pct_start=warm_up)


def diverged(when: str, lr: float) -> RuntimeError:
    """That no restart is left, with the step size that was used."""
    return RuntimeError(
        f"All restarts diverged {when}: the loss is not finite. Its steps were up to lr={lr:g}; look at the unit of time and for "
        "extreme values in the items, or lower lr: schedule=dp.stats.Schedule(lr=...)."
    )


def train(
    model: VisitVAE,
    batch: Batch,
    weights: Mapping[str, float],
    schedule: Schedule,
    generator: torch.Generator,
    trace: WeightTrace | None = None,
) -> tuple[Float[NDArray, "epoch term member"], Float[NDArray, " member"]]:
    """Train in place; the curve of every term, and the final loss of every restart without sampling.

    A restart whose loss is no longer finite is left out: its curve is NaN from there on, and its final loss infinite.

    Raises
    ------
    RuntimeError : if all restarts diverge, naming the epoch and the step size.
    """
    schedule = schedule.over(DEFAULT)
    n = len(batch.times)
    size = min(n, schedule.batch_size or int(np.clip(n // 10, 10, 500)))
    n_batches = max(n // size, 1)
    network, rest = model.parts()
    optimizer = torch.optim.AdamW(
        [{"params": network, "weight_decay": schedule.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=schedule.lr,
    )
    cycle = one_cycle(optimizer, schedule.lr, schedule.n_epochs * n_batches)
    alive = torch.ones(model.n_members, dtype=torch.bool)
    history = np.zeros((schedule.n_epochs, len(TERMS), model.n_members))
    d = model.dynamics.n_latent
    for epoch in range(schedule.n_epochs):
        order = torch.randperm(n, generator=generator)
        for rows in torch.tensor_split(order, n_batches):
            part = batch.take(rows)
            noise = torch.randn(model.n_members, *part.times.shape, d, generator=generator)
            terms = model(part, noise)
            loss = sum(weights[name] * terms[name].mean(1) for name in TERMS)
            finite = torch.isfinite(loss.detach())
            if bool((alive & ~finite).any()):
                alive &= finite
                if not bool(alive.any()):
                    raise diverged(f"in epoch {epoch}", schedule.lr)
                model.replace_members(~alive, by=int(alive.to(torch.uint8).argmax()))
                terms = model(part, noise)
                loss = sum(weights[name] * terms[name].mean(1) for name in TERMS)
            optimizer.zero_grad()
            loss[alive].sum().backward()
            _clip(model, alive)
            optimizer.step()
            if trace is not None:
                trace.add([group["lr"] for group in optimizer.param_groups], model.state_dict())
            cycle.step()
            shown = np.stack([terms[name].detach().mean(1).numpy() for name in TERMS]) / n_batches
            history[epoch] += np.where(alive.numpy(), shown, np.nan)
    final = final_loss(model, batch, weights)
    final = np.where(alive.numpy() & np.isfinite(final), final, np.inf)
    if not np.isfinite(final).any():
        raise diverged(f"in the last step of epoch {schedule.n_epochs - 1}", schedule.lr)
    return history, final


def _clip(model: VisitVAE, alive: torch.Tensor, largest: float = 10.0) -> None:
    """Cut the gradient of each restart by its own norm; one that has diverged gets none."""
    of_members = model.of_members()
    gradients = [p.grad for p in of_members.values() if p.grad is not None]
    norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    factor = torch.where(alive & torch.isfinite(norm), (largest / norm.clamp_min(largest)), 0.0)
    for g in gradients:
        g.copy_(torch.nan_to_num(g) * factor.reshape(-1, *[1] * (g.ndim - 1)))
    for name, p in model.named_parameters():
        # What all restarts share rests in a step in which the gradient of one of them is not finite.
        if name not in of_members and p.grad is not None and not bool(torch.isfinite(p.grad).all()):
            p.grad.zero_()


def final_loss(model: VisitVAE, batch: Batch, weights: Mapping[str, float]) -> Float[NDArray, " member"]:
    """The loss at the means of the states, over all subjects."""
    totals = []
    with torch.no_grad():
        for rows in torch.arange(len(batch.times)).split(1000):
            terms = model(batch.take(rows))
            totals.append(sum(weights[name] * terms[name].sum(1) for name in TERMS))
    return (torch.stack(totals).sum(0) / len(batch.times)).numpy()
