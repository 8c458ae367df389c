"""Size factors are relative: their unit changes no fit, and counts per unit may be of any size."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi

import dynapath as dp
from dynapath.models import Training

QUICK = Training(static_epochs=2, joint_epochs=2, n_restarts=1, prior_steps=5, n_hidden=8, progress=False)
UNITS = (1e-6, 1e6)

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def dynamic(cells, **kwargs):
    dp.tl.fit_dynamic_vae(cells, time_key="time", size_factor_key="size", training=QUICK, **kwargs)


def static(cells, **kwargs):
    given = {"n_latent": 2, "max_epochs": 3, "key_added": "dynvae", "train_kwargs": {"progress": False}}
    dp.tl.fit_vae(cells, size_factor_key="size", **given, **kwargs)


@pytest.fixture(scope="module")
def plain(simulated):
    cells = simulated.copy()
    dynamic(cells, n_groups=2)
    return cells


@pytest.fixture(scope="module")
def plain_vae(simulated):
    cells = simulated.copy()
    static(cells)
    return cells


def measured_in(cells, unit):
    other = cells.copy()
    other.obs["size"] *= unit
    return other


def test_a_gene_with_more_than_88_counts_per_unit_is_fitted():
    rng = np.random.default_rng(0)
    counts = rng.poisson([100, 5, 5, 5, 5], size=(60, 5)).astype(np.float32)
    obs = pd.DataFrame({"time": np.arange(60) % 4, "size": 1.0}, index=[f"c{i}" for i in range(60)])
    cells = ad.AnnData(counts, obs=obs)
    dynamic(cells, n_groups=1)
    mean = dp.get.model(cells).get_normalized_expression().mean()
    np.testing.assert_allclose(mean, counts.mean(0), rtol=0.2)


@pytest.fixture(scope="module", params=UNITS)
def other(request, simulated):
    """Both fits of the same cells with size factors in another unit, and that unit."""
    cells, static_cells = measured_in(simulated, request.param), measured_in(simulated, request.param)
    dynamic(cells, n_groups=2)
    static(static_cells)
    return cells, static_cells, request.param


def test_the_unit_of_size_factors_does_not_matter_to_a_dynamic_fit(plain, other):
    cells, _, unit = other
    np.testing.assert_allclose(cells.obsm["X_dynvae"], plain.obsm["X_dynvae"], rtol=1e-3, atol=1e-4)
    pd.testing.assert_series_equal(dp.get.history(cells)["elbo"], dp.get.history(plain)["elbo"], rtol=1e-5)


def test_the_unit_of_size_factors_does_not_matter_to_a_count_vae(plain_vae, other):
    _, cells, unit = other
    np.testing.assert_allclose(cells.obsm["X_dynvae"], plain_vae.obsm["X_dynvae"], rtol=1e-3, atol=1e-4)
    pd.testing.assert_series_equal(dp.get.history(cells)["elbo"], dp.get.history(plain_vae)["elbo"], rtol=1e-5)


def test_decoded_genes_are_per_unit_of_the_size_factors(plain, plain_vae, other):
    cells, static_cells, unit = other
    genes = list(plain.var_names[:3])
    one, two = (dp.get.gene_trajectories(fitted, genes, times=[0.5])["mean"] for fitted in (plain, cells))
    np.testing.assert_allclose(two * unit, one, rtol=1e-3)
    for ours, theirs in ((plain, cells), (plain_vae, static_cells)):
        expression = [dp.get.model(fitted, "dynvae").get_normalized_expression().mean() for fitted in (ours, theirs)]
        np.testing.assert_allclose(expression[1] * unit, expression[0], rtol=0.05)


def test_cells_are_drawn_at_the_depth_of_their_size_factor(plain, plain_vae, other):
    cells, static_cells, unit = other
    one, two = (dp.tl.predict_cells(fitted, times=0.5, n_cells=100) for fitted in (plain, cells))
    np.testing.assert_allclose(two.obs["library"] / unit, one.obs["library"], rtol=1e-5)
    np.testing.assert_allclose(two.X.sum(), one.X.sum(), rtol=0.05)
    np.testing.assert_allclose(one.X.sum(1).mean(), plain.obs["library"].mean(), rtol=0.35)
    one, two = (dp.tl.sample_prior(fitted, n_cells=100, key="dynvae") for fitted in (plain_vae, static_cells))
    np.testing.assert_allclose(two.X.sum(), one.X.sum(), rtol=0.05)


def test_a_rebuilt_model_keeps_its_unit_for_some_of_the_cells(plain):
    some = plain[plain.obs["size"] > 1.2].copy()
    np.testing.assert_allclose(dp.get.model(some).library_sizes(), some.obs["size"], rtol=1e-6)
    whole, part = (dp.get.model(cells).get_normalized_expression(some, n_samples=25) for cells in (plain, some))
    np.testing.assert_allclose(part.mean(), whole.mean(), rtol=0.05)


def test_a_model_that_is_taken_over_keeps_its_unit(simulated):
    cells = measured_in(simulated, 50.0)
    scvi.model.SCVI.setup_anndata(cells, size_factor_key="size")
    theirs = scvi.model.SCVI(cells, n_hidden=16, n_latent=2)
    theirs.train(max_epochs=2, enable_progress_bar=False, train_size=1.0)
    given = cells.copy()
    dynamic(given, model=theirs)
    assert given.uns["dynvae"]["params"]["size_unit"] == 1


def test_a_saved_count_vae_keeps_its_unit(simulated, tmp_path):
    cells = measured_in(simulated, 50.0)
    dp.models.CountVAE.setup_anndata(cells, size_factor_key="size")
    model = dp.models.CountVAE(cells, n_latent=2)
    model.train(1, progress=False)
    model.save(str(tmp_path / "model"))
    some = simulated[:40].copy()
    some.obs["size"] *= 50.0
    loaded = dp.models.CountVAE.load(str(tmp_path / "model"), some)
    assert loaded.module.size_unit == pytest.approx(cells.obs["size"].mean())
    np.testing.assert_allclose(loaded.library_sizes(), some.obs["size"], rtol=1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_size_factors_that_are_none_are_refused_with_their_cell(simulated, bad):
    cells = simulated.copy()
    cells.obs.loc[cells.obs_names[3], "size"] = bad
    for fit in (dynamic, static):
        with pytest.raises(ValueError, match=f"positive and finite; cell '{cells.obs_names[3]}'"):
            fit(cells)
    for model in (dp.models.DynamicVAE, dp.models.CountVAE):
        setup = {"time_key": "time"} if model is dp.models.DynamicVAE else {}
        with pytest.raises(ValueError, match=f"positive and finite; cell '{cells.obs_names[3]}'"):
            model.setup_anndata(cells, size_factor_key="size", **setup)
