"""The dynamic VAE as an scvi-tools model: its losses against other formulas, training, saving, taking over an SCVI."""

import random
import warnings

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from scipy import sparse
from scipy.integrate import quad_vec
from scipy.linalg import expm
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, nbinom, norm, poisson

from dynapath.datasets import simulate_snapshots
from dynapath.models import DynamicVAE, Prior, Training

TINY = Training(static_epochs=2, joint_epochs=2, n_restarts=2, prior_steps=20, n_hidden=16, progress=False)


@pytest.fixture(scope="module")
def simulated():
    cells = simulate_snapshots("rotating", n_cells=20, n_genes=30, batch_effect=True)
    cells.obs["type"] = pd.Categorical(
        np.where(np.arange(cells.n_obs) % 3, "unlabelled", "t" + cells.obs["group"].astype(str))
    )
    cells.obs["size"] = cells.obs["library"] / cells.obs["library"].mean()
    return cells


@pytest.fixture
def cells(simulated):
    return simulated.copy()


def built(cells, setup=None, **kwargs):
    DynamicVAE.setup_anndata(cells, "time", **(setup or {}))
    return DynamicVAE(cells, **{"training": TINY, **kwargs})


@pytest.fixture(scope="module")
def trained(simulated):
    model = built(simulated.copy(), {"batch_key": "batch"})
    model.train()
    return model


@pytest.fixture(scope="module")
def trained_scvi(simulated):
    cells = simulated.copy()
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, n_hidden=16, n_latent=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=2, enable_progress_bar=False, train_size=1.0)
    return model


def minibatch(model):
    return next(iter(model._make_data_loader(adata=model.adata, indices=np.arange(25), batch_size=25)))


