"""Points that move on the linear systems of the simulator, drawn here with scipy and not with the code under test."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import softmax
from scipy.stats import multivariate_normal

from dynapath.datasets._simulate_snapshots import SCENARIOS


@dataclass(frozen=True)
class LatentSnapshots:
    """Points and their truth."""

    z: np.ndarray  # (cell, latent)
    times: np.ndarray  # (cell,)
    group: np.ndarray  # (cell,)
    grid: np.ndarray  # (time,)
    mean: np.ndarray  # (group, time, latent)
    cov: np.ndarray  # (group, time, latent, latent)
    proportions: np.ndarray  # (group, time)
    velocity: np.ndarray  # (cell, latent)

    @property
    def index(self):
        return np.searchsorted(self.grid, self.times)

    def bayes_groups(self):
        """The best guess of each cell's group that anyone could make, knowing the truth."""
        joint = np.empty((len(self.z), len(self.mean)))
        for t in range(len(self.grid)):
            at = self.index == t
            for k in range(len(self.mean)):
                density = multivariate_normal(self.mean[k, t], self.cov[k, t]).logpdf(self.z[at])
                joint[at, k] = np.log(self.proportions[k, t]) + density
        return joint.argmax(1)


def draw(scenario, *, n_cells=100, times=(0, 0.25, 0.5, 0.75, 1), growth=(0, 0, 0), seed=0):
    rng, system, grid = np.random.default_rng(seed), SCENARIOS[scenario], np.array(times, dtype=float)
    A, b, m, s0, K = system.A, system.b, system.m, system.s0, system.n_groups
    flows = np.array(
        [[expm(np.block([[A[k], b[k][:, None]], [np.zeros((1, 3))]]) * t) for t in grid] for k in range(K)]
    )
    Phi, c = flows[..., :2, :2], flows[..., :2, 2]
    proportions = softmax(np.outer(growth, grid), axis=0)
    index = np.repeat(np.arange(len(grid)), n_cells * K)
    if any(growth):
        group = np.concatenate([rng.choice(K, size=n_cells * K, p=proportions[:, t]) for t in range(len(grid))])
    else:
        group = np.tile(np.repeat(np.arange(K), n_cells), len(grid))
    start = m[group] + s0 * rng.standard_normal((len(group), 2))
    z = np.einsum("nij,nj->ni", Phi[group, index], start) + c[group, index]
    return LatentSnapshots(
        z=z,
        times=grid[index],
        group=group,
        grid=grid,
        mean=np.einsum("ktij,kj->kti", Phi, m) + c,
        cov=s0**2 * Phi @ np.swapaxes(Phi, -1, -2),
        proportions=proportions,
        velocity=np.einsum("nij,nj->ni", A[group], z) + b[group],
    )


@pytest.fixture(scope="session")
def latent_snapshots():
    return draw
