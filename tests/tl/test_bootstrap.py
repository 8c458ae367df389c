"""The bootstrap of a finished fit: what it writes, what it refuses, and that it survives files, orders and subsets."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dynapath as dp
from dynapath.models import Training

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit has not converged:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*restarts reach a likelihood within:UserWarning"),
    pytest.mark.filterwarnings("ignore:Only one of .* restarts reached:UserWarning"),
    pytest.mark.filterwarnings("ignore:Groups with less than:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*further members found other groups:UserWarning"),
]

QUICK = Training(static_epochs=4, joint_epochs=4, n_restarts=3, prior_steps=60, n_hidden=16, progress=False)
BANDS = ["mean_lower", "mean_upper", "velocity_lower", "velocity_upper", "proportion_lower", "proportion_upper"]


@pytest.fixture(scope="module")
def fitted(simulated):
    cells = simulated.copy()
    dp.tl.fit_dynamic_vae(cells, time_key="time", batch_key="batch", training=QUICK)
    dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep="Z_true", training=QUICK, key_added="rep")
    return cells


@pytest.fixture(scope="module")
def resampled(fitted):
    cells = fitted.copy()
    for key in ("dynvae", "rep"):
        dp.tl.bootstrap(cells, key=key, n_bootstrap=5)
    return cells


# --- bands -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["dynvae", "rep"])
def test_without_a_bootstrap_there_are_no_bands(fitted, key):
    assert dp.get.trajectories(fitted, key)[BANDS].isna().all(axis=None)


@pytest.mark.parametrize("key", ["dynvae", "rep"])
def test_a_bootstrap_gives_bands_around_an_unchanged_fit(fitted, resampled, key):
    before, after = dp.get.trajectories(fitted, key), dp.get.trajectories(resampled, key)
    same = [column for column in before if column not in BANDS]
    pd.testing.assert_frame_equal(after[same], before[same])
    for column in ("mean", "velocity", "proportion"):
        assert (after[f"{column}_lower"] < after[column]).all()
        assert (after[f"{column}_upper"] > after[column]).all()
    assert after["proportion_lower"].min() > 0
    assert after["proportion_upper"].max() < 1


def test_bands_of_means_are_narrower_than_bands_of_cells(resampled):
    table = dp.get.trajectories(resampled, "rep", times=[0, 0.5])
    ratio = (table["mean_upper"] - table["mean_lower"]) / (table["upper"] - table["lower"])
    # 25 cells a group and time: a mean of one snapshot alone would be known to a fifth of the cells' spread.
    assert ratio.median() < 0.3


def test_a_higher_level_gives_wider_bands(resampled):
    narrow, wide = (dp.get.trajectories(resampled, level=level) for level in (0.5, 0.95))
    assert (wide["mean_upper"] > narrow["mean_upper"]).all()


@pytest.mark.parametrize("level", [0, 1, 90])
def test_a_level_that_is_no_probability_raises(resampled, level):
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        dp.get.trajectories(resampled, level=level)


@pytest.mark.parametrize("rep", [None, "Z_true"])
def test_the_fit_can_resample_at_once(simulated, fitted, rep):
    cells = simulated.copy()
    asked = {"use_rep": rep} if rep else {"batch_key": "batch"}
    dp.tl.fit_dynamic_vae(cells, time_key="time", training=QUICK, n_bootstrap=4, random_state=0, **asked)
    later = fitted.copy()
    key = "rep" if rep else "dynvae"
    dp.tl.bootstrap(later, key=key, n_bootstrap=4, random_state=0)
    pd.testing.assert_frame_equal(dp.get.trajectories(cells), dp.get.trajectories(later, key))


def test_a_new_fit_drops_the_old_bands(resampled):
    cells = resampled.copy()
    dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep="Z_true", training=QUICK, key_added="rep")
    assert dp.get.trajectories(cells, "rep")[BANDS].isna().all(axis=None)


@pytest.mark.slow
def test_members_give_bands_and_resampling_widens_them(simulated):
    cells = simulated.copy()
    dp.tl.fit_dynamic_vae(cells, time_key="time", training=QUICK, n_members=2)
    members = dp.get.trajectories(cells, n_grid=5)
    assert members[BANDS].notna().all(axis=None)
    dp.tl.bootstrap(cells, n_bootstrap=3)
    assert set(cells.uns["dynvae"]["bootstrap"]) == {"0", "1", "n_bootstrap", "random_state"}
    both = dp.get.trajectories(cells, n_grid=5)
    pd.testing.assert_series_equal(both["mean"], members["mean"])
    genes = dp.get.gene_trajectories(cells, cells.var_names[:2].tolist(), times=[0, 1])
    assert (genes["lower"] < genes["upper"]).all()


# --- what it rests on ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["dynvae", "rep"])
def test_the_order_of_cells_changes_nothing(fitted, resampled, key):
    shuffled = fitted[np.random.default_rng(0).permutation(fitted.n_obs)].copy()
    dp.tl.bootstrap(shuffled, key=key, n_bootstrap=5)
    pd.testing.assert_frame_equal(dp.get.trajectories(shuffled, key), dp.get.trajectories(resampled, key), rtol=1e-6)


def test_the_same_seed_gives_the_same_bits(fitted, resampled):
    again, other = fitted.copy(), fitted.copy()
    dp.tl.bootstrap(again, n_bootstrap=5, random_state=0)
    dp.tl.bootstrap(other, n_bootstrap=5, random_state=1)
    pd.testing.assert_frame_equal(dp.get.trajectories(again), dp.get.trajectories(resampled), rtol=0, atol=0)
    assert not dp.get.trajectories(other).equals(dp.get.trajectories(again))


def test_the_random_state_of_the_session_is_left_alone(fitted):
    import torch

    cells = fitted.copy()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    dp.tl.bootstrap(cells, n_bootstrap=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_a_copy_leaves_the_original(fitted):
    copied = dp.tl.bootstrap(fitted, n_bootstrap=2, copy=True)
    assert "bootstrap" in copied.uns["dynvae"]
    assert "bootstrap" not in fitted.uns["dynvae"]


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_bands_survive_files(resampled, tmp_path, form):
    path = tmp_path / f"cells.{form}"
    getattr(resampled, f"write_{form}")(path)
    again = getattr(ad, f"read_{form}")(path)
    for key in ("dynvae", "rep"):
        pd.testing.assert_frame_equal(dp.get.trajectories(again, key), dp.get.trajectories(resampled, key))
    genes = resampled.var_names[:3].tolist()
    pd.testing.assert_frame_equal(dp.get.gene_trajectories(again, genes), dp.get.gene_trajectories(resampled, genes))


def test_bands_stay_with_a_subset(resampled):
    part = resampled[resampled.obs["group"] == "1"].copy()
    pd.testing.assert_frame_equal(dp.get.trajectories(part), dp.get.trajectories(resampled))
    # Genes are averaged over the cells that are there, here a third of them.
    genes = resampled.var_names[:5].tolist()
    of_part, of_all = (dp.get.gene_trajectories(cells, genes, times=[0, 1]) for cells in (part, resampled))
    assert (of_part["lower"] < of_part["upper"]).all()
    assert np.log(of_part["mean"] / of_all["mean"]).abs().median() < 0.3


# --- what it refuses -----------------------------------------------------------------------------------------------------


def test_a_subset_of_the_cells_is_refused(fitted):
    with pytest.raises(
        ValueError, match=r"used 300 cells, but this AnnData has 200\. Bootstrap the fitted AnnData before"
    ):
        dp.tl.bootstrap(fitted[:200].copy())


@pytest.mark.parametrize("key", ["dynvae", "rep"])
def test_removed_states_are_named(fitted, key):
    cells = fitted.copy()
    del cells.obsm[f"X_{key}"]
    with pytest.raises(KeyError, match=rf"The fit '{key}' lacks obsm\['X_{key}'\]"):
        dp.tl.bootstrap(cells, key=key)


def test_states_that_are_not_finite_are_named(fitted):
    cells = fitted.copy()
    cells.obsm["X_dynvae"][7, 1] = np.nan
    with pytest.raises(ValueError, match=r"obsm\['X_dynvae'\] has NaN .* first in cell 'cell7'"):
        dp.tl.bootstrap(cells)


@pytest.mark.parametrize("n", [-1, 1, 2.5])
def test_a_number_of_draws_without_a_spread_raises_before_anything_is_done(simulated, fitted, n):
    cells = simulated.copy()
    with pytest.raises(ValueError, match=rf"n_bootstrap must be 0 .* at least 2; it is {n}"):
        dp.tl.fit_dynamic_vae(cells, time_key="time", n_bootstrap=n)
    assert "dynvae" not in cells.uns
    with pytest.raises(ValueError, match="n_bootstrap must be"):
        dp.tl.bootstrap(fitted, n_bootstrap=n)


def test_no_draws_are_not_a_bootstrap(fitted):
    with pytest.raises(ValueError, match="n_bootstrap must be at least 2; it is 0"):
        dp.tl.bootstrap(fitted, n_bootstrap=0)


def test_without_a_fit_the_error_names_the_fits_there_are(fitted):
    with pytest.raises(KeyError, match="no fit under 'other'; fits present: dynvae, rep"):
        dp.tl.bootstrap(fitted, key="other")
