"""CPU time of latent dynamics against a loop over patients, and growth with the number of patients.

    python benchmarks/latent_dynamics_speed.py            # loss and gradient of 100 patients, both ways, equal loss
    python benchmarks/latent_dynamics_speed.py --growth N # N patients x 8 visits x 20 items, 100 epochs, 5 restarts

The loop does as the published code: one patient after the other, its combined estimator from solutions of an ODE solver
(dopri5) between every two visits, a gradient for each patient. Ours takes all patients at once. Both compute the same loss.
"""

from __future__ import annotations

import resource
import sys
import time
import warnings

import numpy as np
import torch
from torchdiffeq import odeint

import dynapath as dp
from dynapath.dynamics.systems import LinearSystem
from dynapath.models.visit_forecast import batch_of
from dynapath.models.visit_scale import Scale
from dynapath.models.visit_vae import TERMS, VisitVAE
from dynapath.read.visits import read_visits
from dynapath.stats.registry.training import WEIGHTS


class Solved(LinearSystem):
    """The same system, each flow by an ODE solver between two times."""

    propagator = None

    def flow(self, dt, z, theta):
        shape = torch.broadcast_shapes(dt.shape, z.shape[:-1], theta.shape[:-1])
        dt, z = dt.expand(shape), z.expand(*shape, self.n_latent)
        theta = theta.expand(*shape, self.n_params).reshape(-1, self.n_params)
        out = []
        for t, start, own in zip(dt.reshape(-1), z.reshape(-1, self.n_latent), theta, strict=True):
            field = lambda s, x, own=own: self.vector_field(s, x, own)
            ends = torch.stack([torch.zeros_like(t), t])
            out.append(start if float(t) == 0 else odeint(field, start, ends, rtol=1e-5, atol=1e-6)[-1])
        return torch.stack(out).reshape(z.shape)


def total(model, batch):
    terms = model(batch)
    return sum(WEIGHTS[name] * terms[name] for name in TERMS).sum()


def ratio(n: int = 100, looped: int = 10) -> None:
    adata = dp.datasets.simulate_registry("visits", n_subjects=n)
    keys = {"subject_key": "patient", "time_key": "time", "baseline": [f"y{j + 1}" for j in range(50)]}
    visits = read_visits(adata, **keys).visits
    scale = Scale.by_span(visits, centred=False)
    batch = batch_of(scale.apply(visits), scale)
    ours = VisitVAE(10, 50, LinearSystem(2), estimator="inverse_variance")
    loop = VisitVAE(10, 50, Solved(2), estimator="inverse_variance")
    loop.load_state_dict(ours.state_dict())
    total(ours, batch).backward()
    # A milder loop: patient after patient as well, but with the closed forms, and all visits of a patient at once.
    for _ in range(3):
        start = time.process_time()
        for row in range(n):
            total(ours, batch.take(torch.tensor([row]))).backward()
        one_by_one = time.process_time() - start
        start = time.process_time()
        for _ in range(10):
            total(ours, batch).backward()
        print(
            f"closed forms, patient by patient: ratio {one_by_one / (time.process_time() - start) * 10:.0f}", flush=True
        )
    for _ in range(3):
        rows = torch.arange(looped)
        start = time.process_time()
        slow = 0.0
        for row in rows:
            loss = total(loop, batch.take(row[None]))
            loss.backward()
            slow += float(loss)
        by_patient = (time.process_time() - start) / looped * n
        start = time.process_time()
        for _ in range(10):
            total(ours, batch).backward()
        at_once = (time.process_time() - start) / 10
        fast = float(total(ours, batch.take(rows)))
        print(
            f"{n} patients: loop {by_patient:.2f} s (from {looped}), at once {at_once * 1e3:.1f} ms, ratio "
            f"{by_patient / at_once:.0f}; losses of the {looped} {slow:.4f} {fast:.4f}",
            flush=True,
        )


def growth(n: int) -> None:
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 10, (n, 8)), axis=1)
    grown = rng.random(n) < 0.5
    u = np.stack([np.exp(np.where(grown, 0.2, -0.2)[:, None] * times), 2 * np.exp(-0.2 * times)], -1)
    import pandas as pd
    from anndata import AnnData

    obs = pd.DataFrame({"patient": np.repeat(np.arange(n), 8), "time": times.ravel()})
    obs["y1"], obs["y2"] = np.repeat(grown + rng.normal(size=n), 8), np.repeat(rng.normal(size=n), 8)
    obs.index = obs.index.astype(str)
    adata = AnnData(X=np.repeat(u.reshape(-1, 2), 10, axis=1) + 0.3 * rng.normal(size=(8 * n, 20)), obs=obs)
    start = time.process_time()
    schedule = dp.stats.Schedule(n_epochs=100)
    dp.stats.fit_latent_dynamics(adata, subject_key="patient", time_key="time", baseline="~ y1 + y2", schedule=schedule)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        f"{n} patients x 8 visits x 20 items: CPU {time.process_time() - start:.1f} s, memory at most {memory:.2f} GB"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "--growth" in sys.argv:
        growth(int(sys.argv[-1]))
    else:
        ratio()
