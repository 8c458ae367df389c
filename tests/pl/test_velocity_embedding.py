"""Arrows over an embedding: where they are, where they point, and what the figure gives back."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dynapath as dp


@pytest.fixture
def adata(fitted):
    adata = fitted.copy()
    adata.obsm["X_umap"] = 5 * adata.obsm["X_dynvae"][:, ::-1]
    dp.tl.embed_velocity(adata)
    return adata


def draw(adata, **options):
    return dp.pl.velocity_embedding(adata, show=False, **options)


def drawn(ax, gid):
    (artist,) = [child for child in ax.get_children() if child.get_gid() == gid]
    return artist


def test_every_cell_is_drawn_where_the_embedding_has_it(adata):
    points = np.asarray(drawn(draw(adata), "cells").get_offsets())
    expected = adata.obsm["X_umap"]
    assert points.shape == expected.shape
    np.testing.assert_allclose(np.sort(points, axis=0), np.sort(expected, axis=0), rtol=1e-6)


def test_arrows_point_where_the_cells_around_them_are_heading(adata):
    arrows = drawn(draw(adata), "velocity")
    heading = np.column_stack([arrows.U, arrows.V])
    cells, velocity = adata.obsm["X_umap"], adata.obsm["dynvae_velocity_umap"]
    group = adata.obs["dynvae_group"].astype(str).to_numpy()
    # The nearest cell of any group will do where groups are not mixed; each arrow must agree with one nearby.
    for at, arrow in zip(np.column_stack([arrows.X, arrows.Y]), heading, strict=True):
        near = [np.argmin(np.linalg.norm(cells - at, axis=1) + 1e6 * (group != name)) for name in np.unique(group)]
        cosine = (velocity[near] @ arrow) / np.linalg.norm(velocity[near], axis=1) / np.linalg.norm(arrow)
        assert cosine.max() > 0.8


def test_cells_without_velocity_get_no_arrows(adata):
    adata.obsm["dynvae_velocity_umap"][:] = 0
    assert not [child for child in draw(adata).get_children() if child.get_gid() == "velocity"]


def test_axes_carry_the_name_of_the_embedding_and_no_numbers(adata):
    ax = draw(adata, dims=(2, 1))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("UMAP 2", "UMAP 1")
    assert not len(ax.get_xticks())
    assert ax.get_aspect() == 1


def test_arrows_take_the_colours_of_groups_only_where_cells_have_them(adata):
    by_group = {tuple(color) for color in drawn(draw(adata), "velocity").get_facecolor()}
    by_time = {tuple(color) for color in drawn(draw(adata, color="time"), "velocity").get_facecolor()}
    assert len(by_group) == 3
    assert len(by_time) == 1


def test_show_return_fig_and_ax_decide_what_comes_back(adata, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    assert dp.pl.velocity_embedding(adata, show=True) is None
    assert isinstance(dp.pl.velocity_embedding(adata, return_fig=True), Figure)
    assert isinstance(draw(adata), Axes)
    given = plt.figure().add_subplot()
    assert draw(adata, ax=given) is given


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"basis": "tsne"}, KeyError, "no 'X_tsne'"),
        ({"basis": "dynvae"}, KeyError, r"no 'dynvae_velocity_dynvae'.*embed_velocity\(adata, basis='dynvae'"),
        ({"key": "other"}, KeyError, "no fit under 'other'"),
        ({"color": "cell_type"}, KeyError, "'cell_type' is not"),
        ({"dims": (0, 1)}, ValueError, "two different dimensions of 'umap', from 1 to 2"),
        ({"dims": (1, 1)}, ValueError, "two different dimensions"),
        ({"groups": 5}, ValueError, "'5' is none of them"),
    ],
)
def test_bad_input_is_named_and_no_figure_is_left(adata, options, error, message):
    with pytest.raises(error, match=message):
        draw(adata, **options)
    assert not plt.get_fignums()
