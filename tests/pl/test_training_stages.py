import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.stats import norm

import dynapath as dp


def fit(adata, **options):
    quick = dp.models.Training(
        static_epochs=1, joint_epochs=1, n_restarts=2, prior_steps=20, n_hidden=8, progress=False, keep_stages=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a fit has something to say, which is not the point here
        dp.tl.fit_dynamic_vae(adata, time_key="time", training=quick, **options)


@pytest.fixture(scope="session")
def kept():
    adata = dp.datasets.simulate_snapshots("crossing", n_cells=20, n_genes=12)
    fit(adata)
    return adata


@pytest.fixture
def cells(kept):
    return kept.copy()


def draw(adata, **options):
    return dp.pl.training_stages(adata, show=False, **options)


def artist(ax, gid):
    (found,) = (found for found in ax.get_children() if found.get_gid() == gid)
    return found


def in_order(points):
    return points[np.lexsort(np.asarray(points).T)]


def test_columns_are_stages_and_each_dimension_has_two_rows(cells):
    panels = draw(cells)
    assert panels.shape == (4, 3)
    assert [ax.get_title() for ax in panels[0]] == [
        "no training\n0 epochs",
        "static phase\n1 epochs",
        "complete training\n2 epochs",
    ]
    assert [ax.get_ylabel() for ax in panels[:, 0]] == [
        f"{what}\ndimension {dim}" for dim in (1, 2) for what in ("encoded", "predicted")
    ]
    assert draw(cells, dims=2).shape == (2, 3)


def test_cells_are_drawn_where_each_stage_encodes_them(cells):
    panels = draw(cells, jitter=0.0)
    for column, stage in zip(panels.T, dp.get.stages(cells), strict=True):
        for dim, ax in enumerate(column[::2]):
            expected = np.column_stack([cells.obs["time"], stage.z[:, dim]])
            np.testing.assert_allclose(in_order(artist(ax, "cells").get_offsets()), in_order(expected))


def test_lines_and_bands_are_those_of_the_dynamics_of_each_stage(cells):
    panels = draw(cells, level=0.5)
    for column, stage in zip(panels.T[1:], dp.get.stages(cells)[1:], strict=True):
        path = stage.dynamics.trajectories(np.linspace(0, 1, 50))
        for dim, ax in enumerate(column[1::2]):
            for k in range(3):
                np.testing.assert_allclose(artist(ax, f"group {k}").get_ydata(), path.mean[k, :, dim])
            bands = [found.get_paths()[0].vertices[:, 1] for found in ax.collections if not found.get_gid()]
            top = path.mean[..., dim] + norm.ppf(0.75) * np.sqrt(path.cov[..., dim, dim])
            np.testing.assert_allclose([band.max() for band in bands], top.max(1))


def test_the_last_column_is_the_fit(cells):
    ax = draw(cells, dims=1)[1, -1]
    table = dp.get.trajectories(cells).query("dimension == 1 and group == '2'")
    np.testing.assert_allclose(artist(ax, "group 2").get_xydata(), table[["time", "mean"]])


def test_before_training_the_model_is_a_standard_normal(cells):
    ax = draw(cells, level=0.9)[1, 0]
    assert not artist(ax, "group all").get_ydata().any()
    (band,) = (found for found in ax.collections if not found.get_gid())
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(norm.ppf(0.95))


def test_as_many_cells_are_predicted_as_were_observed_at_each_time(cells):
    few = cells[(cells.obs["time"] != 0.5) | (np.arange(cells.n_obs) % 2 == 0)].copy()
    expected = few.obs["time"].value_counts().sort_index()
    for ax in draw(few, jitter=0.0, dims=1)[1]:
        drawn, counts = np.unique(artist(ax, "predicted").get_offsets()[:, 0], return_counts=True)
        np.testing.assert_allclose(drawn, expected.index)
        np.testing.assert_array_equal(counts, expected)


def test_all_panels_of_a_dimension_share_a_scale(cells):
    panels = draw(cells)
    for rows in (panels[:2], panels[2:]):
        assert len({ax.get_ylim() for ax in rows.ravel()}) == 1


def test_predicted_cells_have_the_colour_of_their_group_unless_cells_are_coloured_otherwise(cells):
    ax = draw(cells, dims=1)[1, -1]
    drawn = {to_hex(color) for color in artist(ax, "predicted").get_facecolors()}
    _, groups = dp.get.dynamics(cells).sample(np.unique(cells.obs["time"]), 60)
    assert drawn == {cells.uns["dynvae_group_colors"][k].lower() for k in np.unique(groups)}
    grey = artist(draw(cells, dims=1, color="time")[1, -1], "predicted").get_facecolors()
    assert {to_hex(color) for color in grey} == {to_hex("0.25")}


def test_groups_choose_what_is_predicted(cells):
    ax = draw(cells, dims=1, groups=1)[1, -1]
    assert [line.get_gid() for line in ax.lines] == ["group 1"]
    assert len({to_hex(color) for color in artist(ax, "predicted").get_facecolors()}) == 1


def test_a_model_that_was_taken_over_has_two_columns(cells):
    fit(cells, model=dp.get.model(cells), key_added="taken")
    assert [ax.get_title().split("\n")[0] for ax in draw(cells, key="taken")[0]] == [
        "static phase",
        "complete training",
    ]


@pytest.mark.parametrize("width", [85, 175])
def test_nothing_sticks_out_of_the_figure(cells, width):
    figure = dp.pl.training_stages(cells, figsize=(width / 25.4, 6), return_fig=True)
    figure.canvas.draw()
    titles = [ax.title.get_window_extent() for ax in figure.axes[:3]]
    for box in [*titles, figure.legends[0].get_window_extent()]:
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    assert not any(left.x1 > right.x0 for left, right in zip(titles, titles[1:], strict=False))


def test_show_return_fig_and_axes_decide_what_comes_back(cells, monkeypatch):
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(True))
    assert isinstance(dp.pl.training_stages(cells, return_fig=True), Figure)
    assert all(isinstance(ax, Axes) for ax in draw(cells).ravel())
    _, given = plt.subplots(2, 3)
    assert (draw(cells, dims=1, axes=given) == given).all()
    assert not calls
    assert dp.pl.training_stages(cells, show=True) is None
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "other"}, KeyError, "no fit under 'other'"),
        ({"color": "cell_type"}, KeyError, "'cell_type' is not"),
        ({"dims": [1, 3]}, ValueError, "3 is not one of them"),
        ({"dims": []}, ValueError, "dims is empty"),
        ({"groups": "7"}, ValueError, "'7' is none"),
        ({"level": 90}, ValueError, "between 0 and 1"),
        ({"jitter": 2}, ValueError, "jitter must lie between"),
    ],
)
def test_bad_input_is_named_and_no_figure_is_left(cells, options, error, message):
    with pytest.raises(error, match=message):
        draw(cells, **options)
    assert not plt.get_fignums()
    assert "dynvae_group_colors" not in cells.uns


def test_the_number_of_axes_must_be_that_of_panels(cells):
    with pytest.raises(ValueError, match="axes must be 12 Axes, one for each of 3 stages in two rows"):
        draw(cells, axes=plt.figure().add_subplot())


def test_without_stages_the_error_says_how_to_keep_them(adata):
    with pytest.raises(KeyError, match=r"kept no stages.*Training\(keep_stages=True\)"):
        draw(adata)
    assert not plt.get_fignums()
