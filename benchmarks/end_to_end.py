"""CPU seconds of a whole `dp.tl.fit_dynamic_vae` with its defaults: 1,300 cells x 1,000 genes, one thread.

python benchmarks/end_to_end.py
"""

from __future__ import annotations

import time
import warnings

import torch

import dynapath as dp


def main() -> None:
    torch.set_num_threads(1)
    import dynapath.models.dynamic_vae  # noqa: F401  the import of scvi-tools is not part of the fit

    for n_latent in (2, 10):
        adata = dp.datasets.simulate_snapshots("branching", n_cells=87, n_genes=1000)
        start = time.process_time()
        dp.tl.fit_dynamic_vae(adata, time_key="time", n_groups=3, n_latent=n_latent)
        print(
            f"{adata.n_obs} cells x {adata.n_vars} genes, n_latent={n_latent}: {time.process_time() - start:.0f} CPU s"
        )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
