import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import dynapath as dp


@pytest.fixture
def table():
    """Two origins, two units. Squared errors in total: zero 10, better 5, worse 40."""
    rows = []
    for origin, errors in ((10, {"zero": (1, 2), "better": (1, 1), "worse": (2, 4)}), (13, {"zero": (1, 2)})):
        errors = errors if origin == 10 else {"zero": (1, 2), "better": (0, 3**0.5), "worse": (4, 2)}
        for model, pair in errors.items():
            for unit, error in zip("ab", pair, strict=True):
                rows.append((model, origin, 1, unit, pd.Timestamp("2020-05-01") + pd.Timedelta(days=origin), error))
    return pd.DataFrame(rows, columns=["model", "origin", "horizon", "unit", "date", "error"])


def draw(table, **options):
    return dp.pl.backtest(table, show=False, **options)


def lines(ax, start):
    return {line.get_gid().removeprefix(start): line for line in ax.lines if (line.get_gid() or "").startswith(start)}


def test_diamonds_are_total_errors_relative_to_the_reference_best_on_top(table):
    ax = draw(table)[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["better", "zero", "worse"]
    at = {name: line.get_xydata()[0] for name, line in lines(ax, "model ").items()}
    np.testing.assert_allclose(at["better"], [0.5, 0])
    np.testing.assert_allclose(at["worse"], [4, 2])
    assert [text.get_text() for text in ax.texts] == ["-50.0 %", "+300.0 %"]


def test_origins_are_compared_one_by_one(table):
    drawn = lines(draw(table)[1], "origins ")
    np.testing.assert_allclose(drawn["better"].get_ydata(), [2 / 5, 3 / 5])
    np.testing.assert_allclose(drawn["worse"].get_ydata(), [4, 4])


def test_another_reference_turns_the_ratios_around(table):
    at = lines(draw(table, reference="better")[0], "model ")
    np.testing.assert_allclose(at["zero"].get_xdata(), [2])


def test_models_can_be_chosen_and_the_reference_stays(table):
    ax = draw(table, models=["worse"])[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["zero", "worse"]


def test_both_scales_are_logarithmic(table):
    axes = draw(table)
    assert axes[0].get_xscale() == axes[1].get_yscale() == "log"


def test_intervals_are_those_of_the_scores(table):
    scores = pd.DataFrame(
        {"model": ["zero", "better", "worse"], "relative": [0, -0.5, 3], "lower": [0, -0.6, 1], "upper": [0, -0.2, 5]}
    )
    drawn = lines(draw(table, scores=scores)[0], "interval ")
    np.testing.assert_allclose(drawn["better"].get_xdata(), [0.4, 0.8])
    with pytest.raises(ValueError, match="not those of this table with reference='better'"):
        draw(table, scores=scores, reference="better")


def test_show_return_fig_and_axes_decide_what_comes_back(table, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    assert dp.pl.backtest(table, show=True) is None
    assert isinstance(dp.pl.backtest(table, return_fig=True, figsize=(3.35, 4)), Figure)
    given = plt.subplots(2, 1)[1]
    assert list(draw(table, axes=given)) == list(given)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reference": "mean"}, ValueError, "'mean' is not in the table; its models are zero, better, worse"),
        ({"models": ["ols"]}, ValueError, "'ols' is not in the table"),
        ({"models": []}, ValueError, "models is empty"),
        ({"axes": []}, ValueError, "axes must be 2 Axes"),
    ],
)
def test_what_is_not_in_the_table_is_refused(table, options, error, message):
    with pytest.raises(error, match=message):
        draw(table, **options)


def test_a_table_of_something_else_is_refused(table):
    with pytest.raises(KeyError, match="no column 'error'"):
        draw(table.drop(columns="error"))
