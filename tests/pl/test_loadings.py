import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import dynapath as dp


@pytest.fixture(scope="module")
def linear():
    """A fit with loadings that are known: those of dimension 1 fall with the number of the gene."""
    adata = dp.datasets.simulate_snapshots("crossing", n_cells=10, n_genes=12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.tl.fit_vae(adata, n_latent=2, decoder="linear", max_epochs=1, train_kwargs={"progress": False})
    adata.varm["vae_loadings"] = np.stack([np.linspace(1.1, -1.0, 12), np.full(12, 0.5)], 1).astype(np.float32)
    return adata


def drawn(ax):
    """Loadings of the genes, from below."""
    points = next(artist for artist in ax.collections if artist.get_gid() == "genes")
    return points.get_offsets()


def test_the_genes_with_the_largest_loadings_are_drawn_in_order(linear):
    first, _ = dp.pl.loadings(linear, n_genes=4, show=False)
    names = [tick.get_text() for tick in first.get_yticklabels()]
    genes = list(linear.var_names)
    # Of 1.1, .91, ..., -.81, -1 the largest without their sign, sorted with it.
    assert names == [genes[11], genes[10], genes[1], genes[0]]
    np.testing.assert_allclose(drawn(first)[:, 0], linear.varm["vae_loadings"][[11, 10, 1, 0], 0], rtol=1e-6)


def test_there_are_never_more_genes_than_there_are(linear):
    first, _ = dp.pl.loadings(linear, n_genes=100, show=False)
    assert len(drawn(first)) == 12


def test_signs_have_colours_of_their_own(linear):
    first, second = dp.pl.loadings(linear, show=False)
    colors = next(artist for artist in first.collections if artist.get_gid() == "genes").get_facecolors()
    assert len(np.unique(colors, axis=0)) == 2
    colors = next(artist for artist in second.collections if artist.get_gid() == "genes").get_facecolors()
    assert len(np.unique(colors, axis=0)) == 1


def test_dimensions_are_counted_from_one(linear):
    (panel,) = dp.pl.loadings(linear, dims=2, show=False)
    assert panel.get_title(loc="left") == "latent dimension 2"
    with pytest.raises(ValueError, match="the fit 'vae' has 2; 3 is not one of them"):
        dp.pl.loadings(linear, dims=[1, 3], show=False)


def test_it_draws_on_given_axes_and_hands_the_figure_over(linear):
    figure, axes = plt.subplots(1, 2)
    got = dp.pl.loadings(linear, axes=axes, show=False)
    assert list(got) == list(axes)
    assert isinstance(dp.pl.loadings(linear, return_fig=True), Figure)
    with pytest.raises(ValueError, match="axes must be 2 Axes"):
        dp.pl.loadings(linear, axes=axes[0], show=False)


def test_a_fit_without_loadings_is_refused(adata):
    with pytest.raises(KeyError, match=r"uns has no fit of dp\.tl\.fit_vae; fits of another kind: 'dynvae'"):
        dp.pl.loadings(adata, show=False)
    with pytest.raises(KeyError, match=r"uns\['dynvae'\] is a fit of dp\.tl\.fit_dynamic_vae, not of dp\.tl\.fit_vae"):
        dp.pl.loadings(adata, key="dynvae", show=False)
