"""Landmark forecasts: what they may know, invariances, folds, coverage, and published scores."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from dynapath._forecast_tables import inside
from dynapath.datasets import _fetch, _registries, pbc2
from dynapath.metrics import forecast_scores
from dynapath.stats import compare_landmarks, landmark_forecast
from dynapath.stats.registry.landmark import COLUMNS, patient_folds
from dynapath.stats.registry.state_space import StateSpaceForecaster

QUICK = {
    "locf": "locf",
    "lmm": "lmm",
    "ar_boosted": "ar_boosted",
    "latent_alone": StateSpaceForecaster(n_latent=2, n_steps=3),
    "latent_dynamics": "latent_dynamics",
}
pytestmark = pytest.mark.filterwarnings("ignore:.*have no measurement at all", "ignore:.*have one visit")


@pytest.fixture(scope="module")
def registry():
    """120 patients of a mixed model: slopes differ between patients, and depend on the dose."""
    rng = np.random.default_rng(0)
    rows, X = [], []
    for i in range(120):
        dose, times = rng.normal(), np.cumsum(rng.uniform(0.3, 1.5, rng.integers(2, 7)))
        level, slope = rng.normal(size=2), 0.4 * rng.normal(size=2) + 0.3 * dose
        X.append(level + slope * times[:, None] + 0.4 * rng.normal(size=(len(times), 2)))
        rows += [(f"p{i:03d}", t, dose) for t in times]
    obs = pd.DataFrame(rows, columns=["patient", "time", "dose"]).set_index(
        pd.Index([f"r{j}" for j in range(len(rows))])
    )
    X = np.concatenate(X)
    X[rng.random(X.shape) < 0.1] = np.nan
    return ad.AnnData(X=X, obs=obs, var=pd.DataFrame(index=["gait", "grip"]))


@pytest.fixture(scope="module", params=["next", "all"])
def horizon(request):
    return request.param


def run(adata, **kwargs):
    return landmark_forecast(adata, **({"baseline": "~ dose", "models": QUICK, "folds": 2} | kwargs))


@pytest.fixture(scope="module")
def table(registry, horizon):
    return run(registry, horizon=horizon)


def test_every_model_is_scored_on_the_same_measured_cases(table, registry, horizon):
    assert set(COLUMNS) == set(table.columns)
    assert list(table["model"].cat.categories) == list(QUICK)
    counts = table.groupby(["model", "subject", "landmark", "time", "item"], observed=True).size()
    assert (counts == 1).all()
    keys = [
        set(map(tuple, part[["subject", "landmark", "time", "item"]].to_numpy()))
        for _, part in table.groupby("model", observed=True)
    ]
    assert all(key == keys[0] for key in keys)
    assert not table[["observed", "predicted", "sd", "crps", "lower90", "upper50"]].isna().any().any()
    assert (table["ahead"] > 0).all()
    if horizon == "all":
        assert set(table["landmark"]) == {1, 2, 3}


def test_observed_values_are_in_units_of_the_training_patients(table, registry):
    one = table[(table["model"] == "locf") & (table["item"] == "grip") & (table["fold"] == 0)]
    X = registry.to_df()["grip"]
    test = set(one["subject"])
    train = ~registry.obs["patient"].isin(patients_of_fold(registry, 0))
    assert test <= patients_of_fold(registry, 0)
    values = pd.Series(X.to_numpy(), index=pd.MultiIndex.from_frame(registry.obs[["patient", "time"]]))
    raw = values[list(zip(one["subject"], one["time"], strict=True))].to_numpy()
    np.testing.assert_allclose(one["observed"], (raw - X[train].mean()) / X[train].std(ddof=0))


def patients_of_fold(registry, fold):
    patients = sorted(set(registry.obs["patient"]))
    order = np.arange(len(patients))
    np.random.RandomState(0).shuffle(order)
    return {patients[i] for i in order[fold::2]}


def test_every_patient_is_forecast_by_models_that_never_saw_it():
    folds = patient_folds(103, 5, 0)
    assert sorted(np.concatenate(folds)) == list(range(103))
    order = np.arange(103)
    np.random.RandomState(0).shuffle(order)
    assert set(folds[2]) == set(order[2::5])


def test_later_visits_cannot_change_a_forecast_by_a_single_bit(registry, table, horizon):
    patient = registry.obs["patient"].value_counts().idxmax()
    own = np.flatnonzero((registry.obs["patient"] == patient).to_numpy())
    changed = registry.copy()
    later = own[np.argsort(registry.obs["time"].to_numpy()[own])][2:]
    changed.X[later] = changed.X[later] * -3 + 17
    again = run(changed, horizon=horizon)
    at = lambda t: t[(t["subject"] == patient) & (t["landmark"] <= 2)].reset_index(drop=True)
    before, after = at(table), at(again)
    assert len(before)
    for column in ("predicted", "sd", "lower50", "upper90"):
        np.testing.assert_array_equal(before[column], after[column])
    assert not np.array_equal(before["observed"], after["observed"])


def test_a_second_run_order_of_rows_and_names_change_nothing(registry, table, horizon):
    """Names of columns, and of patients if their order stays; all at once, as each run takes its time."""
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    again = registry[np.random.default_rng(0).permutation(registry.n_obs)].copy()
    again.obs = again.obs.rename(columns={"patient": "id", "time": "t"}).assign(
        id=lambda obs: "x" + obs["id"].astype(str)
    )
    again = run(again, horizon=horizon, subject_key="id", time_key="t")
    again["subject"] = again["subject"].str.removeprefix("x")
    pd.testing.assert_frame_equal(again, table, check_exact=True)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_unit_and_origin_of_time_change_nothing(registry, table, horizon):
    months = registry.copy()
    months.obs["time"] = months.obs["time"] * 12 + 100
    again = run(months, horizon=horizon)
    # The likelihood of the mixed model is flat near its maximum, which the search ends at from another side.
    exact = ~table["model"].isin(["lmm", "latent_dynamics"])
    np.testing.assert_allclose(again["predicted"][exact], table["predicted"][exact], atol=1e-6)
    np.testing.assert_allclose(again["predicted"], table["predicted"], atol=0.05)
    np.testing.assert_allclose(again["ahead"], table["ahead"] * 12)


def test_order_of_items_changes_nothing(registry, horizon):
    models = ["locf", "lmm", "ar_ridge"]
    some = registry[:200]
    first, second = (run(adata.copy(), horizon=horizon, models=models) for adata in (some, some[:, ::-1]))
    keys = ["model", "subject", "landmark", "time", "item"]
    first, second = (t.astype({"model": str}).sort_values(keys) for t in (first, second))
    np.testing.assert_allclose(first["predicted"], second["predicted"], atol=1e-9)


def test_visits_without_any_measurement_are_no_landmarks(registry, table, horizon):
    between = registry[::7].copy()
    between.obs["time"] = between.obs["time"] + 0.01
    between.obs_names = "empty" + between.obs_names
    between.X[:] = np.nan
    longer = ad.concat([registry, between])
    pd.testing.assert_frame_equal(
        run(longer, horizon=horizon, models=["locf", "ar_boosted"]), keep(table), check_exact=True
    )


def keep(table):
    """The forecasts of two of the models."""
    own = table[table["model"].isin(["locf", "ar_boosted"])].reset_index(drop=True)
    own["model"] = own["model"].cat.remove_unused_categories()
    own.attrs["weights"] = [{} for _ in table.attrs["weights"]]
    return own


def test_weights_of_the_combination_are_reported_and_made_of_its_parts(table):
    for fold, weights in enumerate(table.attrs["weights"]):
        w = weights["latent_dynamics"]
        assert set(w) == {"latent_alone", "ar_boosted", "lmm"}
        assert sum(w.values()) == pytest.approx(1)
        own = table[table["fold"] == fold]
        parts = {name: part["predicted"].to_numpy() for name, part in own.groupby("model", observed=True)}
        np.testing.assert_allclose(parts["latent_dynamics"], sum(w[name] * parts[name] for name in w))


def test_the_true_model_beats_the_last_value_and_intervals_hold(table):
    scores = forecast_scores(table).set_index("model")
    assert scores.loc["lmm", "rmse"] < scores.loc["locf", "rmse"] - 0.02
    # Some 600 forecasts of 120 patients: a standard error of .02.
    assert (scores["cover90"] - 0.9).abs().max() < 0.06
    assert (scores["cover50"] - 0.5).abs().max() < 0.09


def test_differences_have_intervals_over_patients(table):
    compared = compare_landmarks(table, model="lmm", reference="locf").iloc[0]
    scores = forecast_scores(table).set_index("model")["rmse"]
    assert compared["difference"] == pytest.approx(scores["lmm"] - scores["locf"])
    assert compared["lower"] < compared["difference"] < compared["upper"]
    same = compare_landmarks(table.assign(crps=1.0), model="lmm", score="crps")
    np.testing.assert_allclose(same[["lower", "upper"]], 0, atol=1e-12)


def test_an_own_model_may_take_part(registry):
    class Zero:
        def fit(self, visits):
            return self

        def predict(self, history, times):
            shape = (*times.shape, history.n_items)
            return np.zeros(shape), np.ones(shape)

    table = run(registry, models={"zero": Zero(), "last": "locf"})
    assert (table.loc[table["model"] == "zero", "predicted"] == 0).all()


@pytest.fixture(scope="module")
def binary(registry):
    """Of whether grip is positive, beside gait."""
    adata = registry.copy()
    adata.X[:, 1] = np.where(np.isnan(adata.X[:, 1]), np.nan, adata.X[:, 1] > 0)
    return run(adata, models=["locf", "lmm", "ar_boosted"])


def test_binary_items_are_forecast_as_probabilities(binary):
    grip = binary[binary["item"] == "grip"]
    assert grip["predicted"].between(0, 1).all()
    assert grip["lower90"].isna().all()
    np.testing.assert_allclose(grip["crps"], (grip["observed"] - grip["predicted"]) ** 2)


def test_kinds_of_items_are_in_the_table_and_scored_apart(binary):
    assert set(zip(binary["item"], binary["kind"], strict=True)) == {("gait", "gaussian"), ("grip", "bernoulli")}
    with pytest.raises(ValueError, match=r"'gait' is real-valued, 'grip' is 0 or 1.*by=\('model', 'kind'\)"):
        forecast_scores(binary)
    assert len(forecast_scores(binary, by=("model", "kind"))) == 6
    with pytest.raises(ValueError, match="table\\[table\\['kind'\\] == 'gaussian'\\]"):
        compare_landmarks(binary, model="lmm")
    one = compare_landmarks(binary[binary["kind"] == "gaussian"], model="lmm", reference="locf").iloc[0]
    scores = forecast_scores(binary, by=("kind", "model")).set_index(["kind", "model"])["rmse"]
    assert one["difference"] == pytest.approx(scores["gaussian", "lmm"] - scores["gaussian", "locf"])


def test_intervals_that_few_patients_calibrate_are_infinite_flagged_and_no_coverage(registry):
    few = registry[registry.obs["patient"].isin(registry.obs["patient"].unique()[:16])].copy()
    with pytest.warns(UserWarning, match=r"infinite interval of 90 %.*fewer than 9 patients"):
        table = run(few, models=["locf", "lmm"])
    # Of 8 training patients, an item may have been measured in fewer: .5 needs one, .9 nine.
    assert table["unbounded"].all()
    assert np.isneginf(table["lower90"]).all()
    assert np.isfinite(table["lower50"]).all()
    assert np.isfinite(table[["predicted", "sd", "crps"]]).all().all()
    with pytest.warns(UserWarning, match="are infinite"):
        scores = forecast_scores(table)
    assert scores["cover90"].isna().all()
    assert scores["cover50"].between(0, 1).all()


def test_no_interval_is_flagged_where_patients_are_many(table):
    assert not table["unbounded"].any()
    assert np.isfinite(table[["lower50", "upper50", "lower90", "upper90"]]).all().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"models": ["arima"]}, "no model 'arima'; there are locf"),
        ({"models": []}, "models is empty"),
        ({"models": {"mine": 3}}, "'mine' must be a name or have a method fit"),
        ({"horizon": "last"}, "horizon must be 'next' or 'all'"),
        ({"landmarks": [0]}, "landmarks are numbers of first visits from 1 to 5"),
        ({"landmarks": [1, 1]}, "once"),
        ({"folds": 1}, "folds must be a whole number of at least 2"),
        ({"folds": 50}, "119 subjects have two visits or more; 50 folds need 200"),
    ],
)
def test_bad_requests_are_refused(registry, kwargs, message):
    with pytest.raises(ValueError, match=message):
        run(registry, **kwargs)


def test_comparisons_of_models_that_are_not_there_are_refused(table):
    with pytest.raises(ValueError, match="'best' is not in the table"):
        compare_landmarks(table, model="best")
    with pytest.raises(ValueError, match="not scored on the same forecasts"):
        compare_landmarks(table.iloc[1:], model="lmm")


def test_simple_models_score_on_pbc2_as_they_did_before():
    """Against an independent implementation of the same protocol: 9,665 forecasts, .725, .777 and .641."""
    folders = _fetch._default_folders()
    if _fetch._first_file([c for f in folders for c in _fetch._candidates(_registries.PBC2.visits, f)]) is None:
        pytest.skip("pbc2 is in no data folder (set DYNAPATH_DATA)")
    table = landmark_forecast(
        pbc2(), baseline="~ age_entry + female + drug_dpca", models=["locf", "mean", "ols_shift", "ar_ridge"]
    )
    scores = forecast_scores(table).set_index("model")
    assert (scores["n"] == 9665).all()
    expected = {"locf": 0.725, "mean": 0.777, "ols_shift": 1.0, "ar_ridge": 0.641}
    for model, rmse in expected.items():
        assert scores.loc[model, "rmse"] == pytest.approx(rmse, abs=0.006)
    # What intervals promise is the mean over patients; those with many visits are the healthier ones, who are covered more often.
    table["stratum"] = table["landmark"].clip(upper=3)
    for level in (50, 90):
        table["covered"] = inside(table["observed"], table[f"lower{level}"], table[f"upper{level}"])
        patients = table.groupby(["model", "stratum", "item", "subject"], observed=True)["covered"].mean()
        by_stratum = patients.groupby(["model", "stratum"], observed=True).mean()
        np.testing.assert_allclose(by_stratum, level / 100, atol=0.015)
        assert (scores[f"cover{level}"] > level / 100).all()
