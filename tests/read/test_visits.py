"""Entry of registries: the order of rows, remembered coding, and every kind of bad input."""

from __future__ import annotations

import warnings
from decimal import Decimal

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from dynapath.read.visits import Schema, read_new_visits, read_visits

KEYS = {"subject_key": "patient", "time_key": "time"}
PATIENT = ["a", "a", "b", "b", "b", "c", "c"]


def registry():
    X = np.arange(21.0).reshape(7, 3) ** 0.5
    X[2, 1] = np.nan
    X[:, 2] = [0, 1, 1, 0, 1, np.nan, 0]
    obs = pd.DataFrame({"patient": PATIENT, "time": [0, 1, 0, 2, 3, 1, 5]}, index=[f"r{i}" for i in range(7)])
    obs["time"] = obs["time"].astype(float)
    obs["age"] = obs["patient"].map({"a": 50.0, "b": 61.0, "c": 43.0})
    obs["type"] = obs["patient"].map({"a": "II", "b": "I", "c": "II"})
    return ad.AnnData(X=X, obs=obs, var=pd.DataFrame(index=["x", "y", "walks"]))


def read(adata, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_visits(adata, **(KEYS | kwargs))


def test_rows_find_their_way_there_and_back():
    found = read(registry(), baseline="~ age + C(type)")
    visits = found.visits
    assert visits.subjects == ("a", "b", "c")
    assert visits.kinds == ("gaussian", "gaussian", "bernoulli")
    assert visits.covariates == ("age", "C(type)[T.II]")
    np.testing.assert_array_equal(visits.baseline, [[50, 1], [61, 0], [43, 1]])
    np.testing.assert_array_equal(found.to_rows(visits.values), registry().X)


def test_the_order_of_rows_changes_nothing():
    rows = np.random.default_rng(0).permutation(7)
    first, second = read(registry(), baseline="~ age").visits, read(registry()[rows], baseline="~ age").visits
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.baseline, second.baseline)
    assert first.subjects == second.subjects


@pytest.mark.parametrize("form", ["sparse", "view", "backed", "layer"])
def test_values_are_read_from_wherever_they_are_and_stay_as_they_are(form, tmp_path):
    adata = registry()
    adata.X[np.isnan(adata.X)] = 4.0
    adata.X[0, 2] = 0
    expected = read(adata).visits.values
    layer = None
    if form == "sparse":
        adata.X = sparse.csr_matrix(adata.X)
    elif form == "view":
        adata = adata[:, :]
    elif form == "layer":
        adata.layers["z"], layer = adata.X.copy(), "z"
        adata.X = None
    else:
        adata.write_h5ad(tmp_path / "visits.h5ad")
        adata = ad.read_h5ad(tmp_path / "visits.h5ad", backed="r")
    found = read(adata, layer=layer)
    np.testing.assert_array_equal(found.visits.values, expected)
    if form == "view":
        assert adata.is_view


def test_whole_numbers_are_fine():
    adata = registry()
    counts = ad.AnnData(X=np.arange(21).reshape(7, 3), obs=adata.obs, var=adata.var)
    assert read(counts).visits.values.dtype == float


def test_dates_are_counted_from_the_first_visit_in_the_unit_asked_for():
    adata = registry()
    days = pd.to_timedelta(adata.obs["time"] * 7, unit="D")
    adata.obs["date"] = pd.Timestamp("2021-03-01") + days
    weeks = read(adata, time_key="date", time_unit="week").visits
    np.testing.assert_allclose(weeks.times[2], [0, 4, 4])
    adata.obs["date"] = adata.obs["date"].dt.strftime("%Y-%m-%d")
    np.testing.assert_allclose(read(adata, time_key="date", time_unit="day").visits.times, weeks.times * 7)


def test_new_subjects_are_coded_with_the_levels_and_means_of_the_first():
    adata = registry()
    with pytest.warns(UserWarning, match="'type' is not numeric"):
        found = read_visits(adata, **KEYS, baseline="~ center(age) + type")
    schema = Schema.from_arrays(found.schema.to_arrays())
    one = read_new_visits(adata[adata.obs["patient"] == "b", ["y", "walks", "x"]], schema).visits
    np.testing.assert_allclose(one.baseline, found.visits.baseline[[1]])
    assert one.items == ("x", "y", "walks")
    np.testing.assert_array_equal(one.values[0], found.visits.values[1])


def test_missing_baseline_becomes_the_mean_and_an_indicator_on_request():
    adata = registry()
    adata.obs.loc[adata.obs["patient"] == "b", "age"] = np.nan
    visits = read(adata, baseline="~ age", baseline_missing="mean+indicator").visits
    assert visits.covariates == ("age", "missing(age)")
    np.testing.assert_allclose(visits.baseline, [[50, 0], [46.5, 1], [43, 0]])


