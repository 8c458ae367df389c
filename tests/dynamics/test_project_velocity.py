"""Arrows in an embedding against velocities that are known there, and against how units and axes enter."""

from importlib import import_module

import numpy as np
import pytest

from dynapath.dynamics import project_velocity


@pytest.fixture(scope="module")
def swirl():
    """Cells all over a disc that turns about its centre."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(800, 2))
    return z, z @ np.array([[0.0, 2.0], [-2.0, 0.0]])


def cosine(a, b):
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def test_a_linear_embedding_maps_velocities_as_it_maps_states(swirl):
    z, v = swirl
    for M in (np.eye(2), np.array([[3.0, 1.0], [0.0, -0.5]]), np.array([[1.0, 2.0]])):
        np.testing.assert_allclose(project_velocity(z, v, z @ M.T + 7), v @ M.T, rtol=0.02, atol=0.02)


def test_a_smooth_embedding_maps_velocities_by_its_derivative(swirl):
    z, v = swirl
    embedding = np.column_stack([np.sinh(z[:, 0]), z[:, 1] + 0.5 * z[:, 0] ** 2])
    truth = np.column_stack([np.cosh(z[:, 0]) * v[:, 0], v[:, 1] + z[:, 0] * v[:, 0]])
    arrows = project_velocity(z, v, embedding)
    assert np.median(cosine(arrows, truth)) > 0.99
    assert np.median(np.linalg.norm(arrows, axis=1) / np.linalg.norm(truth, axis=1)) == pytest.approx(1, abs=0.03)


def test_latent_dimensions_that_the_embedding_hides_do_not_turn_arrows(swirl):
    z, v = swirl
    rng = np.random.default_rng(1)
    wide = np.hstack([z, 0.3 * rng.normal(size=(800, 3))])
    moving = np.hstack([v, rng.normal(size=(800, 3))])
    np.testing.assert_allclose(project_velocity(wide, moving, z), v, rtol=0.1, atol=0.1)


def test_an_embedding_full_of_noise_is_averaged_over(swirl):
    z, v = swirl
    arrows = project_velocity(z, v, z + 0.05 * np.random.default_rng(1).normal(size=z.shape))
    assert np.median(cosine(arrows, v)) > 0.98


def test_turning_mirroring_and_moving_the_embedding_does_the_same_to_the_arrows(swirl):
    z, v = swirl
    for Q in (rotation(0.7), np.diag([1.0, -1.0])):
        np.testing.assert_allclose(
            project_velocity(z, v, z @ Q.T + [3, -8]), project_velocity(z, v, z) @ Q.T, atol=1e-9
        )


def test_turning_the_latent_space_changes_nothing(swirl):
    z, v = swirl
    Q = rotation(2.0)
    np.testing.assert_allclose(project_velocity(z @ Q.T, v @ Q.T, z), project_velocity(z, v, z), atol=1e-9)


@pytest.mark.parametrize(
    ("latent", "time", "embedding", "factor"), [(1, 24, 1, 1 / 24), (1, 1, 5, 5), (5, 1, 1, 1)], ids=str
)
def test_arrows_are_in_units_of_the_embedding_per_unit_of_time(swirl, latent, time, embedding, factor):
    z, v = swirl
    arrows = project_velocity(latent * z, latent * v / time, embedding * z)
    np.testing.assert_allclose(arrows, factor * project_velocity(z, v, z), atol=1e-9)


def test_cells_at_rest_have_no_arrow(swirl):
    z, v = swirl
    still = z[:, 0] > 0
    arrows = project_velocity(z, np.where(still[:, None], 0, v), z)
    assert (arrows[still] == 0).all()
    np.testing.assert_allclose(arrows[~still], project_velocity(z, v, z)[~still], atol=1e-9)


def test_arrows_at_the_rim_of_a_cloud_are_not_bent():
    z = np.random.default_rng(0).uniform(-1, 1, size=(2000, 2))
    upwards = np.tile([0.0, 1.0], (2000, 1))
    arrows = project_velocity(z, upwards, z)
    rim = np.abs(z).max(1) > 0.97
    np.testing.assert_allclose(arrows[rim], upwards[rim], atol=0.02)


def test_latent_directions_without_neighbours_give_no_arrow(swirl):
    """Cells on a line in a plane, moving off it: where that leads in the embedding cannot be known."""
    line = np.column_stack([swirl[0][:, 0], np.zeros(800)])
    arrows = project_velocity(line, np.tile([0.0, 1.0], (800, 1)), swirl[0])
    np.testing.assert_allclose(arrows, 0, atol=1e-9)


def test_cells_in_one_place_give_finite_arrows(swirl):
    z, v = np.repeat(swirl[0][:50], 4, axis=0), np.repeat(swirl[1][:50], 4, axis=0)
    assert np.isfinite(project_velocity(z, v, np.zeros((200, 2)))).all()
    assert np.isfinite(project_velocity(np.zeros((200, 2)), v, z)).all()


def test_cells_are_projected_alike_however_many_there_are(swirl, monkeypatch):
    z, v = swirl
    at_once = project_velocity(z, v, z)
    monkeypatch.setattr(import_module("dynapath.dynamics.project_velocity"), "_CHUNK", 97)
    np.testing.assert_allclose(project_velocity(z, v, z), at_once, atol=1e-12)


def test_arrays_of_other_cells_are_refused(swirl):
    z, v = swirl
    with pytest.raises(ValueError, match=r"one shape \(cell, latent\).*\(800, 2\), \(799, 2\) and \(800, 2\)"):
        project_velocity(z, v[1:], z)
    with pytest.raises(ValueError, match=r"embedding as many rows.*\(5, 2\)"):
        project_velocity(z, v, z[:5])


def test_values_that_are_not_finite_are_named(swirl):
    z, v = swirl
    holed = z.copy()
    holed[[3, 8], 0] = np.nan
    with pytest.raises(ValueError, match="embedding has NaN or infinite values in 2 rows, the first is 3"):
        project_velocity(z, v, holed)


@pytest.mark.parametrize("n_neighbors", [0, 2, 800])
def test_there_must_be_as_many_neighbours_as_are_asked_for(swirl, n_neighbors):
    z, v = swirl
    with pytest.raises(
        ValueError, match=f"more than the 2 latent dimensions and fewer than the 800 cells; it is {n_neighbors}"
    ):
        project_velocity(z, v, z, n_neighbors=n_neighbors)
