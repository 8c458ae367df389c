"""dp.tl.fit_dynamic_vae: what it writes, what it refuses before it writes, and what it must not depend on or touch."""

import json
import os
import random
import subprocess
import sys
import warnings

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import sparse

import dynapath as dp
from dynapath.dynamics import GroupDynamics, LinearMixture
from dynapath.dynamics.changes import Convergence
from dynapath.models import Prior, Training
from dynapath.tl import _fit_dynamic_vae as module

# Two epochs converge nowhere, and fits this short say so; the tests of these warnings ask for them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit has not converged:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*restarts reach a likelihood within:UserWarning"),
    pytest.mark.filterwarnings("ignore:Only one of .* restarts reached:UserWarning"),
    pytest.mark.filterwarnings("ignore:Groups with less than:UserWarning"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
]

OBSM = ["X_dynvae", "dynvae_std", "dynvae_velocity", "dynvae_groups"]
OBS = ["dynvae_group", "dynvae_prob", "dynvae_undetermined"]


@pytest.fixture(scope="module")
def fit(quick):
    def run(cells, **kwargs):
        return dp.tl.fit_dynamic_vae(cells, **{"time_key": "time", "training": quick, **kwargs})

    return run


@pytest.fixture(scope="module")
def fitted(simulated, fit):
    return fit(simulated, copy=True, batch_key="batch")


def assert_same_data(one, other):
    """Everything but `uns` values, which are compared by name."""
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)
    assert abs(one.X - other.X).max() == 0
    for slots in ("obsm", "varm", "layers", "obsp"):
        mine, theirs = getattr(one, slots), getattr(other, slots)
        assert set(mine) == set(theirs)
        for name in mine:
            np.testing.assert_array_equal(dense(mine[name]), dense(theirs[name]))
    assert set(one.uns) == set(other.uns)


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def assert_same_fit(one, other):
    for slot in OBSM:
        np.testing.assert_array_equal(one.obsm[slot], other.obsm[slot])
    pd.testing.assert_frame_equal(one.obs[OBS].reset_index(drop=True), other.obs[OBS].reset_index(drop=True))


# --- slots -------------------------------------------------------------------------------------------------------------------


def test_every_slot_has_its_shape_and_type(fitted, simulated):
    n = simulated.n_obs
    assert set(fitted.obsm) - set(simulated.obsm) == set(OBSM)
    assert [column for column in fitted.obs if column not in simulated.obs] == OBS
    assert set(fitted.uns) - set(simulated.uns) == {"dynvae"}
    for slot, width in zip(OBSM, (2, 2, 2, 3), strict=True):
        assert fitted.obsm[slot].shape == (n, width)
        assert fitted.obsm[slot].dtype == np.float32
        assert np.isfinite(fitted.obsm[slot]).all()
    assert fitted.obs["dynvae_group"].cat.categories.tolist() == ["0", "1", "2"]
    assert fitted.obs["dynvae_undetermined"].dtype == bool
    assert (fitted.obsm["dynvae_std"] > 0).all()
    np.testing.assert_allclose(fitted.obsm["dynvae_groups"].sum(1), 1, rtol=1e-5)


def test_group_and_probability_are_those_of_the_responsibilities(fitted):
    resp = fitted.obsm["dynvae_groups"]
    assert fitted.obs["dynvae_group"].astype(int).tolist() == resp.argmax(1).tolist()
    np.testing.assert_allclose(fitted.obs["dynvae_prob"], resp.max(1), rtol=1e-6)
    assert fitted.obs["dynvae_undetermined"].tolist() == (fitted.obs["dynvae_prob"] < 0.6).tolist()


def test_the_fit_itself_is_in_uns(fitted):
    stored = fitted.uns["dynvae"]
    assert {"kind", "params", "state", "history", "versions", "schema"} <= set(stored)
    assert stored["kind"] == "dynamic_vae"
    assert stored["params"]["time_key"] == "time"
    assert stored["params"]["random_state"] == 0
    assert list(stored["params"]["genes"]) == list(fitted.var_names)
    assert stored["history"]["phase"].tolist() == ["static"] * 2 + ["joint"] * 2
    assert len(stored["restarts"]["log_likelihood"]) == 2


def test_velocity_is_that_of_the_dynamics(fitted):
    dynamics = dp.get.dynamics(fitted)
    expected = dynamics.velocity(fitted.obsm["X_dynvae"], fitted.obsm["dynvae_groups"])
    np.testing.assert_allclose(fitted.obsm["dynvae_velocity"], expected, rtol=1e-3, atol=1e-4)


