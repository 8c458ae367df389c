"""Genes along paths: a linear decoder in closed form, slopes against differences, and the error of the last layer."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import dynapath as dp
from dynapath.dynamics import GroupDynamics, LinearMixture
from dynapath.models import Training
from dynapath.models.draws import half_width
from dynapath.models.gene_paths import GroupCells, gene_paths
from dynapath.models.last_layer import LastLayerError, last_features, last_layer_error, last_weights

OBSERVED = np.array([2.0, 4.0, 6.0])


class LogLinear(torch.nn.Module):
    """A decoder whose means are exp(W z), with a size factor, so that nothing is normalised."""

    def __init__(self, weights, *, normalised=False, theta=None):
        super().__init__()
        self.weights, self.normalised, self.theta = torch.as_tensor(weights, dtype=torch.float32), normalised, theta
        self.use_size_factor_key, self.dispersion = not normalised, "gene"
        self.n_batch, self.n_input = 1, len(weights)
        self.decoder = SimpleNamespace(
            skip=SimpleNamespace(weight=self.weights),
            px_decoder=lambda z, *_: z[:, :0],
            px_scale_decoder=[SimpleNamespace(weight=torch.zeros(len(weights), 0))],
        )
        self.decoder = _Callable(self.decoder, self)

    def scale(self, z):
        logits = z @ self.weights.mT
        return logits.softmax(-1) if self.normalised else logits.exp()

    def log_size(self, library):
        return library.float().log()

    def generative(self, z, log_size, batch, size_factor=None):
        px = SimpleNamespace(mean=log_size.exp() * self.scale(z))
        if self.theta is not None:
            px.theta = torch.full_like(px.mean, self.theta)
        return {"px": px}


class _Callable:
    def __init__(self, parts, module):
        self.__dict__.update(vars(parts))
        self._module = module

    def __call__(self, dispersion, z, size, batch):
        return (self._module.scale(z),)


def some_dynamics(n_copies=None, seed=0, observed=OBSERVED):
    mixture = LinearMixture(2, 2, n_copies=n_copies)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        mixture._L.diagonal(dim1=-2, dim2=-1).sub_(1.0)
        mixture._log_q.sub_(2.0)
    return GroupDynamics(mixture, observed)


@pytest.fixture(scope="module")
def model():
    cells = dp.datasets.simulate_snapshots("rotating", n_cells=20, n_genes=30, times=(2, 4, 6), batch_effect=True)
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    quick = Training(static_epochs=4, joint_epochs=4, n_restarts=2, prior_steps=30, n_hidden=16, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.tl.fit_dynamic_vae(cells, time_key="time", batch_key="batch", training=quick)
    return dp.get.model(cells)


# --- means and slopes --------------------------------------------------------------------------------------------------


def cells_of(dynamics, n=40, seed=0, certain=True, spread=0.0):
    """Cells drawn from the mixture at every snapshot, each with its group."""
    z, group = dynamics.sample(dynamics.observed_times, n, random_state=seed)
    groups = np.eye(dynamics.n_groups)[group.reshape(-1)]
    groups = groups if certain else 0.8 * groups + 0.2 / dynamics.n_groups
    z = z.reshape(-1, z.shape[-1])
    return GroupCells(z, np.full_like(z, spread), np.repeat(dynamics.observed_times, n), groups)


def only(cells, rows):
    return GroupCells(cells.mean[rows], cells.std[rows], cells.times[rows], cells.groups[rows])


@pytest.fixture(scope="module")
def cells(model):
    mean, variance = model.get_latent_representation(return_dist=True)
    times = np.asarray(model.adata.obs["time"], dtype=float)
    return GroupCells(mean.astype(float), np.sqrt(variance), times, model.dynamics.responsibilities(mean, times))


def test_a_snapshot_with_many_cells_is_described_by_them():
    weights = np.array([[0.5, -0.3], [0.2, 0.4], [0.0, 0.0]])
    dynamics = some_dynamics()
    cells = cells_of(dynamics, 2000, certain=False)
    found = gene_paths(LogLinear(weights), dynamics, cells, OBSERVED, n_points=10**6).mean[0]
    for j, time in enumerate(OBSERVED):
        here = cells.times == time
        expected = (
            1e4 * cells.groups[here].T @ np.exp(cells.mean[here] @ weights.T) / cells.groups[here].sum(0)[:, None]
        )
        # Neighbours are worth a cell each.
        np.testing.assert_allclose(found[:, j], expected, rtol=2e-3)


def test_what_no_cell_has_does_not_count():
    # Two kinds of cells, one standard deviation to either side: a Gaussian has cells at three, which an exponential sees.
    weights, dynamics = np.array([[3.0, 0.0]]), some_dynamics()
    path = dynamics.trajectories([4.0])
    at, sd = path.mean[0, 0], np.sqrt(path.cov[0, 0, 0, 0])
    sign = np.repeat([1.0, -1.0], 500)
    z = at + np.stack([sd * sign, 0 * sign], axis=1)
    cells = GroupCells(z, np.zeros_like(z), np.full(1000, 4.0), np.tile([1.0, 0.0], (1000, 1)))
    found = gene_paths(LogLinear(weights), dynamics, cells, [4.0]).mean[0, 0, 0, 0]
    assert found == pytest.approx(1e4 * np.exp(3 * at[0]) * np.cosh(3 * sd), rel=1e-3)


def test_between_snapshots_cells_of_both_are_carried_as_their_group_moves():
    weights, dynamics, times = np.array([[0.5, -0.3], [0.2, 0.4]]), some_dynamics(), [3.0, 5.5]
    found = gene_paths(LogLinear(weights), dynamics, cells_of(dynamics, 10_000), times, n_points=10**6)
    path = dynamics.trajectories(times)
    exponent = path.mean @ weights.T + np.einsum("gi,ktij,gj->ktg", weights, path.cov, weights) / 2
    np.testing.assert_allclose(found.mean[0], 1e4 * np.exp(exponent), rtol=0.03)
    with torch.no_grad():
        mixture = dynamics.mixture
        cov_rate = mixture.rates_at(mixture.at(dynamics.model_times(times)))[1].numpy() / dynamics.time_scale.span
    rate = path.velocity @ weights.T + np.einsum("gi,ktij,gj->ktg", weights, cov_rate, weights) / 2
    np.testing.assert_allclose(found.velocity[0] / found.mean[0], rate, rtol=0.05, atol=0.01)


def test_a_group_without_cells_in_a_snapshot_is_described_by_those_around_it():
    weights, dynamics = np.array([[0.5, -0.3], [0.2, 0.4]]), some_dynamics()
    cells = cells_of(dynamics, 2000)
    absent = (cells.times == 4) & (cells.groups[:, 0] > 0)
    all_of_them, without = (
        gene_paths(LogLinear(weights), dynamics, one, OBSERVED, n_points=10**6).mean[0]
        for one in (cells, only(cells, ~absent))
    )
    np.testing.assert_allclose(without[1], all_of_them[1], rtol=1e-6)
    np.testing.assert_allclose(without[0], all_of_them[0], rtol=0.1)
    assert (without[0, 1] != all_of_them[0, 1]).all()


def test_the_slope_is_the_difference_of_means_of_the_same_cells(model, cells):
    h = 0.05
    # Of one snapshot, so that no weights change with time.
    cells = only(cells, cells.times == 4)
    ahead, now, behind = (gene_paths(model.module, model.dynamics, cells, [3 + s, 5 + s]) for s in (h, 0, -h))
    slope = (ahead.mean - behind.mean) / (2 * h)
    # Means are in single precision, and so a difference of them over .1; over that step a rectified unit may switch, which
    # bends the path of single genes; and with process noise the carried cloud turns a little against the field.
    assert np.linalg.norm(now.velocity - slope) < 0.03 * np.linalg.norm(slope)


def test_another_unit_of_time_changes_only_slopes(model, cells):
    days = model.dynamics
    hours = GroupDynamics(days.mixture, days.observed_times * 24)
    in_hours = GroupCells(cells.mean, cells.std, cells.times * 24, cells.groups)
    one = gene_paths(model.module, days, cells, [3, 5])
    two = gene_paths(model.module, hours, in_hours, [72, 120])
    np.testing.assert_allclose(two.mean, one.mean, rtol=1e-5)
    np.testing.assert_allclose(two.velocity * 24, one.velocity, rtol=1e-4, atol=1e-4)


def test_proportions_of_all_genes_sum_to_ten_thousand_and_do_not_change_in_sum(model, cells):
    found = gene_paths(model.module, model.dynamics, cells, [2, 3, 6, 7])
    np.testing.assert_allclose(found.mean.sum(-1), 1e4, rtol=1e-5)
    np.testing.assert_allclose(found.velocity.sum(-1), 0, atol=0.05)


def test_batches_are_averaged_with_equal_weight(model, cells):
    # One snapshot at its own time: the plain mean over its cells.
    cells = only(cells, cells.times == 4)
    found = gene_paths(model.module, model.dynamics, cells, [4]).mean[0]
    z = cells.in_own_order().states(0)
    of_batch = [model.decode(z, np.ones(len(z)), np.full(len(z), code), expected=True).toarray() for code in (0, 1)]
    weight = cells.in_own_order().groups
    expected = weight.T @ np.mean(of_batch, axis=0) / weight.sum(0)[:, None]
    np.testing.assert_allclose(found[:, 0], 1e4 * expected, rtol=5e-3)


def test_draws_together_are_each_alone(model, cells):
    draws = some_dynamics(n_copies=3)
    cells = GroupCells(cells.mean, cells.std, cells.times, cells.groups[:, :2] + 0.1)
    together = gene_paths(model.module, draws, cells, [2, 5])
    for i in range(3):
        alone = gene_paths(model.module, draws.select(i), cells, [2, 5])
        np.testing.assert_allclose(alone.mean[0], together.mean[i], rtol=1e-4)
        np.testing.assert_allclose(alone.velocity[0], together.velocity[i], rtol=1e-3, atol=1e-3)


def test_asking_for_some_genes_or_in_parts_changes_nothing(model, cells, monkeypatch):
    from dynapath.models import gene_paths as module

    cells = only(cells, slice(None, None, 4))
    whole = module.gene_paths(model.module, model.dynamics, cells, [2, 5])
    monkeypatch.setattr(module, "_ENTRIES", 500)
    parts = module.gene_paths(model.module, model.dynamics, cells, [2, 5], genes=[4, 1])
    np.testing.assert_allclose(parts.mean, whole.mean[..., [4, 1]], rtol=1e-4)
    np.testing.assert_allclose(parts.velocity, whole.velocity[..., [4, 1]], rtol=1e-3, atol=1e-3)


def test_the_order_of_cells_changes_nothing(model, cells):
    order = np.random.default_rng(0).permutation(len(cells.mean))
    one, two = (gene_paths(model.module, model.dynamics, c, [3], n_points=5) for c in (cells, only(cells, order)))
    np.testing.assert_allclose(two.mean, one.mean, rtol=1e-5)


def test_a_sample_of_the_cells_stands_for_all_of_them():
    weights, dynamics = np.array([[0.5, -0.3], [0.2, 0.4]]), some_dynamics()
    cells = cells_of(dynamics, 4000, certain=False)
    few, many = (gene_paths(LogLinear(weights), dynamics, cells, [2, 5], n_points=n) for n in (64, 10**6))
    np.testing.assert_allclose(few.mean, many.mean, rtol=0.06)


def test_times_before_the_first_snapshot_raise(model, cells):
    with pytest.raises(ValueError, match=r"before|first snapshot"):
        gene_paths(model.module, model.dynamics, cells, [1])


# --- draws of a bootstrap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_points", [10**6, 32])
def test_draws_differ_by_the_cells_that_were_sampled(n_points):
    weights, n = np.array([[0.5, -0.3], [0.2, 0.4]]), 300
    dynamics = some_dynamics()
    same = dynamics.with_mixture(LinearMixture.stack([dynamics.mixture] * 200))
    cells = cells_of(dynamics, n)
    found = gene_paths(LogLinear(weights), same, cells, OBSERVED, fit=dynamics, n_points=n_points).mean
    for k in range(2):
        here = (cells.times == 4) & (cells.groups[:, k] > 0)
        values = np.exp(cells.mean[here] @ weights.T)
        of_mean = values.std(0) / values.mean(0) / np.sqrt(here.sum())
        # 200 draws know a standard deviation to 5 %; a sample of cells knows their spread to a tenth.
        np.testing.assert_allclose(np.log(found[:, k, 1]).std(0), of_mean, rtol=0.3)


def test_what_a_label_makes_certain_stays_so_in_every_draw():
    from dynapath.models.gene_paths import _groups_of_draws

    dynamics, draws = some_dynamics(), some_dynamics(n_copies=4, seed=1)
    cells = cells_of(dynamics, 20)
    np.testing.assert_allclose(_groups_of_draws(draws, dynamics, cells), np.tile(cells.groups, (4, 1, 1)))
    open_ = GroupCells(cells.mean, cells.std, cells.times, dynamics.responsibilities(cells.mean, cells.times))
    expected = draws.responsibilities(cells.mean, cells.times)
    # What the fit holds for impossible no draw brings back.
    np.testing.assert_allclose(_groups_of_draws(draws, dynamics, open_), expected, atol=1e-3)


# --- error of the last layer -----------------------------------------------------------------------------------------------


def counts_of(module, n, seed, library=200.0, theta=None):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 2))
    mean = library * module.scale(torch.as_tensor(z, dtype=torch.float32)).numpy()
    rate = mean if theta is None else mean * rng.gamma(theta, 1 / theta, size=mean.shape)
    return z, csr_matrix(rng.poisson(rate).astype(np.float32)), np.full(n, library), np.zeros(n, dtype=int)


@pytest.mark.parametrize("theta", [None, 2.0])
def test_the_error_of_a_log_linear_decoder_is_that_of_its_regression(theta):
    import statsmodels.api as sm

    weights = np.array([[0.5, -0.3], [0.2, 0.4], [-0.4, 0.1]]) - 3.0 * np.array([[0, 0], [0, 0], [0, 0]])
    module = LogLinear(weights, theta=theta)
    z, counts, library, batch = counts_of(module, 400, 0, library=20.0, theta=theta)
    error = last_layer_error(module, counts, z, library, batch)
    family = sm.families.Poisson() if theta is None else sm.families.NegativeBinomial(alpha=1 / theta)
    at = np.array([[1.0, -1.0], [0.0, 2.0]])
    for g in range(3):
        y = counts[:, g].toarray().ravel()
        design = sm.add_constant(z)
        fit = sm.GLM(y, design, family=family, offset=np.log(library)).fit()
        found = np.concatenate([np.ones((2, 1)), (at - error.centre) @ error.directions], 1) @ error.factor[g]
        variance = np.einsum("ij,ij->i", found, found)
        full = np.concatenate([np.ones((2, 1)), at], 1)
        step = full @ (fit.params - np.concatenate([[0], weights[g]]))
        expected = np.einsum("ij,jk,ik->i", full, fit.cov_params(), full) + step**2
        # The information is taken at the decoder instead of at the optimum, one Newton step stands for all, and the prior
        # counts for a few of 400 cells.
        np.testing.assert_allclose(variance, expected, rtol=0.25)


def test_a_decoder_away_from_its_optimum_is_known_less_well(model):
    batch = model.batch_codes()
    z, counts, library = model.get_latent_representation(), csr_matrix(model.adata.X), model.library_sizes()
    before = last_layer_error(model.module, counts, z, library, batch).factor
    bias = model.module.decoder.px_scale_decoder[0].bias
    with torch.no_grad():
        bias[0] += 0.5
    try:
        after = last_layer_error(model.module, counts, z, library, batch).factor
    finally:
        with torch.no_grad():
            bias[0] -= 0.5
    level = lambda factor: np.sqrt((factor[0, 0] ** 2).sum())
    assert level(after) > level(before) + 0.1


def test_a_gene_without_counts_is_known_to_no_more_than_its_prior_says():
    module = LogLinear(np.array([[0.3, 0.1], [0.2, -0.3]]) * 1.0)
    z, counts, library, batch = counts_of(module, 300, 0)
    silent = LogLinear(np.array([[0.3, 0.1], [0.2, -0.3]]))
    silent.scale = lambda z: torch.cat([module.scale(z)[:, :1], torch.full((len(z), 1), 1e-12)], 1)
    counts = csr_matrix(np.column_stack([counts[:, 0].toarray(), np.zeros(300)]).astype(np.float32))
    factor = last_layer_error(silent, counts, z, library, batch).factor
    assert np.isfinite(factor).all()
    assert np.sqrt((factor[1, 0] ** 2).sum()) == pytest.approx(0.1**-0.5, rel=0.01)


def test_four_times_the_cells_halve_the_error(model):
    # The same cells four times have the same score per cell, so the step is that of one; leave it out by its own size.
    module = LogLinear(np.array([[0.5, -0.3], [0.2, 0.4]]))
    few = last_layer_error(module, *(x for x in reorder(counts_of(module, 200, 0))))
    many = last_layer_error(module, *(x for x in reorder(counts_of(module, 3200, 1))))
    size = lambda error: np.sqrt(np.trace(error.factor @ error.factor.swapaxes(1, 2), axis1=1, axis2=2))
    # With the square of the step, a variance is that of the regression times 1 + chi^2_1, three of them for a gene.
    assert (size(few) / size(many)).mean() == pytest.approx(4, rel=0.5)


def reorder(cells):
    z, counts, library, batch = cells
    return counts, z, library, batch


def test_draws_of_the_error_have_its_covariance():
    factor = np.linalg.cholesky(np.array([[[0.04, 0.01, 0.0], [0.01, 0.09, 0.02], [0.0, 0.02, 0.05]]]))
    error = LastLayerError(np.zeros(2, np.float32), np.eye(2, dtype=np.float32), factor.astype(np.float32))
    draws = error.draws(20_000, 0)[:, 0]
    np.testing.assert_allclose(np.cov(draws.T), factor[0] @ factor[0].T, atol=0.003)
    np.testing.assert_array_equal(draws, error.draws(20_000, 0)[:, 0])
    assert not np.array_equal(draws, error.draws(20_000, 1)[:, 0])


def test_the_features_are_what_the_last_layer_multiplies(model):
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    batch = torch.zeros(5, 1, dtype=torch.long)
    with torch.no_grad():
        logits = last_features(model.module, z, batch) @ last_weights(model.module).mT
        expected = model.module.decoder("gene", z, torch.zeros(5, 1), batch)[0].log()
    # Up to the level of a gene, and that of a state, which the softmax takes out.
    level = expected - logits
    level = level - level.mean(1, keepdim=True)
    torch.testing.assert_close(level, level[:1].expand_as(level), atol=1e-4, rtol=0)


# --- bands -----------------------------------------------------------------------------------------------------------------


def test_a_bootstrap_alone_gives_the_band_of_its_standard_deviation():
    draws = np.random.default_rng(0).normal(scale=2.0, size=(4000, 3))
    np.testing.assert_allclose(half_width([draws], 0.9), 1.645 * draws.std(0, ddof=1), rtol=1e-3)


def test_two_members_alone_give_the_band_of_two_observations():
    # Student's t with one degree of freedom: 6.314 at 90 %.
    np.testing.assert_allclose(half_width([np.array([[0.0]]), np.array([[1.0]])], 0.9), 6.314 / np.sqrt(2), rtol=1e-3)


def test_variances_within_and_between_members_add():
    rng = np.random.default_rng(0)
    parts = [rng.normal(centre, 1.0, size=(500, 1)) for centre in rng.normal(0, 3.0, size=200)]
    assert half_width(parts, 0.9)[0] == pytest.approx(1.645 * np.sqrt(1 + 9), rel=0.1)


def test_one_draw_of_one_member_has_no_band():
    assert np.isnan(half_width([np.zeros((1, 4))], 0.9)).all()


def test_draws_that_all_agree_give_a_band_of_no_width():
    np.testing.assert_array_equal(half_width([np.ones((5, 2))], 0.9), 0)
