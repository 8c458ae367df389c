import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import dynapath as dp


@pytest.fixture
def table():
    value = np.linspace(-1, 1, 21)
    one = pd.DataFrame(
        {"unit": "a", "coefficient": "state", "value": value, "loss": 2 + value**2, "threshold": 2.25, "n": 30}
    )
    return pd.concat([one, one.assign(unit="b", loss=2 + (value - 0.5) ** 2)])


def test_the_smallest_loss_is_marked_and_values_below_the_threshold_are_shaded(table):
    axes = dp.pl.loss_profile(table, show=False)
    for ax, best in zip(axes, (0, 0.5), strict=True):
        marked = {line.get_gid(): line for line in ax.lines}
        np.testing.assert_allclose(marked["smallest"].get_xydata(), [[best, 2]], atol=1e-12)
        np.testing.assert_allclose(marked["threshold"].get_ydata(), 2.25)
        (shaded,) = [area for area in ax.collections if area.get_gid() == "not excluded"]
        corners = shaded.get_paths()[0].vertices[:, 0]
        np.testing.assert_allclose([corners.min(), corners.max()], [best - 0.5, best + 0.5], atol=1e-9)


def test_panels_are_units_and_coefficients(table):
    both = pd.concat([table, table.assign(coefficient="incidence")])
    axes = dp.pl.loss_profile(both, show=False)
    assert [(ax.get_title(loc="left"), ax.get_xlabel()) for ax in axes] == [
        ("a", "state"),
        ("b", "state"),
        ("a", "incidence"),
        ("b", "incidence"),
    ]


def test_show_return_fig_and_axes_decide_what_comes_back(table, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    assert dp.pl.loss_profile(table, show=True) is None
    assert isinstance(dp.pl.loss_profile(table, return_fig=True), Figure)
    given = plt.subplots(1, 2)[1]
    assert list(dp.pl.loss_profile(table, axes=given, show=False)) == list(given)
    with pytest.raises(ValueError, match="axes must be 2 Axes"):
        dp.pl.loss_profile(table, axes=given[:1], show=False)


def test_a_table_of_something_else_is_refused(table):
    with pytest.raises(KeyError, match="no column 'threshold'"):
        dp.pl.loss_profile(table.drop(columns="threshold"))
    with pytest.raises(ValueError, match="no unit has enough reports"):
        dp.pl.loss_profile(table[:0])