def test_nothing_of_scvi_is_left_behind(cells, fit):
    fit(cells)
    assert not [key for key in cells.uns if key.startswith("_scvi")]
    assert not [column for column in cells.obs if column.startswith("_scvi")]


def test_data_are_left_as_they_are(cells, simulated, fit):
    fit(cells)
    for slot in OBSM:
        del cells.obsm[slot]
    cells.obs = cells.obs.drop(columns=OBS)
    del cells.uns["dynvae"]
    assert_same_data(cells, simulated)


def test_without_copy_it_returns_none(cells, fit):
    assert fit(cells, use_rep="Z_true") is None


@pytest.mark.parametrize("kwargs", [{}, {"use_rep": "Z_true"}], ids=["counts", "use_rep"])
def test_a_copy_leaves_the_input_alone(cells, simulated, fit, kwargs):
    annotated = fit(cells, copy=True, **kwargs)
    assert_same_data(cells, simulated)
    assert "X_dynvae" in annotated.obsm


def test_two_fits_stand_side_by_side(cells, fit):
    fit(cells, use_rep="Z_true")
    before = cells.copy()
    fit(cells, use_rep="Z_true", n_groups=2, key_added="two")
    assert_same_fit(cells, before)
    assert cells.obsm["two_groups"].shape == (300, 2)
    assert dp.get.dynamics(cells, "two").n_groups == 2


def test_a_fit_under_the_same_key_is_replaced_whole(cells, fit):
    fit(cells)
    cells.uns["dynvae_group_colors"] = ["#111111", "#222222", "#333333"]
    fit(cells, use_rep="Z_true", n_groups=2)
    assert cells.uns["dynvae"]["kind"] == "group_dynamics"
    assert "genes" not in cells.uns["dynvae"]["params"]
    assert "module" not in cells.uns["dynvae"]["state"]
    assert "dynvae_group_colors" not in cells.uns
    assert cells.obsm["dynvae_groups"].shape == (300, 2)
    assert set(dp.get.history(cells)["phase"]) == {"mixture"}


def test_slots_of_the_user_are_not_overwritten(cells, fit):
    cells.obsm["X_dynvae"] = np.zeros((300, 2))
    before = cells.copy()
    with pytest.raises(ValueError, match=r"would overwrite obsm\['X_dynvae'\]"):
        fit(cells)
    assert_same_data(cells, before)


# --- bad input: errors before anything is written -----------------------------------------------------------------------------


def spoil_counts(cells, value):
    X = cells.X.toarray()
    X[3, 4] = value
    cells.X = sparse.csr_matrix(X)


def nest_batches(cells):
    cells.obs["batch"] = cells.obs["time"].astype(str)


def log_normalise(cells):
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.log1p()


BAD = {
    "missing time": (None, {"time_key": "day"}, KeyError, "no column 'day'"),
    "missing batch": (None, {"batch_key": "lane"}, KeyError, r"no column 'lane' \(batch_key\)"),
    "missing labels": (None, {"labels_key": "kind"}, KeyError, r"no column 'kind' \(labels_key\)"),
    "missing size factor": (None, {"size_factor_key": "sf"}, KeyError, r"no column 'sf' \(size_factor_key\)"),
    "missing layer": (None, {"layer": "raw"}, KeyError, "layers has no 'raw'"),
    "missing representation": (None, {"use_rep": "X_pca"}, KeyError, "obsm has no 'X_pca'"),
    "NaN time": (lambda c: c.obs.__setitem__("time", np.nan), {}, ValueError, "is nan for cell"),
    "one time": (lambda c: c.obs.__setitem__("time", 1.0), {}, ValueError, "only one distinct time"),
    "negative counts": (lambda c: spoil_counts(c, -1), {}, ValueError, "negative values"),
    "log-normalised": (log_normalise, {}, ValueError, "looks log-normalised.*layer='counts'"),
    "empty cells": (lambda c: spoil_row(c), {}, ValueError, "1 cells have no counts"),
    "nested batches": (nest_batches, {"batch_key": "batch"}, ValueError, "is nested in"),
    "too many groups": (None, {"n_groups": 40}, ValueError, "n_groups=40 is too large"),
    "too many labels": (None, {"labels_key": "type", "n_groups": 2}, ValueError, "3 labels .* do not fit"),
    "too many labels, use_rep": (
        None,
        {"labels_key": "type", "n_groups": 2, "use_rep": "Z_true"},
        ValueError,
        "3 labels .* do not fit",
    ),
    "unknown likelihood": (None, {"likelihood": "normal"}, ValueError, "likelihood must be one of 'nb'.*'normal'"),
    "unknown growth": (None, {"growth": "on"}, ValueError, "growth must be one of"),
    "unknown growth, use_rep": (None, {"growth": "on", "use_rep": "Z_true"}, ValueError, "growth must be one of"),
    "two ways": (None, {"use_rep": "Z_true", "model": object()}, ValueError, "give only one"),
    "slash in the key": (None, {"key_added": "a/b"}, ValueError, "cannot name slots"),
    "no latent dimension": (None, {"n_latent": 0}, ValueError, "n_latent must be a positive whole number"),
}


