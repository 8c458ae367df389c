"""Columns that the user names are there, and there once: two of one name are refused wherever a name is taken."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dynapath as dp
from dynapath.read.cells import read_cells
from dynapath.read.counts import read_points, read_snapshots
from dynapath.read.panel import read_panel
from dynapath.read.program import read_arguments
from dynapath.read.visits import read_visits


def twice(adata: ad.AnnData, name: str, table: str = "obs") -> ad.AnnData:
    """The same with the column `name` a second time."""
    columns = getattr(adata, table)
    setattr(adata, table, pd.concat([columns, columns[[name]]], axis=1))
    return adata


def cells() -> ad.AnnData:
    obs = {
        "day": [0.0, 0.0, 1.0, 1.0],
        "donor": list("abab"),
        "state": list("xyxy"),
        "size": [1.0, 2.0, 1.0, 2.0],
    }
    counts = np.arange(1.0, 13.0).reshape(4, 3)
    obs = pd.DataFrame(obs, index=[f"cell{i}" for i in range(4)])
    return ad.AnnData(counts, obs=obs, obsm={"X_pca": counts[:, :2]})


def visits() -> ad.AnnData:
    obs = {
        "patient": list("aabbcc"),
        "month": [0.0, 1.0] * 3,
        "age": [50.0, 50.0, 61.0, 61.0, 43.0, 43.0],
        "sex": list("ffmmff"),
    }
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(obs, index=[f"v{i}" for i in range(6)])
    var = pd.DataFrame({"kind": "gaussian"}, index=["x", "y"])
    return ad.AnnData(rng.normal(size=(6, 2)), obs=obs, var=var)


def panel() -> ad.AnnData:
    days = [f"2020-03-0{day}" for day in range(1, 6)]
    return ad.AnnData(np.arange(10.0).reshape(2, 5), var=pd.DataFrame({"date": days}, index=list("abcde")))


def long_table() -> pd.DataFrame:
    table = visits().obs.assign(test="x", score=np.arange(6.0), told=True)
    return table.reset_index(drop=True)


SNAPSHOTS = {"time_key": "day", "batch_key": "donor", "labels_key": "state", "size_factor_key": "size"}
VISITS = {"subject_key": "patient", "time_key": "month"}
LONG = {"subject": "patient", "time": "month", "item": "test", "value": "score"}


@pytest.mark.parametrize("argument", SNAPSHOTS)
def test_snapshots(argument):
    name = SNAPSHOTS[argument]
    with pytest.raises(ValueError, match=rf"obs has 2 columns named '{name}' \({argument}\)\. Rename or drop"):
        read_snapshots(twice(cells(), name), **SNAPSHOTS)


def test_points_in_a_representation():
    with pytest.raises(ValueError, match=r"obs has 2 columns named 'day' \(time_key\)"):
        read_points(twice(cells(), "day"), time_key="day", use_rep="X_pca")


@pytest.mark.parametrize("argument", ["batch_key", "labels_key", "size_factor_key"])
def test_cells_without_times(argument):
    name = SNAPSHOTS[argument]
    with pytest.raises(ValueError, match=rf"obs has 2 columns named '{name}' \({argument}\)"):
        read_cells(twice(cells(), name), **{argument: name})


def test_the_time_of_the_scvi_model():
    with pytest.raises(ValueError, match=r"obs has 2 columns named 'day' \(time_key\)"):
        dp.models.DynamicVAE.setup_anndata(twice(cells(), "day"), time_key="day")


@pytest.mark.parametrize("argument", VISITS)
def test_visits(argument):
    name = VISITS[argument]
    with pytest.raises(ValueError, match=rf"obs has 2 columns named '{name}' \({argument}\)"):
        read_visits(twice(visits(), name), **VISITS)


@pytest.mark.parametrize("baseline", ["~ age", "~ center(age)", ["age"]])
def test_the_baseline_of_visits(baseline):
    with pytest.raises(ValueError, match=r"obs has 2 columns named 'age' \(baseline\)"):
        read_visits(twice(visits(), "age"), **VISITS, baseline=baseline)


def test_a_baseline_that_names_a_column_twice_is_that_column():
    once, again = (read_visits(visits(), **VISITS, baseline=names).visits for names in (["age"], ["age", "age"]))
    np.testing.assert_array_equal(once.baseline, again.baseline)


def test_kinds_of_items():
    with pytest.raises(ValueError, match="var has 2 columns named 'kind'"):
        read_visits(twice(visits(), "kind", "var"), **VISITS)


def test_dates_of_panels():
    with pytest.raises(ValueError, match="var has 2 columns named 'date'"):
        read_panel(twice(panel(), "date", "var"))
    with pytest.raises(ValueError, match="var has 2 columns named 'date'"):
        dp.get.long(twice(panel(), "date", "var"))


@pytest.mark.parametrize(("slots", "table"), [(None, "obs"), ({"age": "obs/age"}, "obs"), ({"age": "var/kind"}, "var")])
def test_the_arguments_of_a_program(slots, table):
    adata = twice(visits(), "age" if table == "obs" else "kind", table)
    with pytest.raises(ValueError, match=f"{table} has 2 columns named"):
        read_arguments(adata, ["age"], slots)


@pytest.mark.parametrize("name", ["patient", "month", "test", "score", "age"])
def test_long_tables_of_visits(name):
    table = long_table()
    table = pd.concat([table, table[[name]]], axis=1)
    with pytest.raises(ValueError, match=f"The table has 2 columns named '{name}'"):
        dp.pp.visits_from_long(table, **LONG, baseline=["age"])


def test_a_table_of_the_baseline():
    known = pd.DataFrame([[1, 2], [3, 4], [5, 6]], columns=["age", "age"], index=list("abc"))
    with pytest.raises(ValueError, match="baseline has 2 columns named 'age'"):
        dp.pp.visits_from_long(long_table(), **LONG, baseline=known)
    with pytest.raises(ValueError, match="baseline names 'age' 2 times"):
        dp.pp.visits_from_long(long_table(), **LONG, baseline=["age", "age"])


@pytest.mark.parametrize("name", ["patient", "month", "score", "told"])
def test_long_tables_of_panels(name):
    table = long_table()
    table = pd.concat([table, table[[name]]], axis=1)
    with pytest.raises(ValueError, match=f"The table has 2 columns named '{name}'"):
        dp.pp.panel_from_long(table, unit="patient", time="month", value="score", observed="told")


class EHR(SimpleNamespace):
    """What is used of ehrdata's class."""

    n_obs, n_vars, X = 2, 1, None

    @property
    def obs_names(self):
        return self.obs.index


