"""Batches that overlap in time: they mix in the latent space, and what is predicted does not suffer from them."""

import warnings

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

import dynapath as dp
from dynapath.metrics import clouds
from dynapath.models._random import isolated_seed

HELDOUT = 0.5


def simulated(*, batch_effect):
    cells = dp.datasets.simulate_snapshots("rotating", batch_effect=batch_effect)
    held_out = cells.obs["time"] == HELDOUT
    return cells[~held_out].copy(), cells[held_out].copy()


def fitted(*, batch_effect):
    """Cells seen, with a fit; cells held out."""
    seen, unseen = simulated(batch_effect=batch_effect)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.tl.fit_dynamic_vae(
            seen,
            time_key="time",
            batch_key="batch" if batch_effect else None,
            training=dp.models.Training(progress=False),
        )
    return seen, unseen


@pytest.fixture(scope="module")
def with_batches():
    return fitted(batch_effect=True)


def mixing(cells, z, k=15):
    """Cells of the other batch among the nearest of the same time, relative to what chance would give (1)."""
    found = []
    for _, rows in cells.obs.groupby("time", observed=True).indices.items():
        batch = cells.obs["batch"].to_numpy()[rows]
        near = NearestNeighbors(n_neighbors=k).fit(z[rows]).kneighbors(return_distance=False)
        other = np.mean(batch[near] != batch[:, None], axis=1)
        by_chance = np.array([np.sum(batch != own) for own in batch]) / (len(batch) - 1)
        found.append(other / by_chance)
    return np.concatenate(found).mean()


def energy(seen, unseen):
    space = clouds.PrincipalSpace.fit(seen.X, 20)
    predicted = dp.tl.predict_cells(seen, times=HELDOUT, n_cells=1000)
    return clouds.energy_distance(space.project(predicted.X), space.project(unseen.X))


@pytest.mark.slow
def test_batches_mix_as_well_as_in_the_latent_space_of_scvi(with_batches):
    import scvi

    seen, _ = with_batches
    theirs = simulated(batch_effect=True)[0]
    epochs = len(dp.get.history(seen))
    with isolated_seed(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi.model.SCVI.setup_anndata(theirs, batch_key="batch")
        model = scvi.model.SCVI(theirs, n_latent=2, gene_likelihood="nb")
        plan = {"n_epochs_kl_warmup": epochs // 2}
        model.train(max_epochs=epochs, train_size=1.0, enable_progress_bar=False, plan_kwargs=plan)
    ours = mixing(seen, seen.obsm["X_dynvae"])
    # With labels shuffled within times, this measure has a standard deviation of about .01.
    assert ours > mixing(theirs, model.get_latent_representation()) - 0.03
    assert ours > 0.93


@pytest.mark.slow
def test_a_held_out_time_is_predicted_as_well_as_without_batch_effect(with_batches):
    assert energy(*with_batches) < energy(*fitted(batch_effect=False)) + 0.02
