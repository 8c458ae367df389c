"""Registers the measured time of cells with scvi-tools, on the model's scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from scvi.data.fields import NumericalObsField

from dynapath._columns import column_of
from dynapath._time_column import Place, numbers_of
from dynapath._times import in_decimals
from dynapath.dynamics.group_dynamics import TimeScale


class TimeField(NumericalObsField):
    """Time, scaled so that the registered snapshots run from 0 to 1.

    The scale is remembered, so cells of other times can be transferred to a fitted model.
    """

    def __init__(self, registry_key: str, time_key: str, observed_times: Sequence[float] | None = None):
        super().__init__(registry_key, f"_scvi_{registry_key}")
        self.time_key, self.observed_times = time_key, observed_times

    def validate_field(self, adata: AnnData) -> None:
        """Check that the user's column is there."""
        column_of(adata.obs, self.time_key, argument="time_key")

    def _write_scaled(self, adata: AnnData, scale: TimeScale) -> None:
        adata.obs[self.attr_key] = scale.scaled(measured_times(adata, self.time_key))

    def register_field(self, adata: AnnData) -> dict:
        """Write the scaled time and remember the scale."""
        self.validate_field(adata)
        present = measured_times(adata, self.time_key) if self.observed_times is None else self.observed_times
        times = np.unique(in_decimals(present))
        self._write_scaled(adata, TimeScale.of(times))
        super().register_field(adata)
        return {"original_key": self.time_key, "observed_times": times}

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Write the scaled time of other cells on the remembered scale."""
        self.validate_field(adata_target)
        self._write_scaled(adata_target, TimeScale.of(state_registry["observed_times"]))
        return dict(state_registry)


def measured_times(adata: AnnData, time_key: str) -> np.ndarray:
    """Times of cells as numbers; text and categories that read as numbers are read as such."""
    column = column_of(adata.obs, time_key, argument="time_key")
    return numbers_of(column, Place.in_adata(f"obs[{time_key!r}]")).to_numpy(dtype=float)
