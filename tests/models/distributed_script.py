"""Run by test_distributed.py: the same fits as one process makes, in two. Each writes what it ends up with.

python distributed_script.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

import dynapath as dp

TRAINING = dp.models.Training(
    static_epochs=60, joint_epochs=40, n_restarts=4, prior_steps=150, n_hidden=32, batch_size=64, progress=False
)
BRIEF = dp.models.Training(static_epochs=1, joint_epochs=1, n_restarts=2, prior_steps=20, n_hidden=16, progress=False)
TWO_PROCESSES = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}


def snapshots():
    # 601 cells do not divide by two.
    return dp.datasets.simulate_snapshots("separated", n_cells=41, n_genes=60)[:601].copy()


class PoisonSecondProcess(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1:
            pl_module.module.px_r.data[0] = torch.nan


def main(folder):
    cells = snapshots()
    dp.tl.fit_dynamic_vae(cells, time_key="time", training=TRAINING, train_kwargs=TWO_PROCESSES)
    rank = torch.distributed.get_rank()
    cells.write_h5ad(folder / f"{rank}.h5ad")

    # Every parameter that is trained must be used: plain "ddp" fails otherwise.
    dp.models.DynamicVAE.setup_anndata(cells, "time")
    vae = dp.models.DynamicVAE(cells, likelihood="poisson", training=BRIEF)
    vae.train(**TWO_PROCESSES)
    np.savez(folder / f"{rank}.npz", **{name: value.numpy() for name, value in vae.module.state_dict().items()})

    vae = dp.models.DynamicVAE(cells, training=BRIEF)
    try:
        vae.train(**TWO_PROCESSES, callbacks=[PoisonSecondProcess()])
    except FloatingPointError as error:
        (folder / f"{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
