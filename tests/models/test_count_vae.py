"""Count VAEs as models: the same as scvi-tools' where nothing was added, and what was added."""

import numpy as np
import pytest
import scipy.stats as st
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from scipy import sparse
from torch.autograd import gradcheck

import dynapath as dp
from dynapath.models import CountVAE, LatentPenalty, LinearCountVAE, Network, Supervision
from dynapath.models._count_module import Bernoulli
from dynapath.models._random import isolated_seed
from dynapath.models.count_vae import check_linear, default_epochs, standardised

pytestmark = pytest.mark.filterwarnings("ignore:Last batch will have a small size:UserWarning")


@pytest.fixture(scope="module")
def cells():
    return dp.datasets.simulate_snapshots("rotating", n_cells=20, n_genes=30, batch_effect=True)


def built(cls, adata, setup=None, **kwargs):
    with isolated_seed(0):
        adata = adata.copy()
        cls.setup_anndata(adata, **(setup or {}))
        return cls(adata, **kwargs)


# Small data need many steps, or larger ones.
FAST = {"progress": False, "plan_kwargs": {"lr": 5e-3}}


# --- the same as scvi-tools' -------------------------------------------------------------------------------------------------

SAME = {
    "nb": (CountVAE, scvi.model.SCVI, {"likelihood": "nb"}, {"gene_likelihood": "nb"}),
    "zinb, encoded library, dispersion by batch": (
        CountVAE,
        scvi.model.SCVI,
        {"likelihood": "zinb", "library": "encoded", "dispersion": "gene-batch"},
        {"gene_likelihood": "zinb", "use_observed_lib_size": False, "dispersion": "gene-batch"},
    ),
    "poisson, logistic normal": (
        CountVAE,
        scvi.model.SCVI,
        {"likelihood": "poisson", "latent_distribution": "ln"},
        {"gene_likelihood": "poisson", "latent_distribution": "ln"},
    ),
    "normal": (CountVAE, scvi.model.SCVI, {"likelihood": "normal", "library": "observed"}, {"gene_likelihood": "normal"}),
    "another network": (
        CountVAE,
        scvi.model.SCVI,
        {"network": Network(n_hidden=16, n_layers=2, batch_norm="encoder", layer_norm="decoder", activation="ELU", bias="decoder")},
        {
            "gene_likelihood": "nb",
            "n_hidden": 16,
            "n_layers": 2,
            "use_batch_norm": "encoder",
            "use_layer_norm": "decoder",
            "extra_encoder_kwargs": {"activation_fn": torch.nn.ELU, "bias": False},
            "extra_decoder_kwargs": {"activation_fn": torch.nn.ELU},
        },
    ),
    "linear": (LinearCountVAE, scvi.model.LinearSCVI, {}, {"use_observed_lib_size": True}),
    "linear, encoded library": (LinearCountVAE, scvi.model.LinearSCVI, {"library": "encoded"}, {}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", SAME)
def test_the_elbo_trace_is_that_of_scvi_tools(cells, case):
    ours, theirs, own, given = SAME[case]
    # Their plan, their split, their validation.
    settings = {"train_size": 0.9, "check_val_every_n_epoch": 1, "plan_kwargs": {"n_epochs_kl_warmup": 400}}
    if own.get("likelihood") == "normal":
        own = {**own, "network": Network(log_input=True)}
    one = built(ours, cells, {"batch_key": "batch"}, n_latent=3, **own)
    one.train(4, random_state=0, progress=False, **settings)
    other = built(theirs, cells, {"batch_key": "batch"}, n_latent=3, **given)
    with isolated_seed(0):
        other.train(4, enable_progress_bar=False, **settings)
    for name in ("elbo_train", "reconstruction_loss_train", "kl_local_train", "elbo_validation"):
        # Sums over minibatches, in another order.
        np.testing.assert_allclose(*(model.history[name].to_numpy(dtype=float) for model in (one, other)), rtol=1e-6)
    for ours_, theirs_ in zip(*(m.get_latent_representation(return_dist=True) for m in (one, other)), strict=True):
        np.testing.assert_array_equal(ours_, theirs_)


def test_epochs_are_those_of_scvi_tools():
    heuristic = pytest.importorskip("scvi.model._utils").get_max_epochs_heuristic
    assert [default_epochs(n) for n in (10, 7480, 20_000, 33_333, 1_000_000)] == [
        heuristic(n) for n in (10, 7480, 20_000, 33_333, 1_000_000)
    ]


# --- likelihoods -------------------------------------------------------------------------------------------------------------


def log_likelihood(model, adata):
    """log p(x | z) of the model (cell, gene), its parameters, and x."""
    module = model.module.double()
    tensors = next(iter(model._make_data_loader(adata=model.adata, batch_size=adata.n_obs)))
    tensors = {k: v.double() if v.dtype == torch.float32 else v for k, v in tensors.items()}
    with torch.no_grad():
        _, outputs = module(tensors, compute_loss=False)
    x = tensors["X"]
    return outputs["px"].log_prob(x).numpy(), outputs["px"], x.numpy()


@pytest.mark.parametrize("cls", [CountVAE, LinearCountVAE])
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_counts_have_the_probability_that_scipy_gives_them(cells, cls, likelihood):
    ours, px, x = log_likelihood(built(cls, cells, likelihood=likelihood, n_latent=2), cells)
    mean = (px.rate if likelihood == "poisson" else px.mu).numpy()
    if likelihood == "poisson":
        expected = st.poisson.logpmf(x, mean)
    else:
        theta = np.broadcast_to(px.theta.numpy(), mean.shape)
        expected = st.nbinom.logpmf(x, theta, theta / (theta + mean))
    if likelihood == "zinb":
        gate = px.zi_probs.numpy()
        expected = np.log(gate * (x == 0) + (1 - gate) * np.exp(expected))
    # scvi-tools adds 1e-8 within its logarithms.
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cls", [CountVAE, LinearCountVAE])
@pytest.mark.parametrize("library", ["none", "observed"])
def test_binary_values_have_the_probability_that_scipy_gives_them(cells, cls, library):
    binary = cells.copy()
    binary.X = (binary.X > 0).astype(np.float32)
    model = built(cls, binary, likelihood="bernoulli", library=library, n_latent=2)
    ours, px, x = log_likelihood(model, binary)
    np.testing.assert_allclose(ours, st.bernoulli.logpmf(x, px.probs.numpy()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cls", [CountVAE, LinearCountVAE])
def test_continuous_values_have_the_density_that_scipy_gives_them(cells, cls):
    rng = np.random.default_rng(0)
    scaled = cells.copy()
    scaled.X = rng.normal(size=cells.shape).astype(np.float32)
    model = built(cls, scaled, {"counts": False}, likelihood="normal", n_latent=2)
    ours, px, x = log_likelihood(model, scaled)
    sd = np.exp(model.module.px_r.detach().numpy())
    np.testing.assert_allclose(ours, st.norm.logpdf(x, px.loc.numpy(), sd), rtol=1e-6, atol=1e-9)
    # Means of both signs: no softmax stands between.
    assert px.loc.min() < 0 < px.loc.max()


def test_with_a_library_the_odds_are_the_library_times_a_softmax(cells):
    binary = cells.copy()
    binary.X = (binary.X > 0).astype(np.float32)
    _, px, x = log_likelihood(built(CountVAE, binary, likelihood="bernoulli", library="observed", n_latent=2), binary)
    odds = px.probs / (1 - px.probs)
    np.testing.assert_allclose(odds.sum(1), x.sum(1), rtol=1e-6)


def test_bernoulli_gradients():
    x = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    logits = torch.tensor([-2.0, 0.3, 40.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda at: Bernoulli(logits=at).log_prob(x), logits)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_probabilities_of_binary_values_are_recovered(decoder):
    # Three types of cells with genes on with probability .1 or .6; 200 cells each, so that a proportion has a standard error
    # of .035, and the largest of 90 errors is about .1.
    rng = np.random.default_rng(0)
    p = np.full((3, 30), 0.1)
    for k in range(3):
        p[k, 10 * k : 10 * k + 10] = 0.6
    kind = np.repeat(np.arange(3), 200)
    adata = dp.datasets.simulate_snapshots("rotating", n_cells=40, n_genes=30)
    adata.X = (rng.random((600, 30)) < p[kind]).astype(np.float32)
    dp.tl.fit_vae(adata, likelihood="bernoulli", decoder=decoder, n_latent=2, max_epochs=100, train_kwargs=FAST)
    model = dp.get.model(adata, "vae")
    fitted = model.get_normalized_expression(return_numpy=True, silent=True)
    means = np.stack([fitted[kind == k].mean(0) for k in range(3)])
    assert np.abs(means - p).max() < 0.15
    again = dp.tl.sample_posterior(adata)
    assert abs(again.X.mean() - adata.X.mean()) < 0.02


# --- what shapes the latent space --------------------------------------------------------------------------------------------


def test_a_penalty_of_weight_zero_changes_nothing(cells):
    one = built(CountVAE, cells, n_latent=2, latent_penalty=LatentPenalty("tsne", weight=0.0, perplexity=10))
    one.train(3, progress=False, batch_size=128)
    other = built(CountVAE, cells, n_latent=2)
    other.train(3, progress=False, batch_size=128)
    np.testing.assert_array_equal(one.get_latent_representation(), other.get_latent_representation())


@pytest.mark.parametrize(("kind", "more"), [("tsne", {"perplexity": 10, "exaggeration": 1}), ("umap", {})])
@pytest.mark.parametrize("cls", [CountVAE, LinearCountVAE])
def test_the_loss_is_the_elbo_and_the_weighted_penalty(cells, cls, kind, more):
    model = built(cls, cells, n_latent=2, latent_penalty=LatentPenalty(kind, weight=7.0, **more))
    model.train(3, progress=False, plan_kwargs={"n_epochs_kl_warmup": None, "min_kl_weight": 1.0})
    table = model.history_table()
    np.testing.assert_allclose(table["loss"], table["elbo"] + 7 * table[kind], rtol=1e-5)
    np.testing.assert_allclose(table["elbo"], table["reconstruction"] + table["kl"], rtol=1e-6)


def test_the_loss_is_the_elbo_and_the_weighted_distance_to_the_target(cells):
    adata = cells.copy()
    model = built(CountVAE, adata, n_latent=3, target_key="Z_true", supervision=Supervision(weight=5.0))
    model.train(3, progress=False, plan_kwargs={"n_epochs_kl_warmup": None, "min_kl_weight": 1.0})
    table = model.history_table()
    np.testing.assert_allclose(table["loss"], table["elbo"] + 5 * table["target"], rtol=1e-5)


def test_exaggeration_ends(cells):
    penalty = LatentPenalty("tsne", perplexity=10, exaggeration=12, exaggeration_epochs=50)
    model = built(CountVAE, cells, n_latent=2, latent_penalty=penalty)
    model.train(12, progress=False, plan_kwargs={"n_epochs_kl_warmup": None, "min_kl_weight": 1.0})
    table = model.history_table()
    # A quarter of the epochs at most. Of 12 cross-entropies a divergence is less than a twelfth.
    penalty = (table["loss"] - table["elbo"]) / 3
    assert (penalty[:3] > 12 * table["tsne"][:3]).all()
    np.testing.assert_allclose(penalty[3:], table["tsne"][3:], rtol=1e-4)


def test_the_scale_is_learned(cells):
    model = built(CountVAE, cells, n_latent=2, latent_penalty=LatentPenalty("tsne", perplexity=10))
    assert float(model.module.shape.scale) == 1
    model.train(30, progress=False)
    assert float(model.module.shape.scale) > 1.05


def test_without_a_scale_there_is_none_to_learn(cells):
    penalty = LatentPenalty("tsne", perplexity=10, scaled=False)
    model = built(CountVAE, cells, n_latent=2, latent_penalty=penalty)
    model.train(2, progress=False)
    assert float(model.module.shape.scale) == 1
    assert "shape.raw_scale" not in model.module.state_dict()


def test_in_two_stages_the_means_stay_where_the_first_put_them(cells):
    model = built(CountVAE, cells, n_latent=2, target_key="Z_true", supervision=Supervision(stages=2))
    kept = {}

    class Keep(Callback):
        def on_train_start(self, trainer, plan):
            kept[plan.module.stage] = {k: v.clone() for k, v in plan.module.state_dict().items()}

    model.train(6, progress=False, callbacks=[Keep()])
    after = model.module.state_dict()
    means = [name for name in after if name.startswith(("z_encoder.encoder", "z_encoder.mean_encoder"))]
    for name in after:
        same = torch.equal(after[name], kept["decoder"][name])
        if name in means:
            assert same, name
    assert not torch.equal(after["z_encoder.var_encoder.weight"], kept["decoder"]["z_encoder.var_encoder.weight"])
    assert not torch.equal(after["px_r"], kept["decoder"]["px_r"])
    # And in the first, nothing but the means learned.
    assert torch.equal(kept["decoder"]["px_r"], kept["encoder"]["px_r"])
    assert torch.equal(kept["decoder"]["z_encoder.var_encoder.weight"], kept["encoder"]["z_encoder.var_encoder.weight"])
    assert not torch.equal(kept["decoder"][means[0]], kept["encoder"][means[0]])
    assert model.history_table()["phase"].tolist() == ["encoder"] * 3 + ["decoder"] * 6


def test_after_training_nothing_of_its_cells_is_left(cells):
    model = built(CountVAE, cells, n_latent=2, latent_penalty=LatentPenalty("tsne", perplexity=10))
    model.train(2, progress=False)
    assert model.module.shape.index is None
    # So that cells of another AnnData are not taken for those.
    few = cells[:7].copy()
    assert np.isfinite(float(model.get_elbo(few)))


def test_the_step_size_that_was_too_large_is_named(cells):
    with pytest.raises(FloatingPointError, match=r"step size that is too large \(lr=1e\+30\).*plan_kwargs"):
        built(CountVAE, cells).train(2, progress=False, plan_kwargs={"lr": 1e30})


def test_one_cell_left_over_does_not_stop_the_training(cells):
    model = built(CountVAE, cells[:129].copy(), n_latent=2)
    model.train(2, progress=False, batch_size=128)
    assert np.isfinite(model.history_table()["loss"]).all()


def test_a_target_is_standardised():
    y = standardised(np.random.default_rng(0).normal(3, [1, 20], (500, 2)))
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(0), 1)
    assert (standardised(np.full((5, 1), 3.0)) == 0).all()


def test_it_is_saved_and_loaded_as_scvi_tools_models_are(cells, tmp_path):
    model = built(CountVAE, cells, n_latent=2, latent_penalty=LatentPenalty("tsne", perplexity=10))
    model.train(2, progress=False)
    model.save(tmp_path / "model", save_anndata=True)
    again = CountVAE.load(tmp_path / "model")
    np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())


# --- linear decoder ----------------------------------------------------------------------------------------------------------


def test_loadings_are_what_the_decoder_does(cells):
    model = built(LinearCountVAE, cells, {"batch_key": "batch"}, n_latent=2)
    model.train(3, progress=False)
    module = model.module.eval()
    z = torch.eye(3, 2)  # unit steps in both dimensions, and none
    with torch.no_grad():
        raw = module.decoder.factor_regressor(z, torch.zeros(3, 1, dtype=torch.long))
    steps = (raw[:2] - raw[2]).T.numpy()
    np.testing.assert_allclose(model.centred_loadings(), steps - steps.mean(0), atol=1e-5)


def factors(n_cells=1000, n_genes=100, d=3, seed=0):
    """Counts whose log proportions are linear in z ~ N(0, I)."""
    rng = np.random.default_rng(seed)
    W, z = 0.5 * rng.normal(size=(n_genes, d)), rng.normal(size=(n_cells, d))
    logits = rng.normal(size=n_genes) + z @ W.T
    p = np.exp(logits)
    p /= p.sum(1, keepdims=True)
    library = rng.lognormal(7, 0.3, (n_cells, 1))
    return sparse.csr_matrix(rng.poisson(library * p).astype(np.float32)), W


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_centred_loadings_span_the_simulated_factors(seed):
    import anndata as ad
    from scipy.linalg import subspace_angles

    counts, W = factors(seed=seed)
    adata = ad.AnnData(counts)
    adata.var_names = [f"gene{g}" for g in range(adata.n_vars)]
    dp.tl.fit_vae(adata, decoder="linear", n_latent=3, max_epochs=100, random_state=seed, train_kwargs=FAST)
    angles = np.rad2deg(subspace_angles(W - W.mean(0), dp.get.loadings(adata).to_numpy()))
    assert angles.max() <= 20


@pytest.mark.parametrize(
    ("dispersion", "network", "said"),
    [
        ("gene-cell", Network(), "dispersion='gene-cell' needs a decoder with hidden units"),
        ("gene", Network(activation="ELU"), "activation cannot be 'ELU'"),
        ("gene", Network(batch_norm="none"), "batch_norm cannot be 'none'"),
    ],
)
def test_what_a_linear_decoder_does_not_have_is_refused(dispersion, network, said):
    with pytest.raises(ValueError, match=said):
        check_linear(dispersion, network)
