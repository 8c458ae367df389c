"""dp.datasets.simulate_reports: its mean is the increment model, its gaps are a chain, its size is the paper's."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from dynapath.datasets import simulate_reports


def model_mean(panel):
    """E y[t] given day t - 1, from the truth (unit, day from the second)."""
    y, z = panel.layers["complete"], panel.layers["incidence"]
    b = panel.obsm["params_true"].to_numpy()
    return y[:, :-1] + b[:, [0]] + b[:, [1]] * y[:, :-1] + b[:, [2]] * z[:, :-1]


@pytest.fixture(scope="module")
def paper():
    return simulate_reports()


def test_gaussian_innovations_are_exactly_the_noise_of_the_model():
    panel = simulate_reports(400, 50, family="normal", sigma=0.7, silent=0)
    e = (panel.layers["complete"][:, 1:] - model_mean(panel)).ravel()
    n = e.size
    assert abs(e.mean()) < 4 * 0.7 / np.sqrt(n)
    assert abs(e.std() / 0.7 - 1) < 4 / np.sqrt(2 * n)
    assert abs(np.corrcoef(e[:-1], e[1:])[0, 1]) < 4 / np.sqrt(n)


def test_the_mean_of_counts_is_that_of_the_increment_model(paper):
    active = ~paper.obs["silent"].to_numpy()
    y, z = paper.layers["complete"][active], paper.layers["incidence"][active]
    e = y[:, 1:] - model_mean(paper)[active]
    # A martingale difference: uncorrelated with everything known the day before. Four standard errors.
    for known in (np.ones_like(e), y[:, :-1], z[:, :-1]):
        score = e * known
        assert abs(score.sum()) < 4 * np.sqrt(np.square(score).sum())


def test_counts_are_whole_and_not_negative(paper):
    values = paper.X[~np.isnan(paper.X)]
    assert (values >= 0).all()
    assert (values == np.round(values)).all()


def test_reports_are_the_complete_values_or_missing(paper):
    reported = ~np.isnan(paper.X)
    np.testing.assert_array_equal(paper.X[reported], paper.layers["complete"][reported])
    assert reported[:, 0].all()


def test_the_default_is_like_the_published_registry(paper):
    missing = np.isnan(paper.X)
    assert paper.shape == (1281, 70)
    assert paper.var_names[0] == "2020-04-16"
    assert paper.var_names[-1] == "2020-06-24"
    assert 0.055 < missing.mean() < 0.075  # published: 6.4 %
    assert 0.32 < (missing.sum(1) == 0).mean() < 0.40  # 36.1 %
    assert 0.02 < (missing.mean(1) > 0.25).mean() < 0.09  # 7 %
    assert 0.1 < paper.layers["incidence"].min()
    assert 15 < paper.layers["incidence"].max() < 200
    b = paper.obsm["params_true"].to_numpy()[~paper.obs["silent"]]
    np.testing.assert_allclose(b.mean(0), [0.01, -0.09, 0.02], atol=0.005)
    assert ((b[:, 1] > -1) & (b[:, 1] < 0)).all()


def test_silent_units_report_zeros():
    panel = simulate_reports(50, 20, silent=0.5)
    silent = panel.obs["silent"].to_numpy()
    assert silent.sum() == 25
    assert (panel.layers["complete"][silent] == 0).all()


def test_the_seed_decides_everything_and_the_global_state_nothing():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, same, other = (simulate_reports(20, 15, random_state=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.X, same.X)
    assert not np.array_equal(one.X, other.X, equal_nan=True)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_it_can_be_written(tmp_path, suffix):
    panel = simulate_reports(5, 6)
    file = tmp_path / f"panel.{suffix}"
    getattr(panel, f"write_{suffix}")(file)
    read = ad.read_h5ad(file) if suffix == "h5ad" else ad.read_zarr(file)
    np.testing.assert_array_equal(read.X, panel.X)
    assert list(read.obsm["params_true"].columns) == ["intercept", "state", "incidence"]
    assert read.uns["truth"]["p_stay"] == panel.uns["truth"]["p_stay"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_units": 0}, "n_units must be a whole number of at least 1"),
        ({"n_days": 1}, "n_days must be a whole number of at least 2"),
        ({"family": "poisson"}, "'counts' or 'normal'; it is 'poisson'"),
        ({"silent": 1.5}, "silent is a share"),
        ({"sigma": -1}, "sigma is a standard deviation"),
        ({"p_start": 2}, "p_start is a probability"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        simulate_reports(**{"n_units": 3, "n_days": 4, **options})
