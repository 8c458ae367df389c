"""The main job on simulated snapshots: groups, dynamics and cell states from counts, compared with the truth.

Writes the AnnData and the figures under `demo/`.
"""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import dynapath as dp

OUT = Path(__file__).parents[1] / "demo"


def recovered(adata) -> pd.DataFrame:
    """One row per snapshot: how well the groups found agree with the true ones, and the k-means groups of the same states."""
    true, found = adata.obs["group"], adata.obs["dynvae_group"]
    kmeans = KMeans(3, n_init=10, random_state=0).fit_predict(adata.obsm["X_dynvae"])
    rows = {
        f"{time:g}": (adjusted_rand_score(true[now], found[now]), adata.obs.loc[now, "dynvae_undetermined"].mean())
        for time in np.unique(adata.obs["time"])
        if (now := (adata.obs["time"] == time).to_numpy()).any()
    }
    table = pd.DataFrame(rows, index=["ARI with true groups", "undetermined cells"]).T
    table.index.name = "time"
    overall = adjusted_rand_score(true, found), adata.obs["dynvae_undetermined"].mean()
    table.loc["all"] = overall
    print(table.round(2).to_string())
    print(f"k-means on the same states, all times: ARI {adjusted_rand_score(true, kmeans):.2f}")
    return table


def main() -> None:
    """Simulate, fit, compare, draw."""
    mpl.use("Agg")
    OUT.mkdir(exist_ok=True)
    start = time.process_time()
    print("Simulating 3 groups that cross and turn, 5 snapshots of 450 cells, 200 genes ...")
    adata = dp.datasets.simulate_snapshots("crossing", random_state=0)
    sc.pp.filter_genes(adata, min_counts=1)
    print("Fitting groups, dynamics and cell states together (dp.tl.fit_dynamic_vae) ...")
    dp.tl.fit_dynamic_vae(adata, time_key="time", n_groups=3)
    print("\nRecovered groups against the truth (the model saw counts and times only):\n")
    recovered(adata)

    truth = adata.uns["truth"]
    Z, Z_true = adata.obsm["X_dynvae"], adata.obsm["Z_true"]
    paths = dp.get.dynamics(adata).trajectories(truth["times"]).mean
    error = dp.metrics.trajectory_error(paths, np.swapaxes(truth["mean"], 0, 1), Z, Z_true)
    cosine = dp.metrics.velocity_cosine(adata.obsm["dynvae_velocity"], adata.obsm["velocity_true"], Z, Z_true)
    print(
        f"\nTrajectories: error {error:.2f} sd of the true states; velocities: cosine {cosine:.2f} with the true ones."
    )

    predicted = dp.tl.predict_cells(adata, times=0.6, n_cells=300)
    print(f"Predicted at the unobserved time 0.6: {predicted.n_obs} cells x {predicted.n_vars} genes, integer counts.")

    written = [OUT / "crossing.h5ad", OUT / "latent_trajectories.png", OUT / "latent_phase.png"]
    adata.write_h5ad(written[0])
    dp.pl.latent_trajectories(adata, return_fig=True).savefig(written[1], dpi=200, bbox_inches="tight")
    dp.pl.latent_phase(adata, return_fig=True).savefig(written[2], dpi=200, bbox_inches="tight")
    print(f"\nWritten in {time.process_time() - start:.0f} CPU seconds:")
    for path in written:
        print(f"  {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
