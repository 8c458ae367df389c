import warnings

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dynapath as dp


def draw(adata, **options):
    return dp.pl.latent_trajectories(adata, show=False, **options)


def artists(ax, gid):
    return [artist for artist in ax.get_children() if artist.get_gid() == gid]


def cells(ax):
    (found,) = artists(ax, "cells")
    return found


def legend_labels(figure):
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_there_is_one_panel_per_latent_dimension(adata):
    axes = draw(adata)
    assert axes.shape == (2,)
    assert [ax.get_ylabel() for ax in axes] == ["Z_true 1", "Z_true 2"]
    assert {ax.get_xlabel() for ax in axes} == {"time"}


def test_dims_count_from_one_and_keep_their_order(adata):
    assert [ax.get_ylabel() for ax in draw(adata, dims=[2, 1])] == ["Z_true 2", "Z_true 1"]
    assert [ax.get_ylabel() for ax in draw(adata, dims=2)] == ["Z_true 2"]


def test_lines_and_bands_are_the_numbers_of_get_trajectories(adata):
    expected = dp.get.trajectories(adata, level=0.5)
    for dim, ax in enumerate(draw(adata, level=0.5), start=1):
        for group in "012":
            path = expected[(expected["group"] == group) & (expected["dimension"] == dim)]
            (line,) = artists(ax, f"group {group}")
            np.testing.assert_allclose(line.get_xydata(), path[["time", "mean"]])
        tops = [
            collection.get_paths()[0].vertices[:, 1].max() for collection in ax.collections if not collection.get_gid()
        ]
        highest = expected[expected["dimension"] == dim].groupby("group", observed=True)["upper"].max()
        np.testing.assert_allclose(sorted(tops), sorted(highest))


def test_means_have_a_band_of_their_own_where_a_bootstrap_gives_one(adata):
    assert not artists(draw(adata)[0], "uncertainty 0")
    dp.tl.bootstrap(adata, n_bootstrap=4)
    axes = draw(adata, level=0.5)
    expected = dp.get.trajectories(adata, level=0.5)
    for dim, ax in enumerate(axes, start=1):
        for group in "012":
            path = expected[(expected["group"] == group) & (expected["dimension"] == dim)]
            (band,) = artists(ax, f"uncertainty {group}")
            edges = band.get_paths()[0].vertices[:, 1]
            assert (edges.min(), edges.max()) == pytest.approx((path["mean_lower"].min(), path["mean_upper"].max()))
    assert "50% band of the mean" in legend_labels(axes[0].figure)


def test_cells_are_drawn_where_they_are(adata):
    for dim, ax in enumerate(draw(adata, jitter=0.0)):
        drawn = cells(ax).get_offsets()
        actual = np.column_stack([adata.obs["time"], adata.obsm["X_dynvae"][:, dim]])
        order = lambda points: points[np.lexsort(points.T)]
        np.testing.assert_allclose(order(drawn), order(actual))


def test_jitter_keeps_within_its_part_of_the_smallest_gap_and_is_the_same_each_time(adata):
    first, again = (cells(draw(adata, jitter=0.3)[0]).get_offsets() for _ in range(2))
    np.testing.assert_array_equal(first, again)
    away = np.abs(first[:, [0]] - np.unique(adata.obs["time"])).min(1)
    assert 0.2 * 0.25 < away.max() <= 0.3 * 0.25


def test_undetermined_cells_are_hollow(adata):
    adata.obs["dynvae_undetermined"] = np.arange(adata.n_obs) < 7
    drawn = cells(draw(adata)[0])
    assert (drawn.get_facecolors()[:, 3] == 0).sum() == 7
    assert (drawn.get_edgecolors()[:, 3] > 0).sum() == 7
    assert (cells(draw(adata, color="group")[0]).get_facecolors()[:, 3] > 0).all()


