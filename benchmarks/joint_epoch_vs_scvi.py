"""CPU time of one epoch of the joint phase against one epoch of SCVI, and growth of time and memory with cells.

    python benchmarks/joint_epoch_vs_scvi.py            # 20,000 cells x 2,000 genes, 3 rounds, one thread
    python benchmarks/joint_epoch_vs_scvi.py --growth   # 5,000, 10,000 and 20,000 cells, each in a process of its own

Ratios are of CPU time on one thread, the two models in turn in one process; on shared machines only ratios mean anything.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from lightning.pytorch.callbacks import Callback


class EpochClock(Callback):
    """CPU seconds of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.seconds.append(time.process_time() - self.start)


def snapshots(n_cells: int, n_genes: int):
    """Simulated snapshots without the dense expectation."""
    import dynapath as dp

    adata = dp.datasets.simulate_snapshots("rotating", n_cells=n_cells // 15, n_genes=n_genes)
    del adata.layers["expected"]
    return adata


def against_scvi(n_cells: int, n_genes: int, rounds: int) -> None:
    import scvi

    from dynapath.models import DynamicVAE, Training

    adata = snapshots(n_cells, n_genes)
    DynamicVAE.setup_anndata(adata, "time")
    ours = DynamicVAE(adata, n_groups=3, n_latent=10)
    scvi.model.SCVI.setup_anndata(adata)
    theirs = scvi.model.SCVI(adata, n_latent=10, gene_likelihood="nb")
    quick = Training(static_epochs=1, joint_epochs=1, n_restarts=1, prior_steps=1, progress=False)
    ours.train(training=quick)  # warm-up, and the static phase
    theirs.train(1, train_size=1.0, enable_progress_bar=False)
    pairs = []
    for _ in range(rounds):
        a, b = EpochClock(), EpochClock()
        ours.train(training=quick, skip_static=True, callbacks=[a])
        theirs.train(1, train_size=1.0, enable_progress_bar=False, callbacks=[b])
        pairs.append((a.seconds[0], b.seconds[0]))
        print(
            f"joint epoch {a.seconds[0]:6.1f} s   SCVI epoch {b.seconds[0]:6.1f} s   ratio {a.seconds[0] / b.seconds[0]:.2f}"
        )
    ratio = np.array([a / b for a, b in pairs])
    print(
        f"{adata.n_obs} x {n_genes}, batch 128, n_latent 10, {rounds} rounds: median ratio {np.median(ratio):.2f} [{ratio.min():.2f}, {ratio.max():.2f}]"
    )


def one_size(path: str) -> None:
    """Runs in a process of its own: one joint epoch, and the peak memory of the process."""
    import anndata
    import torch

    from dynapath.models import DynamicVAE, Training

    torch.set_num_threads(1)
    adata = anndata.read_h5ad(path)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    DynamicVAE.setup_anndata(adata, "time")
    clock = EpochClock()
    model = DynamicVAE(adata, n_groups=3, n_latent=10)
    model.train(
        training=Training(static_epochs=1, joint_epochs=2, n_restarts=2, prior_steps=20, progress=False),
        callbacks=[clock],
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{adata.n_obs:6d} cells: joint epoch {min(clock.seconds[1:]):6.1f} CPU s, {1e6 * min(clock.seconds[1:]) / adata.n_obs:5.0f} us per cell; "
        f"peak memory {peak:5.0f} MB, {peak - loaded:4.0f} MB above loading"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--one-size", metavar="H5AD")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if args.one_size:
        one_size(args.one_size)
    elif args.growth:
        with tempfile.TemporaryDirectory() as folder:
            for n_cells in (5_000, 10_000, 20_000):
                path = Path(folder) / f"{n_cells}.h5ad"
                snapshots(n_cells, args.genes).write_h5ad(path)
                subprocess.run([sys.executable, __file__, "--one-size", str(path)], check=True)
    else:
        against_scvi(args.cells, args.genes, args.rounds)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
