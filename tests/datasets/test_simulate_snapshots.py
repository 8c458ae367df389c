"""The simulated snapshots against the truth they report, and the truth against closed forms and another solver."""

from __future__ import annotations

import doctest
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.integrate import solve_ivp
from scipy.special import softmax

from dynapath.datasets import _simulate_snapshots as module
from dynapath.datasets import simulate_snapshots

SCENARIOS = ("separated", "crossing", "rotating", "branching")


def bcv2_of(cells):
    truth = cells.uns["truth"]["parameters"]
    lam0 = cells.layers["expected"].astype(float)
    return (truth["bcv_common"] + lam0**-0.5) ** 2 * truth["bcv_chi2_factor"]


def assert_same_bits(one, other):
    assert (one.X != other.X).nnz == 0
    np.testing.assert_array_equal(one.layers["expected"], other.layers["expected"])
    np.testing.assert_array_equal(one.obsm["Z_true"], other.obsm["Z_true"])
    np.testing.assert_array_equal(one.obs["library"], other.obs["library"])


# --- what comes back ---------------------------------------------------------------------------------------------


def test_every_slot_has_its_shape_and_type():
    cells = simulate_snapshots(n_cells=7, n_genes=11, times=(0, 0.5))
    assert cells.shape == (7 * 3 * 2, 11)
    assert sparse.issparse(cells.X)
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.float32
    assert (cells.X.data > 0).all()
    assert (cells.X.data == np.round(cells.X.data)).all()
    assert cells.obs["time"].dtype == float
    assert isinstance(cells.obs["group"].dtype, pd.CategoricalDtype)
    assert list(cells.obs["group"].cat.categories) == ["0", "1", "2"]
    assert cells.obs.groupby(["time", "group"], observed=True).size().eq(7).all()
    assert cells.obsm["Z_true"].shape == cells.obsm["velocity_true"].shape == (42, 2)
    assert cells.varm["W_true"].shape == (11, 2)
    assert cells.layers["expected"].dtype == np.float32
    truth = cells.uns["truth"]
    assert truth["mean"].shape == (2, 3, 2)
    assert truth["cov"].shape == (2, 3, 2, 2)
    assert truth["proportions"].shape == (2, 3)
    assert truth["bcv2"].shape == (11,)
    assert "true_counts" not in cells.layers
    assert "batch" not in cells.obs


def test_examples_of_the_documentation_run():
    failures, n_run = doctest.testmod(module)
    assert n_run > 0
    assert failures == 0


def test_import_brings_no_heavy_package():
    code = "import sys, dynapath.datasets; print({'torch', 'scvi', 'matplotlib', 'scanpy'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_truth_survives_writing(tmp_path, suffix):
    cells = simulate_snapshots(
        n_cells=4, n_genes=9, growth=(0, 1, -1), dropout={"mid": 0, "shape": -1}, batch_effect=True
    )
    path = tmp_path / f"cells.{suffix}"
    if suffix == "h5ad":
        cells.write_h5ad(path)
        back = ad.read_h5ad(path)
    else:
        cells.write_zarr(path)
        back = ad.read_zarr(path)
    assert_same_bits(cells, back)

    def compare(there, here):
        assert set(there) == set(here)
        for key, value in here.items():
            if isinstance(value, dict):
                compare(there[key], value)
            else:
                np.testing.assert_array_equal(there[key], value)

    compare(back.uns["truth"], cells.uns["truth"])
    pd.testing.assert_frame_equal(back.obs, cells.obs)


