"""Stages of the training that are kept on request."""

import warnings

import anndata as ad
import numpy as np
import pytest

import dynapath as dp
from dynapath.models import Training

QUICK = {
    "static_epochs": 2,
    "joint_epochs": 3,
    "n_restarts": 3,
    "prior_steps": 20,
    "n_hidden": 8,
    "progress": False,
}

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")


def fit(cells, **options):
    training = Training(**QUICK, keep_stages=options.pop("keep_stages", True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a fit has something to say, which is not the point here
        return dp.tl.fit_dynamic_vae(cells, time_key="time", training=training, copy=True, **options)


@pytest.fixture(scope="module")
def cells():
    return dp.datasets.simulate_snapshots("rotating", n_cells=15, n_genes=12)


@pytest.fixture(scope="module")
def kept(cells):
    return fit(cells)


def test_keeping_stages_does_not_change_the_fit(cells, kept):
    plain = fit(cells, keep_stages=False)
    np.testing.assert_array_equal(plain.obsm["X_dynvae"], kept.obsm["X_dynvae"])
    np.testing.assert_array_equal(dp.get.history(plain)["loss"], dp.get.history(kept)["loss"])
    assert "stages" not in plain.uns["dynvae"]
    assert not [slot for slot in plain.obsm if "stage" in slot]


def test_stages_come_in_the_order_of_training_and_end_with_the_fit(kept):
    stages = dp.get.stages(kept)
    assert [(stage.name, stage.epoch) for stage in stages] == [("untrained", 0), ("static", 2), ("joint", 5)]
    np.testing.assert_array_equal(stages[-1].z, kept.obsm["X_dynvae"])
    assert stages[0].dynamics is None


def test_the_static_stage_is_the_static_vae(cells, kept):
    """Training that ends after the static phase gives the same cells."""
    from dynapath.models import DynamicVAE
    from dynapath.models._random import isolated_seed

    data = ad.AnnData(cells.X.copy(), obs=cells.obs[["time"]].copy())
    with isolated_seed(0):
        DynamicVAE.setup_anndata(data, "time")
        model = DynamicVAE(data, n_groups=3, training=Training(**QUICK, keep_stages=True))

        def stop(*_):
            raise InterruptedError

        model._fit_prior = stop
        with pytest.raises(InterruptedError):
            model.train(random_state=0)
        untrained, static = model.stages_[0].z, model.get_latent_representation()
    np.testing.assert_array_equal(dp.get.stages(kept)[0].z, untrained)
    np.testing.assert_array_equal(dp.get.stages(kept)[1].z, static)


def test_groups_of_the_static_stage_have_the_numbers_of_the_fit(kept):
    """The joint phase moves groups by little when it is this short."""
    _, static, joint = dp.get.stages(kept)
    start = [stage.dynamics.trajectories([0.0]).mean[:, 0] for stage in (static, joint)]
    apart = np.linalg.norm(start[0][:, None] - start[1][None], axis=-1)
    np.testing.assert_array_equal(apart.argmin(1), range(3))


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_stages_follow_a_subset_and_survive_files(kept, tmp_path, suffix):
    path = tmp_path / f"cells.{suffix}"
    half = kept[::2].copy()
    (half.write_h5ad if suffix == "h5ad" else half.write_zarr)(path)
    again = (ad.read_h5ad if suffix == "h5ad" else ad.read_zarr)(path)
    for before, after in zip(dp.get.stages(kept), dp.get.stages(again), strict=True):
        assert (after.name, after.epoch) == (before.name, before.epoch)
        np.testing.assert_array_equal(after.z, before.z[::2])
        if before.dynamics is not None:
            np.testing.assert_allclose(
                after.dynamics.trajectories([0.3]).mean, before.dynamics.trajectories([0.3]).mean
            )


def test_a_new_fit_removes_the_stages_of_the_old(kept):
    again = fit(kept, keep_stages=False)
    assert not [slot for slot in again.obsm if "stage" in slot]
    with pytest.raises(KeyError, match=r"kept no stages.*Training\(keep_stages=True\)"):
        dp.get.stages(again)


def test_of_several_members_the_first_keeps_its_stages(cells, kept):
    pooled = fit(cells, n_members=2)
    for one, other in zip(dp.get.stages(kept), dp.get.stages(pooled), strict=True):
        assert one.epoch == other.epoch
        np.testing.assert_array_equal(one.z, other.z)


def test_a_model_that_was_taken_over_has_no_untrained_stage(cells, kept):
    taken = fit(cells, model=dp.get.model(kept))
    assert [stage.name for stage in dp.get.stages(taken)] == ["static", "joint"]
    np.testing.assert_array_equal(dp.get.stages(taken)[0].z, kept.obsm["X_dynvae"])


def test_a_representation_has_no_stages(cells):
    with pytest.raises(ValueError, match="keeps stages of networks; with use_rep there are none"):
        fit(cells, use_rep="Z_true")


def test_a_slot_of_the_user_is_not_overwritten(cells):
    own = cells.copy()
    own.obsm["dynvae_stage_static"] = np.zeros((own.n_obs, 2))
    with pytest.raises(ValueError, match=r"would overwrite obsm\['dynvae_stage_static'\]"):
        fit(own)


def test_a_removed_slot_is_missed_by_name(kept):
    less = kept.copy()
    del less.obsm["dynvae_stage_static"]
    with pytest.raises(KeyError, match=r"lacks obsm\['dynvae_stage_static'\]"):
        dp.get.stages(less)