def weights(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


# --- an scvi-tools model ---------------------------------------------------------------------------------------------------


def test_the_latent_space_has_a_mean_and_a_variance_for_each_cell(trained):
    mean = trained.get_latent_representation()
    assert mean.shape == (300, 2)
    same, variance = trained.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(same, mean)
    assert (variance > 0).all()


def test_normalised_expression_sums_to_one(trained):
    expression = trained.get_normalized_expression(n_samples=1)
    assert list(expression.columns) == list(trained.adata.var_names)
    np.testing.assert_allclose(expression.sum(axis=1), 1, rtol=1e-5)


def test_history_has_a_row_for_each_epoch_and_names_its_terms(trained):
    history = trained.history_table()
    assert history["phase"].tolist() == ["static"] * 2 + ["joint"] * 2
    assert np.isfinite(history[["loss", "elbo", "reconstruction", "kl"]].to_numpy()).all()
    joint = history[history["phase"] == "joint"]
    terms = ["reconstruction", "kl", "ridge", "growth", "decoder"]
    # The mean over minibatches of the loss is that of its terms, each weighted by its number of cells.
    np.testing.assert_allclose(joint["loss"], joint[terms].sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(history["elbo"], history["reconstruction"] + history["kl"], rtol=1e-5)


def test_training_leaves_the_module_in_evaluation_mode_and_the_joint_phase(trained):
    assert not trained.module.training
    assert trained.module.phase == "joint"
    assert trained.is_trained_


def test_every_epoch_trains_in_training_mode(cells):
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            modules = [module.training for module in pl_module.module.modules()]
            seen.append((pl_module.module.phase, all(modules)))

    built(cells).train(callbacks=[Watch()])
    assert {("static", True), ("joint", True)} == set(seen)


def test_dynamics_are_learned_in_the_joint_phase_alone(cells):
    model = built(cells)
    at_start = weights(model)
    snapshots = {}

    class Watch(Callback):
        def on_train_end(self, trainer, pl_module):
            snapshots[model.module.phase] = weights(model)

        def on_train_start(self, trainer, pl_module):
            snapshots[model.module.phase + " start"] = weights(model)

    model.train(callbacks=[Watch()])
    for name in at_start:
        moved = not torch.equal(snapshots["joint"][name], snapshots["joint start"][name])
        assert moved, name
        if name.startswith("prior."):
            assert torch.equal(snapshots["static"][name], at_start[name])


def test_static_training_alone_takes_all_epochs_and_leaves_the_dynamics_alone(cells):
    model = built(cells)
    before = weights(model)
    model.train(static_only=True)
    after = weights(model)
    assert model.history_table()["phase"].tolist() == ["static"] * (TINY.static_epochs + TINY.joint_epochs)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("prior."))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not model.module.training
    assert not model.restarts_


def test_saved_and_loaded_with_data_it_is_the_same_model(trained, simulated, tmp_path):
    trained.save(tmp_path / "model")
    loaded = DynamicVAE.load(tmp_path / "model", simulated.copy(), accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent_representation(), trained.get_latent_representation())
    pd.testing.assert_frame_equal(loaded.history_table(), trained.history_table())
    np.testing.assert_array_equal(loaded.observed_times, trained.observed_times)
    grid = [0.0, 0.4, 1.2]
    np.testing.assert_array_equal(loaded.dynamics.trajectories(grid).mean, trained.dynamics.trajectories(grid).mean)
    assert loaded.module.phase == "joint"


def test_saved_with_its_data_it_loads_alone(trained, tmp_path):
    trained.save(tmp_path / "model", save_anndata=True)
    loaded = DynamicVAE.load(tmp_path / "model", accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent_representation(), trained.get_latent_representation())


def test_loaded_without_data_it_still_knows_the_dynamics(trained, tmp_path):
    trained.save(tmp_path / "model")
    loaded = DynamicVAE.load(tmp_path / "model", adata=False, accelerator="cpu")
    np.testing.assert_array_equal(loaded.dynamics.trajectories([0.5]).mean, trained.dynamics.trajectories([0.5]).mean)


def test_cells_of_one_time_are_encoded_as_they_were(trained, simulated):
    late = simulated[simulated.obs["time"] == 0.75].copy()
    expected = trained.get_latent_representation()[simulated.obs["time"] == 0.75]
    np.testing.assert_allclose(trained.get_latent_representation(late), expected, rtol=1e-5, atol=1e-6)
    # The scale of time is that of the fit, not that of the single snapshot.
    assert trained._scaled_times(late).tolist() == [0.75] * 60


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_every_likelihood_trains(cells, likelihood):
    model = built(cells, likelihood=likelihood)
    model.train()
    assert np.isfinite(model.history_table()["loss"]).all()
    assert model.module.gene_likelihood == likelihood
    counts = model.decode(np.zeros((5, 2)), np.full(5, 1000.0), random_state=0)
    assert (counts.data == np.round(counts.data)).all()


@pytest.mark.parametrize(
    "setup",
    [
        {"batch_key": "batch"},
        {"size_factor_key": "size"},
        {"labels_key": "type"},
        {"layer": "raw"},
        {"layer": "raw", "batch_key": "batch", "size_factor_key": "size", "labels_key": "type"},
    ],
    ids="-".join,
)
def test_every_column_of_the_setup_trains(cells, setup):
    cells.layers["raw"] = cells.X.copy()
    model = built(cells, setup)
    model.train()
    assert np.isfinite(model.history_table()["loss"]).all()


@pytest.mark.parametrize("growth", ["shrunk", "free", "off"])
@pytest.mark.parametrize("prior", [Prior(), Prior(share="A,b", tie_initial=True)], ids=["full", "shared"])
def test_every_structure_trains(cells, growth, prior):
    model = built(cells, growth=growth, prior=prior)
    model.train()
    assert np.isfinite(model.history_table()["loss"]).all()
    assert bool(model.module.prior.growth_rate.any()) == (growth != "off")


def test_an_unlabelled_category_that_is_first_does_not_shift_the_groups(cells):
    cells.obs["type"] = cells.obs["type"].cat.reorder_categories(["unlabelled", "t2", "t0", "t1"])
    model = built(cells, {"labels_key": "type"})
    assert model.group_labels == ["t2", "t0", "t1"]
    assert model.module.label_to_group.tolist() == [-1, 0, 1, 2]


def test_more_labels_than_groups_raise(cells):
    with pytest.raises(ValueError, match=r"3 labels \(t0, t1, t2\) do not fit into n_groups=2"):
        built(cells, {"labels_key": "type"}, n_groups=2)


def test_a_missing_time_column_raises_and_names_those_there_are(cells):
    with pytest.raises(KeyError, match=r"obs has no column 'day'.*present: .*time"):
        DynamicVAE.setup_anndata(cells, "day")


# --- loss ----------------------------------------------------------------------------------------------------------------------


def test_the_static_loss_is_that_of_scvi(trained_scvi, simulated):
    cells = simulated.copy()
    DynamicVAE.setup_anndata(cells, "time", batch_key="batch")
    ours = DynamicVAE.from_scvi(trained_scvi, cells, n_groups=3, growth="shrunk", prior=None)
    ours.module.set_phase("static")
    losses = []
    for model in (trained_scvi, ours):
        model.module.eval()
        torch.manual_seed(0)
        losses.append(model.module(minibatch(model), loss_kwargs={"kl_weight": 0.3})[2])
    torch.testing.assert_close(losses[1].loss, losses[0].loss)
    torch.testing.assert_close(losses[1].reconstruction_loss, losses[0].reconstruction_loss)


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_the_joint_loss_is_the_formula(cells, likelihood):
    model = built(
        cells,
        {"batch_key": "batch", "labels_key": "type"},
        likelihood=likelihood,
        prior=Prior(ridge=0.3, decoder_ridge=0.2),
    )
    module = model.module
    with torch.no_grad():
        for i, parameter in enumerate(module.prior.parameters()):
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        network = module.decoder.px_scale_decoder[0].weight
        network.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    module.set_phase("joint")
    module.eval()
    tensors = minibatch(model)
    inference, generative, output = module(tensors, loss_kwargs={"kl_weight": 0.7})

    x, z = tensors["X"].numpy(), inference["z"].detach().double().numpy()
    # Counts: l softmax(f(z)), with the proportions as decoded and the library as counted.
    scale = generative["px"].scale if likelihood == "nb" else generative["px"].rate / tensors["X"].sum(1, keepdim=True)
    mu = x.sum(1, keepdims=True) * scale.detach().double().numpy()
    np.testing.assert_allclose(mu.sum(1), x.sum(1), rtol=1e-5)
    if likelihood == "nb":
        theta = module.px_r.detach().double().exp().numpy()
        reconstruction = -nbinom.logpmf(x, theta, theta / (theta + mu)).sum(1)
    else:
        reconstruction = -poisson.logpmf(x, mu).sum(1)

    qz = inference["qz"]
    log_q = norm.logpdf(z, qz.loc.detach().double().numpy(), qz.scale.detach().double().numpy()).sum(1)

    p = module.prior
    A, b, m, L, Q = (v.detach().double().numpy() for v in (p.A, p.b, p.initial_mean, p.initial_tril, p.Q))
    a, r = p._a.detach().double().numpy(), p._r.detach().double().numpy()
    labels = [cells.obs["type"].cat.categories[int(code)] for code in tensors["labels"].ravel()]
    log_prior = np.empty(25)
    for i, t in enumerate(tensors["dynapath_time"].double().ravel().tolist()):
        joint = a + r * t - logsumexp(a + r * t)
        for k in range(3):
            moved = expm(np.block([[A[k], b[k][:, None]], [np.zeros((1, 3))]]) * t)
            Phi, c = moved[:2, :2], moved[:2, 2]
            noise, _ = quad_vec(lambda s, k=k: expm(A[k] * s) @ Q[k] @ expm(A[k] * s).T, 0, t)
            cov = Phi @ L[k] @ L[k].T @ Phi.T + noise + 1e-3 * np.eye(2)
            joint[k] += multivariate_normal(Phi @ m[k] + c, cov).logpdf(z[i])
        log_prior[i] = logsumexp(joint) if labels[i] == "unlabelled" else joint[int(labels[i][1])]

    ridge, growth = 0.3 * np.mean([(A[k] ** 2).sum() for k in range(3)]), ((r - r.mean()) ** 2).sum()
    decoder = 0.2 * network.detach().double().square().sum().item()
    expected = (reconstruction + 0.7 * (log_q - log_prior)).mean() + ridge + growth + decoder
    # Single precision in the network and its likelihood.
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(output.reconstruction_loss["reconstruction_loss"].detach(), reconstruction, rtol=1e-4)
    np.testing.assert_allclose(output.kl_local["kl_local"].detach(), log_q - log_prior, rtol=1e-3, atol=1e-3)
    assert output.extra_metrics["ridge"].item() == pytest.approx(ridge, rel=1e-5)


def test_the_skip_is_a_linear_path_to_the_logits(cells):
    model = built(cells)
    decoder = model.module.decoder
    with torch.no_grad():
        decoder.px_scale_decoder[0].weight.zero_()
        decoder.px_scale_decoder[0].bias.zero_()
    z = torch.tensor([[30.0, -20.0], [0.0, 0.0]])
    scale, _, mean, _ = decoder("gene", z, torch.tensor(100.0).log().expand(2, 1), torch.zeros(2, 1))
    torch.testing.assert_close(scale, (z @ decoder.skip.weight.mT).softmax(-1))
    torch.testing.assert_close(mean, 100 * scale)


def test_without_the_skip_the_decoder_is_a_plain_network(cells):
    model = built(cells, training=Training(decoder="mlp", n_hidden=16))
    assert model.module.decoder.skip is None


# --- decoding --------------------------------------------------------------------------------------------------------------------


def test_decoded_counts_have_the_library_they_were_given(trained):
    library = np.array([100.0, 10_000.0])
    mean = trained.decode(np.zeros((2, 2)), library, expected=True)
    np.testing.assert_allclose(np.asarray(mean.sum(1)).ravel(), library, rtol=1e-5)


def test_decoded_counts_have_the_decoded_mean(trained):
    n = 20_000
    z, library = np.zeros((n, 2)), np.full(n, 500.0)
    counts = trained.decode(z, library, random_state=0)
    mean = trained.decode(z[:1], library[:1], expected=True).toarray().ravel()
    theta = trained.module.px_r.detach().exp().numpy()
    se = np.sqrt((mean + mean**2 / theta) / n)  # variance of a negative binomial
    assert sparse.issparse(counts)
    assert counts.dtype == np.float32
    assert (np.abs(np.asarray(counts.mean(0)).ravel() - mean) < 5 * se).all()


def test_decoding_in_parts_gives_the_same_means(trained):
    z = np.random.default_rng(0).normal(size=(10, 2))
    whole, parts = (trained.decode(z, np.full(10, 100.0), expected=True, chunk=chunk) for chunk in (100, 3))
    np.testing.assert_allclose(whole.toarray(), parts.toarray(), rtol=1e-5)


def test_batches_are_decoded_as_batches(trained):
    z, library = np.zeros((2, 2)), np.full(2, 100.0)
    mean = trained.decode(z, library, np.array([0, 1]), expected=True).toarray()
    assert not np.allclose(mean[0], mean[1], rtol=1e-3)


# --- seeds -----------------------------------------------------------------------------------------------------------------------


def test_training_leaves_the_sessions_random_states_alone(cells):
    model = built(cells)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), scvi.settings.seed  # noqa: NPY002
    model.train()
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert scvi.settings.seed == before[3]


