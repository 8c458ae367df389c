"""dp.tl.fit_vae, sample_prior, sample_posterior: what they write, what they refuse, and what they must not depend on."""

import random
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import dynapath as dp
from dynapath.models import CountVAE, LatentPenalty, LinearCountVAE, Network, Supervision

# Two epochs converge nowhere.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit has not converged:UserWarning"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
]


def fit(adata, **kwargs):
    train_kwargs = {"progress": False, **kwargs.pop("train_kwargs", {})}
    return dp.tl.fit_vae(adata, **{"n_latent": 2, "max_epochs": 2, "train_kwargs": train_kwargs, **kwargs})


@pytest.fixture(scope="module")
def fitted(simulated):
    return fit(simulated, copy=True, batch_key="batch", decoder="linear")


# --- slots -------------------------------------------------------------------------------------------------------------------


def test_every_slot_has_its_shape_and_type(fitted, simulated):
    assert set(fitted.obsm) - set(simulated.obsm) == {"X_vae", "vae_std"}
    assert set(fitted.varm) - set(simulated.varm) == {"vae_loadings"}
    assert set(fitted.uns) - set(simulated.uns) == {"vae"}
    for slot in ("X_vae", "vae_std"):
        assert fitted.obsm[slot].shape == (simulated.n_obs, 2)
        assert fitted.obsm[slot].dtype == np.float32
    assert (fitted.obsm["vae_std"] > 0).all()
    assert fitted.varm["vae_loadings"].shape == (simulated.n_vars, 2)
    stored = fitted.uns["vae"]
    assert {"kind", "params", "state", "history", "versions", "schema", "status"} <= set(stored)
    assert stored["kind"] == "count_vae"
    assert stored["params"]["n_cells"] == simulated.n_obs
    assert list(stored["params"]["genes"]) == list(simulated.var_names)


def test_all_cells_are_trained_on_unless_told_otherwise(cells):
    fit(cells)
    assert not [column for column in dp.get.history(cells, "vae") if column.endswith("_validation")]
    fit(cells, train_kwargs={"train_size": 0.8, "early_stopping": True})
    assert np.isfinite(dp.get.history(cells, "vae")["elbo_validation"]).all()


def test_nothing_of_scvi_is_left_behind_and_data_stay(cells, simulated):
    fit(cells)
    assert not [key for key in [*cells.uns, *cells.obs] if key.startswith("_scvi")]
    assert abs(cells.X - simulated.X).max() == 0
    pd.testing.assert_frame_equal(cells.obs, simulated.obs)


def test_a_copy_leaves_the_input_alone(cells):
    annotated = fit(cells, copy=True)
    assert "X_vae" in annotated.obsm
    assert "X_vae" not in cells.obsm
    assert fit(cells) is None


def test_a_fit_replaces_the_one_before_as_a_whole(cells):
    fit(cells, decoder="linear")
    fit(cells)
    assert "vae_loadings" not in cells.varm
    fit(cells, key_added="other")
    assert {"X_vae", "X_other"} <= set(cells.obsm)


def test_what_a_user_has_written_is_not_overwritten(cells):
    cells.obsm["X_vae"] = np.zeros((cells.n_obs, 2))
    with pytest.raises(ValueError, match=r"key_added='vae' would overwrite obsm\['X_vae'\]"):
        fit(cells)


def test_a_dynamic_fit_is_no_count_vae(cells):
    fit(cells)
    with pytest.raises(ValueError, match="would overwrite"):
        dp.tl.fit_dynamic_vae(cells, time_key="time", key_added="vae", use_rep="Z_true")
    with pytest.raises(KeyError, match=r"uns\['vae'\] is a fit of dp\.tl\.fit_vae, not of dp\.tl\.fit_dynamic_vae"):
        dp.get.dynamics(cells, "vae")


