"""What the main job must recover from simulated snapshots, at its defaults. Medians over seeds, as published goals are."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score

import dynapath as dp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*no counts at all.*"),
    pytest.mark.filterwarnings("ignore:Only one of .* restarts.*"),
    pytest.mark.filterwarnings("ignore:.*restarts reach a likelihood.*"),
]

QUIET = dp.models.Training(progress=False)
SEEDS = range(5)
# Adjusted Rand index over all cells, trajectory error in sd of the true states.
GOALS = {"crossing": (0.75, 0.16), "rotating": (0.95, 0.12), "branching": (0.50, 0.18)}


def scores(adata) -> dict[str, float]:
    """All scores of one fit against the truth of the simulation."""
    truth, times = adata.uns["truth"], np.unique(adata.obs["time"])
    states, true_states = adata.obsm["X_dynvae"], adata.obsm["Z_true"]
    groups, found = adata.obs["group"].cat.codes.to_numpy(), adata.obs["dynvae_group"].cat.codes.to_numpy()
    true_paths = np.swapaxes(truth["mean"], 0, 1)
    paths = dp.get.dynamics(adata).trajectories(times).mean
    aligned = dp.metrics.affine_alignment(states, true_states).points(paths)
    matched = paths[dp.metrics.match_groups(aligned, true_paths)].reshape(-1, paths.shape[-1])
    profiles = dp.get.model(adata).decode(matched, np.ones(len(matched)), expected=True).toarray()
    shares = adata.layers["expected"] / adata.layers["expected"].sum(1, keepdims=True)
    theta = dp.get.model(adata).module.px_r.detach().exp().numpy()
    now = adata.obs["time"].to_numpy()
    true_profiles = [shares[(now == t) & (groups == k)].mean(0) for k in range(3) for t in times]
    return {
        "ari": adjusted_rand_score(groups, found),
        "ari of the last two times": min(adjusted_rand_score(groups[now == t], found[now == t]) for t in times[-2:]),
        "trajectory error": dp.metrics.trajectory_error(paths, true_paths, states, true_states),
        "velocity cosine": dp.metrics.velocity_cosine(
            adata.obsm["dynvae_velocity"], adata.obsm["velocity_true"], states, true_states
        ),
        "gene r2": dp.metrics.gene_r2(profiles, true_profiles),
        "order of dispersions": spearmanr(-np.log(theta), truth["bcv2"])[0],
    }


def median_scores(scenario: str, seeds=SEEDS, **simulation) -> dict[str, float]:
    """Fit with the defaults of `fit_dynamic_vae`, once a seed."""
    each = []
    for seed in seeds:
        adata = dp.datasets.simulate_snapshots(scenario, random_state=seed, **simulation)
        dp.tl.fit_dynamic_vae(adata, time_key="time", n_groups=3, n_latent=2, training=QUIET, random_state=seed)
        each.append(scores(adata))
    return {name: float(np.median([row[name] for row in each])) for name in each[0]}


@pytest.mark.parametrize("scenario", GOALS)
def test_groups_trajectories_and_velocities_are_recovered(scenario):
    ari, error = GOALS[scenario]
    found = median_scores(scenario)
    assert found["ari"] >= ari, found
    assert found["trajectory error"] <= error, found
    assert found["gene r2"] >= 0.95, found
    assert found["velocity cosine"] >= 0.80, found
    assert found["order of dispersions"] >= 0.6, found
    if scenario == "branching":
        assert found["ari of the last two times"] >= 0.95, found


def test_forty_cells_per_group_and_time_are_enough_for_a_crossing():
    found = median_scores("crossing", seeds=range(3), n_cells=40)
    assert found["ari"] >= 0.75, found


def test_free_growth_recovers_the_proportions():
    rates = np.array([0.0, 1.5, -1.5])
    adata = dp.datasets.simulate_snapshots("separated", growth=rates, random_state=0)
    dp.tl.fit_dynamic_vae(adata, time_key="time", n_groups=3, n_latent=2, growth="free", training=QUIET)
    truth, times = adata.uns["truth"], np.unique(adata.obs["time"])
    # Found groups are matched to the true ones by the cells they share.
    shared = np.array(
        [
            [((adata.obs["group"] == str(j)) & (adata.obs["dynvae_group"] == str(k))).sum() for k in range(3)]
            for j in range(3)
        ]
    )
    found = dp.get.dynamics(adata).proportions(times)[shared.argmax(1)]
    assert np.abs(found.T - truth["proportions"]).max() <= 0.05
