import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import dynapath as dp


@pytest.fixture
def panel():
    """Four units on five days: complete, one gap of two days, never reported, late."""
    panel = dp.datasets.simulate_reports(4, 5, p_start=0)
    panel.X[1, 2:4] = np.nan
    panel.X[2] = np.nan
    panel.X[3, 0] = np.nan
    return panel


def draw(adata, **options):
    return dp.pl.missing_reports(adata, show=False, **options)


def matrix(axes):
    (image,) = axes[1].images
    return np.asarray(image.get_array())


def test_rows_are_units_with_the_most_gaps_on_top(panel):
    np.testing.assert_array_equal(matrix(draw(panel)).sum(1), [5, 2, 1, 0])
    np.testing.assert_array_equal(matrix(draw(panel, sort=False)), np.isnan(panel.X))


def test_complete_units_can_be_left_out(panel):
    axes = draw(panel, complete=False)
    assert len(matrix(axes)) == 3
    assert axes[1].get_ylabel() == "3 units with gaps"
    labels = [text.get_text() for text in axes[1].figure.legends[0].get_texts()]
    assert labels[1] == "not reported: 40.0 % (1 units miss none)"
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(panel[:1], complete=False)


def test_the_line_above_is_the_share_of_units_that_reported_on_each_day(panel):
    (steps,) = draw(panel)[0].patches
    np.testing.assert_allclose(steps.get_data().values, [50, 75, 50, 50, 75])


def test_each_day_lies_on_its_date(panel):
    left, right = draw(panel)[1].images[0].get_extent()[:2]
    np.testing.assert_allclose([left, right], mdates.date2num(["2020-04-15T12", "2020-04-20T12"]))


def test_a_mask_and_a_layer_say_what_is_missing(panel):
    panel.layers["told"] = np.ones(panel.shape, dtype=bool)
    panel.layers["told"][0, 0] = False
    assert matrix(draw(panel, layer="complete", observed="told", sort=False)).sum() == 1
    with pytest.raises(KeyError, match=r"'other'; present: complete, incidence, told"):
        draw(panel, layer="other")


def test_days_without_dates_are_numbered(panel):
    panel.var_names = [str(i) for i in range(5)]
    del panel.var["date"]
    axes = draw(panel)
    assert axes[1].get_xlabel() == "day"
    assert tuple(axes[1].images[0].get_extent()[:2]) == (-0.5, 4.5)


def test_show_return_fig_and_axes_decide_what_comes_back(panel, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    assert dp.pl.missing_reports(panel, show=True) is None
    assert isinstance(dp.pl.missing_reports(panel, return_fig=True), Figure)
    given = plt.subplots(2, 1)[1]
    assert list(draw(panel, axes=given)) == list(given)
    with pytest.raises(ValueError, match="axes must be 2 Axes"):
        draw(panel, axes=given[0])