# --- the model in the AnnData ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"batch_key": "batch", "likelihood": "zinb", "library": "encoded", "dispersion": "gene-batch"},
        {"decoder": "linear", "batch_key": "batch"},
        {"latent_penalty": LatentPenalty("tsne", perplexity=10), "network": Network(activation="ELU", n_hidden=8)},
        {"target": "Z_true", "supervision": Supervision(stages=2), "size_factor_key": "size"},
    ],
    ids=["zinb", "linear", "tsne", "target"],
)
def test_the_model_is_rebuilt_from_the_written_file(cells, tmp_path, kwargs, suffix):
    fit(cells, **kwargs)
    path = tmp_path / f"cells.{suffix}"
    getattr(cells, f"write_{suffix}")(path)
    again = getattr(ad, f"read_{suffix}")(path)
    model = dp.get.model(again, "vae")
    assert type(model) is (LinearCountVAE if kwargs.get("decoder") == "linear" else CountVAE)
    mean, std = model.states()
    np.testing.assert_allclose(mean, cells.obsm["X_vae"], atol=1e-6)
    np.testing.assert_allclose(std, cells.obsm["vae_std"], atol=1e-6)
    pd.testing.assert_frame_equal(dp.get.history(again, "vae"), dp.get.history(cells, "vae"))


def test_nothing_stored_is_a_pickle(fitted):
    def leaves(value):
        if isinstance(value, dict):
            return [leaf for item in value.values() for leaf in leaves(item)]
        return [value]

    for leaf in leaves(fitted.uns["vae"]):
        assert isinstance(leaf, (np.ndarray, pd.DataFrame, str, int, float, np.generic)), type(leaf)


def test_the_model_encodes_cells_that_it_was_not_trained_on(simulated):
    train, held = simulated[::2].copy(), simulated[1::2].copy()
    fit(train, batch_key="batch")
    held.uns["vae"] = train.uns["vae"]
    both = simulated.copy()
    both.uns["vae"] = train.uns["vae"]
    z = dp.get.model(both, "vae").states()[0]
    np.testing.assert_allclose(z[::2], train.obsm["X_vae"], atol=1e-6)
    np.testing.assert_allclose(z[1::2], dp.get.model(held, "vae").states()[0], atol=1e-6)


def test_other_genes_are_refused(fitted):
    with pytest.raises(ValueError, match="the fit|The fit 'vae' used"):
        dp.get.model(fitted[:, 1:].copy(), "vae")


def test_loadings_are_a_table_of_genes_and_follow_a_subset(fitted):
    table = dp.get.loadings(fitted)
    assert list(table.columns) == ["vae1", "vae2"]
    assert list(table.index) == list(fitted.var_names)
    np.testing.assert_allclose(table.mean(), 0, atol=1e-6)
    some = fitted[:, :5]
    pd.testing.assert_frame_equal(dp.get.loadings(some), table.iloc[:5])


def test_without_a_linear_decoder_there_are_no_loadings(cells):
    fit(cells)
    with pytest.raises(KeyError, match="its decoder is not linear"):
        dp.get.loadings(cells)


# --- what it must not depend on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [None, LatentPenalty("tsne", perplexity=10), LatentPenalty("umap")], ids=str)
def test_the_same_seed_gives_the_same_bits(cells, penalty):
    one, other = (fit(cells, copy=True, latent_penalty=penalty, random_state=3) for _ in range(2))
    np.testing.assert_array_equal(one.obsm["X_vae"], other.obsm["X_vae"])
    third = fit(cells, copy=True, latent_penalty=penalty, random_state=4)
    assert not np.allclose(one.obsm["X_vae"], third.obsm["X_vae"])


def test_the_session_s_random_state_is_not_touched(cells):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = state()
    fit(cells, latent_penalty=LatentPenalty("umap"))
    dp.tl.sample_prior(cells, n_cells=5)
    dp.tl.sample_posterior(cells)
    assert state() == before