# --- latent dynamics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_means_and_covariances_agree_with_an_independent_solver(scenario):
    times = np.array([0.0, 0.3, 1.0])
    truth = simulate_snapshots(scenario, n_cells=1, n_genes=2, times=times).uns["truth"]
    parameters = truth["parameters"]
    for k in range(3):
        A, b = parameters["A"][k], parameters["b"][k]

        def moments(_, y, A=A, b=b):
            S = y[2:].reshape(2, 2)
            return np.concatenate([A @ y[:2] + b, (A @ S + S @ A.T).ravel()])

        start = np.concatenate([parameters["m"][k], parameters["s0"] ** 2 * np.eye(2).ravel()])
        y = solve_ivp(moments, (0, 1), start, t_eval=times, rtol=1e-10, atol=1e-12).y.T
        np.testing.assert_allclose(truth["mean"][:, k], y[:, :2], rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(truth["cov"][:, k].reshape(3, 4), y[:, 2:], rtol=1e-7, atol=1e-7)


def test_scenarios_do_what_their_names_say():
    def mean(scenario):
        return simulate_snapshots(scenario, n_cells=1, n_genes=2, times=(0, 1)).uns["truth"]["mean"]

    crossing = mean("crossing")
    np.testing.assert_allclose(crossing[:, 0], [[-2.5, 0.5], [2.5, 1.1]])
    np.testing.assert_allclose(crossing[:, 1], [[2.5, 0.0], [-2.5, 1.5]])
    rotating = mean("rotating")
    turned = rotating[0] @ np.array([[np.cos(2.2), np.sin(2.2)], [-np.sin(2.2), np.cos(2.2)]]) * np.exp(0.1)
    np.testing.assert_allclose(rotating[1], turned)
    branching = mean("branching")
    assert np.ptp(branching[0], axis=0).max() < 0.35
    assert np.ptp(branching[1, :, 0]) > 7
    separated = mean("separated")
    gaps = np.linalg.norm(separated[:, [0, 0, 1]] - separated[:, [1, 2, 2]], axis=-1)
    assert gaps.min() > 5 * 0.35


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_cells_have_the_reported_moments(scenario):
    n = 4000
    cells = simulate_snapshots(scenario, n_cells=n, n_genes=1, times=(0, 0.4, 1))
    truth = cells.uns["truth"]
    for t, time in enumerate(truth["times"]):
        for k in range(3):
            z = cells.obsm["Z_true"][(cells.obs["time"] == time) & (cells.obs["group"] == str(k))]
            mean, cov = truth["mean"][t, k], truth["cov"][t, k]
            # Five standard errors: of a mean sqrt(s_ii/n), of a covariance sqrt((s_ii s_jj + s_ij^2)/n).
            assert (np.abs(z.mean(axis=0) - mean) < 5 * np.sqrt(np.diag(cov) / n)).all()
            error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
            assert (np.abs(np.cov(z.T) - cov) < 5 * error).all()


@pytest.mark.parametrize("times", [(0, 0.25, 1), (0, 3, 12)])
def test_velocity_is_the_vector_field_at_each_cell(times):
    cells = simulate_snapshots("separated", n_cells=5, n_genes=3, times=times)
    A, b = (cells.uns["truth"]["parameters"][key][cells.obs["group"].cat.codes] for key in "Ab")
    field = np.einsum("nij,nj->ni", A, cells.obsm["Z_true"]) + b
    np.testing.assert_allclose(cells.obsm["velocity_true"], field, rtol=1e-12)


# --- time --------------------------------------------------------------------------------------------------------


def test_the_unit_of_time_changes_rates_and_no_count():
    unit = simulate_snapshots("rotating", n_cells=6, n_genes=20, times=(0, 0.5, 1), growth=(0, 1, -1))
    days = simulate_snapshots("rotating", n_cells=6, n_genes=20, times=(0, 5, 10), growth=(0, 1, -1))
    assert_same_bits(unit, days)
    assert sorted(days.obs["time"].unique()) == [0, 5, 10]
    np.testing.assert_allclose(days.obsm["velocity_true"], unit.obsm["velocity_true"] / 10)
    for key in ("A", "b", "growth"):
        np.testing.assert_allclose(days.uns["truth"]["parameters"][key], unit.uns["truth"]["parameters"][key] / 10)
    np.testing.assert_array_equal(days.uns["truth"]["mean"], unit.uns["truth"]["mean"])


def test_reported_dynamics_carry_the_reported_means_in_the_users_unit():
    truth = simulate_snapshots("crossing", n_cells=1, n_genes=2, times=(12, 2, 3, -1)).uns["truth"]
    np.testing.assert_array_equal(truth["times"], [-1, 2, 3, 12])
    parameters = truth["parameters"]
    assert (parameters["time_origin"], parameters["time_unit"]) == (-1, 13)
    A, b, m = parameters["A"][2], parameters["b"][2], parameters["m"][2]
    y = solve_ivp(lambda _, z: A @ z + b, (-1, 12), m, t_eval=truth["times"], rtol=1e-10, atol=1e-12).y.T
    np.testing.assert_allclose(truth["mean"][:, 2], y, rtol=1e-7, atol=1e-7)


def test_times_within_zero_and_one_are_taken_as_they_are():
    whole = simulate_snapshots("crossing", n_cells=1, n_genes=2, times=(0, 0.25, 0.5, 1)).uns["truth"]
    part = simulate_snapshots("crossing", n_cells=1, n_genes=2, times=(0.25, 0.5)).uns["truth"]
    np.testing.assert_allclose(part["mean"], whole["mean"][1:3])
    single = simulate_snapshots("crossing", n_cells=1, n_genes=2, times=(0.5,)).uns["truth"]
    np.testing.assert_allclose(single["mean"][0], whole["mean"][2])


# --- groups ------------------------------------------------------------------------------------------------------


def test_groups_grow_at_their_rates():
    n, growth = 3000, np.array([0.0, 1.5, -1.5])
    cells = simulate_snapshots("separated", n_cells=n, n_genes=1, times=(0, 1, 2), growth=growth)
    truth = cells.uns["truth"]
    expected = softmax(np.outer([0, 0.5, 1], growth), axis=1)
    np.testing.assert_allclose(truth["proportions"], expected)
    # in the user's unit: rates per unit of `times`, counted from time_origin
    np.testing.assert_allclose(
        softmax(np.outer(truth["times"] - truth["parameters"]["time_origin"], truth["parameters"]["growth"]), axis=1),
        expected,
    )
    counts = cells.obs.groupby(["time", "group"], observed=False).size().unstack().to_numpy()
    assert (counts.sum(axis=1) == 3 * n).all()
    # Binomial standard errors; five of them.
    assert (np.abs(counts - 3 * n * expected) < 5 * np.sqrt(3 * n * expected * (1 - expected))).all()


def test_a_common_rate_changes_no_proportion():
    one, other = (simulate_snapshots(n_cells=5, n_genes=2, growth=np.array([0, 1, 2.0]) + c) for c in (0, 7))
    np.testing.assert_allclose(one.uns["truth"]["proportions"], other.uns["truth"]["proportions"])


def test_all_groups_stay_categories_when_one_dies_out():
    cells = simulate_snapshots(n_cells=3, n_genes=2, times=(0.9, 1.0), growth=(0, 0, -50))
    assert set(cells.obs["group"]) == {"0", "1"}
    assert list(cells.obs["group"].cat.categories) == ["0", "1", "2"]


# --- counts ------------------------------------------------------------------------------------------------------


def test_counts_have_the_closed_moments_given_library_and_bcv():
    cells = simulate_snapshots(n_cells=150, n_genes=200)
    lam0, bcv2, X = cells.layers["expected"].astype(float), bcv2_of(cells), cells.X.toarray()
    variance = lam0 + lam0**2 * bcv2
    residual = (X - lam0) / np.sqrt(variance)
    # Independent given lambda0: the mean of the residuals has standard error 1/sqrt(n), the mean of their squares
    # sqrt(sum(2 + excess))/n with the gamma-Poisson's excess kurtosis 6 BCV^2 + 1/variance. Rare genes are left out
    # (lambda0 < .5), where the excess is so large that the sum is not yet normal.
    for some in (lam0 > 0.5, lam0 > 20, cells.uns["truth"]["parameters"]["nonlinear"][None] & (lam0 > 0.5)):
        n = some.sum()
        assert n > 10_000
        assert abs(residual[some].mean()) < 5 / np.sqrt(n)
        excess = 6 * bcv2[some] + 1 / variance[some]
        assert abs((residual[some] ** 2).mean() - 1) < 5 * np.sqrt((2 + excess).sum()) / n
    np.testing.assert_allclose(cells.uns["truth"]["bcv2"], bcv2.mean(axis=0), rtol=1e-4)


def test_expected_counts_follow_from_states_and_loadings():
    cells = simulate_snapshots("branching", n_cells=4, n_genes=60)
    parameters = cells.uns["truth"]["parameters"]
    assert parameters["nonlinear"].any()
    eta = cells.obsm["Z_true"] @ cells.varm["W_true"].T
    eta = np.where(parameters["nonlinear"], 1.5 * np.tanh(eta) - 0.3 * eta**2, eta)
    mean = parameters["base_mean"] * np.exp(eta)
    expected = cells.obs["library"].to_numpy()[:, None] * mean / mean.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(cells.layers["expected"], expected, rtol=1e-5)
    np.testing.assert_allclose(cells.layers["expected"].sum(axis=1), cells.obs["library"], rtol=1e-5)


def test_libraries_are_log_normal_and_scale_with_the_number_of_genes():
    for n_genes in (2, 50):
        cells = simulate_snapshots(n_cells=1500, n_genes=n_genes, times=(0, 1))
        log_library = np.log(cells.obs["library"])
        n = len(log_library)
        # Standard errors of mean and standard deviation of a normal; five of them.
        assert abs(log_library.mean() - (11 + np.log(n_genes / 10_000))) < 5 * 0.2 / np.sqrt(n)
        assert abs(log_library.std() - 0.2) < 5 * 0.2 / np.sqrt(2 * n)


def test_shares_of_special_genes_are_as_documented():
    n = 4000
    cells = simulate_snapshots(n_cells=1, n_genes=n, times=(0, 1))
    parameters = cells.uns["truth"]["parameters"]
    for share, prob in (
        (parameters["nonlinear"].mean(), 0.1),
        (parameters["outlier"].mean(), 0.05),
        (np.mean(cells.varm["W_true"][:, 0] != 0), 0.3),
        (np.mean(cells.varm["W_true"][:, 1] != 0), 0.3),
    ):
        assert abs(share - prob) < 5 * np.sqrt(prob * (1 - prob) / n)
    # df/chi2_df with df = 60: its inverse has mean 1 and variance 2/60.
    assert abs((1 / parameters["bcv_chi2_factor"]).mean() - 1) < 5 * np.sqrt(2 / 60 / n)


def test_block_of_cells_and_data_at_once_agree_on_the_expectation(monkeypatch):
    whole = simulate_snapshots(n_cells=10, n_genes=30)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 30 * 7)
    blocks = simulate_snapshots(n_cells=10, n_genes=30)
    np.testing.assert_allclose(blocks.layers["expected"], whole.layers["expected"], rtol=1e-6)
    np.testing.assert_allclose(blocks.uns["truth"]["bcv2"], whole.uns["truth"]["bcv2"])
    assert blocks.shape == whole.shape
    assert (blocks.X.sum(axis=1) > 0).all()


