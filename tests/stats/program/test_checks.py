"""Programs and data that cannot be used, and what the message says to do."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import dynapath as dp

RNG = np.random.default_rng(0)
T = np.tile(np.linspace(0, 2, 8), (5, 1))
Y = RNG.uniform(0.8, 1.2, (5, 1)) * np.exp(-T) + 0.01 * RNG.normal(size=T.shape)
DATA = {"t": T, "y": Y}
START = {"a": 1.0, "b": 0.5}


def decay(p, t, y):
    return y - p["a"] * torch.exp(-p["b"] * t)


def fit(program=decay, data=DATA, params=START, kind="residuals", **settings):
    return dp.stats.estimate(program, data, params=params, kind=kind, **settings)


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        (lambda p, t, y: decay(p, t, y).square().sum(), "residuals", "a single number, but kind='residuals'"),
        (lambda p, t, y: decay(p, t, y[:, None]), "residuals", r"shape \(8, 8\): did a row meet a column"),
        (lambda p, t, y: decay(p, t, y)[:, None], "nll", r"shape \(8, 1\), but kind='nll' needs one value per row"),
        (lambda p, t, y: decay(p, t, y)[:0], "residuals", "empty shape"),
        (lambda p, t, y: 1.0, "nll", "returns a float; it must return a torch tensor"),
        (lambda p, t, y: (y, y), "nll", "returns a tuple"),
    ],
)
def test_a_program_that_returns_the_wrong_shape_is_told_what_shape_was_meant(program, kind, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit(program, kind=kind)


def test_nan_at_the_start_names_the_unit_and_its_data_or_the_start():
    y = Y.copy()
    y[3, 2] = np.nan
    frame = pd.DataFrame(y, index=list("abcde"))
    with pytest.raises(
        ValueError, match=r"nan at the starting values for unit 'd' \(1 of 5\).*NaN.*\(y\).*where_observed"
    ):
        fit(data={"t": T, "y": frame})
    with pytest.raises(ValueError, match=r"nan at the starting values.*\(a=-1.0\) are outside"):
        fit(lambda p, y: y - torch.log(p["a"]), data={"y": Y}, params={"a": -1.0})


def test_a_derivative_that_is_nan_at_the_start_is_told_from_a_loss_that_is():
    y = Y.copy()
    y[0, 0] = np.nan
    hidden = lambda p, y: torch.where(torch.isnan(y), 0.0, y / p["a"] - 1)
    with pytest.raises(ValueError, match="derivative by 'a' is not finite.*where_observed"):
        fit(hidden, data={"y": y}, params={"a": 1.0})


def test_a_parameter_that_is_not_used_is_named():
    with pytest.raises(ValueError, match="does not use the parameter 'c'"):
        fit(params=START | {"c": 1.0})
    program = lambda p, t, y: y - p["beta"][0] - p["beta"][1] * t
    with pytest.raises(ValueError, match=r"does not use the parameter 'beta\[2\]'"):
        fit(program, params={"beta": np.zeros(3)})


def test_a_start_at_which_the_derivative_happens_to_vanish_is_no_mistake():
    fitted = fit(lambda p, t, y: y - 1 - p["a"] ** 2 * t, params={"a": 0.0})
    assert len(fitted.status) == 5


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda p, t, y: y - (t > p["a"]) * p["b"], "not differentiable in 'a'"),
        (lambda p, t, y: y - p["a"].detach() * torch.exp(-p["b"] * t), "not differentiable in 'a'"),
        (lambda p, t, y: y - torch.round(3 * p["a"]) * torch.exp(-p["b"] * t), "not differentiable in 'a'"),
        (lambda p, t, y: y - p["b"] * t - p["a"] * p["a"].detach(), "derivative by 'a' that torch finds"),
    ],
)
def test_a_program_that_is_not_differentiable_is_found(program, message):
    with pytest.raises(ValueError, match=message):
        fit(program)


def branching(p, t, y):
    if y[0] > 1:
        return y - p["a"] * torch.exp(-p["b"] * t)
    return y - p["a"] * t - p["b"]


def looping(p, t, y):
    s = p["a"]
    while s > 0.1:
        s = s * p["b"]
    return y - s


def writing(p, t, y):
    out = torch.zeros(8)
    for i in range(8):
        out[i] = y[i] - p["a"] * torch.exp(-p["b"] * t[i])
    return out


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (branching, r"branches in Python.*if y\[0\] > 1: \(branching.*torch.where\(condition"),
        (looping, "branches in Python.*while s > 0.1.*fixed number of times"),
        (lambda p, t, y: y - float(p["a"]) * p["b"] * t, r"leaves torch \(float\(\)"),
        (lambda p, t, y: y - torch.from_numpy(np.exp(p["a"].numpy())) * p["b"] * t, "leaves torch"),
        (lambda p, t, y: decay(p, t, y)[y > 0.5], "selects by a condition.*where_observed"),
        (writing, "in place.*torch.stack"),
        (lambda p, t, y: y - p["gamma"], "asks for .*gamma.*, which is not in params; there are a, b"),
        (lambda p, t, y: y - p["a"] * torch.ones(3) * p["b"], r"fails.*shapes t \(8,\), y \(8,\)"),
    ],
)
def test_what_cannot_be_vectorised_is_found_with_its_line_and_what_to_write_instead(program, message):
    with pytest.raises((ValueError, KeyError), match=message):
        fit(program)


def test_arrays_of_different_shape_are_named():
    with pytest.raises(ValueError, match=r"first axis.*t \(8,\), y \(5, 8\).*shared="):
        fit(data={"t": T[0], "y": Y})
    assert (fit(data={"t": T[0], "y": Y}, shared="t").status == "ok").all()
    with pytest.raises(ValueError, match="has no units"):
        fit(data={"t": T[:0], "y": Y[:0]})


def test_names_that_do_not_meet_are_said():
    with pytest.raises(KeyError, match="asks for 't', which is not in data; there are y"):
        fit(data={"y": Y})
    with pytest.raises(KeyError, match="data has 'z', which program does not take"):
        fit(data=DATA | {"z": T})
    with pytest.raises(KeyError, match="constraints names 'c'"):
        fit(constraints={"c": "positive"})
    with pytest.raises(KeyError, match="pooling names 'c'"):
        fit(pooling={"c": "global"})
    with pytest.raises(KeyError, match="shared names 'x'"):
        fit(shared="x")


def test_data_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="computes with numbers"):
        fit(data=DATA | {"y": np.full((5, 8), "high")})
    with pytest.raises(TypeError, match="dict of arrays or an AnnData"):
        fit(data=[Y])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"params": {}}, "params is empty"),
        ({"params": {"a": np.nan, "b": 1.0}}, "must be finite"),
        ({"constraints": {"a": "negative"}}, "constraint of 'a' is 'negative'"),
        ({"constraints": {"a": (2, 1)}}, "low < high"),
        ({"constraints": {"b": (1, 2)}}, "starting value of 'b', 0.5, is not inside"),
        ({"kind": "chi2"}, "kind must be one of"),
        ({"per": "patient"}, "per must be one of"),
        ({"se": "wald"}, "se must be one of"),
        ({"method": "newton"}, "does not go with kind='residuals'"),
        ({"method": "sgd"}, "method must be one of"),
        ({"pooling": "some"}, "must be 'individual', 'global' or 'partial'"),
        ({"per": "all", "pooling": "global"}, "nothing to pool"),
        ({"n_restarts": 0}, "at least 1"),
        ({"kind": "nll", "se": "bootstrap"}, "needs simulate"),
        ({"pooling": "partial", "method": "lbfgs"}, "Pooling needs the curvature"),
    ],
)
def test_settings_that_do_not_exist_or_go_together_are_said(settings, message):
    with pytest.raises(ValueError, match=message):
        fit(**settings)


def test_units_without_data_have_a_status_and_no_numbers():
    y = Y.copy()
    y[2] = np.nan
    y[3, 1:] = np.nan
    program = lambda p, t, y: dp.stats.where_observed(~torch.isnan(y), lambda y: decay(p, t, y), y)
    fitted = fit(program, data={"t": T, "y": y})
    assert fitted.status.tolist() == ["ok", "ok", "no_data", "rank_deficient", "ok"]
    assert fitted.n.tolist() == [8, 8, 0, 1, 8]
    assert np.isnan(fitted.estimates[2]).all()
    assert np.isnan(fitted.standard_errors[2:4]).all()
    np.testing.assert_array_equal(fitted.estimates[[0, 1, 4]], fit().estimates[[0, 1, 4]])
    pooled = fit(program, data={"t": T, "y": y}, pooling="partial")
    np.testing.assert_allclose(pooled.estimates[2], pooled.shared.mean)
    scalar = lambda p, t, y: program(p, t, y).square().sum()
    assert fit(scalar, data={"t": T, "y": y}, kind="nll").status[2] == "no_data"


def test_a_hessian_that_is_not_positive_definite_gives_a_status_and_no_errors():
    # A saddle: the first parameter is at a maximum and cannot leave it, as its derivative is 0 there.
    saddle = lambda p, y: p["b"] ** 2 + torch.cos(p["a"]) * (1 + 0 * y.sum())
    fitted = fit(saddle, data={"y": Y}, params={"a": 0.0, "b": 0.3}, kind="nll")
    assert (fitted.status == "indefinite").all()
    assert np.isnan(fitted.standard_errors).all()
    assert fitted.summary()[["lower", "upper"]].isna().all().all()
    flat = lambda p, y: (y - p["a"] - p["b"]) ** 2
    fitted = fit(flat, data={"y": Y}, params=START, kind="nll")
    assert (fitted.status == "rank_deficient").all()
    assert np.isnan(fitted.standard_errors).all()


def test_a_parameter_at_its_bound_has_no_error_and_the_others_do():
    y = -1 + 0.1 * T + 0.01 * RNG.normal(size=T.shape)
    line = lambda p, t, y: y - p["a"] - p["b"] * t
    fitted = fit(line, data={"t": T, "y": y}, params={"a": 1.0, "b": 0.0}, constraints={"a": "positive"})
    assert (fitted.status == "at_bound").all()
    np.testing.assert_allclose(fitted.params["a"], 0.0, atol=1e-6)
    assert np.isnan(fitted.se["a"]).all()
    alone = fit(lambda p, t, y: y - p["b"] * t, data={"t": T, "y": y}, params={"b": 0.0})
    np.testing.assert_allclose(fitted.params["b"], alone.params["b"], rtol=1e-5)
    np.testing.assert_allclose(fitted.se["b"], alone.se["b"], rtol=1e-4)


def test_too_few_steps_are_a_status():
    assert (fit(max_iter=1).status == "max_iter").all()
    assert np.isnan(fit(max_iter=1).standard_errors).all()


def test_a_sandwich_needs_rows():
    with pytest.raises(ValueError, match="loss of every row"):
        fit(lambda p, t, y: decay(p, t, y).square().sum(), kind="nll", se="sandwich")


@pytest.fixture
def adata():
    obs = pd.DataFrame({"dose": np.linspace(0.5, 1.5, 5), "arm": pd.Categorical(list("abaab"))}, index=list("pqrst"))
    return AnnData(Y.copy(), obs=obs, var=pd.DataFrame({"t": T[0]}, index=[f"d{i}" for i in range(8)]), layers={"y": Y})


def test_with_an_anndata_results_are_in_its_slots_and_survive_a_file(adata, tmp_path):
    import anndata

    program = lambda p, y, t, dose: y - dose * p["a"] * torch.exp(-p["b"][0] * t)
    fitted = fit(program, data=adata, params={"a": 1.0, "b": np.array([0.5])})
    data = {"y": Y, "t": T, "dose": adata.obs["dose"].to_numpy()}
    np.testing.assert_array_equal(fitted.estimates, fit(program, data, {"a": 1.0, "b": np.array([0.5])}).estimates)
    assert list(adata.obsm["estimate_params"].columns) == ["a", "b[0]"]
    np.testing.assert_array_equal(adata.obsm["estimate_se"], fitted.standard_errors)
    assert set(adata.obs["estimate_status"]) == {"ok"}
    assert adata.obs["estimate_n"].tolist() == [8] * 5
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")[["s", "q"]].copy()
    stored = dp.stats.Estimate.from_adata(again, program=program)
    pd.testing.assert_frame_equal(
        stored.summary(), fitted.take([3, 1]).summary(), check_dtype=False, check_column_type=False
    )
    np.testing.assert_allclose(stored.predict(program).mean, fitted.predict(program).mean[[3, 1]])
    assert len(stored.profile("a", n_grid=5)) == 10
    with pytest.raises(KeyError, match=r"Estimate.from_adata\(adata, key='estimate'"):
        dp.get.model(adata, "estimate")
    with pytest.raises(ValueError, match="read without its program"):
        dp.stats.Estimate.from_adata(again).profile("a")


def test_all_data_together_are_stored_too_and_nothing_is_on_request(adata):
    program = lambda p, y, dose: y.mean(1) - p["a"] * dose
    fitted = fit(program, data=adata, params="a", per="all", key_added="slope")
    assert "slope_params" not in adata.obsm
    assert dp.stats.Estimate.from_adata(adata, "slope").params["a"] == fitted.params["a"]
    before = set(adata.uns), set(adata.obsm), set(adata.obs)
    fit(program, data=adata, params="a", per="all", key_added=None)
    assert (set(adata.uns), set(adata.obsm), set(adata.obs)) == before


def test_bad_input_leaves_the_anndata_as_it_was(adata):
    adata.obs["estimate_n"] = 1
    with pytest.raises(ValueError, match="would overwrite"):
        fit(data=adata)
    del adata.obs["estimate_n"]
    with pytest.raises(KeyError, match="asks for 'z', which is in no slot.*layers: y; obs: dose, arm"):
        fit(lambda p, z: z - p["a"], data=adata, params="a")
    with pytest.raises(KeyError, match="'layers/x' as 'y', which does not exist; there are y"):
        fit(data=adata, slots={"y": "layers/x"})
    with pytest.raises(TypeError, match=r"obs/arm is categorical \(a, b\)"):
        fit(lambda p, y, arm: y - p["a"] * arm, data=adata, params="a")
    adata.obs["y"] = 1.0
    with pytest.raises(ValueError, match=r"'y' is in layers and in obs. Say which with slots="):
        fit(data=adata)
    assert "estimate" not in adata.uns
    assert not adata.obsm


def test_unknown_units_parameters_and_levels_are_said():
    fitted = fit()
    with pytest.raises(KeyError, match="no parameter 'c'; there are a, b"):
        fitted.profile("c")
    with pytest.raises(KeyError, match="'9' is no unit"):
        fitted.profile("a", units="9")
    with pytest.raises(ValueError, match="level=1.5"):
        fitted.summary(level=1.5)
    with pytest.raises(ValueError, match="data has 2 units, the estimates have 5"):
        fitted.predict(lambda p, t: p["a"] * t, {"t": T[:2]})
    with pytest.raises(ValueError, match="needs simulate"):
        fit(lambda p, t, y: decay(p, t, y) ** 2, kind="nll").bootstrap(5)
