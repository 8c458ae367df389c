"""What shaping a latent space buys and costs, on cells that the model has not seen.

    python benchmarks/latent_shape.py tsne --weights 0,1,3,10,30,150 --seeds 0,1,2 --out curve.csv
    python benchmarks/latent_shape.py umap --weights 0,3
    python benchmarks/latent_shape.py target --weights 0,50 --stages 1,2
    python benchmarks/latent_shape.py figure --tables curve.csv --out docs/_static/penalty_weight.png

PBMC 8k (200 genes), 6,000 cells for training, 1,480 held out, two latent dimensions, default settings of dp.tl.fit_vae and the
same minibatches of 256 cells with and without. Per fit: held-out ELBO (nats per cell, mean of 5 draws), trustworthiness (15
neighbours, against 50 principal components fitted to the training cells), share of the 15 nearest held-out cells with the same
label, and with a target R2 of the encoder's means. The UMAP that serves as target has seen all cells.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings

import numpy as np
import pandas as pd
import scanpy as sc
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

import dynapath as dp
from dynapath.models._random import isolated_seed

N_TRAIN, K = 6000, 15


def split():
    """Training and held-out cells, each with principal components, and a UMAP of all."""
    cells = dp.datasets.pbmc8k()
    shuffled = np.random.default_rng(0).permutation(cells.n_obs)
    train, test = np.sort(shuffled[:N_TRAIN]), np.sort(shuffled[N_TRAIN:])
    logged = cells.copy()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    X = logged.X.toarray()
    cells.obsm["pcs"] = PCA(50, random_state=0).fit(X[train]).transform(X)
    return cells, train, test


def add_umap(cells) -> None:
    sc.pp.neighbors(cells, use_rep="pcs", random_state=0)
    sc.tl.umap(cells, random_state=0)


def score(adata, held) -> dict[str, float]:
    held = held.copy()
    held.uns["vae"] = adata.uns["vae"]
    model = dp.get.model(held, "vae")
    z = model.states()[0]
    with isolated_seed(1):
        elbo = np.mean([float(model.get_elbo()) for _ in range(5)])
    near = NearestNeighbors(n_neighbors=K).fit(z).kneighbors(return_distance=False)
    label = held.obs["cell_type"].astype(str).to_numpy()
    scores = {
        "elbo": elbo,
        "trustworthiness": trustworthiness(held.obsm["pcs"], z, n_neighbors=K),
        "agreement": (label[near] == label[:, None]).mean(),
    }
    if "y" in held.obsm:
        y = held.obsm["y"]
        scores["r2"] = 1 - ((z - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    return scores


def draw(tables: list[str], out: str) -> None:
    """The curve over the weights of the first seed; other seeds as hollow points."""
    import matplotlib.pyplot as plt

    table = pd.concat([pd.read_csv(path) for path in tables]).sort_values(["seed", "weight"])
    base = table[table["weight"] == 0].set_index("seed")["elbo"]
    table["loss"] = 100 * (1 - table["elbo"] / table["seed"].map(base)).abs()
    figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.6), layout="constrained")
    for ax, column in zip(axes, ("trustworthiness", "agreement"), strict=True):
        first = table[table["seed"] == table["seed"].min()]
        ax.plot(first["loss"], first[column], color="#0072B2", marker="o", ms=5, lw=1.2)
        for row in first.itertuples():
            ax.annotate(
                f"{row.weight:g}", (row.loss, getattr(row, column)), xytext=(6, -3), textcoords="offset points", size=7
            )
        for _, other in table[table["seed"] > table["seed"].min()].groupby("seed"):
            ax.plot(other["loss"], other[column], color="#0072B2", marker="o", ms=4, mfc="white", lw=0.6, alpha=0.7)
        ax.margins(y=0.1)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        ax.set_xlabel("loss of held-out ELBO (%)", size=9)
        ax.set_ylabel(column, size=9)
    figure.savefig(out, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["tsne", "umap", "target", "figure"])
    parser.add_argument("--weights", default="0,3")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--stages", default="1")
    parser.add_argument("--unscaled", action="store_true", help="let the penalty act on the latent space itself")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--tables", nargs="+", default=[])
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.kind == "figure":
        draw(args.tables, args.out)
        return
    torch.set_num_threads(1)
    cells, train, test = split()
    if args.kind == "target":
        add_umap(cells)
        seen = cells.obsm["X_umap"][train]
        cells.obsm["y"] = (cells.obsm["X_umap"] - seen.mean(0)) / seen.std(0)
    rows = []
    for seed in map(int, args.seeds.split(",")):
        for weight in map(float, args.weights.split(",")):
            for stages in map(int, args.stages.split(",") if weight and args.kind == "target" else ["1"]):
                kwargs = {}
                if weight and args.kind == "target":
                    kwargs = {"target": "X_umap", "supervision": dp.models.Supervision(weight=weight, stages=stages)}
                elif weight:
                    kwargs = {
                        "latent_penalty": dp.models.LatentPenalty(args.kind, weight=weight, scaled=not args.unscaled)
                    }
                adata = cells[train].copy()
                start = time.process_time()
                dp.tl.fit_vae(
                    adata,
                    n_latent=2,
                    max_epochs=args.epochs,
                    random_state=seed,
                    train_kwargs={"batch_size": 256, "progress": False},
                    **kwargs,
                )
                row = {"kind": args.kind, "weight": weight, "stages": stages, "seed": seed}
                row |= {"cpu_s": time.process_time() - start, "scale": adata.uns["vae"].get("scale", np.nan)}
                row |= score(adata, cells[test])
                rows.append(row)
                print(
                    " ".join(f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True
                )
                if args.out:
                    pd.DataFrame(rows).to_csv(args.out, index=False)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("scvi").setLevel(logging.WARNING)
    main()
