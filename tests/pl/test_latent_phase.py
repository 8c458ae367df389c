import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

import dynapath as dp


def draw(adata, **options):
    return dp.pl.latent_phase(adata, show=False, **options)


def field(ax):
    return [artist for artist in ax.get_children() if isinstance(artist, Quiver)]


def test_the_axes_are_the_two_dimensions_from_one(adata):
    ax = draw(adata, dims=(2, 1))
    assert isinstance(ax, Axes)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Z_true 2", "Z_true 1")
    drawn = next(artist.get_offsets() for artist in ax.collections if artist.get_gid() == "cells")
    order = lambda points: points[np.lexsort(points.T)]
    np.testing.assert_allclose(order(drawn), order(adata.obsm["X_dynvae"][:, ::-1]))


def test_paths_pass_the_means_at_the_observed_times(adata):
    ax = draw(adata)
    expected = dp.get.trajectories(adata, times=[0, 0.25, 0.5, 0.75, 1])
    stops = [line.get_xydata() for line in ax.lines if line.get_marker() == "o"]
    paths = [line.get_xydata() for line in ax.lines if line.get_marker() != "o"]
    assert len(stops) == len(paths) == 3
    for (_, group), dots, path in zip(expected.groupby("group", observed=True), stops, paths, strict=True):
        means = group.pivot(index="time", columns="dimension", values="mean")
        np.testing.assert_allclose(dots, means)
        np.testing.assert_allclose(path[::50], means)


def test_the_field_points_where_the_cells_are_heading(adata):
    """With one velocity for all cells every arrow has its direction, and there are fewer arrows than cells."""
    adata.obsm["dynvae_velocity"] = np.tile([3.0, -4.0], (adata.n_obs, 1))
    (arrows,) = field(draw(adata))
    assert 0 < len(arrows.U) < adata.n_obs / 3
    np.testing.assert_allclose(arrows.V / arrows.U, -4 / 3)


def test_the_field_can_be_left_out_or_be_empty(adata):
    assert not field(draw(adata, arrows=False))
    adata.obsm["dynvae_velocity"] = np.zeros((adata.n_obs, 2))
    assert not field(draw(adata))
    assert not field(draw(adata[:2]))


def test_groups_choose_paths_and_arrows(adata):
    ax = draw(adata, groups="2")
    assert [line.get_gid() for line in ax.lines if line.get_gid()] == ["path 2"]
    assert len(np.unique(field(ax)[0].get_facecolors(), axis=0)) == 1


def test_other_colours_leave_the_paths_grey_and_number_them(adata):
    ax = draw(adata, color="time")
    assert {text.get_text() for text in ax.texts} - {""} == {"0", "1", "2"}


def test_show_return_fig_and_ax_decide_what_comes_back(adata, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    assert dp.pl.latent_phase(adata, show=True) is None
    assert isinstance(dp.pl.latent_phase(adata, return_fig=True), Figure)
    given = plt.figure().add_subplot()
    assert draw(adata, ax=given) is given
    with pytest.raises((ValueError, TypeError), match="ax"):
        draw(adata, ax=plt.subplots(1, 2)[1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "other"}, KeyError, "no fit under 'other'"),
        ({"color": "cell_type"}, KeyError, "'cell_type' is not"),
        ({"dims": (0, 1)}, ValueError, "counts latent dimensions from 1"),
        ({"dims": (1, 1)}, ValueError, "two different dimensions from 1 to 2"),
        ({"dims": (1,)}, ValueError, "two different dimensions"),
        ({"groups": 5}, ValueError, "'5' is none of them"),
    ],
)
def test_bad_input_is_named_and_no_figure_is_left(adata, options, error, message):
    with pytest.raises(error, match=message):
        draw(adata, **options)
    assert not plt.get_fignums()
