"""Simulated registries are drawn as they say."""

import numpy as np
import pytest

import dynapath as dp

DESIGNS = ["linear2", "linear4", "lotka_volterra", "visits", "weak_baseline", "registry"]


@pytest.mark.parametrize("design", DESIGNS)
def test_the_truth_on_the_grid_solves_its_equation(design):
    truth = dp.datasets.simulate_registry(design, n_subjects=4).uns["truth"]
    dt = truth["times"][1] - truth["times"][0]
    for path, parameters in zip(truth["latent"], truth["parameters"], strict=True):
        np.testing.assert_allclose(path[0], truth["start"])
        slope = (path[2:] - path[:-2]) / (2 * dt)
        u = path[1:-1]
        if parameters.ndim == 2:
            field = u @ parameters.T
        else:
            a, b, g, d = parameters
            field = np.column_stack([a * u[:, 0] - b * u.prod(1), g * u.prod(1) - d * u[:, 1]])
        # Central differences err by dt^2 / 6 times the third derivative.
        np.testing.assert_allclose(slope, field, atol=0.05 if design == "lotka_volterra" else 0.002)


@pytest.mark.parametrize("design", DESIGNS)
def test_items_scatter_about_what_was_expected_by_the_noise(design):
    adata = dp.datasets.simulate_registry(design, n_subjects=60)
    sd = adata.uns["truth"]["noise_sd"]
    # At least 1,200 values: standard error of a standard deviation below 2.1 %.
    assert np.std(adata.X - adata.layers["expected"]) == pytest.approx(sd, rel=0.08)
    item_of = adata.var["latent"].to_numpy() - 1
    offsets = adata.layers["expected"] - adata.obsm["Z_true"][:, item_of]
    np.testing.assert_allclose(offsets, np.broadcast_to(adata.uns["truth"]["item_offsets"], adata.shape))


def test_designs_have_the_published_sizes():
    shapes = {"linear2": (100, 2), "linear4": (100, 2), "lotka_volterra": (200, 2), "registry": (500, 15)}
    for design, (n, most) in shapes.items():
        adata = dp.datasets.simulate_registry(design)
        visits = adata.obs["patient"].value_counts()
        assert len(visits) == n
        assert visits.max() <= most
        assert not adata.obs.duplicated(["patient", "time"]).any()
    assert visits.median() == pytest.approx(8, abs=1)


def test_the_same_seed_gives_the_same_data_and_leaves_numpy_alone():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (dp.datasets.simulate_registry("visits", n_subjects=10, random_state=4) for _ in range(2))
    np.testing.assert_array_equal(first.X, second.X)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_covariates_tell_what_was_asked_for():
    groups = dp.datasets.simulate_registry("linear2", n_subjects=400)
    means = groups.obs.groupby("group", observed=True)[["y1", "y10", "y11"]].mean().to_numpy()
    np.testing.assert_allclose(means, [[-1, -1, 0], [1, 1, 0]], atol=0.15)
    parameters = dp.datasets.simulate_registry("linear2", n_subjects=400, baseline="parameters")
    means = parameters.obs.groupby("group", observed=True)[["y1", "y10"]].mean().to_numpy()
    np.testing.assert_allclose(means, [[-0.2, -0.2], [-0.2, 0.2]], atol=0.03)


def test_unknown_designs_are_named():
    with pytest.raises(ValueError, match="linear2.*it is 'linear3'"):
        dp.datasets.simulate_registry("linear3")
    with pytest.raises(ValueError, match="at least 2"):
        dp.datasets.simulate_registry("linear2", n_subjects=1)
