"""Arrows in an embedding: the slots they are written to, how long they stay there, and input that cannot be used."""

import anndata as ad
import numpy as np
import pytest

import dynapath as dp
from dynapath.dynamics import project_velocity

# So short a fit has something to say, which is not the point here.
pytestmark = pytest.mark.filterwarnings("ignore:Only one of 2 restarts:UserWarning")


@pytest.fixture(scope="module")
def fitted_once(simulated, quick):
    cells = simulated.copy()
    dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep="Z_true", training=quick)
    cells.obsm["X_map"] = cells.obsm["Z_true"] @ np.array([[0.0, 3.0, 1.0], [-3.0, 0.0, 1.0]])
    return cells


@pytest.fixture
def fitted(fitted_once):
    return fitted_once.copy()


def test_arrows_are_the_velocities_carried_into_the_embedding(fitted):
    assert dp.tl.embed_velocity(fitted, basis="map") is None
    arrows = fitted.obsm["dynvae_velocity_map"]
    assert arrows.shape == (300, 3)
    assert arrows.dtype == np.float32
    expected = project_velocity(fitted.obsm["X_dynvae"], fitted.obsm["dynvae_velocity"], fitted.obsm["X_map"])
    np.testing.assert_allclose(arrows, expected, rtol=1e-5)


def test_a_basis_may_be_named_as_its_slot_is(fitted):
    dp.tl.embed_velocity(fitted, basis="X_map")
    assert "dynvae_velocity_map" in fitted.obsm


def test_a_copy_leaves_the_input_alone(fitted):
    copied = dp.tl.embed_velocity(fitted, basis="map", copy=True)
    assert "dynvae_velocity_map" in copied.obsm
    assert "dynvae_velocity_map" not in fitted.obsm
    assert "embedded" not in fitted.uns["dynvae"]


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
def test_arrows_of_a_subset_leave_the_whole_alone(fitted):
    half = fitted[::2]
    dp.tl.embed_velocity(half, basis="map")
    assert half.obsm["dynvae_velocity_map"].shape == (150, 3)
    assert "dynvae_velocity_map" not in fitted.obsm
    assert "embedded" not in fitted.uns["dynvae"]


def test_settings_are_kept(fitted):
    dp.tl.embed_velocity(fitted, basis="map", n_neighbors=50)
    assert fitted.uns["dynvae"]["embedded"] == {"map": {"n_neighbors": 50}}


def test_a_new_fit_takes_the_arrows_of_the_old_one_away(fitted, quick):
    fitted.obsm["dynvae_velocity_mine"] = np.ones((300, 2))
    dp.tl.embed_velocity(fitted, basis="map")
    dp.tl.fit_dynamic_vae(fitted, time_key="time", use_rep="Z_true", training=quick)
    assert "dynvae_velocity_map" not in fitted.obsm
    # What the user put beside them is none of ours.
    assert "dynvae_velocity_mine" in fitted.obsm


@pytest.mark.parametrize("file_format", ["h5ad", "zarr"])
def test_arrows_survive_a_file(fitted, tmp_path, file_format):
    dp.tl.embed_velocity(fitted, basis="map")
    path = tmp_path / f"cells.{file_format}"
    getattr(fitted, f"write_{file_format}")(path)
    again = getattr(ad, f"read_{file_format}")(path)
    np.testing.assert_array_equal(again.obsm["dynvae_velocity_map"], fitted.obsm["dynvae_velocity_map"])
    dp.tl.embed_velocity(again, basis="map", n_neighbors=40)
    assert int(again.uns["dynvae"]["embedded"]["map"]["n_neighbors"]) == 40


def holed(cells):
    cells.obsm["X_map"][7, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"basis": "umap"}, KeyError, r"no 'X_umap'.*bases present: map, dynvae|bases present: dynvae, map"),
        (None, {"basis": "map", "key": "other"}, KeyError, "no fit under 'other'"),
        (None, {"basis": "map", "n_neighbors": 2}, ValueError, "n_neighbors must be more than the 2 latent"),
        (None, {"basis": "map", "n_neighbors": 300}, ValueError, "fewer than the 300 cells"),
        (holed, {"basis": "map"}, ValueError, "basis 'map' has NaN or infinite values for 1 cells.*'cell"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(fitted, change, options, error, message):
    if change is not None:
        change(fitted)
    slots = set(fitted.obsm)
    with pytest.raises(error, match=message):
        dp.tl.embed_velocity(fitted, **options)
    assert set(fitted.obsm) == slots
    assert "embedded" not in fitted.uns["dynvae"]