# --- dropout and batches -----------------------------------------------------------------------------------------


def test_dropout_thins_the_same_true_counts():
    complete = simulate_snapshots(n_cells=20, n_genes=50)
    thinned = simulate_snapshots(n_cells=20, n_genes=50, dropout={"mid": 0, "shape": -1})
    assert (thinned.layers["true_counts"] != complete.X).nnz == 0
    layers = {name: matrix for name, matrix in thinned.layers.items() if name is not None}
    assert_same_bits(complete, ad.AnnData(complete.X, obs=thinned.obs, obsm=thinned.obsm, layers=layers))
    kept = thinned.X.toarray()[thinned.X.toarray() > 0]
    assert 0 < len(kept) < complete.X.nnz
    assert (thinned.X.data > 0).all()
    np.testing.assert_array_equal(kept, complete.X.toarray()[thinned.X.toarray() > 0])


def test_counts_are_kept_by_the_logistic_of_their_rate(monkeypatch):
    # Without biological noise the Poisson rate is the expected count, which is reported.
    monkeypatch.setattr(module.splatter, "squared_bcv", lambda expected, *_: np.full(expected.shape, 1e-9))
    cells = simulate_snapshots(n_cells=100, n_genes=100, dropout={"mid": 1, "shape": -1.5})
    counted = cells.layers["true_counts"].toarray() > 0
    kept = (cells.X.toarray() > 0)[counted]
    rate = cells.layers["expected"][counted].astype(float)
    keep = 1 - 1 / (1 + np.exp(1.5 * (np.log(rate) - 1)))
    # Bernoulli sums in bins of the rate; five standard errors.
    for some in np.array_split(np.argsort(rate), 6):
        assert abs((kept - keep)[some].sum()) < 5 * np.sqrt((keep * (1 - keep))[some].sum()) + 1e-3