# --- losses that are not finite --------------------------------------------------------------------------------------------------


def all_finite(model):
    return all(bool(torch.isfinite(value).all()) for value in model.module.state_dict().values())


@pytest.mark.parametrize(
    ("training", "phase"),
    [({"lr": 1e30}, "static"), ({"prior_lr": 1e6, "joint_epochs": 5}, "joint")],
    ids=["networks", "dynamics"],
)
def test_absurd_step_sizes_raise_and_leave_a_finite_model(cells, training, phase):
    model = built(cells)
    options = Training(
        **{"static_epochs": 3, "joint_epochs": 3, "n_restarts": 2, "prior_steps": 5, "progress": False, **training}
    )
    with pytest.raises(FloatingPointError, match=rf"in epoch \d of the {phase} phase.*step size.*lr="):
        model.train(training=options)
    assert all_finite(model)
    assert not model.module.training


@pytest.mark.parametrize(
    ("plan", "said"), [({"lr": 1e30}, "lr=1e\\+30.*'lr'"), ({"eps": 1e-8}, "lr=2e\\+30.*Training")]
)
def test_the_step_size_that_was_used_is_named(cells, plan, said):
    model = built(cells)
    with pytest.raises(FloatingPointError, match=f"{said}.*or filter"):
        model.train(training=Training(static_epochs=2, joint_epochs=2, lr=2e30, progress=False), plan_kwargs=plan)