def ages(*three):
    """Of patients a, b and c, as objects."""
    return pd.Series([dict(zip("abc", three, strict=True))[name] for name in PATIENT], dtype=object).to_numpy()


@pytest.mark.parametrize(
    "age",
    [(50, 61, 43), (50, 61.0, 43), (np.int64(50), np.float32(61), 43), (Decimal(50), Decimal(61), Decimal(43))],
)
def test_numbers_held_as_objects_are_numbers(age):
    found = read(changed(age=ages(*age)), baseline="~ age + C(type)")
    assert found.visits.covariates == ("age", "C(type)[T.II]")
    np.testing.assert_array_equal(found.visits.baseline[:, 0], [50, 61, 43])
    # New subjects may have them as objects, too, and numbers where the fit had objects.
    schema = Schema.from_arrays(found.schema.to_arrays())
    for adata in (registry(), changed(age=ages(*age))):
        np.testing.assert_array_equal(read_new_visits(adata, schema).visits.baseline, found.visits.baseline)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
@pytest.mark.parametrize("dtype", [object, "Int64"])
def test_missing_numbers_held_as_objects_are_missing_numbers(missing, dtype):
    age = (
        pd.Series(ages(50, missing, 43)).astype(dtype).to_numpy()
        if dtype is object
        else pd.array(ages(50, missing, 43), dtype)
    )
    visits = read(changed(age=age), baseline="~ age", baseline_missing="mean+indicator").visits
    assert visits.covariates == ("age", "missing(age)")
    np.testing.assert_allclose(visits.baseline, [[50, 0], [46.5, 1], [43, 0]])
    with pytest.raises(
        ValueError, match="'age' is missing for 1 subjects, first 'b'.*baseline_missing='mean\\+indicator'"
    ):
        read_visits(changed(age=age), **KEYS, baseline="~ age")


def test_truth_held_as_objects_is_0_and_1():
    visits = read(changed(treated=ages(True, False, True)), baseline="~ treated").visits
    np.testing.assert_array_equal(visits.baseline, [[1], [0], [1]])


