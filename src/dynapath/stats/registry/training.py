"""Fitting the visit VAE: one short loop, all restarts at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath.models.visit_vae import TERMS, Batch, VisitVAE

WEIGHTS = {"reconstruction": 1.0, "kl": 0.5, "prediction": 1.0, "consistency": 1.0, "decoder": 0.01}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Parameters
    ----------
    n_epochs
        Passes over the subjects.
    lr
        Peak of the one-cycle schedule.
    batch_size
        Subjects in a step; by default a tenth of them, within [10, 500].
    weight_decay
        Of the baseline network.
    """

    n_epochs: int = 150
    lr: float = 4.5e-3
    batch_size: int | None = None
    weight_decay: float = 1.0


def train(
    model: VisitVAE, batch: Batch, weights: Mapping[str, float], schedule: Schedule, generator: torch.Generator
) -> tuple[Float[NDArray, "epoch term member"], Float[NDArray, " member"]]:
    """Train in place; the curve of every term, and the final loss of every restart without sampling.

    A restart whose loss is no longer finite is left out from there on: its final loss is infinite.

    Raises
    ------
    RuntimeError : if all restarts diverge, naming the epoch.
    """
    n = len(batch.times)
    size = min(n, schedule.batch_size or int(np.clip(n // 10, 10, 500)))
    n_batches = max(n // size, 1)
    network, rest = model.parts()
    optimizer = torch.optim.AdamW(
        [{"params": network, "weight_decay": schedule.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=schedule.lr,
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.lr, total_steps=schedule.n_epochs * n_batches)
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
            alive &= torch.isfinite(loss.detach())
            if not bool(alive.any()):
                msg = (
                    f"All restarts diverged in epoch {epoch}: the loss is not finite. Look at the unit of time and for "
                    "extreme values in the items, or lower lr."
                )
                raise RuntimeError(msg)
            optimizer.zero_grad()
            loss[alive].sum().backward()
            _clip(model, alive)
            optimizer.step()
            cycle.step()
            history[epoch] += np.stack([terms[name].detach().mean(1).numpy() for name in TERMS]) / n_batches
    return history, np.where(alive.numpy(), final_loss(model, batch, weights), np.inf)


def _clip(model: VisitVAE, alive: torch.Tensor, largest: float = 10.0) -> None:
    """Cut the gradient of each restart by its own norm; one that has diverged gets none."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None and len(p) == len(alive)]
    norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    factor = torch.where(alive & torch.isfinite(norm), (largest / norm.clamp_min(largest)), 0.0)
    for g in gradients:
        g.copy_(torch.nan_to_num(g) * factor.reshape(-1, *[1] * (g.ndim - 1)))


def final_loss(model: VisitVAE, batch: Batch, weights: Mapping[str, float]) -> Float[NDArray, " member"]:
    """The loss at the means of the states, over all subjects."""
    totals = []
    with torch.no_grad():
        for rows in torch.arange(len(batch.times)).split(1000):
            terms = model(batch.take(rows))
            totals.append(sum(weights[name] * terms[name].sum(1) for name in TERMS))
    return (torch.stack(totals).sum(0) / len(batch.times)).numpy()
