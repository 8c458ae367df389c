"""Figures of fits of visits."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import dynapath as dp


@pytest.fixture(scope="module")
def fitted():
    adata = dp.datasets.simulate_registry("visits", n_subjects=20, random_state=1)
    quick = dp.stats.Schedule(n_epochs=3)
    dp.stats.fit_latent_dynamics(
        adata, subject_key="patient", time_key="time", baseline="~ y1", n_restarts=1, schedule=quick
    )
    return adata


def test_points_are_what_was_measured_and_hollow_where_it_was_not_given(fitted):
    name = fitted.obs["patient"].value_counts().index[0]
    axes = dp.pl.subject_fit(fitted, name, items=["x2"], given=2, show=False)
    own = fitted[fitted.obs["patient"] == name]
    order = np.argsort(own.obs["time"].to_numpy())
    given, later = axes[0].collections[1:3]
    expected = np.column_stack([own.obs["time"].to_numpy()[order], np.asarray(own[:, "x2"].X).ravel()[order]])
    np.testing.assert_allclose(given.get_offsets(), expected[:2])
    np.testing.assert_allclose(later.get_offsets(), expected[2:])
    plt.close("all")


def test_the_line_is_what_predict_visits_says(fitted):
    name = fitted.obs["patient"].iloc[0]
    axes = dp.pl.subject_fit(fitted, name, items=["x2"], given=1, show=False)
    time, line = axes[0].lines[0].get_data()
    table = dp.stats.predict_visits(fitted, times=time[[0, 20, -1]], given=1)
    table = table[(table["subject"] == name) & (table["item"] == "x2")]
    np.testing.assert_allclose(table["predicted"], line[[0, 20, -1]], rtol=1e-5)
    plt.close("all")


def test_each_subject_is_one_line_through_its_states(fitted):
    axes = dp.pl.latent_trajectories(fitted, key="latent_dynamics", color="group", dims=2, show=False)
    lines = axes[0].collections[0].get_segments()
    assert len(lines) == 20
    drawn = np.concatenate(lines)[:, 1]
    np.testing.assert_allclose(np.sort(drawn), np.sort(fitted.obsm["X_latent_dynamics"][:, 1]), rtol=1e-6)
    plt.close("all")


def test_true_states_are_drawn_where_the_closest_affine_map_puts_them(fitted):
    simulated = fitted.copy()
    simulated.obsm["Z_true"] = fitted.obsm["X_latent_dynamics"] @ np.array([[2.0, 1.0], [0.0, -3.0]]) + 5.0
    axes = dp.pl.latent_trajectories(simulated, key="latent_dynamics", truth="Z_true", dims=1, show=False)
    fit, truth = (np.concatenate(axes[0].collections[i].get_segments()) for i in (0, 1))
    np.testing.assert_allclose(truth, fit, atol=1e-5)
    assert "truth" in [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    with pytest.raises(KeyError, match="no 'states'; present: .*Z_true"):
        dp.pl.latent_trajectories(simulated, key="latent_dynamics", truth="states")
    plt.close("all")


def test_what_is_not_there_is_named(fitted):
    with pytest.raises(KeyError, match="no subject 'nobody'"):
        dp.pl.subject_fit(fitted, "nobody")
    with pytest.raises(KeyError, match="no item 'x99'"):
        dp.pl.subject_fit(fitted, "P0001", items=["x99"])
    with pytest.raises(KeyError, match="'noise-free'.*present: expected"):
        dp.pl.subject_fit(fitted, "P0001", truth="noise-free")