def spoil_row(cells):
    X = cells.X.toarray()
    X[7] = 0
    cells.X = sparse.csr_matrix(X)


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_raises_before_anything_is_written(cells, fit, case):
    spoil, kwargs, error, message = BAD[case]
    if spoil is not None:
        spoil(cells)
    before = cells.copy()
    with pytest.raises(error, match=message):
        fit(cells, **kwargs)
    assert_same_data(cells, before)


def test_a_fit_that_diverges_writes_nothing(cells, simulated, fit):
    absurd = Training(static_epochs=2, joint_epochs=2, lr=1e30, progress=False)
    with pytest.raises(FloatingPointError, match="epoch 1 of the static phase"):
        fit(cells, training=absurd)
    assert_same_data(cells, simulated)


def test_a_fit_that_diverges_keeps_the_earlier_one(fitted, fit):
    cells = fitted.copy()
    with pytest.raises(FloatingPointError):
        fit(cells, training=Training(static_epochs=2, joint_epochs=2, lr=1e30, progress=False))
    assert_same_fit(cells, fitted)


# --- warnings ------------------------------------------------------------------------------------------------------------------


def only(cells, times):
    return cells[cells.obs["time"].isin(times)].copy()


def warned(match, call):
    """The warning of this kind, which must point to the line that called."""
    with pytest.warns(UserWarning, match=match) as caught:
        call()
    found = [w for w in caught if match in str(w.message)]
    assert found
    assert found[0].filename == __file__
    return str(found[0].message)


@pytest.mark.parametrize("use_rep", [None, "Z_true"])
def test_two_times_warn(cells, quick, use_rep):
    two = only(cells, [0, 0.5])
    warned("exactly two times", lambda: dp.tl.fit_dynamic_vae(two, time_key="time", use_rep=use_rep, training=quick))


@pytest.mark.parametrize("use_rep", [None, "Z_true"])
def test_few_times_warn(cells, quick, use_rep):
    three = only(cells, [0, 0.5, 1])
    warned(
        "3 times are fewer than", lambda: dp.tl.fit_dynamic_vae(three, time_key="time", use_rep=use_rep, training=quick)
    )


def test_genes_without_counts_warn(cells, quick):
    X = cells.X.toarray()
    X[:, 2] = 0
    cells.X = sparse.csr_matrix(X)
    message = warned("One gene has no counts", lambda: dp.tl.fit_dynamic_vae(cells, time_key="time", training=quick))
    assert cells.var_names[2] in message


def test_enough_times_warn_of_nothing(cells):
    thorough = Training(n_restarts=4, prior_steps=200, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # With labels every restart finds the same groups.
        dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep="Z_true", labels_key="group", training=thorough)
    assert cells.uns["dynvae"]["status"] == "ok"


CONVERGED = Convergence({"paths": 0.5, "states": 0.1}, 1000, 1.0, 0.25)


def judge(reached, agreement, mass=(0.9, 0.1), convergence=CONVERGED):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status, said = module._judge(
            {"log_likelihood": np.array(reached), "agreement": np.array(agreement)},
            np.tile(mass, (100, 1)),
            convergence,
        )
    assert [str(w.message) for w in caught] == said
    return status, said


def test_restarts_that_agree_are_fine():
    assert judge([-1.0, -1.001, -1.5], [1, 0.95, 0.3]) == ("ok", [])


def test_restarts_as_good_with_other_groups_disagree():
    status, said = judge([-1.0, -1.01, -1.015, -1.5], [1, 0.6, 0.95, 0.1])
    assert status == "restarts_disagree"
    assert len(said) == 1
    assert "1 of 4 restarts" in said[0]
    assert "down to 0.60" in said[0]


