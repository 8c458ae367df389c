"""dp.tl.evaluate_heldout: scores of predictions of a time that was held out."""

import functools
import random
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import dynapath as dp
from dynapath.metrics import clouds, interpolate
from dynapath.tl import _evaluate_heldout as module

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit has not converged:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*restarts reach a likelihood within:UserWarning"),
    pytest.mark.filterwarnings("ignore:Only one of .* restarts reached:UserWarning"),
    pytest.mark.filterwarnings("ignore:Groups with less than:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*times are fewer than n_latent:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*further members found other groups:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* no counts at all:UserWarning"),
]
beaten = pytest.mark.filterwarnings("ignore:At the held-out time .* the baseline:UserWarning")
at_an_end = pytest.mark.filterwarnings("ignore:Time .* observed.* without it:UserWarning")

BASELINES = ["forward", "backward", "mixture", "mean_shift", "ot_interpolation"]
EVERY = ["dynvae", "floor", "oracle_vae", *BASELINES]
METRICS = ["energy", "w2", "zero_error", "variance_ratio"]


def evaluate(adata, holdout=0.5, methods=("forward",), **options):
    return dp.tl.evaluate_heldout(adata, time_key="time", holdout=holdout, methods=methods, **options)


def energies(table):
    return table[table["metric"] == "energy"].set_index("method")["value"]


def drawn(train, time, n_cells, rng):
    """Training cells at random, of any time."""
    return train.X[rng.choice(train.n_obs, n_cells, replace=False)]