def test_other_colours_leave_the_lines_grey_and_number_them(adata):
    ax = draw(adata, color="group")[0]
    assert len({artists(ax, f"group {k}")[0].get_color() for k in "012"}) == 1
    assert {text.get_text() for text in ax.texts} == {"0", "1", "2"}


def test_numbers_get_a_colour_bar(adata):
    adata.obs["score"] = np.linspace(3, 4, adata.n_obs)
    axes = draw(adata, color="score")
    (bar,) = set(axes[0].figure.axes) - set(axes)
    assert bar.get_ylabel() == "score"
    assert bar.get_ylim() == (3, 4)


def test_held_out_times_are_marked_and_named(adata):
    axes = draw(adata, heldout=[0.3, 0.6])
    for ax in axes:
        assert [line.get_xdata()[0] for line in artists(ax, "heldout")] == [0.3, 0.6]
    assert "held-out time" in legend_labels(axes[0].figure)
    assert "held-out time" not in legend_labels(draw(adata)[0].figure)


def test_lines_go_on_dashed_to_a_held_out_future(adata):
    ax = draw(adata, heldout=1.5)[0]
    assert artists(ax, "group 0")[0].get_xdata().max() == 1
    beyond = artists(ax, "group 0 extrapolated")[0]
    assert (beyond.get_xdata().min(), beyond.get_xdata().max()) == (1, 1.5)
    assert beyond.is_dashed()


def test_groups_choose_lines_and_leave_other_cells_grey(adata):
    ax = draw(adata, groups=[1])[0]
    assert artists(ax, "group 1")
    assert not artists(ax, "group 0")
    grey = np.isclose(cells(ax).get_facecolors()[:, :3], 211 / 255).all(1)
    assert grey.sum() == (adata.obs["dynvae_group"] != "1").sum()


def test_names_that_the_user_gave_the_groups_are_in_the_legend(adata):
    adata.obs["dynvae_group"] = adata.obs["dynvae_group"].cat.rename_categories(["stem", "1", "2"])
    axes = draw(adata)
    assert {"stem", "group 1"} <= set(legend_labels(axes[0].figure))
    assert artists(axes[0], "group stem")[0].get_color().upper() == adata.uns["dynvae_group_colors"][0]


def test_times_may_be_categories_that_read_as_numbers(adata):
    adata.obs["time"] = pd.Categorical(adata.obs["time"].astype(str))
    assert set(cells(draw(adata, jitter=0.0)[0]).get_offsets()[:, 0]) == {0, 0.25, 0.5, 0.75, 1}


def test_a_fit_of_one_dimension_has_one_panel(adata):
    adata.obsm["X_flat"] = adata.obsm["Z_true"][:, :1]
    quick = dp.models.Training(n_restarts=2, prior_steps=5, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.tl.fit_dynamic_vae(adata, time_key="time", use_rep="X_flat", training=quick, key_added="one")
    assert len(draw(adata, key="one")) == 1
    with pytest.raises(ValueError, match="'one' has one latent dimension"):
        dp.pl.latent_phase(adata, key="one", show=False)


@pytest.mark.parametrize("width", [85, 175])
def test_nothing_sticks_out_of_the_figure(adata, width):
    figure = dp.pl.latent_trajectories(adata, color="group", heldout=0.6, figsize=(width / 25.4, 2.8), return_fig=True)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    for ax in figure.axes:
        assert not box.overlaps(ax.get_window_extent())


def test_a_fit_with_counts_is_drawn_by_the_same_call(adata):
    """Only the name of the latent space tells the kinds apart."""
    adata.uns["dynvae"] = {**adata.uns["dynvae"], "kind": "dynamic_vae"}
    assert [ax.get_ylabel() for ax in draw(adata)] == ["latent dimension 1", "latent dimension 2"]


def test_a_fit_is_drawn_after_h5ad(adata, tmp_path):
    draw(adata)
    adata.write_h5ad(tmp_path / "fit.h5ad")
    again = ad.read_h5ad(tmp_path / "fit.h5ad")
    colors = again.uns["dynvae_group_colors"].copy()
    draw(again, color="group")
    draw(again)
    np.testing.assert_array_equal(again.uns["dynvae_group_colors"], colors)


# The contract of all figures


@pytest.fixture
def shown(monkeypatch):
    """One entry for each time that figures were shown."""
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(True))
    return calls