@pytest.mark.parametrize("phase", ["static", "joint"])
def test_a_poisoned_parameter_is_caught_in_its_epoch(cells, phase):
    model = built(cells)
    kept = {}

    class Poison(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if model.module.phase == phase and trainer.current_epoch == 1 and batch_idx == 1:
                with torch.no_grad():
                    model.module.decoder.px_scale_decoder[0].bias[0] = torch.nan

        def on_train_epoch_start(self, trainer, pl_module):
            if model.module.phase == phase and trainer.current_epoch == 1:
                kept.update(weights(model))

    with pytest.raises(FloatingPointError, match=f"in epoch 2 of the {phase} phase"):
        model.train(callbacks=[Poison()])
    assert all_finite(model)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, kept[name])


def test_other_errors_pass_as_they_are(cells):
    with pytest.raises(ValueError, match="not a strategy|invalid strategy|strategy"):
        built(cells).train(strategy="not a strategy")


# --- a trained SCVI ----------------------------------------------------------------------------------------------------------------


def taken_over(model, cells, **setup):
    DynamicVAE.setup_anndata(cells, "time", **setup)
    return DynamicVAE.from_scvi(model, cells, n_groups=3, growth="shrunk", prior=None)


def test_an_scvi_model_is_taken_over_with_the_same_latent_space(trained_scvi, cells):
    ours = taken_over(trained_scvi, cells, batch_key="batch")
    np.testing.assert_array_equal(ours.get_latent_representation(), trained_scvi.get_latent_representation())