def test_text_of_numbers_becomes_levels_and_the_conversion_is_named():
    conversion = r"as text: adata.obs\['age'\] = pd.to_numeric\(adata.obs\['age'\]\)"
    adata = changed(age=ages("50", "61", "43"))
    with pytest.warns(UserWarning, match=f"'age' is not numeric.*{conversion}"):
        found = read_visits(adata, **KEYS, baseline="~ age")
    assert found.visits.covariates == ("age[T.50]", "age[T.61]")
    adata.obs["age"] = pd.to_numeric(adata.obs["age"])
    assert read(adata, baseline="~ age").visits.covariates == ("age",)
    names = level_names(21)
    names["site"] = [str(i // 2) for i in range(42)]
    many = ad.AnnData(np.random.default_rng(0).normal(size=(42, 1)), pd.DataFrame(names, index=map(str, range(42))))
    with pytest.raises(ValueError, match="'site' has 21 levels.*pd.to_numeric"):
        read_visits(many, **KEYS, baseline="~ site")


def test_text_in_place_of_a_number_of_the_fit_is_named():
    schema = read(registry(), baseline="~ age").schema
    with pytest.raises(ValueError, match="'age' is 'old' for subject 'b', but a number in the fit"):
        read_new_visits(changed(age=ages(50, "old", 43)), schema)


def changed(**columns):
    adata = registry()
    for name, values in columns.items():
        adata.obs[name] = values
    return adata


def infinite():
    adata = registry()
    adata.X[3, 0] = np.inf
    return adata


def level_names(n):
    return {
        "patient": [f"p{i // 2}" for i in range(2 * n)],
        "time": [0.0, 1.0] * n,
        "site": [f"s{i // 2}" for i in range(2 * n)],
    }


REFUSED = {
    "unknown subject": (registry(), {"subject_key": "id"}, KeyError, r"no column 'id' \(subject_key\); present: age, patient, time"),
    "unknown time": (registry(), {"time_key": "when"}, KeyError, r"no column 'when' \(time_key\); present"),
    "unknown baseline": (registry(), {"baseline": "~ weight"}, KeyError, r"no column 'weight' \(baseline\); present"),
    "unknown layer": (registry(), {"layer": "log"}, KeyError, "layers has no 'log'"),
    "missing subject": (changed(patient=[None, *PATIENT[1:]]), {}, ValueError, "'patient' is missing in 1 rows, first in 'r0'"),
    "missing time": (
        changed(time=[0, 1, np.nan, 2, np.inf, 1, 5]), {}, ValueError, "missing or infinite in 2 rows, first for patient 'b'",
    ),
    "dates without a unit": (
        changed(time=[f"2020-01-0{i}" for i in range(1, 8)]), {}, ValueError, "dates such as '2020-01-01'.*time_unit='year'",
    ),
    "text": (changed(time="soon"), {}, ValueError, "'soon', which does not read as a number or a date"),
    "wrong unit": (registry(), {"time_unit": "fortnight"}, ValueError, "time_unit must be one of 'hour'"),
    "visit twice": (changed(time=[0, 0, 0, 2, 2, 1, 5]), {}, ValueError, "2 visits repeat .*: 'a' at 0; 'b' at 2"),
    "changing baseline": (
        changed(age=[50, 51, 61, 61, 61, 43, 43]), {"baseline": "~ age"}, ValueError, r"'age' changes within patient 'a' \(50, 51",
    ),
    "missing baseline": (
        changed(age=[50, 50, *[np.nan] * 3, 43, 43]), {"baseline": "~ age"}, ValueError, "'age' is missing for 1 subjects, first 'b'",
    ),
    "constant baseline": (changed(age=50.0), {"baseline": "~ age"}, ValueError, "No baseline column varies .*: age"),
    "left side": (registry(), {"baseline": "x ~ age"}, ValueError, "has a left side"),
    "no formula": (registry(), {"baseline": "~ age +* type"}, ValueError, "is no formula"),
    "infinite item": (infinite(), {}, ValueError, "'x' is infinite in row 'r3'"),
    "text items": (
        ad.AnnData(X=np.array([["low"] * 3] * 7, dtype=object), obs=registry().obs, var=registry().var), {}, TypeError, "real numbers",
    ),
    "nothing": (registry()[:0], {}, ValueError, "0 visits and 3 items"),
    "one visit each": (changed(patient=list("abcdefg")), {}, ValueError, "Every subject has one visit"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_named_with_its_place_and_the_next_step(case):
    adata, kwargs, error, message = REFUSED[case]
    before = adata.copy()
    with pytest.raises(error, match=message):
        read_visits(adata, **(KEYS | kwargs))
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_too_many_levels_are_refused():
    obs = pd.DataFrame(level_names(21), index=[f"r{i}" for i in range(42)])
    adata = ad.AnnData(X=np.random.default_rng(0).normal(size=(42, 1)), obs=obs)
    with pytest.raises(ValueError, match="'site' has 21 levels; more than 20"):
        read_visits(adata, **KEYS, baseline="~ C(site)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.X.__setitem__((slice(None), 0), 1.0), r"Left out 1 items: x \(constant\)"),
        (lambda a: a.X.__setitem__((slice(None), 0), np.nan), r"Left out 1 items: x \(never measured\)"),
        (lambda a: a.X.__setitem__(4, np.nan), r"1 visits have no measurement at all \(first: patient 'b'\)"),
        (lambda a: a.obs.__setitem__("patient", list("aabbbcd")), "2 of 4 subjects have one visit"),
    ],
)
def test_what_says_nothing_is_told(change, message):
    adata = registry()
    change(adata)
    with pytest.warns(UserWarning, match=message):
        found = read_visits(adata, **KEYS)
    assert "x" not in found.dropped_items or found.visits.items == ("y", "walks")


def test_constant_columns_are_left_out_and_remembered():
    adata = changed(site=1.0)
    with pytest.warns(UserWarning, match="left out: site"):
        found = read_visits(adata, **KEYS, baseline="~ age + site")
    assert found.visits.covariates == ("age",)
    assert read_new_visits(adata, Schema.from_arrays(found.schema.to_arrays())).visits.covariates == ("age",)


def test_nothing_left_to_model_is_an_error():
    adata = registry()
    adata.X[:] = np.nan
    with pytest.raises(ValueError, match="None of the 3 items varies"):
        read_visits(adata, **KEYS)


def test_what_new_subjects_lack_is_named():
    found = read(registry(), baseline="~ C(type)")
    with pytest.raises(KeyError, match="no item 'x', which the fit used"):
        read_new_visits(registry()[:, ["y", "walks"]], found.schema)
    with pytest.raises(
        ValueError, match="'type' is 'III' for subject 'a', a level that the fit did not see; it saw I, II"
    ):
        read_new_visits(changed(type="III"), found.schema)
    missing = registry()
    missing.obs.loc[missing.obs["patient"] == "c", "type"] = None
    with pytest.raises(ValueError, match="'type' is missing for subject 'c'"):
        read_new_visits(missing, found.schema)
    adata = registry()
    adata.X[0, 2] = 3
    with pytest.raises(ValueError, match="'walks' is Bernoulli, but holds 3"):
        read_new_visits(adata, found.schema)
    adata = registry()
    adata.var["kind"] = ["bernoulli", "gaussian", "gaussian"]
    with pytest.raises(ValueError, match="'x' is Bernoulli"):
        read_visits(adata, **KEYS)
    adata.var["kind"] = ["poisson", "gaussian", "gaussian"]
    with pytest.raises(ValueError, match="'poisson' for item 'x'"):
        read_visits(adata, **KEYS)