@pytest.mark.parametrize("kind", ["dense", "csc", "layer", "view"])
def test_where_and_how_counts_are_stored_does_not_matter(cells, kind):
    expected = fit(cells, copy=True).obsm["X_vae"]
    kwargs = {}
    if kind == "dense":
        cells.X = cells.X.toarray()
    elif kind == "csc":
        cells.X = sparse.csc_matrix(cells.X)
    elif kind == "layer":
        cells.layers["counts"], cells.X = cells.X.copy(), None
        kwargs = {"layer": "counts"}
    else:
        cells = cells[:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = fit(cells, copy=True, **kwargs).obsm["X_vae"]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_target_is_the_same_as_a_name_an_array_and_a_shuffled_table(cells):
    by_name = fit(cells, copy=True, target="Z_true").obsm["X_vae"]
    by_array = fit(cells, copy=True, target=np.asarray(cells.obsm["Z_true"])).obsm["X_vae"]
    table = pd.DataFrame(np.asarray(cells.obsm["Z_true"]), index=cells.obs_names).sample(frac=1, random_state=0)
    by_table = fit(cells, copy=True, target=table).obsm["X_vae"]
    np.testing.assert_array_equal(by_name, by_array)
    np.testing.assert_array_equal(by_name, by_table)


# --- what shapes do ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stages", [1, 2])
def test_a_target_is_learned_for_cells_that_were_held_out(stages):
    adata = dp.datasets.simulate_snapshots("rotating", n_cells=60, n_genes=100)
    y = np.asarray(adata.obsm["Z_true"])
    y = (y - y[::2].mean(0)) / y[::2].std(0)
    train, held = adata[::2].copy(), adata[1::2].copy()
    fit(train, target="Z_true", supervision=Supervision(stages=stages), max_epochs=120)
    held.uns["vae"] = train.uns["vae"]
    z = dp.get.model(held, "vae").states()[0]
    # Counts of 100 genes leave some of the states open.
    assert 1 - ((z - y[1::2]) ** 2).mean() / y[1::2].var() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tsne", "umap"])
def test_a_penalty_keeps_neighbours_together(kind):
    from sklearn.manifold import trustworthiness

    rng = np.random.default_rng(0)
    # Eight types on the corners of a cube, which two dimensions cannot hold without tearing or folding.
    centre = np.array([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)]) * 2.0
    state = centre[np.arange(800) % 8] + 0.3 * rng.normal(size=(800, 3))
    logits = state @ rng.normal(0, 0.5, (3, 60)) + rng.normal(size=60)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(600 * p).astype(np.float32)))
    adata.obs_names = [f"cell{i}" for i in range(800)]
    scores = {}
    for penalty in (None, LatentPenalty(kind)):
        fit(adata, latent_penalty=penalty, max_epochs=100, train_kwargs={"batch_size": 256})
        scores[penalty] = trustworthiness(state, adata.obsm["X_vae"], n_neighbors=15)
    assert scores[LatentPenalty(kind)] > scores[None] + 0.005


# --- draws -------------------------------------------------------------------------------------------------------------------


def test_draws_from_the_prior_are_counts_of_standard_normal_states(fitted, simulated):
    drawn = dp.tl.sample_prior(fitted, n_cells=2000)
    assert drawn.shape == (2000, simulated.n_vars)
    assert sparse.issparse(drawn.X)
    assert (drawn.X.data == np.round(drawn.X.data)).all()
    z = drawn.obsm["X_vae"]
    # Five standard errors of a mean and of a variance.
    assert np.abs(z.mean(0)).max() < 5 / np.sqrt(2000)
    assert np.abs(z.var(0) - 1).max() < 5 * np.sqrt(2 / 2000)
    assert set(drawn.obs["library"]) <= set(np.asarray(simulated.X.sum(1)).ravel())
    depth = np.asarray(drawn.X.sum(1)).ravel()
    assert abs(depth.mean() / drawn.obs["library"].mean() - 1) < 0.05


def test_draws_are_of_one_batch_on_request(fitted):
    batch = fitted.obs["batch"].astype(str).unique()[0]
    assert (dp.tl.sample_prior(fitted, n_cells=20, batch=batch).obs["batch"].astype(str) == batch).all()
    with pytest.raises(ValueError, match="has no batch 'nowhere'; present"):
        dp.tl.sample_prior(fitted, batch="nowhere")


def test_drawn_cells_have_the_dispersions_of_the_label_that_obs_says(cells):
    cells.obs["half"] = pd.Categorical(np.where(np.arange(cells.n_obs) % 2, "odd", "even"))
    fit(cells, labels_key="half", dispersion="gene-label", max_epochs=1)
    # Counts of one label as good as Poisson, those of the other far from it.
    cells.uns["vae"]["state"]["module"]["px_r"][:] = [6.0, -3.0]
    drawn = dp.tl.sample_prior(cells, n_cells=400)
    zeros = pd.Series((drawn.X.toarray() == 0).mean(1)).groupby(drawn.obs["half"].to_numpy()).mean()
    assert zeros["even"] + 0.1 < zeros["odd"]


