"""Panels are read as they are, and what cannot be fitted is refused with its place and a next step."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import dynapath as dp
from dynapath.read.panel import read_panel


def panel(n_units=4, n_days=8, start="2020-04-16"):
    rng = np.random.default_rng(0)
    dates = pd.date_range(start, periods=n_days)
    a = ad.AnnData(
        rng.poisson(5, (n_units, n_days)).astype(float),
        obs=pd.DataFrame(index=[f"unit{u}" for u in range(n_units)]),
        var=pd.DataFrame({"date": dates}, index=dates.strftime("%Y-%m-%d")),
    )
    a.layers["z"] = rng.random((n_units, n_days))
    return a


def test_reports_and_covariates_are_read_in_float64_and_never_written_to():
    a = panel()
    a.X = a.X.astype(np.float32)
    before = a.X.copy()
    found = read_panel(a, covariates="z")
    assert found.y.dtype == np.float64
    found.y[:] = 0
    np.testing.assert_array_equal(a.X, before)
    assert found.coefficients == ("intercept", "state", "z")


def test_small_unsigned_integers_do_not_overflow():
    a = panel()
    a.X = np.array([[250, 3] * 4] * 4, dtype=np.uint8)
    assert np.diff(read_panel(a).y, axis=1).min() == -247


def test_whole_numbers_that_are_no_longer_exact_are_refused():
    a = panel()
    a.X = np.full(a.shape, 2**60, dtype=np.int64)
    with pytest.raises(ValueError, match=r"1152921504606846976.*overflowed"):
        read_panel(a)


def test_a_mask_hides_reports():
    a = panel()
    mask = np.ones(a.shape, bool)
    mask[1, 3] = False
    a.layers["seen"] = mask
    for observed in (mask, "seen", mask.astype(int)):
        found = read_panel(a, observed=observed)
        assert np.isnan(found.y[1, 3])
        assert np.isnan(found.y).sum() == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((4, 7), bool), r"shape \(4, 7\).*\(4, 8\)"),
        (np.full((4, 8), 2.0), "must be True where"),
        (np.full((4, 8), "yes"), "must be True where"),
    ],
)
def test_a_mask_of_another_shape_or_type_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        read_panel(panel(), observed=mask)


def test_a_report_without_a_value_is_named():
    a = panel()
    a.X[2, 5] = np.nan
    with pytest.raises(ValueError, match="'unit2' reported on 2020-04-21, but the value is NaN"):
        read_panel(a, observed=np.ones(a.shape, bool))


def test_infinite_reports_are_named():
    a = panel()
    a.X[1, 2] = np.inf
    with pytest.raises(ValueError, match="unit 'unit1' on 2020-04-18 is infinite.*NaN"):
        read_panel(a)


def test_infinite_values_on_days_without_a_report_do_not_matter():
    a = panel()
    mask = np.ones(a.shape, bool)
    a.X[1, 2], mask[1, 2] = np.inf, False
    assert np.isnan(read_panel(a, observed=mask).y[1, 2])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_covariate_missing_on_a_used_day_is_named_with_its_unit(bad):
    a = panel()
    a.layers["z"][2, 3] = bad
    with pytest.raises(ValueError, match=r"'z' is missing or infinite.*'unit2' on 2020-04-19.*Fill it in"):
        read_panel(a, covariates="z")


def test_only_the_first_five_missing_covariates_are_listed():
    a = panel()
    a.layers["z"][:2, 1:6] = np.nan
    with pytest.raises(ValueError, match="and 5 more"):
        read_panel(a, covariates="z")


def test_a_covariate_may_be_missing_before_the_first_report_and_from_the_last_on():
    a = panel()
    a.X[:, :2] = np.nan
    a.X[:, 6:] = np.nan
    a.layers["z"][:, :2] = np.nan
    a.layers["z"][:, 5:] = np.nan  # the step to day 5, the last report, uses day 4
    assert read_panel(a, covariates="z").n_days == 8
    a.layers["z"][:, 4] = np.nan
    with pytest.raises(ValueError, match="2020-04-20"):
        read_panel(a, covariates="z")


def test_unknown_layers_are_answered_with_those_that_exist():
    with pytest.raises(KeyError, match="'cases'.*present: z"):
        read_panel(panel(), covariates="cases")
    with pytest.raises(KeyError, match="'counts'.*present: z"):
        read_panel(panel(), layer="counts")
    with pytest.raises(KeyError, match="'seen'.*present: z"):
        read_panel(panel(), observed="seen")


def test_a_covariate_named_twice_is_refused():
    with pytest.raises(ValueError, match="'z' is given 2 times"):
        read_panel(panel(), covariates=["z", "z"])


def test_a_covariate_cannot_take_the_name_of_a_coefficient():
    a = panel()
    a.layers["state"] = a.layers["z"]
    with pytest.raises(ValueError, match="Rename the layer"):
        read_panel(a, covariates="state")


@pytest.mark.parametrize("values", [np.full((4, 8), "3"), np.full((4, 8), 1 + 1j)])
def test_text_and_complex_numbers_are_refused(values):
    a = panel()
    a.layers["bad"] = values
    with pytest.raises(TypeError, match=r"layers\['bad'\].*real numbers"):
        read_panel(a, layer="bad")


def test_sparse_reports_are_dense_zeros_with_a_warning():
    a = panel()
    a.X = sparse.csr_matrix(np.where(a.X > 5, a.X, 0))
    with pytest.warns(UserWarning, match="zeros count as reports of 0"):
        found = read_panel(a)
    assert not np.isnan(found.y).any()


def test_days_out_of_order_twice_or_left_out_are_named():
    a = panel()
    with pytest.raises(ValueError, match="from 2020-04-18.* to 2020-04-20.*reindex"):
        read_panel(a[:, [0, 1, 2, 4, 5, 6, 7]].copy())
    with pytest.raises(ValueError, match="must increase.*2020-04-17.* to 2020-04-16"):
        read_panel(a[:, [1, 0, 2, 3]].copy())
    twice = panel()
    twice.var["date"] = twice.var["date"].to_numpy()[[0, 1, 1, 2, 3, 4, 5, 6]]
    with pytest.raises(ValueError, match="the same day twice"):
        read_panel(twice)


def test_months_are_regular_though_not_equally_long():
    a = panel()
    a.var["date"] = pd.date_range("2020-01-01", periods=8, freq="MS")
    assert read_panel(a).n_days == 8


def test_dates_with_a_time_zone_are_local_days_also_when_clocks_change():
    a = panel()
    a.var["date"] = pd.date_range("2020-03-26", periods=8, tz="Europe/Berlin")
    found = read_panel(a)
    assert found.dates.tz is None
    assert found.dates[-1] == pd.Timestamp("2020-04-02")


def test_days_may_be_numbered():
    a = ad.AnnData(np.random.default_rng(0).poisson(3, (3, 5)).astype(float))
    assert read_panel(a).dates is None


def test_cells_and_genes_are_no_panel():
    cells = dp.datasets.simulate_snapshots(n_cells=4, n_genes=12, times=(0, 1))
    with pytest.raises(ValueError, match="Are these cells and genes.*panel_from_long"):
        read_panel(cells)


def test_a_single_day_has_no_increment():
    with pytest.raises(ValueError, match="one day"):
        read_panel(panel()[:, :1].copy())


def test_units_of_the_same_name_are_refused():
    a = panel()
    a.obs_names = ["a", "b", "a", "c"]
    with pytest.raises(ValueError, match="Unit 'a' occurs more than once"):
        read_panel(a)


def test_the_last_day_used_is_an_index_a_name_or_a_date_within_the_panel():
    a = panel()
    for day in (5, -3, "2020-04-21", pd.Timestamp("2020-04-21")):
        assert read_panel(a, train_until=day).n_days == 6
    for day in (8, -9, "2020-05-01", "someday"):
        with pytest.raises(ValueError, match="train_until"):
            read_panel(a, train_until=day)


def test_a_number_of_lags_stands_for_all_up_to_it():
    a = panel()
    assert read_panel(a, covariates="z", lags=2).coefficients == ("intercept", "state", "z_lag1", "z_lag2")
    assert read_panel(a, covariates="z", lags=[2]).coefficients == ("intercept", "state", "z")
    assert read_panel(a, covariates="z", lags={"z": [0, 3]}).coefficients == ("intercept", "state", "z_lag0", "z_lag3")
    for wrong in (0, -1, [], [1, 1], 1.5, "1", True):
        with pytest.raises(ValueError, match="lags"):
            read_panel(a, covariates="z", lags=wrong)
    with pytest.raises(ValueError, match="lags names x"):
        read_panel(a, covariates="z", lags={"x": 1})


def test_lags_that_leave_no_day_are_refused():
    with pytest.raises(ValueError, match="too few for a lag of 7"):
        read_panel(panel(n_days=7), covariates="z", lags=7)