def test_batches_overlap_in_every_time_and_differ_by_their_factors():
    plain = simulate_snapshots(n_cells=5, n_genes=40)
    cells = simulate_snapshots(n_cells=5, n_genes=40, batch_effect=True)
    assert isinstance(cells.obs["batch"].dtype, pd.CategoricalDtype)
    per_time = cells.obs.groupby(["time", "batch"], observed=False).size().unstack()
    assert per_time.shape == (5, 2)
    assert (per_time.sub(7.5).abs() <= 0.5).all(axis=None)
    factors = cells.uns["truth"]["parameters"]["batch_factors"]
    assert factors.shape == (2, 40)
    assert (factors > 0).all()
    assert (factors != 1).all()
    # Same seed: states, genes and libraries are those without batches; expectation changes by the factors, rescaled.
    np.testing.assert_array_equal(cells.obsm["Z_true"], plain.obsm["Z_true"])
    changed = plain.layers["expected"] * factors[cells.obs["batch"].cat.codes]
    changed *= (cells.obs["library"].to_numpy() / changed.sum(axis=1))[:, None]
    np.testing.assert_allclose(cells.layers["expected"], changed, rtol=1e-5)


def test_batches_overlap_with_one_cell_of_each_group():
    cells = simulate_snapshots(n_cells=1, n_genes=3, batch_effect=True)
    assert (cells.obs.groupby("time")["batch"].nunique() == 2).all()