@pytest.fixture(scope="module")
def everything(simulated, quick):
    """All methods, by a fit that is too short to be any good."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(simulated, methods="all", fit_kwargs={"training": quick, "batch_key": "batch"})


# --- what comes back ---------------------------------------------------------------------------------------------------------------


def test_there_is_one_row_per_method_and_metric(everything, simulated):
    assert list(everything) == ["method", "holdout", "metric", "value", "n_cells", "seed"]
    assert everything["method"].unique().tolist() == EVERY
    assert everything.groupby("method")["metric"].agg(list).map(METRICS.__eq__).all()
    assert (everything["holdout"] == 0.5).all()
    assert (everything["seed"] == 0).all()
    assert everything.attrs["extrapolated"] == []
    n = int((simulated.obs["time"] == 0.5).sum())
    sizes = everything.groupby("method")["n_cells"].unique().map(list)
    assert sizes.drop("floor").map([n].__eq__).all()
    assert sizes["floor"] == [n // 2]


def test_only_counts_that_do_not_exist_have_no_score(everything):
    missing = everything[everything["value"].isna()]
    assert missing[["method", "metric"]].to_numpy().tolist() == [
        ["mean_shift", "zero_error"],
        ["mean_shift", "variance_ratio"],
    ]


def test_scores_are_those_of_the_metrics_in_components_of_the_training_cells(simulated):
    kept = {}

    def keeping(train, time, n_cells, rng):
        kept["counts"] = drawn(train, time, n_cells, rng)
        return kept["counts"]

    table = evaluate(simulated, methods=[keeping], n_pcs=7).set_index("metric")["value"]
    here = (simulated.obs["time"] == 0.5).to_numpy()
    truth, predicted = simulated.X[here], kept["counts"]
    space = clouds.PrincipalSpace.fit(simulated.X[~here], 7)
    x, y = space.project(predicted), space.project(truth)
    assert table["energy"] == dp.metrics.energy_distance(x, y)
    assert table["w2"] == dp.metrics.wasserstein2(x, y)
    assert table["zero_error"] == dp.metrics.zero_error(predicted, truth)
    assert table["variance_ratio"] == dp.metrics.variance_ratio(predicted, truth)


def test_several_times_are_held_out_one_by_one(simulated):
    both = evaluate(simulated, holdout=[0.5, 0.25], methods=["forward", "mixture"])
    alone = [evaluate(simulated, holdout=time, methods=["forward", "mixture"]) for time in (0.5, 0.25)]
    pd.testing.assert_frame_equal(both, pd.concat(alone, ignore_index=True))


def test_a_method_scores_the_same_whichever_others_run(everything, simulated):
    some = evaluate(simulated, methods=["mixture", "floor"])
    expected = everything[everything["method"].isin(["mixture", "floor"])]
    pd.testing.assert_frame_equal(
        some.sort_values(["method", "metric"], ignore_index=True),
        expected.sort_values(["method", "metric"], ignore_index=True),
    )


@beaten
def test_the_same_seed_gives_the_same_table(everything, simulated, quick):
    fit = {"training": quick, "batch_key": "batch"}
    pd.testing.assert_frame_equal(evaluate(simulated, methods="all", fit_kwargs=fit), everything)
    other = evaluate(simulated, methods=["dynvae", "floor"], fit_kwargs=fit, random_state=1)
    assert (other["seed"] == 1).all()
    assert (energies(other) != energies(everything)[["dynvae", "floor"]]).all()


def test_the_seed_of_none_is_recorded(simulated):
    first = evaluate(simulated, random_state=None)
    again = evaluate(simulated, random_state=int(first["seed"].iloc[0]))
    pd.testing.assert_frame_equal(first, again)


@beaten
def test_neither_the_cells_nor_the_random_state_of_the_session_change(cells, quick):
    before, state = cells.copy(), (random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state())  # noqa: NPY002
    evaluate(cells, methods=["dynvae", "oracle_vae", "ot_interpolation", drawn], fit_kwargs={"training": quick})
    assert (cells.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert (set(cells.uns), set(cells.obsm), set(cells.layers)) == (
        set(before.uns),
        set(before.obsm),
        set(before.layers),
    )
    assert random.getstate() == state[0]
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    assert (torch.random.get_rng_state() == state[2]).all()


# --- what is compared --------------------------------------------------------------------------------------------------------------


@beaten
def test_held_out_cells_influence_neither_components_nor_predictions(cells, quick, monkeypatch):
    def prepared(adata):
        spaces, predicted = [], []
        fit, predict = clouds.PrincipalSpace.fit, module._predicted
        with monkeypatch.context() as patched:
            patched.setattr(clouds.PrincipalSpace, "fit", lambda *given: spaces.append(fit(*given)) or spaces[-1])
            patched.setattr(module, "_predicted", lambda task: predicted.append(predict(task)) or predicted[-1])
            evaluate(adata, methods=["dynvae", "mixture"], fit_kwargs={"training": quick})
        return spaces[0], predicted[0]

    space, predicted = prepared(cells)
    # Other counts at the time that is held out.
    here = np.flatnonzero(cells.obs["time"] == 0.5)
    other = cells.X.tolil()
    other[here] = 3 * cells.X[here][:, ::-1].toarray() + 1
    cells.X = other.tocsr()
    space_after, predicted_after = prepared(cells)
    np.testing.assert_array_equal(space.axes, space_after.axes)
    np.testing.assert_array_equal(space.mean, space_after.mean)
    assert (predicted != predicted_after).nnz == 0


def test_a_function_sees_the_training_cells_alone(cells):
    cells.obsm["X_pca"] = np.zeros((cells.n_obs, 2))
    seen = {}

    def curious(train, time, n_cells, rng):
        seen.update(train=train, time=time, n_cells=n_cells, rng=rng)
        train.obs["time"] = 0.0
        train.X.data[:] = 1
        return drawn(train, time, n_cells, rng)

    after = evaluate(cells, methods=[curious, "forward"])
    training = cells[cells.obs["time"] != 0.5]
    assert list(seen["train"].obs_names) == list(training.obs_names)
    assert list(seen["train"].var_names) == list(cells.var_names)
    assert not seen["train"].obsm
    assert seen["time"] == 0.5
    assert seen["n_cells"] == (cells.obs["time"] == 0.5).sum()
    assert isinstance(seen["rng"], np.random.Generator)
    # What it did to them stays with it.
    assert energies(after)["forward"] == energies(evaluate(cells))["forward"]


@beaten
def test_all_methods_take_the_counts_of_the_layer(cells, quick):
    reference = evaluate(cells, methods=["dynvae", "oracle_vae", "mixture", drawn], fit_kwargs={"training": quick})
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    fit = {"training": quick, "layer": "counts"}
    table = evaluate(cells, methods=["dynvae", "oracle_vae", "mixture", drawn], fit_kwargs=fit)
    pd.testing.assert_frame_equal(table, reference)


@beaten
def test_an_earlier_fit_does_not_stand_in_the_way(cells, quick):
    fit = {"training": quick}
    reference = evaluate(cells, methods=["dynvae"], fit_kwargs=fit)
    dp.tl.fit_dynamic_vae(cells, time_key="time", training=quick)
    pd.testing.assert_frame_equal(evaluate(cells, methods=["dynvae"], fit_kwargs=fit), reference)


@beaten
def test_options_reach_the_fit(cells, quick):
    plain, labelled, pooled = (
        evaluate(cells, methods=["dynvae"], fit_kwargs={"training": quick, **more})["value"].tolist()
        for more in ({}, {"labels_key": "type", "size_factor_key": "size", "n_groups": 4}, {"n_members": 2})
    )
    assert plain != labelled
    assert plain != pooled


@pytest.mark.parametrize(("own", "expected"), [({}, 5), ({"random_state": 2}, 2)])
def test_the_fit_takes_the_seed_of_the_evaluation_unless_it_has_its_own(simulated, monkeypatch, own, expected):
    seeds = []

    @functools.wraps(module.fit_dynamic_vae)
    def refuse(*args, random_state, **kwargs):
        seeds.append(random_state)
        raise InterruptedError

    monkeypatch.setattr(module, "fit_dynamic_vae", refuse)
    with pytest.raises(InterruptedError):
        evaluate(simulated, methods=["dynvae"], fit_kwargs=own, random_state=5)
    assert seeds == [expected]


def test_names_may_be_given_to_functions_and_to_methods(simulated):
    table = evaluate(simulated, methods={"mine": drawn, "before": "forward"})
    assert table["method"].unique().tolist() == ["mine", "before"]
    listed = evaluate(simulated, methods=["floor", drawn])
    assert listed["method"].unique().tolist() == ["floor", "drawn"]


def test_a_function_may_return_cells_with_genes_in_another_order(simulated):
    def shuffled(train, time, n_cells, rng):
        cells = ad.AnnData(drawn(train, time, n_cells, rng), var=train.var)
        return cells[:, ::-1].copy()

    same = evaluate(simulated, methods={"one": drawn}), evaluate(simulated, methods={"one": shuffled})
    pd.testing.assert_frame_equal(*same)


def test_baselines_need_no_fit(simulated, monkeypatch):
    for name in ("_predicted", "_reconstructed"):
        monkeypatch.setattr(module, name, lambda *given: pytest.fail("fitted"))
    evaluate(simulated, methods=["floor", *BASELINES, drawn])


def test_true_cells_themselves_are_at_the_floor(simulated):
    truth = simulated[simulated.obs["time"] == 0.5].X
    table = evaluate(simulated, methods={"truth": lambda train, time, n_cells, rng: truth}).set_index("metric")
    # Between a cloud and itself pairs of a cell with itself count, so this is below zero.
    assert table.loc["energy", "value"] < 0
    assert table.loc[["w2", "zero_error"], "value"].tolist() == [0, 0]
    assert table.loc["variance_ratio", "value"] == 1


def test_a_fresh_draw_of_the_simulation_may_be_the_floor():
    cells, fresh = (dp.datasets.simulate_snapshots("branching", n_cells=n, n_genes=60) for n in (60, 120))
    np.testing.assert_array_equal(*(each.uns["truth"]["parameters"]["base_mean"] for each in (cells, fresh)))

    def redrawn(train, time, n_cells, rng):
        return fresh[rng.choice(np.flatnonzero(fresh.obs["time"] == time), n_cells, replace=False)]

    scores = energies(evaluate(cells, methods={"floor": redrawn, "forward": "forward", "mixture": "mixture"}))
    assert abs(scores["floor"]) < 0.1
    assert scores["floor"] + 0.05 < scores["mixture"] < scores["forward"]


# --- real time ---------------------------------------------------------------------------------------------------------------------


def uneven(scenario="branching", **sizes):
    """The days 0, 1, 2, 6 and 12 of a system that takes twelve."""
    return dp.datasets.simulate_snapshots(scenario, times=(0, 1, 2, 6, 12), **sizes)


@pytest.mark.slow
@beaten
def test_the_unit_of_time_does_not_change_a_bit(quick):
    days = uneven(n_cells=25, n_genes=40)
    hours = days.copy()
    hours.obs["time"] *= 24
    in_days = evaluate(days, holdout=[2, 6], methods="all", fit_kwargs={"training": quick})
    in_hours = evaluate(hours, holdout=[48, 144], methods="all", fit_kwargs={"training": quick})
    assert in_hours["holdout"].unique().tolist() == [48, 144]
    pd.testing.assert_frame_equal(in_hours.drop(columns="holdout"), in_days.drop(columns="holdout"))


def test_times_may_be_categories_that_read_as_numbers(simulated):
    named = simulated.copy()
    named.obs["time"] = pd.Categorical(named.obs["time"].map("{:g}".format))
    reference = evaluate(simulated, methods=["mixture", drawn])
    pd.testing.assert_frame_equal(evaluate(named, methods=["mixture", drawn]), reference)
    pd.testing.assert_frame_equal(evaluate(named, holdout="0.5", methods=["mixture", drawn]), reference)


@pytest.mark.parametrize("rule", ["mixture", "ot_interpolation"])
def test_interpolation_by_index_is_beaten_by_that_in_real_time(rule):
    cells = uneven(n_cells=100, n_genes=100)
    index = {float(t): float(i) for i, t in enumerate((0, 1, 2, 6, 12))}

    def by_index(train, time, n_cells, rng):
        steps = train.obs["time"].map(index).to_numpy()
        if rule == "mixture":
            return interpolate.mixture(train.X, steps, index[time], n_cells, rng)
        pcs = clouds.PrincipalSpace.fit(train.X, 20).project(train.X)
        return interpolate.ot_interpolation(train.X, pcs, steps, index[time], n_cells, rng)

    scores = energies(evaluate(cells, holdout=2, methods=[rule, by_index]))
    assert scores[rule] + 0.1 < scores["by_index"]


# --- ends --------------------------------------------------------------------------------------------------------------------------


@beaten
@pytest.mark.parametrize(
    ("time", "end", "left_out"),
    [(0, "first", "forward, mixture, ot_interpolation"), (1, "last", "backward, mixture, ot_interpolation")],
)
def test_the_first_and_the_last_time_are_extrapolated_and_flagged(simulated, quick, time, end, left_out):
    with pytest.warns(UserWarning, match=f"Time {time} is the {end} observed: .*extrapolated.*Left out.*: {left_out}"):
        table = evaluate(simulated, holdout=time, methods="all", fit_kwargs={"training": quick})
    assert table.attrs["extrapolated"] == [time]
    assert table["method"].unique().tolist() == [name for name in EVERY if name not in left_out]
    assert energies(table).notna().all()


@at_an_end
def test_times_between_others_are_not_flagged(simulated):
    assert evaluate(simulated, holdout=[1, 0.5], methods=["mean_shift"]).attrs["extrapolated"] == [1]


@at_an_end
def test_nothing_to_score_is_an_error(simulated):
    with pytest.raises(ValueError, match=r"None of the methods \(backward, mixture\) has the times it needs beside 1"):
        evaluate(simulated, holdout=1, methods=["backward", "mixture"])


# --- in words ----------------------------------------------------------------------------------------------------------------------


def test_a_baseline_that_beats_the_model_is_named(cells, quick):
    # Two times are one cloud, which the next one carried back meets and a fit of two epochs does not.
    cells.obs["time"] = np.where(cells.obs["time"] == 0.25, 0.5, cells.obs["time"])
    cells.obs["time"] += np.where((cells.obs["time"] == 0.5) & (np.arange(cells.n_obs) % 2 == 0), 0.1, 0)
    said = "At the held-out time 0.6 the baseline 'forward' is closer to the true cells than the dynamic VAE"
    with pytest.warns(UserWarning, match=said):
        evaluate(cells, holdout=0.6, methods=["dynvae", "forward"], fit_kwargs={"training": quick})


def test_a_model_that_beats_the_baselines_is_not_warned_of(simulated, monkeypatch):
    monkeypatch.setattr(module, "_predicted", lambda task: task.truth)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(simulated, methods=["dynvae", *BASELINES])


# --- bad input ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holdout", [[(0.25, 0.5)], [[0.25, 0.5]], np.array([[0.25, 0.5]]), [0.75, (0.25, 0.5)]])
def test_times_to_be_held_out_together_are_refused_with_how_to_hold_out_each(simulated, holdout):
    with pytest.raises(ValueError, match=r"holdout=\[0.25, 0.5\]"):
        evaluate(simulated, holdout=holdout)


@pytest.mark.parametrize("holdout", [0.4, [0.5, 7], np.nan, "day 2", None])
def test_a_time_that_was_not_observed_is_refused_with_those_that_were(simulated, holdout):
    with pytest.raises(ValueError, match=r"was not observed. Times of obs\['time'\]: 0, 0.25, 0.5, 1"):
        evaluate(simulated, holdout=holdout)


def test_two_times_have_to_be_left(simulated):
    two = simulated[simulated.obs["time"].isin([0, 0.5])].copy()
    with pytest.raises(ValueError, match=r"Holding out time 0.5 of obs\['time'\] leaves only 0; .* at least two"):
        evaluate(two)
    with pytest.raises(ValueError, match="holdout names no time"):
        evaluate(simulated, holdout=[])


def test_a_handful_of_cells_cannot_be_held_out(simulated):
    few = simulated[(simulated.obs["time"] != 0.5) | (np.arange(simulated.n_obs) % 30 == 0)].copy()
    with pytest.raises(ValueError, match=r"Time 0.5 has 3 cells; at least 4"):
        evaluate(few)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda train, n: train.X[: n - 1], r"shape \(74, {g}\); it must return counts of shape \(75, {g}\)"),
        (lambda train, n: train.X[:n, 1:], r"shape \(75, {f}\); it must return counts of shape \(75, {g}\)"),
        (lambda train, n: np.ones(n), r"shape \(75,\)"),
        (lambda train, n: None, r"an array of shape \(\); it must return counts"),
        (lambda train, n: train[:n, 1:].copy(), r"{f} genes, without 'gene\d+'"),
        (lambda train, n: ad.AnnData(train.X[:n]), r"{g} genes, without 'gene\d+'"),
        (lambda train, n: ad.concat([train[:n]] * 2, axis=1), "genes, with 'a gene twice'"),
        (lambda train, n: train[: n - 1].copy(), r"shape \(74, {g}\)"),
        (lambda train, n: train.X[:n].log1p(), "no counts"),
        (lambda train, n: -train.X[:n], "no counts"),
        (lambda train, n: train.X[:n] * np.nan, "no counts"),
        (lambda train, n: np.full((n, train.n_vars), "a"), "no counts"),
    ],
)
@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_what_a_function_returns_wrongly_is_said_with_its_name(simulated, returned, said):
    said = said.format(g=simulated.n_vars, f=simulated.n_vars - 1)
    with pytest.raises(ValueError, match=f"The method 'mine', called for time 0.5, returned .*{said}"):
        evaluate(simulated, methods={"mine": lambda train, time, n, rng: returned(train, n)})


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"methods": ["forwards"]}, ValueError, "'forwards', which is none of dynvae, floor"),
        ({"methods": []}, ValueError, "methods is empty"),
        ({"methods": {"mine": 3}}, ValueError, r"methods\['mine'\] must be a function .*; it is a int"),
        ({"methods": [3]}, ValueError, "must be a function"),
        ({"n_pcs": 0}, ValueError, "n_pcs must be a positive whole number; it is 0"),
        ({"fit_kwargs": {"n_group": 3}}, ValueError, "'n_group', which is no argument of dp.tl.fit_dynamic_vae"),
        ({"fit_kwargs": {"use_rep": "Z_true"}}, ValueError, "'use_rep': it leaves no decoder"),
        ({"fit_kwargs": {"model": object()}}, ValueError, "'model': it may have seen the held-out cells"),
        ({"fit_kwargs": {"time_key": "time"}}, ValueError, "'time_key': it is the one given"),
        ({"fit_kwargs": {"copy": True}}, ValueError, "'copy'"),
        ({"fit_kwargs": {"layer": "counts"}}, KeyError, "layers has no 'counts'"),
        ({"fit_kwargs": {"layer": "expected"}}, ValueError, "not integers"),
    ],
)
def test_options_that_mean_nothing_are_refused(simulated, options, error, said):
    with pytest.raises(error, match=said):
        evaluate(simulated, **options)


def test_an_unknown_column_is_refused(simulated):
    with pytest.raises(KeyError, match="obs has no column 'day'"):
        dp.tl.evaluate_heldout(simulated, time_key="day", holdout=0.5)


def test_dense_counts_score_as_sparse_ones(simulated):
    dense = simulated.copy()
    dense.X = sparse.csr_matrix(dense.X).toarray()
    pd.testing.assert_frame_equal(evaluate(dense, methods=BASELINES), evaluate(simulated, methods=BASELINES))


# --- the science -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_at_a_time_between_others_the_model_comes_closer_than_every_baseline_and_than_interpolation_by_index():
    cells = uneven("branching", n_cells=60, n_genes=80)
    index = {float(t): float(i) for i, t in enumerate((0, 1, 2, 6, 12))}

    def by_index(train, time, n_cells, rng):
        pcs = clouds.PrincipalSpace.fit(train.X, 20).project(train.X)
        steps = train.obs["time"].map(index).to_numpy()
        return interpolate.ot_interpolation(train.X, pcs, steps, index[time], n_cells, rng)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit = {"training": dp.models.Training(n_restarts=5, progress=False)}
        table = evaluate(cells, holdout=6, methods=["all", by_index], fit_kwargs=fit)
    found = energies(table)
    # Two samples of 180 cells of the truth differ by about .03 in energy.
    assert found["dynvae"] < found[BASELINES].min() + 0.02
    assert found["dynvae"] + 0.1 < found["by_index"]
    assert abs(found["oracle_vae"]) < 0.1
    assert not any("the baseline" in str(warning.message) for warning in said)
    scores = table.set_index(["method", "metric"])["value"]
    assert scores["dynvae", "zero_error"] < 0.04
    assert scores["dynvae", "variance_ratio"] == pytest.approx(1, abs=0.15)
