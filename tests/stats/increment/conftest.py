"""Panels whose increments follow the model."""

import numpy as np
import pandas as pd
import pytest

from dynapath.read.panel import Panel


def make_panel(n_units=12, n_days=60, *, missing=0.2, seed=0, n_covariates=1, lags=((0, 1),), sigma=0.7, spread=1.0):
    """Units in equilibrium with normal innovations, each with its own coefficients (`spread` 0: all the same)."""
    rng = np.random.default_rng(seed)
    k = 2 + len(lags)
    params = np.array([1.2, -0.25] + [0.3] * (k - 2)) + spread * rng.normal(
        0, [0.1, 0.05] + [0.1] * (k - 2), (n_units, k)
    )
    params[:, 1] = np.clip(params[:, 1], -0.8, -0.05)
    z = np.abs(rng.normal(2, 1, (n_covariates, n_units, n_days)))
    source, lag = np.array([s for s, _ in lags], dtype=int), np.array([g for _, g in lags], dtype=int)
    y = np.zeros((n_units, n_days))
    y[:, 0] = rng.normal(7, 1, n_units)
    for t in range(1, n_days):
        x = np.array([z[s, :, max(t - g, 0)] for s, g in zip(source, lag, strict=True)]).T.reshape(n_units, k - 2)
        y[:, t] = y[:, t - 1] + params[:, 0] + params[:, 1] * y[:, t - 1] + (params[:, 2:] * x).sum(1)
        y[:, t] += sigma * rng.standard_normal(n_units)
    y[rng.random(y.shape) < missing] = np.nan
    names = tuple("zxwv"[:n_covariates])
    units = pd.Index([f"unit{u}" for u in range(n_units)])
    return Panel(y, z, names, source, lag, units, pd.Index([str(t) for t in range(n_days)])), params


@pytest.fixture
def panel():
    return make_panel()[0]


@pytest.fixture
def complete():
    return make_panel(missing=0.0)[0]