def test_a_best_restart_without_company_is_said():
    status, said = judge([-1.0, -1.2, -1.3], [1, 0.5, 0.4])
    assert status == "best_restart_alone"
    assert "Only one of 3 restarts" in said[0]


def test_a_diverged_restart_is_no_rival():
    assert judge([-1.0, -1.0, -np.inf], [1, 1, 0]) == ("ok", [])


def test_nearly_empty_groups_are_named():
    _, said = judge([-1.0, -1.0], [1, 1], mass=(0.985, 0.015))
    assert len(said) == 1
    assert "less than 2%" in said[0].replace("2 %", "2%")
    assert "1 (1.5%)" in said[0]


def test_what_still_moves_is_not_converged_whatever_the_restarts_say():
    moving = Convergence({"paths": 0.5, "states": 0.9}, 1000, 1.0, 0.25)
    status, said = judge([-1.0, -1.0], [1, 1], convergence=moving)
    assert status == "not_converged"
    assert "the states of cells by 0.9 (limit 0.5)" in said[0]
    status, said = judge([-1.0, -1.01], [1, 0.5], convergence=moving)
    assert status == "not_converged"
    assert len(said) == 2


def test_groups_that_no_cell_belongs_to_are_undetermined():
    status, said = judge([-1.0, -1.0], [1, 1], mass=(0.55, 0.45))
    assert status == "undetermined"
    assert "No cell has a group" in said[0]


@pytest.mark.parametrize("n_groups", [1, 2])
def test_one_epoch_is_never_ok(cells, n_groups):
    short = Training(prior_steps=20, n_restarts=2, finish_steps=2, progress=False)
    dp.tl.fit_dynamic_vae(cells, time_key="time", n_groups=n_groups, max_epochs=1, training=short)
    assert cells.uns["dynvae"]["status"] == "not_converged"
    assert any("too few to tell" in said and "Raise max_epochs" in said for said in cells.uns["dynvae"]["messages"])
    assert dp.get.convergence(cells)["change"].isna().all()


def test_steps_too_small_to_arrive_are_never_ok(cells):
    still = Training(
        lr=1e-12, prior_lr=1e-12, static_epochs=3, joint_epochs=8, prior_steps=20, n_restarts=2, progress=False
    )
    message = warned(
        "has not converged", lambda: dp.tl.fit_dynamic_vae(cells, time_key="time", n_groups=1, training=still)
    )
    assert "Raise the step size." in message
    assert cells.uns["dynvae"]["status"] == "not_converged"


def test_a_few_steps_on_coordinates_are_never_ok(cells):
    short = Training(prior_steps=2, n_restarts=2, progress=False)
    dp.tl.fit_dynamic_vae(cells, time_key="time", n_groups=1, use_rep="Z_true", training=short)
    assert cells.uns["dynvae"]["status"] == "not_converged"
    assert "Raise Training(prior_steps=...)" in cells.uns["dynvae"]["messages"][-1]


def test_constant_coordinates_are_named_and_not_ok(cells):
    cells.obsm["flat"] = np.full((cells.n_obs, 2), 0.1)
    thorough = Training(n_restarts=2, prior_steps=100, progress=False)
    fit = lambda rep: dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep=rep, training=thorough)
    message = warned("the same for all cells", lambda: fit("flat"))
    assert "obsm['flat']" in message
    # Whether rounding tells groups apart or not.
    assert cells.uns["dynvae"]["status"] == "undetermined"
    cells.obsm["partly"] = np.column_stack([cells.obsm["Z_true"], np.full(cells.n_obs, 7.0)])
    assert "are the same for all cells and say nothing: 2 (from 0)" in warned("say nothing", lambda: fit("partly"))


@pytest.mark.slow
def test_the_main_job_has_converged():
    cells = dp.datasets.simulate_snapshots("crossing", random_state=0)
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    dp.tl.fit_dynamic_vae(cells, time_key="time", n_groups=3, training=Training(progress=False))
    table = dp.get.convergence(cells)
    assert (table["change"] < table["limit"]).all()
    assert cells.uns["dynvae"]["status"] == "ok"


@pytest.mark.slow
def test_a_fit_whose_loss_still_falls_by_nats_is_not_converged(data_dir):
    cells = dp.datasets.larry(path=data_dir)
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    dp.tl.fit_dynamic_vae(cells, time_key="time", training=Training(progress=False))
    elbo = dp.get.history(cells).query("phase == 'joint'")["elbo"].to_numpy()
    assert elbo[-60:-50].mean() - elbo[-10:].mean() > 2
    assert cells.uns["dynvae"]["status"] == "not_converged"