def test_a_taken_over_model_skips_the_static_phase(trained_scvi, cells):
    ours = taken_over(trained_scvi, cells, batch_key="batch")
    before = {name: value.clone() for name, value in trained_scvi.module.state_dict().items()}
    ours.train(training=TINY, skip_static=True)
    assert ours.history_table()["phase"].tolist() == ["joint"] * 2
    # The model that was given stays as it is.
    for name, value in trained_scvi.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_dynamic_vae_is_taken_over_too(trained, cells):
    ours = taken_over(trained, cells, batch_key="batch")
    np.testing.assert_array_equal(ours.get_latent_representation(), trained.get_latent_representation())


def scvi_on(cells, setup=None, **kwargs):
    scvi.model.SCVI.setup_anndata(cells, **(setup or {}))
    model = scvi.model.SCVI(cells, n_hidden=16, n_latent=2, **kwargs)
    model.is_trained_ = True
    return model


def test_an_untrained_model_is_refused(cells):
    model = scvi_on(cells.copy())
    model.is_trained_ = False
    with pytest.raises(ValueError, match="cannot be taken over: it is not trained"):
        taken_over(model, cells)


def test_a_model_that_encodes_the_library_is_refused(cells):
    with pytest.raises(ValueError, match="encodes the library size"):
        taken_over(scvi_on(cells.copy(), use_observed_lib_size=False), cells)


def test_a_model_with_another_latent_distribution_is_refused(cells):
    with pytest.raises(ValueError, match="latent distribution is 'ln'"):
        taken_over(scvi_on(cells.copy(), latent_distribution="ln"), cells)


def test_a_model_of_another_kind_is_refused(cells):
    other = cells.copy()
    scvi.model.LinearSCVI.setup_anndata(other)
    model = scvi.model.LinearSCVI(other, n_latent=2)
    model.is_trained_ = True
    with pytest.raises(ValueError, match="its module is LDVAE, not SCVI's"):
        taken_over(model, cells)


def test_a_model_of_fewer_genes_is_refused(cells):
    with pytest.raises(ValueError, match="same genes"):
        taken_over(scvi_on(cells[:, :20].copy()), cells)


def test_a_model_of_as_many_other_genes_is_refused(cells):
    other = cells.copy()
    other.var_names = [f"other{i}" for i in range(other.n_vars)]
    with pytest.raises(ValueError, match=r"'other0'.*same genes"):
        taken_over(scvi_on(other), cells)


def test_a_model_with_other_batches_is_refused(cells):
    with pytest.raises(ValueError, match="batch"):
        taken_over(scvi_on(cells.copy()), cells, batch_key="batch")


def test_a_model_whose_batches_stand_in_another_order_is_refused(cells):
    other = cells.copy()
    names = sorted(cells.obs["batch"].astype(str).unique())
    other.obs["batch"] = pd.Categorical(other.obs["batch"].astype(str), categories=names[::-1])
    cells.obs["batch"] = pd.Categorical(cells.obs["batch"].astype(str), categories=names)
    with pytest.raises(ValueError, match=r"batch"):
        taken_over(scvi_on(other, {"batch_key": "batch"}), cells, batch_key="batch")


def test_a_model_that_scales_otherwise_is_refused(cells):
    with pytest.raises(ValueError, match="size factor"):
        taken_over(scvi_on(cells.copy(), {"size_factor_key": "size"}), cells)


def test_a_model_with_covariates_is_refused(cells):
    with pytest.raises(ValueError, match="cannot be taken over|does not fit these data"):
        taken_over(scvi_on(cells.copy(), {"continuous_covariate_keys": ["size"]}), cells)


# --- where training starts -----------------------------------------------------------------------------------------


def test_the_decoder_starts_at_the_genes_own_means_and_dispersions(cells):
    model = built(cells)
    model._start_from_genes()
    counts = cells.X.toarray()
    share = np.maximum(counts.sum(0), 0.1) / counts.sum()
    head = model.module.decoder.px_scale_decoder[0]
    np.testing.assert_allclose(np.exp(head.bias.detach().numpy()), share, rtol=1e-5)
    # For counts scaled to one size, var = mean + mean^2 / theta.
    size = counts.sum(1, keepdims=True) / counts.sum(1).mean()
    mean, square = share * counts.sum(1).mean(), ((counts / size) ** 2).mean(0)
    wanted = np.clip((square - mean**2 - mean) / mean**2, 0.05, 20)
    np.testing.assert_allclose(np.exp(-model.module.px_r.detach().numpy()), wanted, rtol=1e-3)
