"""Scores of forecasts: the CRPS by integration, tables by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from dynapath._forecast_tables import inside
from dynapath.metrics import forecast_scores, gaussian_crps


@pytest.mark.parametrize(("y", "mean", "sd"), [(0.3, 0.0, 1.0), (-2.0, 1.0, 0.4), (5.0, 5.0, 2.0)])
def test_the_crps_is_the_integral_of_squared_differences_of_distribution_functions(y, mean, sd):
    below = quad(lambda x: norm.cdf(x, mean, sd) ** 2, -40, y, points=[mean - 3 * sd] if mean - 3 * sd < y else None)[0]
    above = quad(lambda x: norm.sf(x, mean, sd) ** 2, y, 40, points=[mean + 3 * sd] if mean + 3 * sd > y else None)[0]
    assert float(gaussian_crps(y, mean, sd)) == pytest.approx(below + above, abs=1e-7)


def test_a_forecast_without_spread_has_its_absolute_error():
    np.testing.assert_allclose(gaussian_crps(np.array([1.0, 4.0]), 2.0, 0.0), [1, 2])
    assert float(gaussian_crps(1.0, 2.0, 1e-9)) == pytest.approx(1.0)


def made_up():
    table = pd.DataFrame({"model": ["a", "a", "b", "b"], "observed": [1.0, 2, 1, 2], "predicted": [1.0, 5, 0, 2]})
    table["crps"] = [0.1, 0.3, 0.5, 0.7]
    for level, width in ((50, 0.5), (90, 2.0)):
        table[f"lower{level}"], table[f"upper{level}"] = table["predicted"] - width, table["predicted"] + width
    return table


def test_scores_are_means_over_the_forecasts_of_a_group():
    scores = forecast_scores(made_up()).set_index("model")
    np.testing.assert_allclose(scores["rmse"], [np.sqrt(4.5), np.sqrt(0.5)])
    np.testing.assert_allclose(scores["crps"], [0.2, 0.6])
    np.testing.assert_allclose(scores[["cover50", "cover90"]], [[0.5, 0.5], [0.5, 1.0]])
    assert list(scores["n"]) == [2, 2]
    assert list(forecast_scores(made_up().assign(item=list("xyxy")), by=("item", "model"))["n"]) == [1, 1, 1, 1]


def test_coverage_is_unknown_without_intervals():
    table = made_up()
    table.loc[table["model"] == "a", ["lower90", "upper90"]] = np.nan
    assert forecast_scores(table)["cover90"].isna().tolist() == [True, False]


def test_tables_that_cannot_be_scored_are_refused():
    with pytest.raises(KeyError, match="no column 'site'"):
        forecast_scores(made_up(), by="site")
    with pytest.raises(ValueError, match=r"1 forecasts are NaN \(model 'b'\)"):
        forecast_scores(made_up().assign(predicted=[1.0, 2.0, np.nan, 3.0]))


def with_infinite(rows):
    table = made_up()
    for level in (50, 90):
        table.loc[rows, f"lower{level}"], table.loc[rows, f"upper{level}"] = -np.inf, np.inf
    return table


def test_an_infinite_interval_never_counts_as_coverage():
    # Of model a the second observation is outside its intervals, and the first is in an infinite one.
    with pytest.warns(UserWarning, match=r"1 of 4 intervals of 90 % are infinite.*'unbounded'"):
        scores = forecast_scores(with_infinite([0])).set_index("model")
    assert scores.loc["a", ["cover50", "cover90"]].tolist() == [0, 0]
    with pytest.warns(UserWarning, match="2 of 4 intervals"):
        scores = forecast_scores(with_infinite([0, 1])).set_index("model")
    assert scores.loc["a", ["cover50", "cover90"]].isna().all()
    assert scores["n"].tolist() == [2, 2]


def test_an_interval_with_one_infinite_end_is_none():
    one, nothing = np.ones(4), np.nan
    covered = inside(one, [0.0, -np.inf, 0.0, nothing], [2.0, 2.0, np.inf, nothing])
    np.testing.assert_array_equal(covered, [1, nothing, nothing, nothing])


def of_two_kinds():
    """`sick` is 0 or 1, without intervals."""
    binary = pd.DataFrame({"model": ["a", "b"], "observed": [1.0, 0.0], "predicted": [0.5, 0.1], "crps": [0.25, 0.01]})
    table = pd.concat([made_up().assign(item="gait"), binary.assign(item="sick")], ignore_index=True)
    return table.assign(kind=np.where(table["item"] == "sick", "bernoulli", "gaussian"))


@pytest.mark.parametrize("known", [True, False], ids=["kind", "no kind"])
def test_brier_scores_and_errors_in_standard_deviations_have_no_mean(known):
    table = of_two_kinds() if known else of_two_kinds().drop(columns="kind")
    with pytest.raises(ValueError, match=r"'gait' is real-valued, 'sick' is 0 or 1.*by=\('model', 'kind'\)"):
        forecast_scores(table)
    # What the message says.
    scores = forecast_scores(table, by=("model", "kind")).set_index(["kind", "model"])
    np.testing.assert_allclose(scores.loc["bernoulli", "rmse"], [0.5, 0.1])
    np.testing.assert_allclose(scores.loc["bernoulli", "crps"], [0.25, 0.01])
    pd.testing.assert_frame_equal(scores.loc["gaussian"], forecast_scores(made_up()).set_index("model"))
    assert len(forecast_scores(table, by=("item", "model"))) == 4