# --- seeds ---------------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(fitted, simulated, fit):
    again = fit(simulated, copy=True, batch_key="batch")
    assert_same_fit(again, fitted)
    for name, value in fitted.uns["dynvae"]["state"]["module"].items():
        np.testing.assert_array_equal(again.uns["dynvae"]["state"]["module"][name], value)
    pd.testing.assert_frame_equal(again.uns["dynvae"]["history"], fitted.uns["dynvae"]["history"])


def test_the_session_before_does_not_matter(fitted, simulated, fit):
    scvi.settings.seed = 99
    try:
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        assert_same_fit(fit(simulated, copy=True, batch_key="batch"), fitted)
    finally:
        scvi.settings._seed = None


def test_another_seed_gives_another_fit(fitted, simulated, fit):
    other = fit(simulated, copy=True, batch_key="batch", random_state=1)
    assert not np.array_equal(other.obsm["X_dynvae"], fitted.obsm["X_dynvae"])


def test_a_seed_that_was_drawn_is_recorded(cells, fit):
    one = fit(cells, copy=True, use_rep="Z_true", random_state=None)
    again = fit(cells, copy=True, use_rep="Z_true", random_state=one.uns["dynvae"]["params"]["random_state"])
    assert_same_fit(one, again)


@pytest.mark.parametrize("kwargs", [{}, {"use_rep": "Z_true"}], ids=["counts", "use_rep"])
def test_the_sessions_random_states_are_left_alone(cells, fit, kwargs):
    environment = dict(os.environ)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), scvi.settings.seed  # noqa: NPY002
    fit(cells, **kwargs)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert scvi.settings.seed == before[3]
    assert dict(os.environ) == environment


def test_rebuilding_and_predicting_leave_the_sessions_random_states_alone(fitted):
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), scvi.settings.seed  # noqa: NPY002
    dp.get.model(fitted)
    dp.tl.predict_cells(fitted, times=0.4, n_cells=5)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert scvi.settings.seed == before[3]


# --- time ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "shift"), [(24.0, 1000.0), (1 / 7, -3.0)])
@pytest.mark.parametrize("kwargs", [{}, {"use_rep": "Z_true"}], ids=["counts", "use_rep"])
def test_time_in_another_unit_changes_only_the_unit_of_velocities(cells, fit, unit, shift, kwargs):
    other = cells.copy()
    other.obs["time"] = cells.obs["time"] * unit + shift
    fit(cells, **kwargs)
    fit(other, **kwargs)
    for slot in ("X_dynvae", "dynvae_std", "dynvae_groups"):
        np.testing.assert_array_equal(other.obsm[slot], cells.obsm[slot])
    # Velocities are divided by the unit and rounded to single precision.
    np.testing.assert_allclose(other.obsm["dynvae_velocity"] * unit, cells.obsm["dynvae_velocity"], rtol=1e-5)
    one = dp.get.trajectories(cells, times=[0.1, 0.9, 1.3])
    two = dp.get.trajectories(other, times=np.array([0.1, 0.9, 1.3]) * unit + shift)
    np.testing.assert_allclose(
        two[["mean", "sd", "proportion"]], one[["mean", "sd", "proportion"]], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["category", "ordered", "str"])
def test_times_may_be_texts_that_read_as_numbers(cells, fit, dtype):
    expected = fit(cells, copy=True, use_rep="Z_true")
    texts = cells.obs["time"].astype(str)
    cells.obs["time"] = {
        "category": texts.astype("category"),
        "ordered": pd.Categorical(texts, categories=["0.0", "0.25", "0.5", "1.0"], ordered=True),
        "str": texts,
    }[dtype]
    fit(cells, use_rep="Z_true")
    assert_same_fit(cells, expected)
    predicted = dp.tl.predict_cells(cells, times=0.4, n_cells=3)
    assert predicted.obs["time"].tolist() == [0.4] * 3


# --- ways in which data are stored --------------------------------------------------------------------------------------------------


STORED = {
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "int64": lambda X: X.astype(np.int64),
    "float64": lambda X: X.astype(np.float64),
    "dense": lambda X: X.toarray(),
    "dask": lambda X: da.from_array(X, chunks=(100, X.shape[1]), asarray=False),
}


@pytest.fixture(scope="module")
def plain(simulated, fit):
    return fit(simulated, copy=True)


