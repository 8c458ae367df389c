"""dp.tl.predict_cells: counts of cells at any time, where they come from, and what is said about them."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import dynapath as dp
from dynapath.models import Prior, Training
from dynapath.tl import _predict_cells as module

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit has not converged:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*restarts reach a likelihood within:UserWarning"),
    pytest.mark.filterwarnings("ignore:Only one of .* restarts reached:UserWarning"),
    pytest.mark.filterwarnings("ignore:Groups with less than:UserWarning"),
]
outside = pytest.mark.filterwarnings("ignore:Times .* lie outside:UserWarning")


@pytest.fixture(scope="module")
def fitted(simulated, quick):
    return dp.tl.fit_dynamic_vae(simulated, time_key="time", batch_key="batch", training=quick, copy=True)


@pytest.fixture(scope="module")
def on_truth(simulated):
    """Dynamics on the true states: no decoder, but groups that are right."""
    thorough = Training(n_restarts=4, prior_steps=200, progress=False)
    return dp.tl.fit_dynamic_vae(simulated, time_key="time", use_rep="Z_true", training=thorough, copy=True)


def assert_same_cells(one, other):
    assert (one.X != other.X).nnz == 0
    pd.testing.assert_frame_equal(one.obs, other.obs)
    np.testing.assert_array_equal(one.obsm["X_dynvae"], other.obsm["X_dynvae"])


# --- what comes back ---------------------------------------------------------------------------------------------------------


def test_every_slot_has_its_shape_and_type(fitted):
    predicted = dp.tl.predict_cells(fitted, times=[0.1, 0.4, 1], n_cells=30)
    assert predicted.shape == (90, fitted.n_vars)
    assert isinstance(predicted.X, sparse.csr_matrix)
    assert predicted.X.dtype == np.float32
    assert (predicted.X.data == np.round(predicted.X.data)).all()
    assert (predicted.X.data > 0).all()
    assert list(predicted.var_names) == list(fitted.var_names)
    assert list(predicted.obs) == ["time", "dynvae_group", "library", "extrapolated", "batch"]
    assert predicted.obs["time"].tolist() == np.repeat([0.1, 0.4, 1.0], 30).tolist()
    assert predicted.obs["dynvae_group"].cat.categories.tolist() == ["0", "1", "2"]
    assert predicted.obs["extrapolated"].dtype == bool
    assert predicted.obsm["X_dynvae"].shape == (90, 2)
    assert predicted.obs_names.is_unique


def test_one_time_may_be_a_number(fitted):
    assert dp.tl.predict_cells(fitted, times=0.4, n_cells=3).obs["time"].tolist() == [0.4] * 3


def test_nothing_is_written(fitted):
    before = fitted.copy()
    dp.tl.predict_cells(fitted, times=0.4, n_cells=3)
    pd.testing.assert_frame_equal(fitted.obs, before.obs)
    assert set(fitted.uns) == set(before.uns)
    assert set(fitted.obsm) == set(before.obsm)


def test_the_same_seed_gives_the_same_counts(fitted):
    one, two, other = (dp.tl.predict_cells(fitted, times=[0.3, 0.6], n_cells=20, random_state=s) for s in (1, 1, 2))
    assert_same_cells(one, two)
    assert (one.X != other.X).nnz > 0


def test_without_a_decoder_there_are_states_alone(on_truth):
    predicted = dp.tl.predict_cells(on_truth, times=[0.1, 0.4], n_cells=30)
    assert predicted.shape == (60, 0)
    assert list(predicted.obs) == ["time", "dynvae_group", "extrapolated"]
    assert predicted.obsm["X_dynvae"].shape == (60, 2)


def test_library_and_batch_are_those_of_real_cells(fitted):
    predicted = dp.tl.predict_cells(fitted, times=0.5, n_cells=200)
    there = fitted[fitted.obs["time"] == 0.5]
    pairs = set(zip(np.asarray(there.X.sum(1)).ravel(), there.obs["batch"].astype(str), strict=True))
    assert set(zip(predicted.obs["library"], predicted.obs["batch"].astype(str), strict=True)) <= pairs
    # Counts are Poisson or wider around it, and a cell here has some hundred.
    total = np.asarray(predicted.X.sum(1)).ravel()
    assert np.corrcoef(total, predicted.obs["library"])[0, 1] > 0.3
    assert total.mean() == pytest.approx(predicted.obs["library"].mean(), rel=0.2)


def test_both_batches_are_predicted(fitted):
    assert dp.tl.predict_cells(fitted, times=0.4, n_cells=100).obs["batch"].nunique() == 2


def test_with_size_factors_the_library_is_the_size_factor(cells, quick):
    dp.tl.fit_dynamic_vae(cells, time_key="time", size_factor_key="size", training=quick)
    predicted = dp.tl.predict_cells(cells, times=0.5, n_cells=50)
    assert set(predicted.obs["library"].astype(np.float32)) <= set(cells.obs["size"].astype(np.float32))


@pytest.mark.parametrize("likelihood", ["zinb", "poisson"])
def test_every_likelihood_predicts_counts(cells, quick, likelihood):
    dp.tl.fit_dynamic_vae(cells, time_key="time", likelihood=likelihood, training=quick)
    predicted = dp.tl.predict_cells(cells, times=0.4, n_cells=20)
    assert (predicted.X.data == np.round(predicted.X.data)).all()


# --- where cells come from ----------------------------------------------------------------------------------------------------


def test_at_an_observed_time_groups_have_the_proportions_of_the_cells(fitted):
    n = 4000
    predicted = dp.tl.predict_cells(fitted, times=0.25, n_cells=n)
    there = fitted[fitted.obs["time"] == 0.25].obsm["dynvae_groups"].mean(0)
    found = predicted.obs["dynvae_group"].value_counts(normalize=True, sort=False).to_numpy()
    # Four standard errors of a proportion.
    assert (np.abs(found - there) < 4 * np.sqrt(there * (1 - there) / n)).all()


def test_at_an_observed_time_states_are_those_of_the_cells(on_truth):
    predicted = dp.tl.predict_cells(on_truth, times=0.25, n_cells=300)
    there = on_truth[on_truth.obs["time"] == 0.25].obsm["X_dynvae"]
    distance = np.abs(predicted.obsm["X_dynvae"][:, None] - there[None]).max(-1).min(1)
    assert distance.max() < 1e-6


@pytest.mark.slow
def test_between_times_cells_are_where_the_truth_is():
    everything = dp.datasets.simulate_snapshots("rotating", n_cells=100, n_genes=5, times=(0, 0.25, 0.5, 0.75, 1))
    held_out = everything.obs["time"] == 0.75
    cells, truth = everything[~held_out].copy(), everything.uns["truth"]["mean"][3]
    dp.tl.fit_dynamic_vae(
        cells,
        time_key="time",
        use_rep="Z_true",
        prior=Prior(ridge=1e-4),  # the default one slows the turn
        labels_key="group",  # which groups there are is not the question here
        training=Training(n_restarts=4, prior_steps=800, progress=False),
    )
    predicted = dp.tl.predict_cells(cells, times=0.75, n_cells=3000)
    found = predicted.obs["dynvae_group"].astype(str)
    means = np.stack([predicted.obsm["X_dynvae"][found == str(k)].mean(0) for k in range(3)])
    distance = np.linalg.norm(means[:, None] - truth[None], axis=-1)
    assert sorted(distance.argmin(1)) == [0, 1, 2]
    # Each neighbour fixes the mean of a group to .37/sqrt(100) per dimension; of both, .037 in the plane; four of these.
    # Halfway along the straight line between the neighbours would be off by 2 (1 - cos(.55)) = .3.
    assert distance.min(1).max() < 4 * 0.037


def test_both_neighbours_give_cells_by_closeness(on_truth):
    n = 4000
    (cells,) = module._read_members(on_truth, "dynvae", on_truth.obs["time"].to_numpy())
    draw = module._carried(cells, None, 0.6, n, np.random.default_rng(0))
    came_from = pd.Series(cells.times[draw.origin]).value_counts(normalize=True)
    # As many cells on both sides: .1 away and .4 away, so 4 to 1, up to what growth makes of it.
    assert set(came_from.index) == {0.5, 1.0}
    assert came_from[0.5] == pytest.approx(0.8, abs=4 * np.sqrt(0.8 * 0.2 / n) + 0.01)


@pytest.mark.parametrize(
    ("time", "sides"),
    [(0.25, [0.25]), (0.3, [0.25, 0.5]), (-1.0, [0]), (2.0, [1]), (0.25 + 1e-12, [0.25])],
)
def test_neighbours_of_a_time_are_the_observed_times_beside_it(time, sides):
    assert module._neighbouring_times(np.array([0, 0.25, 0.5, 1]), time) == sides


def test_a_mask_selects_the_cells_to_carry(on_truth):
    mask = (on_truth.obs["group"] == "1") & (on_truth.obs["time"] == 0)
    group = on_truth.obs.loc[mask, "dynvae_group"].mode()[0]
    predicted = dp.tl.predict_cells(on_truth, times=0.5, n_cells=50, source=mask)
    assert (predicted.obs["dynvae_group"] == group).mean() > 0.9
    named = dp.tl.predict_cells(on_truth, times=0.5, n_cells=50, source=list(on_truth.obs_names[mask]))
    np.testing.assert_array_equal(named.obsm["X_dynvae"], predicted.obsm["X_dynvae"])


def test_chosen_cells_are_carried_along_the_flow_of_their_group(on_truth):
    name = on_truth.obs_names[3]
    predicted = dp.tl.predict_cells(on_truth, times=[0.25, 0.75], n_cells=5, source=[name])
    start = np.repeat(on_truth.obsm["X_dynvae"][[3]], 10, axis=0)
    expected = dp.get.dynamics(on_truth).push(
        start, predicted.obs["dynvae_group"].astype(int), np.zeros(10), predicted.obs["time"]
    )
    np.testing.assert_allclose(predicted.obsm["X_dynvae"], expected, rtol=1e-5)


def test_the_prior_gives_samples_of_the_mixture(on_truth):
    n = 3000
    predicted = dp.tl.predict_cells(on_truth, times=0.4, n_cells=n, source="prior")
    path = dp.get.dynamics(on_truth).trajectories([0.4])
    for k in range(3):
        own = predicted.obsm["X_dynvae"][predicted.obs["dynvae_group"] == str(k)]
        p, sd = path.proportions[k, 0], np.sqrt(np.diag(path.cov[k, 0]))
        assert len(own) / n == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))
        assert (np.abs(own.mean(0) - path.mean[k, 0]) < 4 * sd / np.sqrt(len(own))).all()


def test_the_prior_is_decoded_with_libraries_of_real_cells(fitted):
    predicted = dp.tl.predict_cells(fitted, times=0.4, n_cells=100, source="prior")
    there = fitted[fitted.obs["time"].isin([0.25, 0.5])]
    assert set(predicted.obs["library"]) <= set(np.asarray(there.X.sum(1)).ravel())


# --- outside the observed range ------------------------------------------------------------------------------------------------


def test_extrapolated_cells_are_flagged_and_warned_of(fitted):
    with pytest.warns(UserWarning, match=r"Times -0\.5, 1\.5 lie outside the observed range 0 to 1") as caught:
        predicted = dp.tl.predict_cells(fitted, times=[-0.5, 0.5, 1.5], n_cells=10)
    assert caught[0].filename == __file__
    assert predicted.obs["extrapolated"].tolist() == [True] * 10 + [False] * 10 + [True] * 10
    assert np.isfinite(predicted.obsm["X_dynvae"]).all()


def test_within_the_observed_range_there_is_no_warning(fitted):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        predicted = dp.tl.predict_cells(fitted, times=[0, 0.3, 1], n_cells=10)
    assert not predicted.obs["extrapolated"].any()


@outside
def test_the_prior_before_the_first_snapshot_raises_in_the_unit_of_the_data(fitted):
    with pytest.raises(ValueError, match=r"first snapshot \(0\); asked for -0\.5"):
        dp.tl.predict_cells(fitted, times=-0.5, source="prior")


# --- bad input -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [np.nan, np.inf, [0.5, np.nan], []])
def test_times_that_are_not_finite_raise(fitted, times):
    with pytest.raises(ValueError, match="times must be finite numbers"):
        dp.tl.predict_cells(fitted, times=times)


def test_no_cells_raise(fitted):
    with pytest.raises(ValueError, match="n_cells must be at least 1; it is 0"):
        dp.tl.predict_cells(fitted, times=0.5, n_cells=0)


def test_without_a_fit_those_there_are_are_named(fitted, cells):
    with pytest.raises(KeyError, match=r"uns has no fit under 'other'; fits present: dynvae"):
        dp.tl.predict_cells(fitted, times=0.5, key="other")
    with pytest.raises(KeyError, match=r"there is no fit in this AnnData\. Run dp\.tl\.fit_dynamic_vae"):
        dp.tl.predict_cells(cells, times=0.5)


def test_a_fit_that_lost_its_slots_raises_and_names_them(fitted):
    cells = fitted.copy()
    del cells.obsm["dynvae_std"]
    with pytest.raises(KeyError, match=r"The fit 'dynvae' lacks obsm\['dynvae_std'\]"):
        dp.tl.predict_cells(cells, times=0.5)


@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
def test_repeated_names_raise_where_names_are_the_source(fitted):
    cells = fitted.copy()
    cells.obs_names = ["cell"] * cells.n_obs
    with pytest.raises(ValueError, match=r"obs_names are not unique\. Run adata\.obs_names_make_unique"):
        dp.tl.predict_cells(cells, times=0.5, source=["cell"])
    assert dp.tl.predict_cells(cells, times=0.5, n_cells=5, source=np.arange(300) < 50).n_obs == 5
    assert dp.tl.predict_cells(cells, times=0.5, n_cells=5).n_obs == 5


def test_names_that_are_not_there_raise_and_one_is_named(fitted):
    with pytest.raises(KeyError, match="not in obs_names, such as 'nobody'"):
        dp.tl.predict_cells(fitted, times=0.5, source=[fitted.obs_names[0], "nobody"])


def test_a_mask_of_another_length_raises(fitted):
    with pytest.raises(ValueError, match=r"mask of shape \(7,\), but there are 300 cells"):
        dp.tl.predict_cells(fitted, times=0.5, source=np.ones(7, dtype=bool))


@pytest.mark.parametrize("source", [np.zeros(300, dtype=bool), []], ids=["mask", "names"])
def test_a_source_without_cells_raises(fitted, source):
    with pytest.raises(ValueError, match="source selects no cells"):
        dp.tl.predict_cells(fitted, times=0.5, source=source)


def test_a_source_that_is_unknown_raises(fitted):
    with pytest.raises(ValueError, match="source must be 'neighbours', 'prior'.*it is 'nearest'"):
        dp.tl.predict_cells(fitted, times=0.5, source="nearest")


# --- drawing the cells ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_every_column_is_drawn_as_often_as_expected_up_to_one(seed):
    rng = np.random.default_rng(seed)
    weight = rng.gamma(0.3, size=(40, 3))
    row, column = module._systematic(weight, 100, rng)
    expected = 100 * weight.sum(0) / weight.sum()
    assert (np.abs(np.bincount(column, minlength=3) - expected) < 1).all()
    assert (weight[row, column] > 0).all()


def test_entries_are_drawn_in_proportion_to_their_weight():
    rng = np.random.default_rng(0)
    weight = np.array([[1.0, 0.0], [2.0, 5.0]])
    drawn = np.zeros((2, 2))
    for _ in range(500):
        np.add.at(drawn, module._systematic(weight, 4, rng), 1)
    # 2,000 draws that are at most as variable as independent ones: 4 sd of a share of a half is .045.
    np.testing.assert_allclose(drawn / drawn.sum(), weight / weight.sum(), atol=0.045)
