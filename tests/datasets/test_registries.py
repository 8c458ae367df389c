"""Registries: what is read, what is an outcome, and what is said when a table is missing."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from dynapath.datasets import _fetch, _registries, aids, paquid, pbc2

LOADERS = {"pbc2": (pbc2, (1945, 6), 312), "paquid": (paquid, (2250, 4), 500), "aids": (aids, (1405, 1), 467)}


def load(name):
    """The registry where it lies on this machine, or a skip."""
    registry = getattr(_registries, name.upper())
    folders = _fetch._default_folders()
    if _fetch._first_file([c for f in folders for c in _fetch._candidates(registry.visits, f)]) is None:
        pytest.skip(f"{name} is in no data folder (set DYNAPATH_DATA)")
    return LOADERS[name][0]()


@pytest.mark.parametrize("name", LOADERS)
def test_sizes_are_those_published(name, tmp_path):
    visits = load(name)
    assert visits.shape == LOADERS[name][1]
    assert visits.obs["patient"].nunique() == LOADERS[name][2]
    assert not visits.obs.duplicated(["patient", "time"]).any()
    visits.write_h5ad(tmp_path / "visits.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "visits.h5ad").X, visits.X)


@pytest.mark.parametrize("name", LOADERS)
def test_outcomes_are_named_as_such_and_nothing_else_is_known_only_afterwards(name):
    registry = getattr(_registries, name.upper())
    columns = set(load(name).obs.columns) - {"patient", "time", *registry.baseline}
    assert columns == {f"outcome_{outcome}" for outcome in registry.outcomes}
    assert not any(word in column for column in registry.baseline for word in ("death", "dementia", "followup", "end"))


@pytest.mark.parametrize("name", LOADERS)
def test_transformations_are_those_they_are_named_after(name):
    visits = load(name)
    transforms = {"log": np.log, "sqrt": np.sqrt, "identity": np.asarray, "-log(31 - MMSE)": lambda x: -np.log(31 - x)}
    for item, transform in visits.var["transform"].items():
        at = visits.var_names.get_loc(item)
        np.testing.assert_allclose(visits.X[:, at], transforms[transform](visits.layers["raw"][:, at]))
    assert not np.isinf(visits.X).any()


def test_a_missing_table_is_named_with_its_source_licence_and_export(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"paquid_visits.csv .*lcmm; licence: GPL.*write.csv\(.*DYNAPATH_DATA"):
        paquid(path=tmp_path)


def test_a_table_that_is_not_the_expected_one_is_refused(tmp_path):
    pd.DataFrame({"patient": ["1"], "time": [0.0]}).to_csv(tmp_path / "aids_visits.csv")
    pd.DataFrame({"patient": ["1"]}).to_csv(tmp_path / "aids_baseline.csv")
    with pytest.raises(ValueError, match="aids_visits.csv has no column 'CD4'"):
        aids(path=tmp_path)
    pd.DataFrame({"patient": ["1"], "time": [0.0], "CD4": [3.0]}).to_csv(tmp_path / "aids_visits.csv")
    with pytest.raises(ValueError, match="has 1 rows; 1405 were expected"):
        aids(path=tmp_path)