@pytest.mark.parametrize("stored", list(STORED))
def test_counts_may_be_stored_in_any_way(cells, plain, fit, stored):
    cells.X = STORED[stored](cells.X)
    before = type(cells.X)
    fit(cells)
    assert_same_fit(cells, plain)
    assert type(cells.X) is before


def test_counts_may_be_on_disk(cells, plain, fit, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    fit(backed)
    assert backed.isbacked
    assert_same_fit(backed, plain)


def test_counts_may_be_a_layer(cells, plain, fit):
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    fit(cells, layer="counts")
    assert_same_fit(cells, plain)
    np.testing.assert_allclose(dp.get.model(cells).get_latent_representation(), cells.obsm["X_dynvae"], rtol=1e-5)


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
def test_a_view_is_fitted_as_its_copy(cells, fit):
    copied, view = cells[::2].copy(), cells[::2]
    fit(copied)
    fit(view)
    assert_same_fit(view, copied)
    assert "X_dynvae" not in cells.obsm


def test_cells_without_unique_names_are_fitted(cells, plain, fit):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Observation names are not unique")
        cells.obs_names = ["cell"] * cells.n_obs
        fit(cells)
        np.testing.assert_array_equal(cells.obsm["X_dynvae"], plain.obsm["X_dynvae"])
        np.testing.assert_allclose(dp.get.model(cells).get_latent_representation(), plain.obsm["X_dynvae"], rtol=1e-5)


def test_counts_become_dense_by_minibatch_alone(cells, fit, monkeypatch):
    # The end of training takes larger parts than there are cells here.
    monkeypatch.setattr("dynapath.models._finish_decoder._BATCH", 128)
    rows = []
    for kind in (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array):
        original = kind.toarray

        def recorded(matrix, *args, original=original, **kwargs):
            rows.append(matrix.shape[0] if matrix.shape[1] == cells.n_vars else 0)
            return original(matrix, *args, **kwargs)

        monkeypatch.setattr(kind, "toarray", recorded)
    fit(cells)
    assert 0 < max(rows) <= 128 < cells.n_obs


# --- other ways to fit -----------------------------------------------------------------------------------------------------------------


def test_a_representation_is_used_as_it_is(cells, fit):
    fit(cells, use_rep="Z_true")
    np.testing.assert_allclose(cells.obsm["X_dynvae"], cells.obsm["Z_true"], rtol=1e-6)
    assert not cells.obsm["dynvae_std"].any()
    assert cells.uns["dynvae"]["params"]["n_latent"] == 2
    assert isinstance(dp.get.model(cells), dp.dynamics.GroupDynamics)


def test_a_representation_is_enough_without_counts(cells, fit):
    alone = ad.AnnData(obs=cells.obs[["time"]], obsm={"Z_true": cells.obsm["Z_true"]})
    fit(alone, use_rep="Z_true")
    assert alone.obsm["dynvae_groups"].shape == (300, 3)


def test_labels_name_the_groups_of_a_representation(cells, fit):
    thorough = Training(n_restarts=2, prior_steps=150, progress=False)
    fit(cells, use_rep="Z_true", labels_key="type", training=thorough)
    # A quarter of the cells is labelled; groups are eight standard deviations apart.
    assert (cells.obs["dynvae_group"].astype(str) == "t" + cells.obs["group"].astype(str)).mean() > 0.98


def test_cells_without_a_label_are_free(cells, fit):
    # Only the first group is labelled: the code for "unlabelled" is 1 then, which is no group.
    cells.obs["type"] = np.where(cells.obs["group"] == "0", "t0", None)
    thorough = Training(n_restarts=4, prior_steps=200, progress=False)
    fit(cells, use_rep="Z_true", labels_key="type", training=thorough)
    table = pd.crosstab(cells.obs["group"], cells.obs["dynvae_group"])
    assert (table.to_numpy().max(1) > 0.95 * 100).all()
    assert table.loc["0", "t0"] == 100


def test_labels_name_the_groups_of_counts(cells, fit):
    cells.obs["type"] = "t" + cells.obs["group"].astype(str)
    longer = Training(static_epochs=40, joint_epochs=20, lr=1e-2, n_restarts=2, prior_steps=100, progress=False)
    fit(cells, labels_key="type", training=longer)
    assert (cells.obs["dynvae_group"].astype(str) == cells.obs["type"].astype(str)).all()
    model = dp.get.model(cells)
    # Not matched: another naming of three groups agrees with a third of the cells (standard error .03) at most by chance.
    inferred = model.dynamics.responsibilities(cells.obsm["X_dynvae"], cells.obs["time"]).argmax(1)
    assert (inferred == cells.obs["group"].astype(int)).mean() > 0.5
    assert model.group_labels == ["t0", "t1", "t2"]
    np.testing.assert_allclose(model.get_latent_representation(), cells.obsm["X_dynvae"], rtol=1e-4, atol=1e-5)


def test_size_factors_are_used(cells, fit):
    fit(cells, size_factor_key="size")
    np.testing.assert_allclose(dp.get.model(cells).library_sizes(), cells.obs["size"], rtol=1e-6)


def test_prior_options_are_kept(cells, fit):
    fit(cells, prior=Prior(share="A", tie_initial=True, floor=0.01), growth="off")
    mixture = dp.get.dynamics(cells).mixture
    assert (mixture.share, mixture.tie_initial, mixture.growth, mixture.floor) == ("A", True, "off", 0.01)
    np.testing.assert_allclose(dp.get.model(cells).get_latent_representation(), cells.obsm["X_dynvae"], rtol=1e-5)


def test_max_epochs_overrules_the_default(cells, fit):
    fit(cells, max_epochs=3, training=Training(n_restarts=1, prior_steps=5, n_hidden=8, progress=False))
    phases = dp.get.history(cells)["phase"].value_counts()
    assert phases["static"] == 3
    assert phases["joint"] in (2, 3)


def test_train_kwargs_reach_scvi(cells, fit):
    fit(cells, train_kwargs={"plan_kwargs": {"lr": 1e-12, "prior_lr": 1e-12}, "batch_size": 50, "accelerator": "cpu"})
    history = dp.get.history(cells)
    # Next to no step: what changes from epoch to epoch is the sample of z.
    assert history.loc[history["phase"] == "static", "reconstruction"].pct_change().abs().max() < 0.01


@pytest.fixture(scope="module")
def trained_scvi(simulated):
    cells = simulated.copy()
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, n_hidden=16, n_latent=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=2, enable_progress_bar=False, train_size=1.0)
    return model


