"""Registries drawn from a known mixed model, small enough for tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from dynapath.stats.registry.visits import from_rows

BETA = np.array([1.0, 0.5, 0.8, -0.4])  # 1, time, covariate, covariate x time
G = np.array([[0.8, 0.1], [0.1, 0.2]])
NOISE = 0.4


def draw(n_subjects, n_items, seed, missing):
    """Rows of visits: subject, time, items; and the covariate of each subject."""
    rng = np.random.default_rng(seed)
    subject, times, values = [], [], []
    covariate = rng.normal(size=n_subjects)
    for i in range(n_subjects):
        t = np.cumsum(rng.uniform(0.3, 1.0, rng.integers(2, 7))) - 0.3
        b = rng.multivariate_normal(np.zeros(2), G, size=n_items)
        fixed = BETA[0] + BETA[1] * t + covariate[i] * (BETA[2] + BETA[3] * t)
        mean = fixed[:, None] + b[:, 0] + t[:, None] * b[:, 1]
        subject += [i] * len(t)
        times.append(t)
        values.append(mean + NOISE * rng.normal(size=mean.shape))
    values = np.concatenate(values)
    values[rng.random(values.shape) < missing] = np.nan
    return np.array(subject), np.concatenate(times), values, covariate[:, None]


@pytest.fixture(scope="session")
def made_up_visits():
    def make(n_subjects=80, n_items=2, seed=0, missing=0.1):
        subject, times, values, baseline = draw(n_subjects, n_items, seed, missing)
        return from_rows(subject, times, values, baseline, items=tuple(f"item{j}" for j in range(n_items)))[0]

    return make


@pytest.fixture(scope="session")
def made_up_registry():
    def make(n_subjects=80, n_items=2, seed=0, missing=0.1):
        subject, times, values, baseline = draw(n_subjects, n_items, seed, missing)
        obs = pd.DataFrame({"patient": [f"p{i:03d}" for i in subject], "time": times, "dose": baseline[subject, 0]})
        obs.index = [f"row{i}" for i in range(len(obs))]
        return AnnData(X=values, obs=obs, var=pd.DataFrame(index=[f"item{j}" for j in range(n_items)]))

    return make