def test_a_linear_model_draws_what_its_equation_says(fitted):
    """The mean count of a gene is its library times the softmax of W z + shift."""
    model = dp.get.model(fitted, "vae")
    n = 4000
    origin = np.zeros(n, dtype=int)
    z, values, library = model.sample_prior(origin, random_state=1)
    batch = int(model._codes("batch")[0])
    with torch.no_grad():
        raw = model.module.decoder.factor_regressor(torch.as_tensor(z), torch.full((n, 1), batch))
    expected = (library[:, None] * torch.softmax(raw, -1).numpy()).mean(0)
    # Over-dispersed draws: five standard errors, from the draws themselves.
    assert (np.abs(values.mean(0) - expected) < 5 * values.std(0) / np.sqrt(n) + 1e-3).all()


def test_an_encoded_library_is_drawn_from_its_log_normal_prior(cells):
    fit(cells, library="encoded")
    library = np.log(dp.tl.sample_prior(cells, n_cells=3000).obs["library"])
    seen = np.log(np.asarray(cells.X.sum(1)).ravel())
    assert abs(library.mean() - seen.mean()) < 5 * seen.std() / np.sqrt(3000) + 1e-3
    assert abs(library.std() / seen.std() - 1) < 0.1


def test_replicates_keep_the_cells_and_their_depth(fitted, simulated):
    again = dp.tl.sample_posterior(fitted, random_state=1)
    assert list(again.obs_names) == list(simulated.obs_names)
    assert (again.X.data == np.round(again.X.data)).all()
    depth, seen = np.asarray(again.X.sum(1)).ravel(), np.asarray(simulated.X.sum(1)).ravel()
    assert np.corrcoef(depth, seen)[0, 1] > 0.5
    other = dp.tl.sample_posterior(fitted, random_state=2)
    assert abs(again.X - other.X).max() > 0


def test_without_a_fit_there_is_nothing_to_draw_from(simulated):
    for draw in (dp.tl.sample_prior, dp.tl.sample_posterior):
        with pytest.raises(
            KeyError, match=r"there is no fit in this AnnData\. Run dp\.tl\.fit_vae\(adata, \.\.\.\) first"
        ):
            draw(simulated)


# --- what it refuses ---------------------------------------------------------------------------------------------------------


def test_a_wrong_layer_is_named(cells):
    cells.layers["raw"] = cells.X.copy()
    for likelihood in ("nb", "bernoulli", "normal"):
        with pytest.raises(KeyError, match="layers has no 'counts'; present:.*raw"):
            fit(cells, layer="counts", likelihood=likelihood)


def test_logged_data_are_no_counts(cells):
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    with pytest.raises(ValueError, match=r"looks log-normalised.*Use layer='counts'"):
        fit(cells)


def test_bernoulli_needs_zeros_and_ones(cells):
    with pytest.raises(ValueError, match=r"values other than 0 and 1 \(such as .*binarise them|Binarise them"):
        fit(cells, likelihood="bernoulli")


def test_a_perplexity_too_large_for_the_cells_is_refused(cells):
    few = cells[:40].copy()
    with pytest.raises(ValueError, match="perplexity=20 needs 60 neighbours of each of 40 cells; it can be at most 13"):
        fit(few, latent_penalty=LatentPenalty("tsne", perplexity=20))


def test_a_perplexity_too_large_for_the_minibatch_is_refused(cells):
    with pytest.raises(ValueError, match="perplexity=30 is more than the 19 other cells of a minibatch"):
        fit(cells, latent_penalty="tsne", train_kwargs={"batch_size": 20})


def test_a_target_with_missing_values_names_the_first_cell(cells):
    cells.obsm["Z"] = np.asarray(cells.obsm["Z_true"]).copy()
    cells.obsm["Z"][[3, 7], 0] = np.nan
    with pytest.raises(ValueError, match=rf"obsm\['Z'\] has NaN or infinite values in 2 .*{cells.obs_names[3]!r}"):
        fit(cells, target="Z")


