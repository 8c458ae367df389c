import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dynapath as dp


def draw(adata, **options):
    return dp.pl.group_proportions(adata, show=False, **options)


def line(ax, gid):
    (found,) = (found for found in ax.lines if found.get_gid() == gid)
    return found


def bars(ax, group):
    (found,) = (found for found in ax.collections if found.get_gid() == f"error {group}")
    return np.array([segment[:, 1] for segment in found.get_segments()])


@pytest.fixture
def resampled(adata):
    dp.tl.bootstrap(adata, n_bootstrap=4)
    return adata


def test_lines_are_the_fitted_proportions(adata):
    ax = draw(adata)
    expected = dp.get.trajectories(adata).query("dimension == 1")
    for group in "012":
        path = expected[expected["group"] == group]
        np.testing.assert_allclose(line(ax, f"group {group}").get_xydata(), path[["time", "proportion"]])


def test_dots_are_the_observed_shares_with_their_intervals(adata):
    ax = draw(adata, level=0.5)
    expected = dp.get.observed_proportions(adata, level=0.5)
    for group in "012":
        rows = expected[expected["group"] == group]
        dots = line(ax, f"observed {group}").get_xydata()
        np.testing.assert_allclose(dots[:, 1], rows["proportion"])
        np.testing.assert_allclose(bars(ax, group), rows[["lower", "upper"]])
        # Side by side, but nearer to their own time than to any other.
        assert np.abs(dots[:, 0] - rows["time"]).max() < 0.25 / 5


def test_dots_of_equal_shares_do_not_hide_each_other(adata):
    adata.obsm["dynvae_groups"] = np.full((adata.n_obs, 3), 1 / 3, dtype=np.float32)
    ax = draw(adata)
    first = [line(ax, f"observed {group}").get_xydata()[0] for group in "012"]
    assert len({round(x, 6) for x, _ in first}) == 3
    assert {round(y, 6) for _, y in first} == {round(1 / 3, 6)}


def test_lines_have_a_band_where_a_bootstrap_gives_one(adata, resampled):
    ax = draw(resampled)
    table = dp.get.trajectories(resampled).query("dimension == 1 and group == '1'")
    (band,) = (found for found in ax.collections if found.get_gid() == "uncertainty 1")
    vertices = band.get_paths()[0].vertices[:, 1]
    assert (vertices.min(), vertices.max()) == pytest.approx(
        (table["proportion_lower"].min(), table["proportion_upper"].max())
    )


def test_without_a_bootstrap_no_band_is_drawn(adata):
    assert not [found for found in draw(adata).collections if (found.get_gid() or "").startswith("uncertainty")]


def test_lines_go_on_dashed_to_a_held_out_future(adata):
    ax = draw(adata, heldout=1.5)
    beyond = line(ax, "group 0 extrapolated")
    assert (beyond.get_xdata().min(), beyond.get_xdata().max()) == (1, 1.5)
    assert beyond.is_dashed()
    assert line(ax, "heldout").get_xdata()[0] == 1.5


def test_groups_can_be_chosen_and_keep_their_proportion_of_all_cells(adata):
    ax = draw(adata, groups=1)
    assert {found.get_gid() for found in ax.lines} == {"group 1", "observed 1"}
    expected = dp.get.observed_proportions(adata).query("group == '1'")
    np.testing.assert_allclose(line(ax, "observed 1").get_xydata(), expected[["time", "proportion"]])


def test_the_axis_starts_at_zero(adata):
    assert draw(adata).get_ylim()[0] == 0


def test_many_groups_are_named_at_their_lines_inside_the_panel(adata):
    quick = dp.models.Training(n_restarts=1, prior_steps=5, progress=False)
    with pytest.warns(UserWarning, match="Groups with less than|restart"):
        dp.tl.fit_dynamic_vae(adata, time_key="time", n_groups=9, use_rep="Z_true", training=quick, key_added="nine")
    ax = draw(adata, key="nine")
    assert {text.get_text() for text in ax.texts} == {str(k) for k in range(9)}
    assert all(ax.get_ylim()[0] <= text.xy[1] <= ax.get_ylim()[1] for text in ax.texts)
    assert not draw(adata).texts


def test_names_that_the_user_gave_the_groups_are_in_the_legend(adata):
    adata.obs["dynvae_group"] = adata.obs["dynvae_group"].cat.rename_categories(["stem", "1", "2"])
    figure = dp.pl.group_proportions(adata, return_fig=True)
    assert {"stem", "group 1", "fitted", "observed, 90% interval"} <= {t.get_text() for t in figure.legends[0].texts}


@pytest.mark.parametrize("width", [85, 175])
def test_nothing_sticks_out_of_the_figure(adata, width):
    figure = dp.pl.group_proportions(adata, heldout=0.6, figsize=(width / 25.4, 2.8), return_fig=True)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert not box.overlaps(figure.axes[0].get_window_extent())


def test_show_return_fig_and_ax_decide_what_comes_back(adata, monkeypatch):
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(True))
    assert isinstance(dp.pl.group_proportions(adata, return_fig=True), Figure)
    assert isinstance(draw(adata), Axes)
    given = plt.figure().add_subplot()
    assert draw(adata, ax=given) is given
    assert not calls
    assert dp.pl.group_proportions(adata, show=True) is None
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "other"}, KeyError, "no fit under 'other'; fits present: dynvae"),
        ({"groups": "7"}, ValueError, "0, 1, 2; '7' is none"),
        ({"heldout": "late"}, ValueError, "heldout must be times as numbers"),
        ({"level": 90}, ValueError, "between 0 and 1; it is 90"),
        ({"ax": 1}, ValueError, "ax must be one Axes; it is int"),
    ],
)
def test_bad_input_is_named_and_no_figure_is_left(adata, options, error, message):
    with pytest.raises(error, match=message):
        draw(adata, **options)
    assert not plt.get_fignums()
    assert "dynvae_group_colors" not in adata.uns
