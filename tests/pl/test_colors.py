import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import dynapath as dp
from dynapath.pl._colors import safe_palette
from dynapath.pl._figure import spread


def colors_of_lines(adata, **options):
    ax = dp.pl.latent_trajectories(adata, show=False, **options)[0]
    lines = {line.get_gid(): line.get_color() for line in ax.lines}
    return [to_hex(lines[f"group {k}"]) for k in range(3)]


def colors_of_cells(adata, column, **options):
    """Colour of each category, from the cells of the plot."""
    ax = dp.pl.latent_trajectories(adata, color=column, dims=1, jitter=0.0, show=False, **options)[0]
    points = next(artist for artist in ax.collections if artist.get_gid() == "cells")
    y = pd.Series([to_hex(color) for color in points.get_facecolors()], index=np.asarray(points.get_offsets())[:, 1])
    y = y[~y.index.duplicated()]
    drawn = y.loc[adata.obsm["X_dynvae"][:, 0].astype(float)].to_numpy()
    return pd.Series(drawn, index=adata.obs[column].astype(str)).groupby(level=0).unique().map(list).to_dict()


def test_absent_colours_are_chosen_and_stored_one_per_category(adata):
    used = colors_of_lines(adata)
    assert [color.upper() for color in used] == list(adata.uns["dynvae_group_colors"]) == safe_palette(3)


def test_scanpy_then_uses_the_same_colours(adata):
    import scanpy as sc

    drawn = colors_of_cells(adata, "group")
    stored = list(adata.uns["group_colors"])
    ax = sc.pl.embedding(adata, "X_dynvae", color="group", show=False)
    assert list(adata.uns["group_colors"]) == stored
    by_scanpy = {to_hex(color) for color in ax.collections[0].get_facecolors()}
    assert by_scanpy == {color for colors in drawn.values() for color in colors} == {c.lower() for c in stored}


def test_colours_of_the_user_are_used_and_left_alone(adata):
    own = ["red", "#00FF00", "blue", "black"]
    adata.uns["dynvae_group_colors"] = own
    assert colors_of_lines(adata) == ["#ff0000", "#00ff00", "#0000ff"]
    assert adata.uns["dynvae_group_colors"] is own


def test_too_few_colours_of_the_user_are_left_alone_with_a_warning(adata):
    adata.uns["dynvae_group_colors"] = ["red"]
    with pytest.warns(UserWarning, match="holds 1 colours, but 'dynvae_group' has 3 categories"):
        colors_of_lines(adata)
    assert adata.uns["dynvae_group_colors"] == ["red"]


def test_a_palette_goes_before_stored_colours_and_does_not_replace_them(adata):
    adata.uns["group_colors"] = ["red", "green", "blue"]
    assert colors_of_cells(adata, "group", palette={"0": "#111111", "1": "#222222", "2": "#333333"}) == {
        "0": ["#111111"],
        "1": ["#222222"],
        "2": ["#333333"],
    }
    assert adata.uns["group_colors"] == ["red", "green", "blue"]
    assert colors_of_lines(adata, palette=["#111111", "#222222", "#333333"]) == ["#111111", "#222222", "#333333"]
    assert len(set(colors_of_lines(adata, palette="tab10"))) == 3


def test_a_view_stays_a_view(adata):
    view = adata[adata.obs["time"] < 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        colors_of_lines(view)
    assert view.is_view
    assert "dynvae_group_colors" not in view.uns
    assert "dynvae_group_colors" not in adata.uns


def test_a_group_keeps_its_colour_where_another_has_no_cells(adata):
    all_three = colors_of_lines(adata)
    without = adata[adata.obs["dynvae_group"] != "1"].copy()
    assert colors_of_lines(without)[::2] == all_three[::2]


def test_text_and_truth_values_are_categories_whose_colours_are_not_stored(adata):
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "a", "b").astype(object)
    adata.obs["late"] = adata.obs["time"] > 0.5
    assert {name: len(found) for name, found in colors_of_cells(adata, "donor").items()} == {"a": 1, "b": 1}
    assert len(colors_of_cells(adata, "late")) == 2
    assert not {"donor_colors", "late_colors"} & set(adata.uns)


def test_missing_values_are_grey_and_named(adata):
    adata.obs["known"] = adata.obs["group"].where(adata.obs["time"] > 0)
    adata.obs["score"] = np.where(adata.obs["time"] > 0, 1.0, np.nan)
    for column in ("known", "score"):
        figure = dp.pl.latent_trajectories(adata, color=column, return_fig=True)
        assert "missing" in [text.get_text() for text in figure.legends[0].get_texts()]
        points = next(artist for artist in figure.axes[0].collections if artist.get_gid() == "cells")
        at_first = np.asarray(points.get_offsets())[:, 0] < 0.1
        assert {to_hex(color) for color in points.get_facecolors()[at_first]} == {"#d3d3d3"}


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        (["red"], "palette has 1 colours, but obs\\['group'\\] has 3"),
        ({"0": "red"}, "no colour for '1', '2'"),
        (["red", "green", "no colour"], "palette holds 'no colour'"),
        ("no map", "palette='no map' is no colour map"),
    ],
)
def test_a_bad_palette_is_named(adata, palette, message):
    with pytest.raises(ValueError, match=message):
        dp.pl.latent_trajectories(adata, color="group", palette=palette, show=False)


def test_bad_colours_in_uns_are_named(adata):
    adata.uns["group_colors"] = ["red", "green", "nonsense"]
    with pytest.raises(ValueError, match="uns\\['group_colors'\\] holds 'nonsense'"):
        dp.pl.latent_phase(adata, color="group", show=False)


def test_numbers_need_a_colour_map(adata):
    with pytest.raises(ValueError, match="name of a colour map"):
        dp.pl.latent_phase(adata, color="time", palette=["red"], show=False)
    adata.obs["nothing"] = np.nan
    with pytest.raises(ValueError, match="no finite number"):
        dp.pl.latent_phase(adata, color="nothing", show=False)


def test_more_categories_than_colours_can_tell_apart_are_refused(adata):
    adata.obs["name"] = pd.Categorical(adata.obs_names)
    with pytest.raises(ValueError, match="has 300 categories; more than 72"):
        dp.pl.latent_phase(adata, color="name", show=False)


def test_the_safe_palette_never_repeats_itself():
    assert len(set(safe_palette(72))) == 72


def test_numbers_at_line_ends_are_spread_no_more_than_needed():
    np.testing.assert_allclose(spread([0.0, 5.0], 1.0), [0, 5])
    np.testing.assert_allclose(spread([1.0, 0.0, 0.0], 1.0), [4 / 3, -2 / 3, 1 / 3])
