"""Simulators that return data together with their truth, and loaders of public data."""

from dynapath.datasets._loaders import larry, pbmc8k
from dynapath.datasets._simulate_snapshots import simulate_snapshots

__all__ = ["larry", "pbmc8k", "simulate_snapshots"]
