"""Methods that models inherit from scvi-tools: with the model's own prior, library and data, or refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from scvi import REGISTRY_KEYS
from scvi.model import SCVI, LinearSCVI
from scvi.model.base import BaseModelClass, RNASeqMixin, UnsupervisedTrainingMixin, VAEMixin

from dynapath.datasets import simulate_snapshots
from dynapath.models import CountVAE, DynamicVAE, LinearCountVAE, Training
from dynapath.models._dynamic_module import TIME_KEY

TINY = Training(static_epochs=2, joint_epochs=2, n_restarts=1, prior_steps=10, n_hidden=8, progress=False)

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

# Looked at one by one: right as they are, since what they ask of the model is its loss, its encoder, its decoder or its draws.
RIGHT = {
    "get_elbo",
    "get_reconstruction_error",
    "get_latent_representation",
    "get_normalized_expression",
    "differential_expression",
    "posterior_predictive_sample",
    "get_loadings",
    "load_query_data",
    "prepare_query_anndata",
    "train",
    "save",
    "load",
    "setup_anndata",
}
# Mended or refused in `_inherited.py`.
OURS = {
    "get_marginal_ll",
    "get_importance_weights",
    "get_normalized_expression",
    "get_aggregated_posterior",
    "differential_abundance",
    "get_likelihood_parameters",
    "get_feature_correlation_matrix",
    "get_latent_library_size",
    "minify_adata",
    "setup_annbatch",
}
# About registration, files and what the model is; refused by scvi-tools without an embedding or a MuData.
NEITHER_PRIOR_NOR_DATA = {
    *("convert_legacy_save", "load_registry", "view_setup_args", "view_anndata_setup", "view_registry"),
    *("view_setup_method_args", "register_manager", "deregister_manager", "get_anndata_manager", "get_from_registry"),
    *("get_setup_arg", "get_state_registry", "get_var_names", "data_registry", "transfer_fields", "to_device"),
    *("update_setup_method_args", "get_batch_representation", "prepare_query_mudata"),
}


@pytest.fixture(scope="module")
def cells():
    cells = simulate_snapshots("rotating", n_cells=12, n_genes=15, times=(0, 0.3, 0.7, 1), batch_effect=True)
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    cells.obs["type"] = np.where(np.arange(cells.n_obs) % 3, "unlabelled", "t" + cells.obs["group"].astype(str))
    cells.obs["size"] = cells.obs["library"] / 100
    return cells


def dynamic(cells, setup=None, **kwargs):
    cells = cells.copy()
    torch.manual_seed(0)
    DynamicVAE.setup_anndata(cells, "time", **(setup or {}))
    train = {name: kwargs.pop(name) for name in ("static_only",) if name in kwargs}
    model = DynamicVAE(cells, training=TINY, **kwargs)
    model.train(**train)
    return model


def count(cells, cls=CountVAE, setup=None, **kwargs):
    cells = cells.copy()
    if kwargs.get("likelihood") == "bernoulli":
        cells.X = (cells.X > 0).astype(np.float32)
    torch.manual_seed(0)
    cls.setup_anndata(cells, **(setup or {}))
    model = cls(cells, n_latent=2, **kwargs)
    model.train(2, progress=False)
    return model


@pytest.fixture(scope="module")
def trained(cells):
    return dynamic(cells, {"batch_key": "batch", "labels_key": "type"})


@pytest.fixture(scope="module")
def static(cells):
    return count(cells, setup={"batch_key": "batch"})


def test_every_public_method_of_scvi_tools_has_been_looked_at():
    bases = (RNASeqMixin, VAEMixin, UnsupervisedTrainingMixin, BaseModelClass, *SCVI.__mro__, *LinearSCVI.__mro__)
    methods = {
        name
        for base in bases
        for name, member in vars(base).items()
        if not name.startswith("_")
        and not isinstance(member, property)
        and (callable(member) or hasattr(member, "__func__"))
    }
    assert methods <= RIGHT | OURS | NEITHER_PRIOR_NOR_DATA


# --- the marginal likelihood ---------------------------------------------------------------------------------------------


def by_quadrature(model, rows, log_prior):
    """log p(x) of some cells: the sum over a grid of states of p(x | z) p(z)."""
    tensors = next(iter(model._make_data_loader(adata=model.adata, indices=rows, batch_size=len(rows))))
    axis = torch.linspace(-7, 7, 141)
    z = torch.cartesian_prod(axis, axis)
    found = []
    with torch.inference_mode():
        library = tensors[REGISTRY_KEYS.X_KEY].sum(1, keepdim=True).log()
        for i in range(len(rows)):
            one = {name: value[i : i + 1].expand(len(z), -1) for name, value in tensors.items()}
            outputs = {"z": model.module.z_encoder.z_transformation(z), "library": library[i].expand(len(z), 1)}
            px = model.module.generative(**model.module._get_generative_input(one, outputs))["px"]
            log_joint = px.log_prob(one[REGISTRY_KEYS.X_KEY]).sum(-1).double() + log_prior(z.double(), one)
            found.append(float(log_joint.logsumexp(0) + 2 * (axis[1] - axis[0]).log()))
    return np.array(found)


def standard_normal(z, one):
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)


def of_groups(model, labels):
    def log_prior(z, one):
        now = model.module.prior.at(one[TIME_KEY][:1].flatten().double())
        joint = now.joint_log_prob(z, torch.zeros(len(z), dtype=torch.long))
        code = int(one[REGISTRY_KEYS.LABELS_KEY][0])
        name = model._categories(REGISTRY_KEYS.LABELS_KEY, "labels_key")[code] if labels else "unlabelled"
        return joint.logsumexp(-1) if name == "unlabelled" else joint[:, model.group_labels.index(name)]

    return log_prior


ROWS = np.array([0, 5, 40, 70, 100, 143])


@pytest.mark.parametrize("case", ["joint", "static", "size factors", "normal", "ln", "bernoulli"])
def test_the_marginal_likelihood_is_the_integral_over_the_models_own_prior(cells, trained, static, case):
    log_prior = standard_normal
    if case == "joint":
        model, log_prior = trained, of_groups(trained, labels=True)
    elif case == "static":
        model = dynamic(cells, static_only=True)
    elif case == "size factors":
        model = dynamic(cells, {"size_factor_key": "size"})
        log_prior = of_groups(model, labels=False)
    elif case == "normal":
        model = static
    elif case == "ln":
        model = count(cells, latent_distribution="ln")
    else:
        model = count(cells, likelihood="bernoulli")
    torch.manual_seed(0)
    found = model.get_marginal_ll(indices=ROWS, n_mc_samples=20_000, n_mc_samples_per_pass=2_000, return_mean=False)
    # Importance sampling with many draws, from an encoder of two epochs.
    np.testing.assert_allclose(found, by_quadrature(model, ROWS, log_prior), atol=0.15)


def test_the_marginal_likelihood_is_a_mean_over_cells_and_above_the_elbo(trained):
    given = {"indices": ROWS, "n_mc_samples": 105, "n_mc_samples_per_pass": 10, "batch_size": 4}
    torch.manual_seed(0)
    mean = trained.get_marginal_ll(**given)
    torch.manual_seed(0)
    each = trained.get_marginal_ll(return_mean=False, **given)
    assert mean == pytest.approx(float(each.mean()), rel=1e-6)
    assert mean > float(trained.get_elbo(indices=np.repeat(ROWS, 100)))


def test_an_inferred_library_is_summed_out_too(cells):
    model = count(cells, library="encoded")
    assert model.get_marginal_ll(indices=ROWS, n_mc_samples=200) > float(model.get_elbo(indices=np.repeat(ROWS, 100)))


def test_the_elbo_is_that_of_the_loss(trained):
    torch.manual_seed(0)
    elbo = float(trained.get_elbo())
    torch.manual_seed(0)
    reconstruction = float(trained.get_reconstruction_error()["reconstruction_loss"])
    torch.manual_seed(0)
    kl = []
    for tensors in trained._make_data_loader(adata=trained.adata):
        inference, generative, output = trained.module(tensors)
        z, qz = inference["z"], inference["qz"]
        kl.append(qz.log_prob(z).sum(-1) - trained.module.log_prior(z, tensors))
    assert elbo == pytest.approx(-(reconstruction + float(torch.cat(kl).mean())), rel=1e-5)


# --- what assumes another prior, library or likelihood ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda cells, trained: trained, "mixture that depends on time"),
        (lambda cells, trained: count(cells, latent_distribution="ln"), "simplex"),
        (lambda cells, trained: count(cells, likelihood="poisson"), "'poisson'"),
        (lambda cells, trained: count(cells, library="encoded"), "library is encoded"),
        (lambda cells, trained: count(cells, setup={"size_factor_key": "size"}), "scaled by size factors"),
    ],
    ids=["mixture", "simplex", "poisson", "encoded", "size factors"],
)
def test_importance_weights_are_refused_where_they_do_not_hold(cells, trained, build, reason):
    model = build(cells, trained)
    for ask in (
        lambda: model.get_normalized_expression(weights="importance", n_samples_overall=20),
        lambda: model.differential_expression(groupby="group", weights="importance", silent=True),
        lambda: model.get_importance_weights(None, None, None, None, None),
    ):
        with pytest.raises(NotImplementedError, match=f"{reason}.*weights='uniform'"):
            ask()


def test_importance_weights_hold_for_counts_and_a_normal_prior(static):
    given = {"weights": "importance", "indices": np.arange(20), "n_mc_samples": 50}
    found = static.get_normalized_expression(n_samples_overall=30, return_numpy=True, **given)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-4)
    with pytest.raises(ValueError, match="n_samples_overall"):
        static.get_normalized_expression(**given)


def test_posteriors_are_mixed_with_their_standard_deviations(trained):
    mean, variance = trained.get_latent_representation(return_dist=True)
    mixed = trained.get_aggregated_posterior(indices=np.arange(40), dof=None)
    sample = mixed.sample((20_000,)).numpy()
    expected = variance[:40].mean(0) + mean[:40].var(0)
    np.testing.assert_allclose(sample.var(0), expected, rtol=0.05)


def test_abundances_are_densities_among_the_cells_of_a_sample(trained):
    table = trained.differential_abundance(sample_key="group")
    assert list(table.index) == list(trained.adata.obs_names)
    assert "da_log_probs" not in trained.adata.obsm
    z = torch.as_tensor(trained.get_latent_representation())
    name = table.columns[0]
    among = trained.get_aggregated_posterior(indices=np.flatnonzero(trained.adata.obs["group"] == name), dof=None)
    np.testing.assert_allclose(table[name], among.log_prob(z), rtol=1e-4)
    with pytest.raises(KeyError, match="no column 'grp' .sample_key.; present"):
        trained.differential_abundance(sample_key="grp")


def test_parameters_of_the_likelihood_are_those_of_the_decoder(trained):
    found = trained.get_likelihood_parameters(n_samples=300, give_mean=True)
    expected = trained.get_normalized_expression(n_samples=300, library_size="latent")
    np.testing.assert_allclose(found["mean"].mean(0), expected.mean(), rtol=0.05)
    theta = trained.module.px_r.exp().detach().numpy()
    np.testing.assert_allclose(found["dispersions"], np.broadcast_to(theta, found["dispersions"].shape), rtol=1e-5)


def test_without_a_dispersion_there_are_no_parameters_of_it(cells):
    for likelihood in ("poisson", "bernoulli"):
        model = count(cells, likelihood=likelihood)
        for method in ("get_likelihood_parameters", "get_feature_correlation_matrix"):
            with pytest.raises(NotImplementedError, match=f"{method} needs a negative binomial .*{likelihood}"):
                getattr(model, method)()


def test_correlations_are_between_genes(trained):
    table = trained.get_feature_correlation_matrix(n_samples=2)
    assert table.index.equals(table.columns)
    np.testing.assert_allclose(np.diag(table), 1)


def test_library_sizes_are_totals_or_refused(cells, trained):
    totals = np.asarray(trained.adata.X.sum(1)).ravel()
    np.testing.assert_allclose(trained.get_latent_library_size(give_mean=False).ravel(), totals, rtol=1e-5)
    np.testing.assert_allclose(trained.library_sizes(), totals)
    for model, by in (
        (count(cells, setup={"size_factor_key": "size"}), "size factors"),
        (count(cells, likelihood="bernoulli"), "nothing"),
    ):
        with pytest.raises(NotImplementedError, match=f"scaled by {by}"):
            model.get_latent_library_size(give_mean=False)


@pytest.mark.slow  # The library of the result compiles itself on import.
def test_predictive_samples_have_the_decoded_mean(trained):
    drawn = trained.posterior_predictive_sample(n_samples=100).todense().mean((0, 2))
    expected = trained.get_normalized_expression(n_samples=100, library_size="latent").mean()
    np.testing.assert_allclose(drawn, expected, rtol=0.15, atol=0.02)


def test_genes_are_compared_between_groups_of_cells(cells):
    """A gene with 60 counts more in one group, and one more in the others, is the one that differs."""
    cells = cells.copy()
    cells.X = cells.X.toarray()
    cells.X[:, 0] += np.where(cells.obs["group"].astype(str) == "0", 60, 1).astype(np.float32)
    cells.obs["group"] = pd.Categorical(cells.obs["group"].astype(str))
    DynamicVAE.setup_anndata(cells, "time")
    model = DynamicVAE(cells, training=TINY)
    # Long enough to see it: three seeds gave 3.4 to 3.8 (log2), and at most 1.1 for any other gene.
    model.train(80, static_only=True, plan_kwargs={"lr": 1e-2})
    table = model.differential_expression(groupby="group", group1="0", mode="change", silent=True)
    assert table["lfc_mean"].idxmax() == cells.var_names[0]
    assert table["lfc_mean"].max() > 2


def test_counts_are_not_minified(static):
    with pytest.raises(NotImplementedError, match="would drop counts"):
        static.minify_adata()


@pytest.mark.parametrize("model", [DynamicVAE, CountVAE, LinearCountVAE])
def test_data_are_not_streamed_from_files(model):
    with pytest.raises(NotImplementedError, match="Use setup_anndata"):
        model.setup_annbatch(paths=["cells.h5ad"])


@pytest.mark.parametrize("again", [False, True])
def test_a_model_adapted_to_new_batches_keeps_what_it_knew(cells, static, again):
    other = cells.copy()
    other.obs["batch"] = "new"
    adapted = CountVAE.load_query_data(other, static)
    for _ in range(1 + again):
        adapted.train(1, progress=False)
    known = cells.copy()
    np.testing.assert_allclose(
        adapted.get_latent_representation(known), static.get_latent_representation(known), atol=1e-5
    )
    for name, value in static.module.state_dict().items():
        if name.startswith(("px_r", "z_encoder.mean", "z_encoder.var", "decoder.px_scale")):
            torch.testing.assert_close(adapted.module.state_dict()[name], value)


def test_loadings_are_those_of_a_linear_decoder(cells):
    model = count(cells, LinearCountVAE)
    assert model.get_loadings().shape == (cells.n_vars, 2)
