"""Recovery of simulated latent dynamics: decoded trajectories, signs of rates, and forecasts of new patients.

python benchmarks/latent_dynamics_recovery.py [full|diagonal] [seeds]
"""

from __future__ import annotations

import sys
import time
import warnings

import numpy as np
import torch

import dynapath as dp

KEYS = {"subject_key": "patient", "time_key": "time", "baseline": [f"y{j + 1}" for j in range(50)]}


def eigenvalues(adata) -> np.ndarray:
    """Sorted real parts for each subject."""
    table = dp.get.parameters(adata)
    A = np.zeros((len(table), 2, 2))
    for i in (0, 1):
        for j in (0, 1):
            if f"A{i + 1}{j + 1}" in table:
                A[:, i, j] = table[f"A{i + 1}{j + 1}"]
    return np.sort(np.linalg.eigvals(A).real, axis=1)


def decoded_rmse(adata, group) -> float:
    """Against the items without noise, on a grid from the baseline visit to time 10."""
    truth, model = adata.uns["truth"], dp.get.visit_model(adata)
    _, items = model.fitted.paths(model.read(adata).visits, truth["times"])
    return float(np.sqrt(((items - truth["items"][group]) ** 2).mean()))


def groups(adata) -> np.ndarray:
    """Group of each subject."""
    first = adata.obs.drop_duplicates("patient").sort_values("patient")
    return (first["group"] == "G2").to_numpy().astype(int)


def two_visits(seed: int, dynamics: str) -> str:
    """linear2: decoded RMSE and signs."""
    adata = dp.datasets.simulate_registry("linear2", random_state=seed)
    dp.stats.fit_latent_dynamics(adata, **KEYS, dynamics=dynamics, random_state=seed)
    group, rates = groups(adata), eigenvalues(adata)
    means = [np.median(rates[group == k], axis=0).round(2) for k in (0, 1)]
    right = bool((means[0] < 0).all() and means[1][0] < 0 < means[1][1])
    losses = adata.uns["latent_dynamics"]["history"]["restarts"].round(2)
    return f"linear2 decoded RMSE {decoded_rmse(adata, group):.3f} signs {right} {means} losses {losses}"


def many_visits(seed: int, dynamics: str) -> str:
    """100 training and 100 new patients of one simulation: the next visit from the last one."""
    adata = dp.datasets.simulate_registry("visits", n_subjects=200, random_state=seed)
    code = adata.obs["patient"].cat.codes.to_numpy()
    train, new = adata[code % 2 == 0].copy(), adata[code % 2 == 1].copy()
    dp.stats.fit_latent_dynamics(train, **KEYS, dynamics=dynamics, random_state=seed)
    model = dp.get.visit_model(train)
    visits = model.read(new).visits
    errors, locf, z, who = [], [], [], []
    for k in range(1, visits.values.shape[1]):
        own = visits.take(visits.n_visits > k)
        mean, sd = model.fitted.predict(own.first(k), own.times[:, k : k + 1])
        errors.append((mean[:, 0] - own.values[:, k]).ravel())
        locf.append((own.values[:, k - 1] - own.values[:, k]).ravel())
        who.append(np.repeat(own.subjects, visits.n_items))
        z.append(np.abs(errors[-1]) / sd[:, 0].ravel())
    rmse = lambda parts: np.sqrt((np.concatenate(parts) ** 2).mean())
    # Each visit counting the same, and each patient, as in the published figures (last value 1.16).
    square, patient = np.concatenate(errors) ** 2, np.concatenate(who)
    by_patient = np.sqrt(np.mean([square[patient == name].mean() for name in np.unique(patient)]))
    cover = (np.concatenate(z) < 1.645).mean()
    return (
        f"visits next-visit RMSE {rmse(errors):.3f} by patient {by_patient:.3f} (last value {rmse(locf):.3f}) cover90 {cover:.3f} "
        f"decoded RMSE {decoded_rmse(train, groups(train)):.3f}"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dynamics = sys.argv[1] if len(sys.argv) > 1 else "full"
    for seed in map(int, sys.argv[2].split(",") if len(sys.argv) > 2 else "01234"):
        for run in (two_visits, many_visits):
            start = time.process_time()
            print(seed, dynamics, run(seed, dynamics), f"CPU {time.process_time() - start:.1f} s", flush=True)
