"""Registers size factors with scvi-tools, in units of their mean, so that the unit in which they are measured does not matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import NumericalObsField

from dynapath._columns import column_of


class SizeFactorField(NumericalObsField):
    """Size factors, divided by their mean over the registered cells.

    The mean is remembered, so cells that are transferred to a fitted model are measured by the same unit.
    """

    def __init__(self, size_factor_key: str | None, unit: float | None = None):
        key = REGISTRY_KEYS.SIZE_FACTOR_KEY
        super().__init__(key, None if size_factor_key is None else f"_scvi_{key}", required=False)
        self.size_factor_key, self.unit = size_factor_key, unit

    def _write(self, adata: AnnData, unit: float | None) -> dict[str, Any]:
        given = column_of(adata.obs, self.size_factor_key, argument="size_factor_key").to_numpy(dtype=float)
        bad = ~(np.isfinite(given) & (given > 0))
        if bad.any():
            msg = (
                f"obs[{self.size_factor_key!r}] must be positive and finite; cell {str(adata.obs_names[bad][0])!r} has "
                f"{given[bad][0]:g}. Recompute it or drop the cell."
            )
            raise ValueError(msg)
        unit = float(given.mean()) if unit is None else float(unit)
        adata.obs[self.attr_key] = given / unit
        return {"original_key": self.size_factor_key, "unit": unit}

    def validate_field(self, adata: AnnData) -> None:
        """Nothing is asked of the AnnData that writing does not ask."""

    def register_field(self, adata: AnnData) -> dict:
        """Write the size factors and remember their unit."""
        return self._write(adata, self.unit)

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs: Any) -> dict:
        """Write those of other cells in the remembered unit."""
        return self._write(adata_target, state_registry.get("unit", 1.0))


def unit_of(registry: Mapping[str, Any]) -> float:
    """The unit of the size factors of a registered model; 1 for those of scvi-tools, and without size factors."""
    field = registry["field_registries"].get(REGISTRY_KEYS.SIZE_FACTOR_KEY, {})
    return float(field.get("state_registry", {}).get("unit", 1.0))
