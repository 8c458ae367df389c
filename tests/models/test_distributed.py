"""Training in two processes that share the cells: they end with the same model, and it is as good as that of one."""

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import dynapath as dp

SCRIPT = Path(__file__).with_name("distributed_script.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("distributed_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What both processes wrote."""
    folder = tmp_path_factory.mktemp("two_processes")
    outside = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK")}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env={**outside, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def two(folder):
    return [ad.read_h5ad(folder / f"{rank}.h5ad") for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(script):
    cells = script.snapshots()
    # As many cells a step as two processes take together.
    together = dp.models.Training(**{**vars(script.TRAINING), "batch_size": 128})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.tl.fit_dynamic_vae(cells, time_key="time", training=together)
    return cells


def arrays_of(nested, place=""):
    """Every array and number in nested dictionaries."""
    if isinstance(nested, dict):
        for name, value in nested.items():
            yield from arrays_of(value, f"{place}/{name}")
    else:
        yield place, nested


@pytest.mark.slow
def test_both_processes_end_with_the_same_bits(two, folder):
    first, second = (dict(arrays_of(cells.uns["dynvae"]["state"])) for cells in two)
    assert first.keys() == second.keys()
    assert any("dynamics" in place for place in first)
    for place, value in first.items():
        np.testing.assert_array_equal(value, second[place], err_msg=place)
    for slot in ("X_dynvae", "dynvae_velocity", "dynvae_groups"):
        np.testing.assert_array_equal(two[0].obsm[slot], two[1].obsm[slot])
    poisson = [np.load(folder / f"{rank}.npz") for rank in (0, 1)]
    for name in poisson[0]:
        np.testing.assert_array_equal(poisson[0][name], poisson[1][name], err_msg=name)


@pytest.mark.slow
def test_both_processes_know_the_history(two, script):
    first, second = map(dp.get.history, two)
    assert len(first) == script.TRAINING.static_epochs + script.TRAINING.joint_epochs
    assert np.isfinite(first["loss"]).all()
    np.testing.assert_array_equal(first["loss"], second["loss"])
    assert two[0].uns["dynvae"]["status"] == two[1].uns["dynvae"]["status"]


@pytest.mark.slow
def test_two_processes_fit_as_well_as_one(two, alone):
    elbo, elbo_alone = (dp.get.history(cells)["elbo"].tail(5).mean() for cells in (two[0], alone))
    assert elbo == pytest.approx(elbo_alone, rel=0.01)
    assert adjusted_rand_score(two[0].obs["group"], two[0].obs["dynvae_group"]) > 0.9
    assert adjusted_rand_score(alone.obs["dynvae_group"], two[0].obs["dynvae_group"]) > 0.9


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_both(folder):
    for rank in (0, 1):
        assert "Training left the finite numbers in epoch 1 of the static phase" in (folder / f"{rank}.txt").read_text()