def test_show_and_return_fig_decide_what_comes_back(adata, shown):
    assert isinstance(dp.pl.latent_trajectories(adata, return_fig=True), Figure)
    assert all(isinstance(ax, Axes) for ax in draw(adata))
    assert not shown
    assert dp.pl.latent_trajectories(adata, show=True) is None
    assert len(shown) == 1


@pytest.mark.parametrize("autoshow", [True, False])
def test_without_show_the_setting_of_scanpy_decides(adata, shown, autoshow):
    import scanpy as sc

    before = sc.settings.autoshow
    sc.settings.autoshow = autoshow
    try:
        returned = dp.pl.latent_trajectories(adata)
    finally:
        sc.settings.autoshow = before
    assert bool(shown) == (returned is None) == autoshow


def test_given_axes_are_drawn_on(adata):
    figure, given = plt.subplots(2, 1)
    drawn = draw(adata, axes=given)
    assert list(drawn) == list(given)
    assert draw(adata, dims=1, axes=given[0])[0] is given[0]
    assert plt.get_fignums() == [figure.number]


def test_plotting_leaves_all_but_colours_as_it_was(adata, fitted):
    draw(adata, heldout=0.6)
    del adata.uns["dynvae_group_colors"]
    assert adata.uns.keys() == fitted.uns.keys()
    pd.testing.assert_frame_equal(adata.obs, fitted.obs)
    assert adata.obsm.keys() == fitted.obsm.keys()
    for slot in adata.obsm:
        np.testing.assert_array_equal(adata.obsm[slot], fitted.obsm[slot])


def test_plotting_leaves_the_random_state_of_the_session(adata):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draw(adata)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "other"}, KeyError, "no fit under 'other'; fits present: dynvae"),
        ({"color": "cell_type"}, KeyError, "'cell_type' is not. Columns: time, group"),
        ({"color": ["time"]}, (KeyError, TypeError), "color"),
        ({"dims": 0}, ValueError, "counts latent dimensions from 1, and the fit 'dynvae' has 2; 0 is not"),
        ({"dims": [1, 3]}, ValueError, "3 is not one of them"),
        ({"dims": []}, ValueError, "dims is empty"),
        ({"groups": ["0", "7"]}, ValueError, "0, 1, 2; '7' is none"),
        ({"groups": []}, ValueError, "none was given"),
        ({"heldout": "late"}, ValueError, "heldout must be times as numbers"),
        ({"heldout": [(0.3, 0.6)]}, ValueError, r"times as numbers, such as \[0.5\]; it is \[\(0.3, 0.6\)\]"),
        ({"heldout": [np.nan]}, ValueError, "heldout must be times as numbers"),
        ({"level": 90.0}, ValueError, "between 0 and 1; it is 90.0"),
        ({"jitter": 2.0}, ValueError, "jitter must lie between"),
        ({"truth": "Z_true"}, ValueError, "truth is drawn for fits of visits only"),
    ],
)
def test_bad_input_is_named_and_no_figure_is_left(adata, options, error, message):
    with pytest.raises(error, match=message):
        draw(adata, **options)
    assert not plt.get_fignums()
    assert "dynvae_group_colors" not in adata.uns


def test_the_number_of_axes_must_be_that_of_dimensions(adata):
    with pytest.raises(ValueError, match=r"axes must be 2 Axes, one for each of dims=\[1, 2\]; 1 given"):
        draw(adata, axes=plt.figure().add_subplot())


def test_a_removed_time_column_is_missed_by_name(adata):
    del adata.obs["time"]
    with pytest.raises(KeyError, match="obs has no 'time'"):
        draw(adata)
