import numpy as np
import pytest

import dynapath as dp


def test_the_outline_is_that_of_the_publication_turned_upright():
    points = dp.datasets.elephant(8)
    t = points.obs["angle"].to_numpy()
    x = 50 * np.sin(t) + 18 * np.sin(2 * t) + 12 * np.cos(3 * t) - 14 * np.cos(5 * t)
    y = -60 * np.cos(t) - 30 * np.sin(t) + 8 * np.sin(2 * t) - 10 * np.sin(3 * t)
    np.testing.assert_allclose(points.X, np.column_stack([y, -x]), atol=1e-12)
    np.testing.assert_array_equal(points.uns["truth"]["real"], [50, 18, 12, -14, 40])


def test_only_the_trunk_swings_and_its_tip_by_the_fifth_parameter():
    still, raised = dp.datasets.elephant(1000), dp.datasets.elephant(1000, swing=0.5)
    lift = raised.X[:, 1] - still.X[:, 1]
    assert lift.max() == pytest.approx(20, rel=1e-3)
    np.testing.assert_allclose(lift, 20 * still.obs["trunk"], atol=1e-12)
    # The trunk is what reaches farthest to the right.
    assert still.obs["trunk"].iloc[still.X[:, 0].argmax()] > 0.9
    assert (lift[still.X[:, 0] < 0] == 0).all()


def test_noise_has_its_standard_deviation_and_its_seed():
    noisy = dp.datasets.elephant(2000, noise=3.0)
    assert (noisy.X - noisy.layers["true"]).std() == pytest.approx(3.0, rel=0.05)
    np.testing.assert_array_equal(noisy.X, dp.datasets.elephant(2000, noise=3.0).X)
    assert (dp.datasets.elephant(2000, noise=3.0, random_state=1).X != noisy.X).any()


def test_its_four_parameters_are_recovered_from_points():
    import torch

    points = dp.datasets.elephant(300, noise=2.0)

    def program(p, X, angle):
        a, b = p["real"], p["imaginary"]
        x = (
            a[0] * torch.sin(angle)
            + a[1] * torch.sin(2 * angle)
            + a[2] * torch.cos(3 * angle)
            + a[3] * torch.cos(5 * angle)
        )
        y = (
            b[3] * torch.cos(angle)
            + b[0] * torch.sin(angle)
            + b[1] * torch.sin(2 * angle)
            + b[2] * torch.sin(3 * angle)
        )
        return X - torch.stack([y, -x], -1)

    start = {"real": np.zeros(4), "imaginary": np.zeros(4)}
    fitted = dp.stats.estimate(program, points, params=start, per="all", kind="residuals", key_added=None)
    for part in ("real", "imaginary"):
        # every number is known to 2 sqrt(2 / 300) = .16
        np.testing.assert_allclose(fitted.se[part], 2 * np.sqrt(2 / 300), rtol=0.1)
        assert (np.abs(fitted.params[part] - points.uns["truth"][part][:4]) < 4 * fitted.se[part]).all()


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        dp.datasets.elephant(2)
    with pytest.raises(ValueError, match="not negative"):
        dp.datasets.elephant(noise=-1)
