"""Seeds that leave the user's random state alone."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def concrete_seed(random_state: int | None) -> int:
    """The seed itself, or a fresh one for None, so that it can be recorded."""
    return int(np.random.SeedSequence().generate_state(1)[0]) if random_state is None else int(random_state)


@contextmanager
def isolated_seed(seed: int) -> Iterator[None]:
    """Seed everything that training draws from, and put it all back afterwards.

    scvi-tools splits its data by `scvi.settings.seed`, whose setter also reseeds the session and sets flags, and
    shuffles by torch's global generator: all of it is saved first.
    """
    python_state, numpy_state, environment = random.getstate(), np.random.get_state(), dict(os.environ)  # noqa: NPY002
    import scvi
    import torch

    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    scvi_seed = scvi.settings.seed
    announcer = logging.getLogger("lightning.fabric")
    level = announcer.level
    announcer.setLevel(logging.WARNING)
    with torch.random.fork_rng():
        try:
            scvi.settings.seed = seed
            yield
        finally:
            announcer.setLevel(level)
            scvi.settings.seed = scvi_seed
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
            for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "XLA_FLAGS"):
                os.environ.pop(name, None)
                if name in environment:
                    os.environ[name] = environment[name]
