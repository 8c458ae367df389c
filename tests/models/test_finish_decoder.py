"""The end of training: the decoder's linear part reaches the optimum of its regression, and genes with few counts keep still."""

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy.sparse import csr_matrix

from dynapath.models import DynamicVAE, Prior, Training
from dynapath.models._finish_decoder import finish_decoder, shrink_slopes

TINY = Training(static_epochs=1, joint_epochs=1, n_restarts=1, prior_steps=5, n_hidden=8, progress=False)


@pytest.fixture
def drawn():
    """Poisson counts, log-linear in two known states, with one offset for all genes."""
    import anndata as ad

    rng = np.random.default_rng(0)
    z = rng.standard_normal((400, 2)).astype(np.float32)
    weight = 0.4 * rng.standard_normal((2, 6))
    rate = np.exp(z @ weight)
    counts = rng.poisson(30 * rate).astype(np.float32)
    cells = ad.AnnData(csr_matrix(counts))
    cells.obs["time"] = np.repeat([0.0, 1.0], 200)
    return cells, z


def module_of(cells, **kwargs):
    DynamicVAE.setup_anndata(cells, "time")
    torch.manual_seed(0)
    module = DynamicVAE(cells, n_groups=1, training=TINY, **kwargs).module
    return module.eval()


def finished(module, cells, z, n_steps=400):
    counts = csr_matrix(cells.X)
    size = torch.as_tensor(np.asarray(counts.sum(1)).ravel())
    mean = torch.as_tensor(z)
    batch = torch.zeros(len(z), dtype=torch.long)
    finish_decoder(module, counts, mean, torch.zeros_like(mean), size, batch, n_steps=n_steps)


def test_a_stiff_network_leaves_the_multinomial_regression(drawn):
    cells, z = drawn
    module = module_of(cells, likelihood="poisson", prior=Prior(decoder_ridge=1e4))
    torch.manual_seed(0)
    finished(module, cells, z)
    assert module.decoder.px_scale_decoder[0].weight.abs().max() < 0.01
    # Poisson counts with their total as library are multinomial: a Poisson regression with an effect of each cell. Contrasts
    # between two genes are a logistic regression of one gene's share of their sum.
    counts = cells.X.toarray()
    pair = np.column_stack([counts[:, 1], counts[:, 0]])
    logistic = sm.GLM(pair, sm.add_constant(z), family=sm.families.Binomial()).fit()
    weight = module.decoder.skip.weight.detach().numpy()
    np.testing.assert_allclose(weight[1] - weight[0], logistic.params[1:], atol=4 * logistic.bse[1:].max())


def test_nothing_but_the_linear_part_of_the_logits_and_the_dispersion_moves(drawn):
    cells, z = drawn
    module = module_of(cells)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(0)
    finished(module, cells, z, n_steps=3)
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    head = "decoder.px_scale_decoder.0"
    assert moved == {"px_r", "decoder.skip.weight", f"{head}.weight", f"{head}.bias"}
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_likelihood_of_the_counts_rises(drawn):
    cells, z = drawn
    module = module_of(cells)
    x, size = torch.as_tensor(cells.X.toarray()), torch.as_tensor(cells.X.toarray().sum(1, keepdims=True))

    def loss():
        with torch.no_grad():
            px = module.generative(torch.as_tensor(z), size.log(), torch.zeros(len(z), 1))["px"]
        return -px.log_prob(x).sum(1).mean().item()

    before = loss()
    torch.manual_seed(0)
    finished(module, cells, z)
    assert loss() < before - 1


def test_a_network_without_linear_path_and_no_steps_leave_all_as_it_is(drawn):
    cells, z = drawn
    plain = module_of(cells)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    finished(plain, cells, z, n_steps=0)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


# --- slopes of genes with few counts -----------------------------------------------------------------------------------

N_GENES = 40
# A size factor so large that a softplus of the logits is an exponential.
SIZE = 1e4


