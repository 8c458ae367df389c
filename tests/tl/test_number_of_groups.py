"""n_groups="auto": what is tried, chosen, reused and stored, what is said of it, and what is refused."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dynapath as dp
from dynapath.models import Training
from dynapath.tl import _number_of_groups as module

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit has not converged:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*restarts reach a likelihood within:UserWarning"),
    pytest.mark.filterwarnings("ignore:Only one of .* restarts reached:UserWarning"),
    pytest.mark.filterwarnings("ignore:Groups with less than:UserWarning"),
    pytest.mark.filterwarnings("ignore:The restarts with n_groups=:UserWarning"),
    pytest.mark.filterwarnings("ignore:With n_groups=:UserWarning"),
    pytest.mark.filterwarnings("ignore:The number of groups is not clear:UserWarning"),
    pytest.mark.filterwarnings("ignore:The BIC of n_groups=:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no counts at all:UserWarning"),
    pytest.mark.filterwarnings("ignore:The largest number of groups:UserWarning"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*further members found other groups:UserWarning"),
]

COLUMNS = ["n_groups", "log_likelihood", "n_parameters", "bic", "delta_bic", "chosen"]
OBSM = ["X_dynvae", "dynvae_std", "dynvae_velocity", "dynvae_groups"]


@pytest.fixture(scope="module")
def points(simulated):
    """Chosen on the true states: enough steps to tell three groups."""
    options = Training(n_restarts=4, prior_steps=150, progress=False)
    return dp.tl.fit_dynamic_vae(
        simulated, time_key="time", n_groups="auto", use_rep="Z_true", training=options, copy=True
    )


@pytest.fixture(scope="module")
def counts(simulated, quick):
    return dp.tl.fit_dynamic_vae(simulated, time_key="time", n_groups="auto", training=quick, copy=True)


# --- the choice, and what is stored of it ------------------------------------------------------------------------------


def test_a_representation_of_three_groups_gets_three(points):
    table = dp.get.n_groups(points)
    assert table.loc[table["chosen"], "n_groups"].tolist() == [3]
    assert points.uns["dynvae"]["params"]["n_groups"] == 3
    assert points.obsm["dynvae_groups"].shape == (300, 3)
    assert points.obs["dynvae_group"].cat.categories.tolist() == ["0", "1", "2"]
    assert dp.get.dynamics(points).n_groups == 3


@pytest.mark.parametrize("which", ["points", "counts"])
def test_the_table_has_the_criterion_of_all_that_was_tried(which, request):
    table = dp.get.n_groups(request.getfixturevalue(which))
    assert list(table)[:6] == COLUMNS
    assert (table["n_cells"] == 300).all()
    np.testing.assert_allclose(
        table["bic"], -2 * table["log_likelihood"] + table["n_parameters"] * np.log(table["n_cells"])
    )
    assert table["n_parameters"].tolist() == [13 * k - 2 for k in table["n_groups"]]
    assert table["chosen"].sum() == 1
    assert table["delta_bic"].min() == 0


def test_a_choice_goes_on_with_the_fit_it_has_made(counts, simulated, quick):
    """The same seed and the chosen number give the same bits as the choice: nothing is fitted twice, or otherwise."""
    chosen = counts.uns["dynvae"]["params"]["n_groups"]
    given = dp.tl.fit_dynamic_vae(simulated, time_key="time", n_groups=chosen, training=quick, copy=True)
    for slot in OBSM:
        np.testing.assert_array_equal(counts.obsm[slot], given.obsm[slot])
    assert "n_groups" not in given.uns["dynvae"]


def test_a_chosen_model_is_built_again_from_what_is_stored(counts):
    model = dp.get.model(counts)
    assert model.module.prior.n_groups == counts.uns["dynvae"]["params"]["n_groups"]
    np.testing.assert_allclose(model.get_latent_representation(), counts.obsm["X_dynvae"], rtol=1e-5, atol=1e-6)
    assert dp.tl.predict_cells(counts, times=0.4, n_cells=5).n_obs == 5


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_the_table_survives_the_file(points, tmp_path, suffix):
    path = tmp_path / f"cells.{suffix}"
    getattr(points, f"write_{suffix}")(path)
    read = {"h5ad": ad.read_h5ad, "zarr": ad.read_zarr}[suffix](path)
    pd.testing.assert_frame_equal(dp.get.n_groups(read), dp.get.n_groups(points))


def test_a_trained_model_is_taken_over_with_a_choice(counts, simulated, quick):
    again = dp.tl.fit_dynamic_vae(
        simulated, time_key="time", n_groups=[1, 2], model=dp.get.model(counts), training=quick, copy=True
    )
    assert dp.get.n_groups(again)["n_groups"].tolist() == [1, 2]


def test_members_take_the_number_of_the_first(simulated, quick):
    cells = dp.tl.fit_dynamic_vae(simulated, time_key="time", n_groups=[4, 2], n_members=2, training=quick, copy=True)
    chosen = cells.uns["dynvae"]["params"]["n_groups"]
    assert [member.module.prior.n_groups for member in dp.get.model(cells).members] == [chosen] * 2


def test_a_model_that_was_saved_has_the_chosen_number(simulated, tmp_path, quick):
    cells = simulated.copy()
    dp.models.DynamicVAE.setup_anndata(cells, "time")
    model = dp.models.DynamicVAE(cells, n_groups=(2, 3), training=quick)
    assert "2 or 3 groups" in model._model_summary_string
    model.train()
    chosen = model.module.prior.n_groups
    assert f"{chosen} groups" in model._model_summary_string
    model.save(tmp_path / "model")
    loaded = dp.models.DynamicVAE.load(tmp_path / "model", adata=cells)
    assert loaded.module.prior.n_groups == chosen
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())


# --- what is tried -------------------------------------------------------------------------------------------------------


def fitted_on_points(cells, n_groups, **kwargs):
    quick = Training(n_restarts=2, prior_steps=10, progress=False)
    dp.tl.fit_dynamic_vae(cells, time_key="time", n_groups=n_groups, use_rep="Z_true", training=quick, **kwargs)
    return dp.get.n_groups(cells)["n_groups"].tolist()


def test_there_are_at_least_as_many_groups_as_labels(cells):
    assert fitted_on_points(cells, "auto", labels_key="type")[0] == 3
    assert fitted_on_points(cells, [2, 3, 5], labels_key="type") == [3, 5]


@pytest.mark.parametrize("n_groups", [range(2, 4), [3, 2, 3], np.array([2, 3])])
def test_other_numbers_can_be_given(cells, n_groups):
    assert fitted_on_points(cells, n_groups) == [2, 3]


def test_numbers_that_a_snapshot_has_no_cells_for_are_left_out_and_said(cells):
    small = cells[(cells.obs["time"] != 0.5) | (np.arange(300) % 15 == 0)].copy()
    with pytest.warns(UserWarning, match=r"3, 4, 5, 6 cannot be tried: the snapshot at time 0.5 has 5 cells") as caught:
        assert fitted_on_points(small, "auto") == [1, 2]
    assert next(w for w in caught if "cannot be tried" in str(w.message)).filename == __file__
    assert any("cannot be tried" in message for message in small.uns["dynvae"]["messages"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_groups": "many"}, "positive whole number, 'auto', or several numbers to choose from; it is 'many'"),
        ({"n_groups": 0}, "positive whole number.*it is 0"),
        ({"n_groups": -2}, "positive whole number.*it is -2"),
        ({"n_groups": 2.5}, "positive whole number.*it is 2.5"),
        ({"n_groups": None}, "positive whole number.*it is None"),
        ({"n_groups": []}, r"positive whole number.*it is \[\]"),
        ({"n_groups": [2, 0]}, r"positive whole number.*it is \[2, 0\]"),
        ({"n_groups": [1, 2], "labels_key": "type"}, r"3 labels \(t0, t1, t2\) do not fit into n_groups=2"),
        ({"n_groups": range(50, 60)}, "n_groups=50 is too large for the snapshot"),
    ],
)
@pytest.mark.parametrize("use_rep", [None, "Z_true"])
def test_bad_numbers_raise_before_anything_is_written(cells, quick, kwargs, message, use_rep):
    slots = set(cells.obsm), set(cells.obs), set(cells.uns)
    with pytest.raises(ValueError, match=message):
        dp.tl.fit_dynamic_vae(cells, time_key="time", training=quick, use_rep=use_rep, **kwargs)
    assert (set(cells.obsm), set(cells.obs), set(cells.uns)) == slots


def test_the_table_of_a_fit_without_a_choice_says_how_to_get_one(simulated, quick):
    given = dp.tl.fit_dynamic_vae(simulated, time_key="time", use_rep="Z_true", training=quick, copy=True)
    with pytest.raises(KeyError, match=r"was given n_groups=3.*n_groups='auto'"):
        dp.get.n_groups(given)


# --- what is said of a choice --------------------------------------------------------------------------------------------


def judge(delta, *, chosen, gap=None, likelihood=None, share=None):
    n = len(delta)
    table = {
        "n_groups": np.arange(1, n + 1),
        "delta_bic": np.array(delta, dtype=float),
        "chosen": np.arange(1, n + 1) == chosen,
        "smallest_share": np.full(n, 0.1) if share is None else np.array(share),
        "eligible": np.full(n, fill_value=True) if share is None else np.array(share) >= 0.02,
        "restart_gap": np.zeros(n) if gap is None else np.array(gap, dtype=float),
        "log_likelihood": np.arange(n, dtype=float) if likelihood is None else np.array(likelihood, dtype=float),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = module.judge_choice(table)
    assert [str(w.message) for w in caught] == said
    return said


def test_nothing_is_said_of_a_clear_choice():
    assert judge([100, 0, 20, 40], chosen=2) == []
    assert judge([100, 0, 20], chosen=2, gap=[np.nan] * 3) == []


@pytest.mark.parametrize(
    ("delta", "rivals"), [([100, 1, 0, 40], "3"), ([5.9, 0, 20, 40], "1"), ([3, 0, 4, 40], "1, 3")]
)
def test_rivals_within_six_are_named(delta, rivals):
    (said,) = judge(delta, chosen=2)
    assert f"n_groups=2 was chosen, and the BIC of {rivals} differs" in said


def test_a_rival_that_one_more_lucky_restart_could_put_ahead_is_named():
    (said,) = judge([100, 0, 20, 40], chosen=2, gap=[0, 500, 30, 30])
    assert "restarts with n_groups=3 differ by more than" in said


def test_a_number_passed_over_for_a_tiny_group_is_named():
    (said,) = judge([100, 81, 0, 40], chosen=2, share=[1, 0.3, 0.012, 0.001], gap=[0, 0, 100, 0])
    assert "BIC of n_groups=3 is lower than that of 2 by 81, but then a group has only 1.2% of the cells" in said
    # One that is higher needs no words.
    assert judge([100, 0, 5, 40], chosen=2, share=[1, 0.3, 0.012, 0.001]) == []


def test_a_likelihood_that_falls_with_more_groups_was_not_maximised():
    (said,) = judge([100, 0, 20, 40], chosen=2, likelihood=[-50, -10, -12, -9])
    assert "With n_groups=3 the likelihood is lower than with fewer groups" in said


def test_a_choice_at_the_upper_end_says_that_more_may_be_better():
    (said,) = judge([100, 50, 0], chosen=3)
    assert "largest number of groups that was tried, 3, was chosen" in said
    assert judge([0], chosen=1) == []


# --- recovery from counts ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["rotating", "separated"])
@pytest.mark.parametrize("seed", [0, 1])
def test_three_groups_are_found_from_counts(scenario, seed):
    cells = dp.datasets.simulate_snapshots(scenario, n_cells=100, random_state=seed)
    # The number is chosen before the joint phase, which is therefore cut short here.
    options = Training(n_restarts=6, joint_epochs=1, progress=False)
    dp.tl.fit_dynamic_vae(cells, time_key="time", n_groups="auto", training=options, random_state=seed)
    table = dp.get.n_groups(cells).set_index("n_groups")
    assert table.index[table["chosen"]].tolist() == [3]
    assert (table["delta_bic"].drop(3) > 6).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_one_group_is_found_from_counts(seed):
    cells = dp.datasets.simulate_snapshots("separated", n_cells=200, random_state=seed)
    cells = cells[cells.obs["group"] == "0"].copy()
    options = Training(n_restarts=6, joint_epochs=1, progress=False)
    dp.tl.fit_dynamic_vae(cells, time_key="time", n_groups="auto", training=options, random_state=seed)
    assert cells.uns["dynvae"]["params"]["n_groups"] == 1