@pytest.mark.filterwarnings("ignore:4 times are fewer than:UserWarning")
def test_a_trained_scvi_model_takes_the_place_of_the_static_phase(cells, fit, trained_scvi):
    fit(cells, model=trained_scvi, batch_key="batch")
    assert dp.get.history(cells)["phase"].unique().tolist() == ["joint"]
    assert cells.obsm["X_dynvae"].shape == (300, 3)
    assert cells.uns["dynvae"]["params"]["n_latent"] == 3
    np.testing.assert_allclose(
        dp.get.model(cells).get_latent_representation(), cells.obsm["X_dynvae"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:4 times are fewer than:UserWarning")
def test_a_model_of_other_genes_is_refused_before_anything_is_written(cells, fit, trained_scvi):
    cells.var_names = "new_" + cells.var_names
    before = cells.copy()
    with pytest.raises(ValueError, match="its genes differ, first 'gene"):
        fit(cells, model=trained_scvi, batch_key="batch")
    assert_same_data(cells, before)


def test_a_model_that_is_none_is_refused(cells, fit):
    before = cells.copy()
    with pytest.raises(TypeError, match=r"model= must be a trained scvi\.model\.SCVI.*it is a str"):
        fit(cells, model="scvi")
    assert_same_data(cells, before)


# --- subsets, copies, files ----------------------------------------------------------------------------------------------------------


def latent_of(cells):
    return dp.get.model(cells).get_latent_representation()


def test_the_model_is_rebuilt_from_the_data(fitted):
    np.testing.assert_allclose(latent_of(fitted), fitted.obsm["X_dynvae"], rtol=1e-5, atol=1e-6)


def test_rebuilding_leaves_the_data_alone(fitted):
    before = fitted.copy()
    dp.get.model(fitted)
    assert_same_data(fitted, before)


@pytest.mark.parametrize("copied", [True, False])
def test_some_of_the_cells_are_enough(fitted, copied):
    part = fitted[np.random.default_rng(0).permutation(300)[:60]]
    part = part.copy() if copied else part
    np.testing.assert_allclose(latent_of(part), part.obsm["X_dynvae"], rtol=1e-5, atol=1e-6)
    assert dp.tl.predict_cells(part, times=0.4, n_cells=10).n_obs == 10


def test_cells_of_a_single_time_are_enough(fitted):
    late = fitted[fitted.obs["time"] == 0.5].copy()
    np.testing.assert_allclose(latent_of(late), late.obsm["X_dynvae"], rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(dp.get.trajectories(late), dp.get.trajectories(fitted))
    predicted = dp.tl.predict_cells(late, times=[0.25, 0.5], n_cells=10)
    assert predicted.n_obs == 20


def test_cells_of_a_single_batch_keep_its_code(fitted):
    batches = sorted(fitted.obs["batch"].astype(str).unique())
    second = fitted[fitted.obs["batch"] == batches[1]].copy()
    assert set(dp.get.model(second).batch_codes()) == {1}


@pytest.mark.parametrize("genes", [slice(0, 20), slice(None, None, -1)], ids=["fewer", "reordered"])
@pytest.mark.parametrize(
    "ask", [dp.get.model, lambda cells: dp.tl.predict_cells(cells, times=0.5)], ids=["model", "predict"]
)
def test_other_genes_raise_and_say_how_to_get_back(fitted, genes, ask):
    part = fitted[:, genes].copy()
    with pytest.raises(
        ValueError, match=r"used \d+ genes; .*Use adata\[:, adata\.uns\['dynvae'\]\['params'\]\['genes'\]\]"
    ):
        ask(part)


ELSEWHERE = """
import json, sys
import anndata, numpy as np, dynapath as dp
found = {}
for path in sys.argv[1:]:
    cells = (anndata.read_zarr if path.endswith("zarr") else anndata.read_h5ad)(path)
    predicted = dp.tl.predict_cells(cells, times=[0.4, 1.2], n_cells=20, random_state=3)
    found[path.rpartition(".")[2]] = {
        "latent": dp.get.model(cells).get_latent_representation().tolist(),
        "counts": predicted.X.toarray().tolist(),
        "batch": predicted.obs["batch"].astype(str).tolist(),
        "mean": dp.get.trajectories(cells)["mean"].tolist(),
        "phases": dp.get.history(cells)["phase"].tolist(),
        "rep": dp.get.trajectories(cells, "rep")["mean"].tolist(),
        "reps": dp.tl.predict_cells(cells, times=0.4, n_cells=5, key="rep").obsm["X_rep"].tolist(),
    }
json.dump(found, open("found.json", "w"))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Times 1.2 lie outside:UserWarning")
def test_files_read_in_another_process_give_the_same_model(fitted, fit, tmp_path):
    cells = fit(fitted, copy=True, use_rep="Z_true", key_added="rep")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    cells.write_zarr(tmp_path / "cells.zarr")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        ELSEWHERE,
        str(tmp_path / "cells.h5ad"),
        str(tmp_path / "cells.zarr"),
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    predicted = dp.tl.predict_cells(cells, times=[0.4, 1.2], n_cells=20, random_state=3)
    latent = latent_of(cells)
    for suffix in ("h5ad", "zarr"):
        there = found[suffix]
        np.testing.assert_array_equal(np.array(there["latent"], dtype=np.float32), latent)
        np.testing.assert_array_equal(there["counts"], predicted.X.toarray())
        assert there["batch"] == predicted.obs["batch"].astype(str).tolist()
        np.testing.assert_array_equal(there["mean"], dp.get.trajectories(cells)["mean"])
        assert there["phases"] == dp.get.history(cells)["phase"].tolist()
        np.testing.assert_array_equal(there["rep"], dp.get.trajectories(cells, "rep")["mean"])
        expected = dp.tl.predict_cells(cells, times=0.4, n_cells=5, key="rep").obsm["X_rep"]
        np.testing.assert_array_equal(np.array(there["reps"], dtype=np.float32), expected)


# --- groups that take turns ----------------------------------------------------------------------------------------


def turning(shift, rate):
    """Two groups with opposite growth, both moved by `shift` sd over the observed time."""
    mixture = LinearMixture(2, 1, growth="free")
    with torch.no_grad():
        mixture._m.copy_(torch.tensor([[-3.0], [3.0]]))
        mixture._b.fill_(shift)
        mixture._log_q.fill_(-12.0)
        mixture._a.copy_(torch.tensor([rate / 2, -rate / 2]))
        mixture._r.copy_(torch.tensor([-rate, rate]))
    return GroupDynamics(mixture, [0.0, 1.0, 2.0])


@pytest.mark.parametrize(("shift", "rate", "expected"), [(0.0, 6.0, True), (3.0, 6.0, False), (0.0, 0.5, False)])
def test_static_groups_that_exchange_their_cells_are_said_to_take_turns(shift, rate, expected):
    assert module._takes_turns(turning(shift, rate)) is expected