def snapshot(n_cells=600, likelihood="nb", seed=0):
    """Counts of 40 genes on two known states: the first ten with about 20 in a cell, the others with 7 in all cells."""
    import anndata as ad

    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n_cells, 2)).astype(np.float32)
    slopes = 0.5 * rng.standard_normal((N_GENES, 2))
    depth = np.where(np.arange(N_GENES) < 10, 20.0, 7 / n_cells)
    mean = depth * np.exp(z @ slopes.T)
    if likelihood != "poisson":
        mean = mean * rng.gamma(2.0, 0.5, size=mean.shape)
    counts = rng.poisson(mean).astype(np.float32)
    if likelihood == "zinb":
        counts *= rng.random(counts.shape) > 0.3
    cells = ad.AnnData(csr_matrix(counts))
    cells.obs["time"] = np.repeat([0.0, 1.0], n_cells // 2)
    cells.obs["size"] = SIZE
    return cells, z, slopes


def linear_module(cells, likelihood="nb", *, by_size=False):
    DynamicVAE.setup_anndata(cells, "time", size_factor_key="size" if by_size else None)
    torch.manual_seed(0)
    model = DynamicVAE(cells, n_groups=1, training=TINY, likelihood=likelihood)
    model._start_from_genes()
    with torch.no_grad():
        model.module.px_r.fill_(np.log(2.0))
        if by_size:
            # The model measures size factors by their mean; here they are large.
            model.module.decoder.px_scale_decoder[0].bias.copy_(torch.as_tensor(np.log(cells.X.mean(0) / SIZE)).ravel())
    return model.module.eval()


def shrunk(module, cells, z, *, by_size=False):
    counts = csr_matrix(cells.X)
    size = torch.full((len(z),), SIZE) if by_size else torch.as_tensor(np.asarray(counts.sum(1)).ravel())
    mean = torch.as_tensor(z)
    shrink_slopes(module, counts, mean, torch.zeros_like(mean), size, torch.zeros(len(z), dtype=torch.long))
    return module.decoder.skip.weight.detach().numpy()


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("by_size", [False, True])
def test_slopes_of_well_counted_genes_are_found_and_others_err_less_than_by_themselves(likelihood, by_size):
    cells, z, true = snapshot(likelihood=likelihood)
    found = shrunk(linear_module(cells, likelihood, by_size=by_size), cells, z, by_size=by_size)
    # A softmax knows slopes up to what they have in common.
    true, found = (w - w[:10].mean(0) for w in (true, found))
    np.testing.assert_allclose(found[:10], true[:10], atol=0.2)
    few = [g for g in range(10, N_GENES) if cells.X[:, g].sum() >= 3]
    regression = lambda g: sm.GLM(cells.X[:, g].toarray().ravel(), sm.add_constant(z), family=sm.families.Poisson())
    alone = np.stack([regression(g).fit().params[1:] for g in few])
    mse = lambda w: np.square(w - w.mean(0) - true[few] + true[few].mean(0)).mean()
    assert mse(found[few]) < 0.9 * mse(alone)


def test_a_gene_without_counts_does_not_change_and_one_with_thousands_keeps_its_slopes():
    cells, z, true = snapshot()
    dense = cells.X.toarray()
    dense[:, -1] = 0
    dense[:3, -2], dense[3:, -2] = 1, 0
    cells.X = csr_matrix(dense)
    module = linear_module(cells)
    with torch.no_grad():
        # What a few stochastic steps may leave behind.
        module.decoder.skip.weight[-2:] = 3.0
    found = shrunk(module, cells, z)
    common = found[:10].mean(0) - true[:10].mean(0)
    np.testing.assert_allclose(found[:10] - common, true[:10], atol=0.15)
    assert np.abs(found[-1]).max() < 0.1
    assert np.abs(found[-2]).max() < 0.6


def test_the_scale_and_the_axes_of_the_latent_space_do_not_matter():
    cells, z, _ = snapshot()
    turn = np.array([[0.6, -0.8], [0.8, 0.6]], dtype=np.float32) * np.array([[0.2], [3.0]], dtype=np.float32)
    means = []
    for points in (z, z @ turn.T):
        module = linear_module(cells)
        with torch.no_grad():
            module.decoder.skip.weight.fill_(0.0).add_(
                torch.randn(N_GENES, 2, generator=torch.Generator().manual_seed(0))
            )
            if points is not z:
                module.decoder.skip.weight.copy_(module.decoder.skip.weight @ torch.as_tensor(np.linalg.inv(turn)))
        shrunk(module, cells, points)
        with torch.no_grad():
            x = torch.as_tensor(points)
            means.append(module.generative(x, torch.zeros(len(x), 1), torch.zeros(len(x), 1))["px"].mean.numpy())
    np.testing.assert_allclose(means[1], means[0], rtol=0.05)


def test_shrinking_moves_levels_and_slopes_only():
    cells, z, _ = snapshot()
    module = linear_module(cells)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    shrunk(module, cells, z)
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"decoder.skip.weight", "decoder.px_scale_decoder.0.bias"}
