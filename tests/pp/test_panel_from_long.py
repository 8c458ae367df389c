"""dp.pp.panel_from_long and dp.get.long: a long table, the panel, and back."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dynapath as dp


def reports():
    """Two hospitals on four days, in mixed order; 012 has no row for the third day."""
    return pd.DataFrame(
        {
            "hospital": ["012", "007", "007", "012", "007", "007", "012"],
            "date": pd.to_datetime(["04-19", "04-16", "04-17", "04-16", "04-18", "04-19", "04-17"], format="%m-%d")
            + pd.DateOffset(years=120),
            "patients": [2, 3, 4, 1, 5, np.nan, 0],
            "cases": [0.4, 0.1, 0.2, 0.9, 0.3, 0.4, 0.8],
        }
    )


def panel(table=None, **options):
    arguments = {"unit": "hospital", "time": "date", "value": "patients", **options}
    return dp.pp.panel_from_long(reports() if table is None else table, **arguments)


# --- what becomes of the table -----------------------------------------------------------------------------------


def test_every_value_lies_at_its_unit_and_day_and_absent_rows_are_not_reported():
    adata = panel(covariates="cases")
    assert list(adata.obs_names) == ["007", "012"]
    assert list(adata.var_names) == list(adata.var["date"]) == ["2020-04-16", "2020-04-17", "2020-04-18", "2020-04-19"]
    assert adata.X.dtype == np.float64
    np.testing.assert_array_equal(adata.X, [[3, 4, 5, np.nan], [1, 0, np.nan, 2]])
    np.testing.assert_array_equal(adata.layers["cases"], [[0.1, 0.2, 0.3, 0.4], [0.9, 0.8, np.nan, 0.4]])


def test_the_order_of_rows_does_not_matter():
    table = reports()
    np.testing.assert_array_equal(panel(table.iloc[::-1]).X, panel(table.sample(frac=1, random_state=1)).X)


def test_the_table_is_not_changed():
    table = reports()
    panel(table, covariates="cases")
    pd.testing.assert_frame_equal(table, reports())


def test_a_mask_decides_what_was_reported_whatever_the_value():
    table = reports().assign(told=[True, False, True, True, True, False, False])
    np.testing.assert_array_equal(panel(table, observed="told").X, [[np.nan, 4, 5, np.nan], [1, np.nan, np.nan, 2]])
    table.loc[1, "patients"] = np.inf  # not reported, so never read
    assert np.isnan(panel(table, observed="told")["007", "2020-04-16"].X)


@pytest.mark.parametrize(
    "dates",
    [
        lambda d: d.dt.strftime("%Y-%m-%d"),
        lambda d: d.dt.date,
        lambda d: d.dt.to_period("D"),
        lambda d: d.astype("category"),
        lambda d: d.dt.strftime("%Y-%m-%d").astype("category"),
    ],
)
def test_dates_may_be_text_dates_periods_or_categories(dates):
    table = reports()
    expected = panel()
    table["date"] = dates(table["date"])
    adata = panel(table)
    assert list(adata.var_names) == list(expected.var_names)
    np.testing.assert_array_equal(adata.X, expected.X)


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "float32", "int8", object])
def test_counts_of_any_numeric_type_become_float64(dtype):
    table = reports()
    if dtype == "int8":
        table["patients"] = table["patients"].fillna(7)
    table["patients"] = table["patients"].astype(dtype)
    adata = panel(table)
    assert adata.X.dtype == np.float64
    np.testing.assert_array_equal(adata.X[:, :3], [[3, 4, 5], [1, 0, np.nan]])


def test_other_steps_than_days_can_be_named():
    table = pd.DataFrame({"u": "a", "week": pd.date_range("2020-01-05", periods=3, freq="W-SUN"), "n": [1, 2, 3]})
    adata = dp.pp.panel_from_long(table, unit="u", time="week", value="n", freq="W-SUN")
    assert list(adata.var_names) == ["2020-01-05", "2020-01-12", "2020-01-19"]
    table["week"] = pd.date_range("2020-01-05", periods=3, freq="h")
    adata = dp.pp.panel_from_long(table, unit="u", time="week", value="n", freq="h")
    assert adata.var_names[1] == "2020-01-05T01:00:00"


def test_a_single_unit_and_a_single_day_are_a_panel():
    assert panel(reports().query("hospital == '007'")).shape == (1, 4)
    assert panel(reports().iloc[[1, 3]]).shape == (2, 1)


def test_unsigned_counts_do_not_wrap_around():
    table = pd.DataFrame({"u": "a", "d": ["2020-01-01", "2020-01-02"], "n": np.array([5, 3], dtype=np.uint8)})
    adata = dp.pp.panel_from_long(table, unit="u", time="d", value="n")
    assert np.diff(adata.X)[0, 0] == -2


# --- and back ----------------------------------------------------------------------------------------------------


def test_there_and_back_again():
    adata = panel(covariates="cases")
    table = dp.get.long(adata)
    assert list(table.columns) == ["hospital", "date", "patients", "cases"]
    assert len(table) == adata.n_obs * adata.n_vars
    assert pd.api.types.is_datetime64_any_dtype(table["date"])
    again = panel(table, covariates="cases")
    np.testing.assert_array_equal(again.X, adata.X)
    np.testing.assert_array_equal(again.layers["cases"], adata.layers["cases"])
    known = table.merge(reports(), on=["hospital", "date"], suffixes=("", "_given"))
    assert len(known) == len(reports())
    np.testing.assert_array_equal(known["patients"], known["patients_given"])


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_a_panel_survives_being_written(tmp_path, suffix):
    adata = panel(covariates="cases")
    file = tmp_path / f"panel.{suffix}"
    getattr(adata, f"write_{suffix}")(file)
    read = ad.read_h5ad(file) if suffix == "h5ad" else ad.read_zarr(file)
    pd.testing.assert_frame_equal(dp.get.long(read), dp.get.long(adata))


def test_a_subset_goes_back_too_and_layers_can_be_chosen():
    adata = panel(covariates="cases")[["012"], 1:3]
    table = dp.get.long(adata, layers=())
    assert list(table.columns) == ["hospital", "date", "patients"]
    assert set(table["hospital"]) == {"012"}
    np.testing.assert_array_equal(table["patients"], [0, np.nan])


def test_a_panel_made_by_hand_has_plain_column_names():
    adata = ad.AnnData(np.array([[1.0, 2.0]]), layers={"z": np.array([[0.5, 0.6]])})
    adata.var_names = ["2020-01-01", "2020-01-02"]
    table = dp.get.long(adata)
    assert list(table.columns) == ["unit", "date", "value", "z"]
    assert table["date"].iloc[1] == pd.Timestamp("2020-01-02")
    adata.var_names = ["first", "second"]
    assert list(dp.get.long(adata)["date"]) == ["first", "second"]


def test_asking_for_a_layer_that_is_not_there_lists_those_that_are():
    with pytest.raises(KeyError, match="'incidence'.*cases"):
        dp.get.long(panel(covariates="cases"), layers=["incidence"])


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_repeated_day_is_refused_with_the_unit_the_day_and_both_rows():
    table = pd.concat([reports(), reports().iloc[[2]]], ignore_index=True)
    with pytest.raises(ValueError, match=r"hospital '007' has two rows for 2020-04-17 \(rows 2 and 7\)"):
        panel(table)


def test_a_day_that_nobody_has_is_refused_with_the_pair_around_it():
    table = reports().drop(index=[2, 6])
    with pytest.raises(ValueError, match="2020-04-16 is followed by 2020-04-18.*2020-04-17 comes next.*reindex"):
        panel(table)


def test_times_of_day_are_refused_with_the_pair():
    table = reports()
    table.loc[2, "date"] += pd.Timedelta("5h")
    with pytest.raises(ValueError, match=r"2020-04-17 is followed by 2020-04-17 05:00:00.*normalize"):
        panel(table)


@pytest.mark.parametrize("convert", [lambda d: d.dt.tz_localize("UTC"), lambda d: d.astype(str) + "T12:00:00+02:00"])
def test_dates_with_a_time_zone_are_refused(convert):
    table = reports()
    table["date"] = convert(table["date"])
    with pytest.raises(ValueError, match="'date' carries the time zone.*tz_localize"):
        panel(table)


def test_mixed_time_zones_are_refused():
    table = reports()
    table["date"] = [f"2020-04-{d}T00:00:00+0{o}:00" for d, o in zip(range(16, 23), [1, 2] * 4, strict=False)]
    with pytest.raises(ValueError, match="time zone"):
        panel(table)


def test_missing_columns_are_named_with_those_there():
    with pytest.raises(KeyError, match="'county'; it has hospital, date, patients, cases"):
        panel(unit="county")
    with pytest.raises(KeyError, match="'incidence'"):
        panel(covariates=["cases", "incidence"])
    with pytest.raises(KeyError, match="'reported'"):
        panel(observed="reported")


@pytest.mark.parametrize("column", ["patients", "cases"])
@pytest.mark.parametrize("entries", [["1", "2", "n/a", "4", "5", "6", "7"], [1j] * 7, pd.date_range("2020", periods=7)])
def test_values_that_are_no_real_numbers_are_refused(column, entries):
    with pytest.raises(TypeError, match=f"{column!r}.*pd.to_numeric"):
        panel(reports().assign(**{column: entries}), covariates="cases")


def test_text_among_numbers_is_refused_with_its_place():
    table = reports().astype({"patients": object})
    table.loc[2, "patients"] = "four"
    with pytest.raises(TypeError, match="'four'.*'007' on 2020-04-17"):
        panel(table)


def test_a_value_said_to_be_observed_must_be_there():
    table = reports().assign(told=True)
    with pytest.raises(ValueError, match="'told' is True where 'patients' is NaN: hospital '007' on 2020-04-19"):
        panel(table, observed="told")


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ([1, 0, 1, 1, 1, 0, 1], TypeError, "'told' must be boolean; it is int64"),
        (["yes"] * 7, TypeError, "must be boolean"),
        (pd.array([True, None] * 3 + [True], dtype="boolean"), ValueError, "'told' is missing in 3 rows"),
    ],
)
def test_a_mask_that_is_no_mask_is_refused(told, error, message):
    with pytest.raises(error, match=message):
        panel(reports().assign(told=told), observed="told")


MASKS = {
    "text": ["True", "False"],
    "text in capitals": ["TRUE", "FALSE"],
    "numbers": [1, 0],
    "floats": [1.0, 0.0],
    "text of numbers": ["1", "0"],
    "booleans held as objects": pd.Series([True, False], dtype=object),
}


@pytest.mark.parametrize("mask", MASKS)
def test_the_line_for_a_mask_that_is_no_mask_keeps_what_was_reported(mask):
    told = [True, False, True, True, True, False, True]
    table = reports()
    expected = panel(table.assign(told=told), observed="told")
    yes, no = MASKS[mask]
    column = pd.Series([yes if each else no for each in told], dtype=object if "objects" in mask else None)
    for held in [column] if "objects" in mask else [column, column.astype("category")]:
        df = table.assign(told=held)
        with pytest.raises(TypeError, match="'told' must be boolean") as refused:
            panel(df, observed="told")
        exec(re.search(r"df\['told'\] = .*(?=\.$)", str(refused.value))[0], {"df": df})
        np.testing.assert_array_equal(panel(df, observed="told").X, expected.X)


def test_a_mask_of_other_words_lists_them():
    table = reports().assign(told=["sent", "late", "sent", "sent", "sent", "none", "sent"])
    with pytest.raises(
        TypeError, match=r"its values are sent, late, none.*df\['told'\] == 'sent'.*if 'sent' means reported"
    ):
        panel(table, observed="told")


@pytest.mark.parametrize("column", ["patients", "cases"])
def test_infinite_values_are_refused_with_their_place(column):
    table = reports()
    table.loc[3, column] = np.inf
    with pytest.raises(ValueError, match=f"{column!r} is infinite.*'012' on 2020-04-16"):
        panel(table, covariates="cases")


def test_whole_numbers_that_float64_cannot_hold_are_refused():
    table = reports().assign(patients=np.array([1, 2, 3, 4, 5, 6, 2**60]))
    with pytest.raises(ValueError, match="too large for float64.*missing value"):
        panel(table)


def test_missing_units_and_days_are_refused():
    with pytest.raises(ValueError, match="'hospital' is missing in 1 rows, first in row 2"):
        panel(reports().assign(hospital=["1", "1", None, "1", "1", "1", "1"]))
    table = reports()
    table.loc[4, "date"] = pd.NaT
    with pytest.raises(ValueError, match="'date' is missing in 1 rows, first in row 4"):
        panel(table)


def test_units_that_read_the_same_are_refused():
    with pytest.raises(ValueError, match="'7' and 7"):
        panel(reports().assign(hospital=["7", 7, "8", "8", "8", "8", "8"]))


def test_days_that_are_numbers_or_no_dates_are_refused():
    with pytest.raises(TypeError, match="holds numbers such as .*to_timedelta"):
        panel(reports().assign(date=range(7)))
    with pytest.raises(ValueError, match="does not read as dates"):
        panel(reports().assign(date=["Monday the 4th"] * 7))


def test_a_frequency_must_exist_and_fit_the_first_day():
    with pytest.raises(ValueError, match="freq='daily' is no frequency"):
        panel(freq="daily")
    with pytest.raises(ValueError, match="starts on 2020-04-16, which is no day of freq='W-SUN'"):
        panel(freq="W-SUN")


def test_covariates_are_named_once_and_without_slashes():
    with pytest.raises(ValueError, match="'cases' 2 times"):
        panel(covariates=["cases", "cases"])
    with pytest.raises(ValueError, match="slash"):
        panel(reports().rename(columns={"cases": "cases/day"}), covariates="cases/day")
    doubled = pd.concat([reports(), reports()[["cases"]]], axis=1)
    with pytest.raises(ValueError, match="2 columns named 'cases'"):
        panel(doubled, covariates="cases")


def test_an_empty_table_and_something_else_than_a_table_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        panel(reports().iloc[:0])
    with pytest.raises(TypeError, match="DataFrame"):
        panel(reports().to_numpy())