# --- seeds -------------------------------------------------------------------------------------------------------


def test_same_seed_same_bits_and_another_seed_others():
    one, again, other = (simulate_snapshots(n_cells=5, n_genes=20, random_state=seed) for seed in (3, 3, 4))
    assert_same_bits(one, again)
    assert (one.X != other.X).nnz > 0
    assert not np.array_equal(one.varm["W_true"], other.varm["W_true"])


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one = simulate_snapshots(n_cells=3, n_genes=5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert_same_bits(one, simulate_snapshots(n_cells=3, n_genes=5))


def test_scenarios_are_not_changed_through_a_result():
    first = simulate_snapshots(n_cells=2, n_genes=3)
    first.uns["truth"]["parameters"]["m"] += 100
    first.uns["truth"]["parameters"]["A"] += 100
    assert_same_bits(simulate_snapshots(n_cells=2, n_genes=3), first)


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"scenario": "spiral"}, "'spiral'.*branching, crossing, rotating, separated"),
        ({"n_cells": 0}, "n_cells must be a whole number of at least 1; got 0"),
        ({"n_genes": -3}, "n_genes must be a whole number of at least 1; got -3"),
        ({"times": ()}, "at least one time"),
        ({"times": (0, np.nan, 1)}, r"times\[1\] is nan"),
        ({"times": (0, np.inf)}, r"times\[1\] is inf"),
        ({"times": (0, 0.5, 0.5)}, "0.5 is given more than once"),
        ({"times": (3,)}, r"single time must lie in \[0, 1\].*got 3"),
        ({"growth": (0, 1)}, "3 finite rates, one for each group"),
        ({"growth": (0, 1, np.nan)}, "3 finite rates, one for each group"),
        ({"dropout": {"mid": 0}}, "keys 'mid' and 'shape'.*got \\['mid'\\]"),
        ({"dropout": {"mid": 0, "shape": -1, "type": 1}}, "exactly the keys"),
        ({"dropout": {"mid": np.nan, "shape": -1}}, "finite values"),
    ],
)
def test_bad_input_is_named(bad, message):
    with pytest.raises(ValueError, match=message):
        simulate_snapshots(**bad)
