"""Simulators that return data together with their truth, and loaders of public data."""

from dynapath.datasets._divi_icu import divi_icu
from dynapath.datasets._elephant import elephant
from dynapath.datasets._loaders import larry, pbmc8k
from dynapath.datasets._registries import aids, paquid, pbc2
from dynapath.datasets._simulate_registry import simulate_registry
from dynapath.datasets._simulate_reports import simulate_reports
from dynapath.datasets._simulate_snapshots import simulate_snapshots

__all__ = [
    "aids",
    "divi_icu",
    "elephant",
    "larry",
    "paquid",
    "pbc2",
    "pbmc8k",
    "simulate_registry",
    "simulate_reports",
    "simulate_snapshots",
]
