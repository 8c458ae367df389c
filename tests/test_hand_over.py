"""What a fit hands over to scanpy, CellRank, scvelo and scvi-tools, and takes from them."""

import warnings

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

import dynapath as dp
from dynapath.models._random import isolated_seed


@pytest.fixture(scope="module")
def fitted_once():
    """Groups that part and do not meet again, in the true latent space: time runs outwards along every branch."""
    cells = dp.datasets.simulate_snapshots("branching", n_cells=60, n_genes=20)
    quick = dp.models.Training(n_restarts=4, prior_steps=150, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a fit has something to say, which is not the point here
        dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep="Z_true", training=quick)
    return cells


@pytest.fixture
def cells(fitted_once):
    return fitted_once.copy()


@pytest.fixture(scope="module")
def on_umap(fitted_once):
    cells = fitted_once.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(cells, use_rep="X_dynvae")
        sc.tl.umap(cells)
    dp.tl.embed_velocity(cells)
    return cells


def cosine(a, b):
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


# --- scanpy ----------------------------------------------------------------------------------------------------------------


def test_in_the_latent_space_itself_arrows_are_the_velocities(cells):
    dp.tl.embed_velocity(cells, basis="dynvae")
    assert np.quantile(cosine(cells.obsm["dynvae_velocity_dynvae"], cells.obsm["dynvae_velocity"]), 0.01) > 0.9


def test_turning_the_embedding_turns_the_arrows(cells):
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    cells.obsm["X_turned"] = cells.obsm["X_dynvae"] @ turn
    for basis in ("dynvae", "turned"):
        dp.tl.embed_velocity(cells, basis=basis)
    np.testing.assert_allclose(
        cells.obsm["dynvae_velocity_turned"], cells.obsm["dynvae_velocity_dynvae"] @ turn, atol=1e-4
    )


@pytest.mark.slow
def test_arrows_on_a_umap_point_to_where_cells_of_the_next_moment_are(on_umap):
    z, velocity = (on_umap.obsm[slot].astype(float) for slot in ("X_dynvae", "dynvae_velocity"))
    nearest = NearestNeighbors(n_neighbors=10).fit(z)

    def place(states):
        """Where the UMAP has the cells around these states."""
        return np.median(on_umap.obsm["X_umap"][nearest.kneighbors(states, return_distance=False)], axis=1)

    moved = z + 0.1 * velocity
    # Only where there are cells ahead does the UMAP show where ahead is.
    among_cells = nearest.kneighbors(moved)[0][:, 0] < np.median(nearest.kneighbors(z)[0][:, -1])
    step = place(moved) - place(z)
    seen = among_cells & (np.linalg.norm(step, axis=1) > 0)
    assert seen.mean() > 0.7
    agreement = cosine(on_umap.obsm["dynvae_velocity_umap"][seen], step[seen])
    assert np.median(agreement) > 0.9
    assert np.mean(agreement > 0) > 0.95


# --- CellRank and scvelo, where they are installed ---------------------------------------------------------------------------------


def time_shares(transitions, time):
    """Share of the transitions that go to later, and to earlier, cells."""
    np.testing.assert_allclose(np.asarray(transitions.sum(1)).ravel(), 1, atol=1e-6)
    transitions = transitions.tocoo()
    step = time[transitions.col] - time[transitions.row]
    return [transitions.data[step > 0].sum() / len(time), transitions.data[step < 0].sum() / len(time)]


@pytest.mark.slow
def test_transitions_of_cellrank_lead_to_later_cells(on_umap):
    kernels = pytest.importorskip("cellrank").kernels
    time = on_umap.obs["time"].to_numpy()
    velocity = kernels.VelocityKernel(on_umap, attr="obsm", xkey="X_dynvae", vkey="dynvae_velocity")
    velocity.compute_transition_matrix(similarity="cosine", show_progress_bar=False)
    later, earlier = time_shares(velocity.transition_matrix, time)
    assert later > 1.5 * earlier
    # Without the velocities, neighbours are as often earlier as later.
    undirected = kernels.ConnectivityKernel(on_umap).compute_transition_matrix()
    later, earlier = time_shares(undirected.transition_matrix, time)
    assert later == pytest.approx(earlier, rel=0.1)


@pytest.mark.slow
def test_scvelo_draws_our_arrows(on_umap):
    scvelo = pytest.importorskip("scvelo")
    cells = on_umap.copy()
    scvelo.pl.velocity_embedding_stream(cells, vkey="dynvae_velocity", basis="umap", show=False)
    np.testing.assert_array_equal(cells.obsm["dynvae_velocity_umap"], on_umap.obsm["dynvae_velocity_umap"])


# --- scvi-tools ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_scvi():
    import scvi

    cells = dp.datasets.simulate_snapshots("separated", n_cells=40, n_genes=80, batch_effect=True)
    with isolated_seed(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
        model = scvi.model.SCVI(cells, n_latent=2, n_hidden=32, gene_likelihood="nb")
        plan = {"n_epochs_kl_warmup": 20, "lr": 5e-3}
        model.train(max_epochs=60, train_size=1.0, enable_progress_bar=False, plan_kwargs=plan)
    return model


def taken_over(model, **options):
    cells = model.adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.tl.fit_dynamic_vae(cells, time_key="time", batch_key="batch", model=model, **options)
    return cells


@pytest.fixture(scope="module")
def from_scvi(trained_scvi):
    brief = dp.models.Training(joint_epochs=40, n_restarts=4, prior_steps=150, progress=False)
    return taken_over(trained_scvi, training=brief)


@pytest.mark.slow
def test_before_the_joint_phase_states_are_those_of_scvi(trained_scvi):
    """A joint phase without a step to speak of: what is left is the mixture, fitted to SCVI's latent space."""
    still = {"plan_kwargs": {"lr": 1e-12, "prior_lr": 1e-12}}
    brief = dp.models.Training(joint_epochs=1, n_restarts=2, prior_steps=20, progress=False)
    cells = taken_over(trained_scvi, training=brief, train_kwargs=still)
    # An epoch moves the running averages of SCVI's batch norm a little.
    expected = trained_scvi.get_latent_representation()
    assert np.abs(cells.obsm["X_dynvae"] - expected).max() < 0.05 * expected.std()


@pytest.mark.slow
def test_groups_are_found_starting_from_scvi(from_scvi):
    assert adjusted_rand_score(from_scvi.obs["group"], from_scvi.obs["dynvae_group"]) > 0.9


@pytest.mark.slow
def test_what_was_taken_over_is_stored_whole(from_scvi, tmp_path):
    from_scvi.write_h5ad(tmp_path / "cells.h5ad")
    again = dp.get.model(ad.read_h5ad(tmp_path / "cells.h5ad"))
    np.testing.assert_allclose(again.get_latent_representation(), from_scvi.obsm["X_dynvae"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_differential_expression_of_scvi_tools_finds_the_genes_that_differ_between_groups(from_scvi):
    one, other = (np.flatnonzero(from_scvi.obs["dynvae_group"] == group) for group in "01")
    with isolated_seed(0):
        table = dp.get.model(from_scvi).differential_expression(idx1=one, idx2=other, mode="change", silent=True)
    share = from_scvi.layers["expected"] / from_scvi.layers["expected"].sum(1, keepdims=True)
    truth = np.log2(share[one].mean(0) / share[other].mean(0))
    assert np.corrcoef(table.loc[from_scvi.var_names, "lfc_mean"], truth)[0, 1] > 0.8