@pytest.mark.parametrize("where", ["obs", "tem"])
def test_ehrdata(where, monkeypatch):
    tables = {"obs": pd.DataFrame({"sex": list("fm")}, index=list("ab")), "tem": pd.DataFrame({"time": [0.0, 1.0]})}
    tables[where] = pd.concat([tables[where]] * 2, axis=1)
    edata = EHR(**tables, var=pd.DataFrame(index=["x"]), layers={"tem_data": np.ones((2, 1, 2))})
    with pytest.raises(ValueError, match=f"{where} has 2 columns named"):
        dp.pp.from_ehrdata(edata)
    module = ModuleType("ehrdata")
    module.EHRData = EHR
    monkeypatch.setitem(sys.modules, "ehrdata", module)
    with pytest.raises(ValueError, match=r"obs has 2 columns named 'month' \(time_key\)"):
        dp.pp.to_ehrdata(twice(visits(), "month"), time_key="month")


def test_colours():
    from dynapath.pl._colors import color_cells

    with pytest.raises(ValueError, match=r"obs has 2 columns named 'donor' \(color\)"):
        color_cells(twice(cells(), "donor"), "donor", None, np.ones(4, dtype=bool))


def test_times_of_drawn_cells():
    from types import SimpleNamespace

    from dynapath.pl._over_time import cell_times

    with pytest.raises(ValueError, match="obs has 2 columns named 'day'"):
        cell_times(twice(cells(), "day"), SimpleNamespace(time_key="day"))
