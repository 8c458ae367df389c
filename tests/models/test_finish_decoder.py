"""The end of training: the decoder's linear part reaches the optimum of its regression, and nothing else moves."""

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy.sparse import csr_matrix

from dynapath.models import DynamicVAE, Prior, Training
from dynapath.models._finish_decoder import finish_decoder

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
