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


# --- whose baseline ----------------------------------------------------------------------------------------------------

AGES = {"b": 71.0, "a": 50.0}


def numbered(table):
    """Subjects 1 and 2 instead of a and b."""
    return table.assign(patient=table["patient"].map({"a": 1, "b": 2}))


def ages(visits):
    return dict(zip(visits.obs["patient"].astype(str), visits.obs["age"], strict=True))


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
@pytest.mark.parametrize("subjects", [str, int])
def test_every_subject_has_its_own_baseline_however_the_table_names_it(order, subjects):
    table = long_table() if subjects is str else numbered(long_table())
    name = {"a": "a", "b": "b"} if subjects is str else {"a": 1, "b": 2}
    known = pd.DataFrame({"patient": [name[who] for who in order], "age": [AGES[who] for who in order]})
    expected = {str(name[who]): AGES[who] for who in order}
    indexed = known.set_index("patient")
    for baseline in (known, known.set_index(pd.Index([7, 8])), indexed, indexed.rename_axis("id")):
        visits = visits_from_long(table, **KEYS, baseline=baseline)
        assert ages(visits) == expected
        assert list(visits.obs) == ["patient", "month", "age"]


def test_an_index_that_was_set_to_the_subjects_needs_no_name():
    known = pd.DataFrame({"age": [71.0, 50.0]}, index=[2, 1])
    assert ages(visits_from_long(numbered(long_table()), **KEYS, baseline=known)) == {"2": 71.0, "1": 50.0}


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 1], [0, 1, 3], [1, 0]])
def test_row_numbers_name_no_subjects(rows):
    """Taken as names they would give patient 1 the age in row 1, which is that of patient 2."""
    table = numbered(long_table())
    known = pd.DataFrame({"patient": [1, 2, 3, 4], "age": [50.0, 71.0, 30.0, 40.0]}).iloc[rows]
    assert ages(visits_from_long(table, **KEYS, baseline=known)) == {"1": 50.0, "2": 71.0}
    with pytest.raises(ValueError, match=r"row numbers.* do not name the subjects.*baseline\.rename_axis\('patient'\)"):
        visits_from_long(table, **KEYS, baseline=known[["age"]])


def test_text_that_counts_rows_names_no_subjects_either():
    table = numbered(long_table()).assign(patient=lambda t: t["patient"].astype(str))
    known = pd.DataFrame({"age": [50.0, 71.0, 30.0]}, index=["0", "1", "2"])
    with pytest.raises(ValueError, match="row numbers"):
        visits_from_long(table, **KEYS, baseline=known)
    meant = visits_from_long(table, **KEYS, baseline=known.rename_axis("patient"))
    assert ages(meant) == {"1": 71.0, "2": 30.0}


def test_a_baseline_of_other_subjects_and_one_with_subjects_twice_or_unnamed_are_refused():
    known = pd.DataFrame({"patient": ["a", "b", "b"], "age": [50.0, 71.0, 72.0]})
    with pytest.raises(ValueError, match="several rows for patient 'b'"):
        visits_from_long(long_table(), **KEYS, baseline=known)
    with pytest.raises(ValueError, match="no row for patient 'b'"):
        visits_from_long(long_table(), **KEYS, baseline=known[:1])
    with pytest.raises(ValueError, match=r"baseline\['patient'\] is missing in 1 rows, first in row 1"):
        visits_from_long(long_table(), **KEYS, baseline=known.assign(patient=["a", None, "b"]))
    with pytest.raises(ValueError, match="index of baseline has 2 levels.*'patient'"):
        visits_from_long(long_table(), **KEYS, baseline=known.assign(site=1).set_index(["site", "patient"]))


def test_a_time_in_the_baseline_is_refused_and_leaving_it_out_helps():
    known = pd.DataFrame({"patient": ["a", "b"], "month": [0, 0], "age": [50.0, 71.0]})
    with pytest.raises(ValueError, match="baseline has 'month', which is the time.*Leave it out"):
        visits_from_long(long_table(), **KEYS, baseline=known)
    assert ages(visits_from_long(long_table(), **KEYS, baseline=known.drop(columns="month"))) == AGES
    with pytest.raises(ValueError, match="baseline names 'patient', which is the subject.*Leave it out"):
        visits_from_long(long_table(), **KEYS, baseline=["patient", "sex"])


def test_subjects_that_read_the_same_are_refused():
    table = long_table().assign(patient=pd.Series(["1", 1, 1, "1", 1], dtype=object))
    with pytest.raises(ValueError, match="Different values of 'patient' read the same: '1' and 1"):
        visits_from_long(table, **KEYS)
