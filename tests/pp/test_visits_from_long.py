"""Visits from long tables and from ehrdata, and what is refused."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dynapath.pp import from_ehrdata, to_ehrdata, visits_from_long

KEYS = {"subject": "patient", "time": "month", "item": "test", "value": "score"}


def long_table():
    return pd.DataFrame(
        {
            "patient": ["b", "a", "a", "b", "a"],
            "month": [3.0, 6.0, 0.0, 1.0, 0.0],
            "test": ["x", "x", "y", "y", "x"],
            "score": [1.0, 2.0, 3.0, np.nan, 5.0],
            "sex": ["f", "m", "m", "f", "m"],
        }
    )


def test_every_measurement_has_its_place():
    visits = visits_from_long(long_table(), **KEYS, baseline=["sex"])
    assert list(visits.obs["patient"]) == ["b", "b", "a", "a"]
    assert list(visits.obs["month"]) == [1, 3, 0, 6]
    assert list(visits.obs["sex"]) == ["f", "f", "m", "m"]
    np.testing.assert_array_equal(visits.to_df()["x"], [np.nan, 1, 5, 2])
    np.testing.assert_array_equal(visits.to_df()["y"], [np.nan, np.nan, 3, np.nan])


def test_a_table_of_subjects_is_the_same_as_columns(tmp_path):
    table = pd.DataFrame({"sex": ["m", "f", "m"]}, index=["a", "b", "c"])
    one, other = (visits_from_long(long_table(), **KEYS, baseline=baseline) for baseline in (table, ["sex"]))
    pd.testing.assert_frame_equal(one.obs, other.obs)
    dated = long_table().assign(month=pd.Timestamp("2020-01-01") + pd.to_timedelta(long_table()["month"], unit="D"))
    visits = visits_from_long(dated, **KEYS)
    visits.write_h5ad(tmp_path / "visits.h5ad")
    assert visits.obs["month"].iloc[0] == "2020-01-02T00:00:00"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.drop(columns="score"), KeyError, "no column 'score'; it has patient"),
        (
            lambda t: t.assign(patient=[None, *t["patient"][1:]]),
            ValueError,
            "'patient' is missing in 1 rows, first in row 0",
        ),
        (lambda t: pd.concat([t, t[:1]]), ValueError, "'b' has 'x' twice at 3.0"),
        (lambda t: t.assign(score="high"), TypeError, "'score' holds 'high' .*no number"),
        (lambda t: t.assign(sex=list("fmmff")), ValueError, "'sex' changes within patient 'a'"),
        (
            lambda t: t.assign(month="soon"),
            ValueError,
            "'month' has the value 'soon', which does not read as a number or a date",
        ),
        (lambda t: t[:0], ValueError, "no rows"),
    ],
)
def test_bad_tables_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        visits_from_long(change(long_table()), **KEYS, baseline=["sex"])


def test_a_baseline_must_know_all_subjects():
    with pytest.raises(ValueError, match="no row for patient 'b'"):
        visits_from_long(long_table(), **KEYS, baseline=pd.DataFrame({"sex": ["m"]}, index=["a"]))


class EHR(SimpleNamespace):
    """What is used of ehrdata's class: an AnnData-like object with a third axis."""

    @property
    def n_obs(self):
        return len(self.obs)

    @property
    def n_vars(self):
        return len(self.var)

    @property
    def obs_names(self):
        return self.obs.index

    X = None


def test_ehrdata_and_back_is_the_same(monkeypatch):
    module = ModuleType("ehrdata")
    module.EHRData = EHR
    monkeypatch.setitem(sys.modules, "ehrdata", module)
    visits = visits_from_long(long_table(), **KEYS, baseline=["sex"])
    visits = visits[~np.isnan(visits.X).all(1)].copy()  # an empty slot is no visit
    edata = to_ehrdata(visits, time_key="month")
    assert edata.layers["tem_data"].shape == (2, 2, 3)
    again = from_ehrdata(edata, time_key="month")
    by = ["patient", "month"]
    first, second = (
        pd.concat([table.obs[by].astype({"patient": str}), table.to_df(), table.obs["sex"]], axis=1).sort_values(by)
        for table in (visits, again)
    )
    np.testing.assert_array_equal(first.to_numpy()[:, :2], second.to_numpy()[:, :2])
    np.testing.assert_array_equal(first[["x", "y"]].to_numpy(), second[["x", "y"]].to_numpy())
    assert list(first["sex"]) == list(second["sex"])


def test_objects_without_times_are_refused(monkeypatch):
    visits = visits_from_long(long_table(), **KEYS)
    with pytest.raises(TypeError, match="no table of times"):
        from_ehrdata(visits)
    flat = EHR(obs=visits.obs, var=visits.var, tem=pd.DataFrame(index=["0"]), layers={})
    with pytest.raises(ValueError, match="no layer 'tem_data'"):
        from_ehrdata(flat)
    monkeypatch.setitem(sys.modules, "ehrdata", None)
    with pytest.raises(ImportError, match="ehrdata>=0.4"):
        to_ehrdata(visits, time_key="month")
