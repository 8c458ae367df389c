import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import dynapath as dp

COEFFICIENTS = ["intercept", "state", "incidence"]


@pytest.fixture(scope="module")
def fitted():
    panel = dp.datasets.simulate_reports(60, 40, silent=0)
    for pooling in ("individual", "partial", "global"):
        dp.stats.fit_increment(panel, covariates="incidence", pooling=pooling, key_added=pooling)
    return panel


def draw(adata, **options):
    return dp.pl.increment_params(adata, **{"keys": "individual", "show": False, **options})


def of(ax, gid):
    return [line for line in ax.lines if line.get_gid() == gid]


def test_there_is_a_panel_for_each_coefficient(fitted):
    assert [ax.get_xlabel() for ax in draw(fitted)] == COEFFICIENTS
    (ax,) = draw(fitted, coefficients="state")
    assert ax.get_xlabel() == "state"


def test_dots_are_the_estimates_from_the_largest_down(fitted):
    for ax, name in zip(draw(fitted), COEFFICIENTS, strict=True):
        (dots,) = of(ax, "estimates")
        expected = np.sort(fitted.obsm["individual_params"][name])[::-1]
        np.testing.assert_array_equal(dots.get_xdata(), expected)
        np.testing.assert_array_equal(dots.get_ydata(), np.arange(60))


def test_named_units_lie_in_one_row_in_all_panels(fitted):
    units = list(fitted.obs_names[:5])
    axes = draw(fitted, units=units)
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert sorted(labels) == units
    for ax, name in zip(axes, COEFFICIENTS, strict=True):
        (dots,) = of(ax, "estimates")
        np.testing.assert_array_equal(dots.get_xdata(), fitted.obsm["individual_params"].loc[labels, name])


def test_intervals_are_those_of_the_table(fitted):
    unit = fitted.obs_names[fitted.obs["individual_status"] == "ok"][0]
    (ax,) = draw(fitted, units=unit, coefficients="state", level=0.5)
    table = dp.get.increment_params(fitted, "individual", level=0.5)
    row = table[(table["unit"] == unit) & (table["coefficient"] == "state")].iloc[0]
    segments = np.concatenate([lines.get_segments() for lines in ax.collections])
    np.testing.assert_allclose(segments[0][:, 0], [row["lower"], row["upper"]])


def test_a_shared_coefficient_is_a_line_and_a_partial_one_has_a_dashed_mean(fitted):
    (ax,) = draw(fitted, keys="global", coefficients="state")
    (line,) = of(ax, "pooled")
    assert line.get_xdata()[0] == fitted.obsm["global_params"]["state"].iloc[0]
    assert line.get_linestyle() == "-"
    assert not of(ax, "estimates")
    (ax,) = draw(fitted, keys="partial", coefficients="state")
    assert of(ax, "pooled")[0].get_linestyle() == "--"
    assert of(ax, "estimates")


def test_fits_are_drawn_on_top_of_each_other_in_the_order_of_the_first(fitted):
    (ax,) = draw(fitted, keys=["individual", "partial"], coefficients="state")
    one, two = of(ax, "estimates")
    order = fitted.obsm["individual_params"]["state"].sort_values(ascending=False, kind="stable").index
    np.testing.assert_array_equal(two.get_xdata(), fitted.obsm["partial_params"].loc[order, "state"])
    assert one.get_color() != two.get_color() or one.get_markerfacecolor() != two.get_markerfacecolor()


def test_show_return_fig_and_axes_decide_what_comes_back(fitted, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    assert dp.pl.increment_params(fitted, keys="partial", show=True) is None
    assert isinstance(dp.pl.increment_params(fitted, keys="partial", return_fig=True), Figure)
    given = plt.subplots(1, 3)[1]
    assert list(draw(fitted, axes=given)) == list(given)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keys": "other"}, KeyError, "no fit of the increment model under 'other'; .*individual, partial, global"),
        ({"keys": []}, ValueError, "keys is empty"),
        ({"coefficients": "cases"}, ValueError, "intercept, state, incidence; 'cases' is none"),
        ({"units": ["H9"]}, ValueError, "'H9' is none of them"),
        ({"level": 1.5}, ValueError, "level"),
        ({"axes": []}, ValueError, "axes must be 3 Axes"),
    ],
)
def test_what_does_not_exist_is_refused(fitted, options, error, message):
    with pytest.raises(error, match=message):
        draw(fitted, **options)