def test_a_target_with_missing_rows_names_one(cells):
    table = pd.DataFrame(np.asarray(cells.obsm["Z_true"]), index=cells.obs_names).drop(cells.obs_names[5])
    with pytest.raises(ValueError, match=f"has no row for 1 of {cells.n_obs} cells, such as {cells.obs_names[5]!r}"):
        fit(cells, target=table)
    with pytest.raises(ValueError, match=f"must have one row for each of {cells.n_obs} cells"):
        fit(cells, target=table.to_numpy())


def test_a_target_that_is_not_there_is_named(cells):
    with pytest.raises(KeyError, match="obsm has no 'X_umap'.*present"):
        fit(cells, target="X_umap")


def test_a_target_with_more_dimensions_than_the_latent_space_is_refused(cells):
    with pytest.raises(ValueError, match="has 2 dimensions, more than n_latent=1"):
        fit(cells, target="Z_true", n_latent=1)


@pytest.mark.parametrize("penalty", [LatentPenalty("tsne", perplexity=10), LatentPenalty("umap")], ids=["tsne", "umap"])
def test_a_penalty_in_many_dimensions_is_warned_of(cells, penalty):
    with pytest.warns(UserWarning, match="made for two or three dimensions.*n_latent=4"):
        fit(cells, latent_penalty=penalty, n_latent=4)
    assert "two or three dimensions" in cells.uns["vae"]["messages"][0]


def test_minibatches_that_hold_hardly_any_neighbours_are_warned_of():
    from dynapath.read.cells import warn_about_penalty

    with pytest.warns(UserWarning, match="A cell has 0.23 of its neighbours within a minibatch"):
        warn_about_penalty("tsne", 2, 90 * 256 / 100_000)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"n_latent": 0}, "n_latent must be a positive whole number; it is 0"),
        ({"likelihood": "gaussian"}, "likelihood must be one of 'nb', 'zinb', 'poisson', 'normal', 'bernoulli'"),
        ({"decoder": "deep"}, "decoder must be 'mlp' or 'linear'; it is 'deep'"),
        ({"library": "none"}, "counts \\('nb'\\) need their depth"),
        ({"library": "latent"}, "library must be 'observed', 'encoded' or 'none'"),
        ({"latent_distribution": "t"}, "latent_distribution must be 'normal' or 'ln'"),
        ({"latent_distribution": "ln", "latent_penalty": "tsne"}, "on a simplex, which cannot be shaped"),
        ({"latent_penalty": "pca"}, r"LatentPenalty\(kind=...\) must be 'tsne' or 'umap'; it is 'pca'"),
        ({"supervision": Supervision()}, "there is none. Give target="),
        ({"dispersion": "gene-label"}, "needs labels_key"),
        ({"decoder": "linear", "size_factor_key": "size"}, "takes no size_factor_key"),
        ({"decoder": "linear", "dispersion": "gene-cell"}, "needs a decoder with hidden units"),
        ({"network": Network(activation="relu6x")}, "torch.nn has no such class"),
        ({"max_epochs": 0}, "max_epochs must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_written(cells, kwargs, said):
    before = set(cells.obsm) | set(cells.uns)
    with pytest.raises(ValueError, match=said):
        fit(cells, **kwargs)
    assert set(cells.obsm) | set(cells.uns) == before


def test_missing_batches_and_bad_size_factors_are_refused(cells):
    cells.obs["sample"] = cells.obs["batch"].astype(object)
    cells.obs.loc[cells.obs_names[0], "sample"] = None
    with pytest.raises(ValueError, match="is missing for 1 cells"):
        fit(cells, batch_key="sample")
    cells.obs.loc[cells.obs_names[2], "size"] = 0
    with pytest.raises(ValueError, match=f"must be positive and finite; cell {cells.obs_names[2]!r}"):
        fit(cells, size_factor_key="size")
    with pytest.raises(KeyError, match=r"obs has no column 'nope' \(batch_key\)"):
        fit(cells, batch_key="nope")


def test_options_are_stored_as_they_were_given(cells):
    fit(cells, latent_penalty=LatentPenalty("umap", min_dist=0.2), target="Z_true", supervision=Supervision(weight=3.0))
    params = cells.uns["vae"]["params"]
    assert params["latent_penalty"]["min_dist"] == 0.2
    assert params["target"] == "Z_true"
    assert params["supervision"]["weight"] == 3.0
