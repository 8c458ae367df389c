"""Ensembles: members that differ only in their seed, in one AnnData."""

import anndata
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import dynapath as dp
from dynapath.models.ensemble import matching_order, member_seed

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit has not converged:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*restarts reach a likelihood within:UserWarning"),
    pytest.mark.filterwarnings("ignore:Only one of .* restarts reached:UserWarning"),
    pytest.mark.filterwarnings("ignore:Groups with less than:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*further members found other groups:UserWarning"),
]


@pytest.fixture(scope="module")
def alone(simulated, quick):
    return dp.tl.fit_dynamic_vae(simulated, time_key="time", batch_key="batch", training=quick, copy=True)


@pytest.fixture(scope="module")
def ensemble(simulated, quick):
    return dp.tl.fit_dynamic_vae(simulated, time_key="time", batch_key="batch", n_members=3, training=quick, copy=True)


def test_the_first_member_is_the_fit_without_an_ensemble(alone, ensemble):
    np.testing.assert_array_equal(ensemble.obsm["X_dynvae"], alone.obsm["X_dynvae"])
    np.testing.assert_array_equal(ensemble.obsm["dynvae_std"], alone.obsm["dynvae_std"])
    first, only = dp.get.model(ensemble).members[0], dp.get.model(alone)
    for one, other in zip(first.module.state_dict().values(), only.module.state_dict().values(), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_members_have_seeds_of_their_own_that_do_not_depend_on_their_number():
    assert member_seed(7, 0) == 7
    assert len({member_seed(7, m) for m in range(5)} | {member_seed(8, m) for m in range(5)}) == 10


def test_groups_of_the_members_are_matched_by_the_cells_they_share():
    reference = np.eye(3)[[0, 0, 1, 1, 2, 2]]
    other = reference[:, [2, 0, 1]]
    np.testing.assert_array_equal(other[:, matching_order(reference, other)], reference)


def test_responsibilities_are_the_mean_over_the_members(ensemble):
    members, times = dp.get.model(ensemble).members, ensemble.obs["time"]
    each = [member.dynamics.responsibilities(member.get_latent_representation(), times) for member in members]
    np.testing.assert_allclose(ensemble.obsm["dynvae_groups"], np.mean(each, axis=0), atol=1e-5)
    agreement = [adjusted_rand_score(each[0].argmax(1), own.argmax(1)) for own in each]
    np.testing.assert_allclose(dp.get.members(ensemble)["agreement"], agreement, atol=1e-6)


def test_each_member_is_carried_into_the_latent_space_of_the_first_by_least_squares(ensemble):
    fitted = dp.get.model(ensemble)
    reference = fitted.members[0].get_latent_representation()
    for member, affine in zip(fitted.members, fitted.to_reference, strict=True):
        z = member.get_latent_representation()
        design = np.column_stack([z, np.ones(len(z))])
        least = np.linalg.lstsq(design, reference, rcond=None)[0]
        np.testing.assert_allclose(affine.points(z), design @ least, atol=1e-3)


def test_velocities_are_the_mean_over_the_members_in_the_space_of_the_first(ensemble):
    fitted, times = dp.get.model(ensemble), ensemble.obs["time"]
    each = []
    for member, affine in zip(fitted.members, fitted.to_reference, strict=True):
        z = member.get_latent_representation()
        own = member.dynamics
        each.append(affine.velocities(own.velocity(z, own.responsibilities(z, times))))
    np.testing.assert_allclose(ensemble.obsm["dynvae_velocity"], np.mean(each, axis=0), atol=1e-3)


@pytest.mark.parametrize("file_format", ["h5ad", "zarr"])
def test_all_members_come_back_from_a_file(ensemble, tmp_path, file_format):
    path = tmp_path / f"fit.{file_format}"
    getattr(ensemble, f"write_{file_format}")(path)
    again = getattr(anndata, f"read_{file_format}")(path)
    one, other = (dp.tl.predict_cells(fit, times=0.6, n_cells=31) for fit in (ensemble, again))
    assert (one.X != other.X).nnz == 0


def test_predictions_pool_the_members_in_equal_shares(ensemble):
    predicted = dp.tl.predict_cells(ensemble, times=[0.1, 0.6], n_cells=31)
    assert predicted.obs.groupby("time")["member"].value_counts().isin([10, 11]).all()
    assert predicted.n_obs == 62
    # Fewer cells than members leave some out.
    assert dp.tl.predict_cells(ensemble, times=0.6, n_cells=2).n_obs == 2
    assert dp.tl.predict_cells(ensemble, times=0.6, n_cells=2, source="prior").n_obs == 2


def test_pooled_states_are_in_the_latent_space_of_the_first(ensemble):
    # At an observed time cells are carried nowhere: each member's states are its own encodings, mapped.
    predicted = dp.tl.predict_cells(ensemble, times=0.5, n_cells=600)
    fitted, now = dp.get.model(ensemble), (ensemble.obs["time"] == 0.5).to_numpy()
    for m, (member, affine) in enumerate(zip(fitted.members, fitted.to_reference, strict=True)):
        states = predicted[predicted.obs["member"] == str(m)].obsm["X_dynvae"]
        encoded = affine.points(member.get_latent_representation()[now])
        error = states.std(0) / np.sqrt(len(states))
        assert (np.abs(states.mean(0) - encoded.mean(0)) < 4 * error).all()


def test_members_in_parallel_are_the_same_members(ensemble, simulated, quick):
    from dataclasses import replace

    parallel = dp.tl.fit_dynamic_vae(
        simulated, time_key="time", batch_key="batch", n_members=3, training=replace(quick, n_jobs=2), copy=True
    )
    np.testing.assert_array_equal(parallel.obsm["dynvae_groups"], ensemble.obsm["dynvae_groups"])


def test_an_ensemble_in_a_subset_of_the_cells_predicts_too(ensemble):
    subset = ensemble[ensemble.obs["time"] < 1].copy()
    assert dp.tl.predict_cells(subset, times=0.5, n_cells=9).n_obs == 9


def test_the_history_tells_the_members_apart(ensemble):
    history = dp.get.history(ensemble)
    assert sorted(history["member"].unique()) == [0, 1, 2]
    assert history.groupby("member").size().nunique() == 1


def test_a_number_of_members_that_is_none_is_refused(simulated, quick):
    with pytest.raises(ValueError, match="n_members must be a positive whole number; it is 0"):
        dp.tl.fit_dynamic_vae(simulated, time_key="time", n_members=0, training=quick)


def test_a_representation_has_no_members(simulated, quick):
    with pytest.raises(ValueError, match="n_members=2 needs networks that can differ"):
        dp.tl.fit_dynamic_vae(simulated, time_key="time", use_rep="Z_true", n_members=2, training=quick)
