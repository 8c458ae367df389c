"""Latent dynamics of visits from AnnData: recovery, invariances, what is written, and what is refused."""

import inspect
import warnings
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import dynapath as dp
from dynapath.dynamics.systems import LinearSystem
from dynapath.stats import Schedule

KEYS = {"subject_key": "patient", "time_key": "time"}
QUICK = Schedule(n_epochs=8)


@pytest.fixture(scope="module")
def registry():
    """30 subjects, 4 items, some not measured."""
    adata = dp.datasets.simulate_registry("visits", n_subjects=30, random_state=3)[:, [0, 1, 5, 6]].copy()
    adata.var_names = ["x1", "x2", "x3", "x4"]
    rng = np.random.default_rng(0)
    adata.X[rng.random(adata.shape) < 0.1] = np.nan
    adata.obs["arm"] = pd.Categorical(np.where(adata.obs["patient"].cat.codes % 3 == 0, "a", "b"))
    return adata


def fit(adata, *, baseline="~ y1 + y2 + C(arm)", schedule=QUICK, n_restarts=2, **options):
    adata = adata.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(sign of a rate|say nothing of change).*")
        dp.stats.fit_latent_dynamics(
            adata, **KEYS, baseline=baseline, schedule=schedule, n_restarts=n_restarts, **options
        )
    return adata


def predictions(adata, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*longest follow-up.*")
        table = dp.stats.predict_visits(adata, times=[2.0, 7.5], **options)
    return table.set_index(["subject", "time", "item"])["predicted"].sort_index()


@pytest.fixture(scope="module")
def fitted(registry):
    return fit(registry)


@pytest.mark.slow
def test_decoded_trajectories_and_signs_of_rates_are_recovered_from_two_visits():
    # Truth has standard deviation 1.47; seeds 0 to 4 gave .14 to .20, published training 1.3.
    adata = dp.datasets.simulate_registry("linear2", random_state=0)
    adata = fit(adata, baseline=[f"y{j + 1}" for j in range(50)], schedule=None, n_restarts=5, dynamics="diagonal")
    model, truth = dp.get.visit_model(adata), adata.uns["truth"]
    _, items = model.fitted.paths(model.read(adata).visits, truth["times"])
    first = adata.obs.drop_duplicates("patient").sort_values("patient")
    grown = (first["group"] == "G2").to_numpy()
    assert np.sqrt(((items - truth["items"][grown.astype(int)]) ** 2).mean()) < 0.4
    rates = np.sort(dp.get.parameters(adata).sort_index()[["A11", "A22"]].to_numpy(), axis=1)
    decay, growth = np.median(rates[~grown], axis=0), np.median(rates[grown], axis=0)
    assert (decay < 0).all()
    assert growth[0] < 0 < growth[1]


@pytest.mark.parametrize("options", [{}, {"process_noise": True}], ids=["vae", "process noise"])
def test_the_order_of_rows_and_the_names_of_patients_do_not_matter(registry, options):
    first = fit(registry, **options)
    order = np.random.default_rng(1).permutation(registry.n_obs)
    again = fit(registry[order], **options)
    names = registry[order].obs_names
    for slot in ("X_latent_dynamics", "latent_dynamics_theta", "latent_dynamics_encoded"):
        np.testing.assert_array_equal(first[names].obsm[slot], again.obsm[slot])
    renamed = registry.copy()
    renamed.obs["patient"] = renamed.obs["patient"].cat.rename_categories(lambda name: f"subject {name}")
    np.testing.assert_array_equal(fit(renamed, **options).obsm["X_latent_dynamics"], first.obsm["X_latent_dynamics"])


@pytest.mark.parametrize("options", [{}, {"process_noise": True}], ids=["vae", "process noise"])
def test_the_origin_and_the_unit_of_time_do_not_matter(registry, options):
    first = fit(registry, **options)
    later, months = registry.copy(), registry.copy()
    later.obs["time"] += 1000.0
    months.obs["time"] *= 12.0
    shifted, scaled = fit(later, **options), fit(months, **options)
    for other in (shifted, scaled):
        np.testing.assert_allclose(
            other.obsm["X_latent_dynamics"], first.obsm["X_latent_dynamics"], rtol=1e-3, atol=1e-3
        )
    # Rates are per unit of time.
    theta = first.obsm["latent_dynamics_theta"]
    np.testing.assert_allclose(12 * scaled.obsm["latent_dynamics_theta"], theta, rtol=1e-3, atol=1e-3)


def test_the_order_of_items_does_not_matter_for_the_filter(registry):
    first, again = (
        fit(registry, process_noise=True, n_restarts=1),
        fit(registry[:, ::-1], process_noise=True, n_restarts=1),
    )
    np.testing.assert_allclose(predictions(again), predictions(first), rtol=1e-6)


def test_new_patients_may_have_their_items_in_any_order(fitted, registry):
    reordered = predictions(fitted, subjects=registry[:, ::-1])
    np.testing.assert_array_equal(reordered, predictions(fitted, subjects=registry))


@pytest.mark.parametrize(
    "options",
    [{}, {"process_noise": True}, {"dynamics": "learned", "schedule": Schedule(n_epochs=1), "n_restarts": 1}],
    ids=["vae", "process noise", "learned field"],
)
def test_later_visits_cannot_change_a_prediction(registry, options):
    adata = fit(registry, **options)
    number = adata.obs.groupby("patient", observed=True)["time"].rank()
    changed = adata.copy()
    changed.X[(number > 2).to_numpy()] += 100.0
    changed.obs.loc[number > 2, "time"] += 0.01
    pd.testing.assert_series_equal(
        predictions(adata, subjects=changed, given=2), predictions(adata, given=2), check_exact=True
    )
    # Nor can visits after the time that is predicted, whatever is given.
    late = adata.copy()
    late.X[(late.obs["time"] > 2.0).to_numpy()] -= 50.0
    at_two = lambda table: table[table.index.get_level_values("time") == 2.0]
    pd.testing.assert_series_equal(
        at_two(predictions(adata, subjects=late)), at_two(predictions(adata)), check_exact=True
    )


@pytest.mark.parametrize("options", [{}, {"process_noise": True}], ids=["vae", "process noise"])
def test_a_subject_alone_gets_what_it_gets_among_others(registry, options):
    adata = fit(registry, **options)
    everyone = predictions(adata, given=3)
    name = str(registry.obs["patient"].iloc[0])
    alone = predictions(adata, subjects=registry[registry.obs["patient"] == name].copy(), given=3)
    np.testing.assert_allclose(alone, everyone.loc[[name]], rtol=1e-6, atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_one_alone(registry, fitted):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = fit(registry)
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(again.obsm["X_latent_dynamics"], fitted.obsm["X_latent_dynamics"])
    assert not np.array_equal(fit(registry, random_state=1).obsm["X_latent_dynamics"], fitted.obsm["X_latent_dynamics"])


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"process_noise": True, "calibration_folds": 2},
        {"dynamics": "learned", "schedule": Schedule(n_epochs=1), "n_restarts": 1},
    ],
    ids=str,
)
def test_a_fit_predicts_the_same_after_a_file(registry, options, form, tmp_path):
    adata = fit(registry, **options)
    path = tmp_path / f"fit.{form}"
    getattr(adata, f"write_{form}")(path)
    back = anndata.read_h5ad(path) if form == "h5ad" else anndata.read_zarr(path)
    pd.testing.assert_series_equal(predictions(back), predictions(adata), check_exact=True)


def test_new_patients_are_coded_as_the_fit_was(registry, fitted):
    # One arm only: the levels are those of the fit, or the columns would shift.
    new = registry[registry.obs["arm"] == "a"].copy()
    new.obs["arm"] = new.obs["arm"].cat.remove_unused_categories()
    new.obs["patient"] = new.obs["patient"].cat.remove_unused_categories()
    table = predictions(fitted, subjects=new)
    np.testing.assert_allclose(table, predictions(fitted).loc[table.index], rtol=1e-6, atol=1e-6)
    new.obs["arm"] = "c"
    with pytest.raises(ValueError, match="'c'.*level that the fit did not see"):
        dp.stats.predict_visits(fitted, subjects=new, times=[1.0])


def test_items_that_were_not_measured_cannot_matter(registry):
    # The mask, not the filler, keeps them out of the loss: a registry whose missing items hold other numbers in a layer.
    from dynapath.models.visit_forecast import batch_of
    from dynapath.models.visit_scale import Scale
    from dynapath.models.visit_vae import VisitVAE
    from dynapath.read.visits import read_visits

    visits = read_visits(registry, **KEYS, baseline="~ y1").visits
    scale = Scale.by_span(visits, centred=True)
    batch = batch_of(scale.apply(visits), scale)
    model = VisitVAE(4, 1, LinearSystem(2))
    z = torch.randn(1, *batch.times.shape, 2, requires_grad=True)
    results = []
    for filler in (0.0, torch.nan):
        values = torch.where(batch.observed, batch.values, filler)
        log_prob = model.log_prob(z, values, batch.observed)
        results.append((log_prob.detach(), torch.autograd.grad(log_prob.sum(), z)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_slots_follow_the_rows_and_parameters_have_one_row_per_subject(fitted, registry):
    assert fitted.uns["latent_dynamics"]["kind"] == "latent_dynamics"
    assert fitted.obsm["X_latent_dynamics"].shape == fitted.obsm["latent_dynamics_std"].shape == (registry.n_obs, 2)
    assert np.isfinite(fitted.layers["latent_dynamics_fitted"]).all()
    table = dp.get.parameters(fitted)
    assert list(table.columns) == ["A11", "A12", "A21", "A22", "n_visits"]
    assert len(table) == registry.obs["patient"].nunique()
    assert table["n_visits"].sum() == registry.n_obs
    one = dp.get.parameters(fitted[fitted.obs["patient"] == table.index[3]])
    np.testing.assert_array_equal(one.iloc[0, :4], table.iloc[3, :4])
    history = fitted.uns["latent_dynamics"]["history"]
    assert set(history) == {"reconstruction", "kl", "prediction", "consistency", "decoder", "restarts"}
    assert len(history["restarts"]) == 2


def test_bernoulli_items_are_predicted_as_probabilities(registry):
    adata = registry.copy()
    adata.X[:, 0] = np.where(np.isnan(adata.X[:, 0]), np.nan, adata.X[:, 0] > 1)
    for options in ({}, {"process_noise": True}):
        table = dp.stats.predict_visits(fit(adata, **options), times=[3.0], given=1)
        binary = table["item"] == "x1"
        assert table.loc[binary, "predicted"].between(0, 1).all()
        assert table.loc[binary, "lower"].isna().all()
        assert (table.loc[~binary, "lower"] < table.loc[~binary, "upper"]).all()


def test_an_object_of_the_users_own_moves_the_states(registry):
    class Decay:
        """dz/dt = -theta z."""

        n_latent, n_params = 2, 1

        def flow(self, dt, z, theta):
            return torch.exp(-theta * dt[..., None]) * z

    adata = fit(registry, dynamics=Decay())
    assert list(dp.get.parameters(adata).columns) == ["theta1", "n_visits"]
    assert len(dp.stats.predict_visits(adata, times=[1.0], dynamics=Decay())) == 30 * 4
    with pytest.raises(ValueError, match="dynamics of your own"):
        dp.get.model(adata, "latent_dynamics")


def test_a_copy_leaves_the_input_alone_and_a_view_is_not_needed(registry):
    before = registry.copy()
    out = dp.stats.fit_latent_dynamics(registry, **KEYS, n_restarts=1, schedule=QUICK, copy=True)
    assert "X_latent_dynamics" in out.obsm
    assert "X_latent_dynamics" not in registry.obsm
    np.testing.assert_array_equal(registry.X, before.X)


def test_whole_numbers_and_sparse_items_are_read(registry):
    counts = registry.copy()
    counts.X = sparse.csr_matrix(np.round(np.nan_to_num(10 * counts.X)))
    assert np.isfinite(fit(counts).obsm["X_latent_dynamics"]).all()


@pytest.mark.parametrize("copy", [False, True])
def test_visits_that_stay_on_disk_are_fitted_alike(registry, tmp_path, copy):
    registry.write_h5ad(tmp_path / "visits.h5ad")
    backed = anndata.read_h5ad(tmp_path / "visits.h5ad", backed="r")
    found = dp.stats.fit_latent_dynamics(backed, **KEYS, schedule=QUICK, n_restarts=2, copy=copy)
    np.testing.assert_array_equal(
        (found if copy else backed).obsm["X_latent_dynamics"], fit(registry, baseline=None).obsm["X_latent_dynamics"]
    )


# Bad input: nothing is written, and the message names the value and the next step.
def spoiled(registry, case):
    adata = registry.copy()
    obs = adata.obs
    if case == "nan time":
        obs.iloc[5, obs.columns.get_loc("time")] = np.nan
    elif case == "infinite time":
        obs.iloc[5, obs.columns.get_loc("time")] = np.inf
    elif case == "words as time":
        obs["time"] = "soon"
    elif case == "dates":
        obs["time"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(obs["time"] * 100, unit="D")
    elif case == "twice":
        obs.iloc[1, obs.columns.get_loc("time")] = obs["time"].iloc[0]
        obs.iloc[1, obs.columns.get_loc("patient")] = obs["patient"].iloc[0]
    elif case == "changing baseline":
        obs.iloc[0, obs.columns.get_loc("y1")] += 1
    elif case == "missing baseline":
        obs.loc[obs["patient"] == obs["patient"].iloc[0], "y1"] = np.nan
    elif case == "many levels":
        obs["arm"] = obs["patient"].astype(str)
    elif case == "all items constant":
        adata.X[:] = 1.0
    elif case == "one visit each":
        adata = adata[~obs["patient"].duplicated().to_numpy()].copy()
    elif case == "infinite item":
        adata.X[0, 0] = np.inf
    elif case == "key taken":
        adata.obsm["X_latent_dynamics"] = np.zeros((adata.n_obs, 2))
    return adata


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ("nan time", ValueError, "missing or infinite in 1 rows, first for patient"),
        ("infinite time", ValueError, "missing or infinite in 1 rows"),
        ("words as time", ValueError, "does not read as a number or a date"),
        ("dates", ValueError, "time_unit='year'"),
        ("twice", ValueError, "1 visits repeat a patient and time"),
        ("changing baseline", ValueError, "'y1' changes within patient"),
        ("missing baseline", ValueError, "baseline_missing='mean\\+indicator'"),
        ("many levels", ValueError, "30 levels"),
        ("all items constant", ValueError, "None of the 4 items varies"),
        ("one visit each", ValueError, "At least some must have two"),
        ("infinite item", ValueError, "infinite in row"),
        ("key taken", ValueError, "would overwrite obsm\\['X_latent_dynamics'\\]"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(registry, case, error, words):
    adata = spoiled(registry, case)
    with pytest.raises(error, match=words):
        dp.stats.fit_latent_dynamics(adata, **KEYS, baseline="~ y1 + C(arm)", schedule=QUICK)
    assert "latent_dynamics" not in adata.uns
    assert "latent_dynamics_theta" not in adata.obsm


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"subject_key": "person"}, KeyError, "'person'.*present: .*patient"),
        ({"time_key": "when"}, KeyError, "'when'.*present"),
        ({"baseline": "~ height"}, (KeyError, ValueError), "height"),
        ({"layer": "z"}, KeyError, "'z'; present: expected"),
        ({"estimator": "mean"}, ValueError, "'gls'.*it is 'mean'"),
        ({"decoder": "cnn"}, ValueError, "it is 'cnn'"),
        ({"dynamics": "cubic"}, ValueError, "'full'.*it is 'cubic'"),
        ({"dynamics": 3}, TypeError, "have no n_latent"),
        ({"dynamics": "lotka_volterra", "n_latent": 3}, ValueError, "n_latent is 3"),
        ({"weights": {"entropy": 1.0}}, KeyError, "'entropy'; the terms are reconstruction"),
        ({"preset": "bimj2022"}, ValueError, "design of two visits, but .* first patient P0"),
        ({"preset": "2019"}, ValueError, "it is '2019'"),
        ({"n_restarts": 0}, ValueError, "n_restarts must be a whole number of at least 1; it is 0"),
        ({"n_restarts": 2.5}, ValueError, "n_restarts must be a whole number of at least 1; it is 2.5"),
        ({"n_latent": 0, "process_noise": True}, ValueError, "n_latent must be a whole number of at least 1; it is 0"),
        ({"calibration_folds": 1}, ValueError, "calibration_folds must be 0 or at least 2; it is 1"),
        ({"weights": {"kl": -1.0}}, ValueError, r"weights\['kl'\] must be a number of at least 0; it is -1.0"),
        ({"schedule": {"n_epochs": 5}}, TypeError, "schedule must be a dp.stats.Schedule"),
        ({"dynamics": "drift", "offset": True}, ValueError, "offset is True, but only 'full'.*dynamics is 'drift'"),
        ({"dynamics": "learned", "offset": False}, ValueError, "offset is False.*dynamics is 'learned'"),
        (
            {"preset": "forecast", "process_noise": False},
            ValueError,
            "model with process noise.*Leave out process_noise",
        ),
        ({"preset": "bimj2022", "process_noise": True}, ValueError, "model without process noise"),
        ({"time_unit": "year"}, ValueError, "time_unit='year' counts dates, but 'time' holds numbers"),
        ({"baseline_missing": "mean+indicator"}, ValueError, "baseline_missing='mean\\+indicator'.*there is none"),
    ],
)
def test_bad_options_are_named(registry, options, error, words):
    with pytest.raises(error, match=words):
        dp.stats.fit_latent_dynamics(registry, **KEYS | {"schedule": QUICK} | options)
    assert "latent_dynamics" not in registry.uns


# Options: each is used, or refused by its name.
WITHOUT_NUMBERS = {"adata", "key_added", "copy"}  # what is fitted, where the results go, and in which object
BASE = {"baseline": "~ y1", "schedule": Schedule(n_epochs=2, batch_size=4), "n_restarts": 2}
CHANGED = {
    "subject_key": {"subject_key": "other"},
    "time_key": {"time_key": "later"},
    "baseline": {"baseline": "~ y1 + y2"},
    "baseline_missing": {"baseline": "~ holes", "baseline_missing": "mean+indicator"},
    "time_unit": {"time_key": "date", "time_unit": "week"},
    "layer": {"layer": "expected"},
    "n_latent": {"n_latent": 3},
    "dynamics": {"dynamics": "diagonal"},
    "offset": {"offset": True},
    "estimator": {"estimator": "first"},
    "decoder": {"decoder": "linear"},
    "process_noise": {"process_noise": True},
    "weights": {"weights": {"consistency": 3.0}},
    "n_restarts": {"n_restarts": 5},
    "preset": {"preset": "latentdynamics2023"},
    "schedule": {"schedule": Schedule(n_epochs=3, batch_size=4)},
    "calibration_folds": {"calibration_folds": 2},
    "random_state": {"random_state": 1},
}
# What the change of one argument is compared with, where it is not the fit with BASE alone.
BESIDE = {"time_unit": {"time_key": "date", "time_unit": "day"}, "baseline_missing": {"baseline": "~ whole"}}
OF_THE_VAE = {"dynamics": "full", "offset": False, "estimator": "gls", "decoder": "mlp", "weights": {}}


@pytest.fixture(scope="module")
def small():
    """12 subjects, with columns to choose from."""
    adata = dp.datasets.simulate_registry("visits", n_subjects=12, random_state=3)[:, [0, 5]].copy()
    obs, number = adata.obs, adata.obs["patient"].cat.codes
    late = (number == 0) & (obs.groupby("patient", observed=True)["time"].rank() > 2)
    obs["other"] = np.where(late, "someone else", obs["patient"].astype(str))
    obs["later"] = obs["time"] ** 2 + 0.01 * number
    obs["date"] = pd.Timestamp("2020-01-01") + pd.to_timedelta((100 * obs["time"]).round(), unit="D")
    obs["whole"] = number * 1.0
    obs["holes"] = obs["whole"].where(number > 2)
    return adata


def numbers(adata, **options):
    adata = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dp.stats.fit_latent_dynamics(adata, **KEYS | BASE | options)
        table = dp.stats.predict_visits(adata, times=[20.0])
    return np.concatenate(
        [table[["predicted", "lower", "upper"]].to_numpy().ravel(), adata.obsm["X_latent_dynamics"].ravel()]
    )


def differ(one, other):
    return one.shape != other.shape or not np.allclose(one, other, rtol=1e-6, equal_nan=True)


def test_every_argument_of_a_fit_is_on_the_list():
    assert set(inspect.signature(dp.stats.fit_latent_dynamics).parameters) == set(CHANGED) | WITHOUT_NUMBERS


@pytest.mark.parametrize("name", CHANGED)
def test_every_argument_of_a_fit_changes_its_numbers(small, name):
    beside = BESIDE.get(name, {})
    assert differ(numbers(small, **CHANGED[name]), numbers(small, **beside))


@pytest.mark.parametrize("name", [name for name in CHANGED if name not in ("process_noise", "preset")])
def test_with_process_noise_every_argument_changes_the_numbers_or_is_refused(small, name):
    noisy = {"process_noise": True}
    if name in OF_THE_VAE:
        for value in (CHANGED[name][name], OF_THE_VAE[name]):
            for how in (noisy, {"preset": "forecast"}):
                with pytest.raises(ValueError, match=f"^{name} .*no part in a model with process noise.*Leave it out"):
                    numbers(small, **how, **{name: value})
    else:
        beside = BESIDE.get(name, {})
        assert differ(numbers(small, **noisy, **CHANGED[name]), numbers(small, **noisy, **beside))


@pytest.mark.parametrize("field", ["n_epochs", "lr", "batch_size", "weight_decay"])
@pytest.mark.parametrize("noisy", [False, True], ids=["vae", "process noise"])
def test_every_field_of_a_schedule_changes_the_numbers_or_is_refused(small, field, noisy):
    changed = replace(
        BASE["schedule"], **{field: {"n_epochs": 3, "lr": 0.02, "batch_size": 6, "weight_decay": 30.0}[field]}
    )
    if noisy and field == "weight_decay":
        with pytest.raises(ValueError, match=r"weight_decay of schedule \(30.0\) has no part"):
            numbers(small, process_noise=noisy, schedule=changed)
    else:
        assert differ(numbers(small, process_noise=noisy, schedule=changed), numbers(small, process_noise=noisy))


def test_a_schedule_leaves_what_it_does_not_name_to_the_model(small):
    for noisy, defaults in (
        (False, Schedule(n_epochs=2, lr=4.5e-3, weight_decay=1.0)),
        (True, Schedule(n_epochs=2, lr=0.05, batch_size=1000)),
    ):
        named = numbers(small, process_noise=noisy, schedule=Schedule(n_epochs=2))
        np.testing.assert_array_equal(named, numbers(small, process_noise=noisy, schedule=defaults))


def test_a_preset_is_what_it_sets_and_gives_way_to_what_is_given(small):
    visit = small.obs.groupby("patient", observed=True)["time"].rank()
    two = small[(visit <= 2).to_numpy() & (small.obs["patient"].cat.codes < 4).to_numpy()].copy()
    steps = Schedule(n_epochs=2, lr=5e-4, batch_size=1, weight_decay=0.0)
    weights = {"reconstruction": 2.0, "kl": 1.0, "prediction": 0.0, "consistency": 2.0, "decoder": 0.01}
    published = {"estimator": "first", "weights": weights, "schedule": steps, "n_restarts": 1}
    short = {"preset": "bimj2022", "schedule": Schedule(n_epochs=2), "n_restarts": 1}
    preset = numbers(two, **short)
    np.testing.assert_array_equal(preset, numbers(two, **published))
    for given, merged in (
        ({"estimator": "gls"}, {"estimator": "gls"}),
        ({"weights": {"kl": 0.5}}, {"weights": weights | {"kl": 0.5}}),
        ({"schedule": Schedule(n_epochs=2, lr=0.01)}, {"schedule": replace(steps, lr=0.01)}),
    ):
        found = numbers(two, **short | given)
        assert differ(found, preset)
        np.testing.assert_array_equal(found, numbers(two, **published | merged))
    dp.stats.fit_latent_dynamics(two, **KEYS, preset="bimj2022", n_restarts=1)
    assert len(two.uns["latent_dynamics"]["history"]["kl"]) == 35
    np.testing.assert_array_equal(numbers(small, preset="forecast"), numbers(small, process_noise=True))


def test_dynamics_that_a_fit_does_not_have_are_refused(registry, fitted):
    for adata in (fitted, fit(registry, process_noise=True)):
        with pytest.raises(ValueError, match="no object of your own. Leave dynamics out"):
            dp.stats.predict_visits(adata, times=[1.0], dynamics=LinearSystem(2))


def test_what_is_left_out_is_told(registry):
    adata = registry.copy()
    adata.X[:, 2] = np.nan
    adata.obs["site"] = 1.0
    first = adata.obs["patient"] == adata.obs["patient"].iloc[0]
    keep = ~(first & adata.obs["patient"].duplicated()).to_numpy()
    with pytest.warns(UserWarning, match="never measured|left out|one visit") as found:
        dp.stats.fit_latent_dynamics(
            adata := adata[keep].copy(), **KEYS, baseline="~ y1 + site", schedule=QUICK, n_restarts=1
        )
    said = " ".join(str(w.message) for w in found)
    assert "x3 (never measured)" in said
    assert "site" in said
    assert "1 of 30 subjects have one visit" in said
    assert list(adata.uns["latent_dynamics"]["params"]["dropped_items"]) == ["x3"]
    assert np.isnan(adata.layers["latent_dynamics_fitted"][:, 2]).all()


def test_diverging_restarts_are_an_error_that_names_the_epoch(registry):
    with pytest.raises(
        RuntimeError, match=r"diverged in epoch [0-9]+.*up to lr=1e\+30.*lower lr: schedule=dp.stats.Schedule"
    ):
        fit(registry, schedule=Schedule(n_epochs=3, lr=1e30), process_noise=False)
    with pytest.raises(RuntimeError, match=r"diverged in step [0-9]+.*up to lr=1e\+200"):
        fit(registry, schedule=Schedule(n_epochs=3, lr=1e200), process_noise=True)


def test_times_beyond_the_follow_up_are_flagged(fitted):
    with pytest.warns(UserWarning, match="beyond the longest follow-up"):
        table = dp.stats.predict_visits(fitted, times=[5.0, 50.0], given=1)
    assert table.groupby("time")["extrapolated"].all().to_dict() == {5.0: False, 50.0: True}
    width = (table["upper"] - table["lower"]).groupby(table["time"]).mean()
    assert width[50.0] >= width[5.0]


@pytest.fixture(scope="module")
def calibrated(registry):
    return fit(registry, calibration_folds=2)


def test_an_interval_that_too_few_subjects_calibrate_is_infinite_and_flagged(calibrated):
    # 30 subjects allow 30 / 31 = .968, a few less where an item was not measured.
    table = dp.stats.predict_visits(calibrated, times=[2.0], given=1, interval=0.9)
    assert not table["unbounded"].any()
    assert np.isfinite(table[["lower", "upper"]]).all().all()
    with pytest.warns(UserWarning, match=r"120 of 120 intervals are infinite.*interval=0\.98"):
        table = dp.stats.predict_visits(calibrated, times=[2.0], given=1, interval=0.98)
    assert table["unbounded"].all()
    assert np.isposinf(table["upper"]).all()
    assert np.isneginf(table["lower"]).all()
    assert np.isfinite(table["predicted"]).all()


def test_an_interval_between_two_levels_is_that_of_the_higher_one(calibrated):
    table = lambda level: dp.stats.predict_visits(calibrated, times=[2.0], given=1, interval=level)
    pd.testing.assert_frame_equal(table(0.901), table(0.91))
    with pytest.raises(ValueError, match=r"interval=0\.995 is more than \.99.*calibration_folds=0"):
        table(0.995)


@pytest.mark.filterwarnings("ignore:.*longest follow-up")
def test_visits_without_any_measurement_do_not_count_among_those_given(registry, fitted):
    one = registry[registry.obs["patient"] == registry.obs["patient"].value_counts().idxmax()].copy()
    order = one.obs["time"].to_numpy().argsort()
    # Nothing was measured at the second visit, so that the first two are the first and the third.
    one.X[order[1]] = np.nan
    later = one.obs["time"].to_numpy()[order[2]] + 0.5
    table = dp.stats.predict_visits(fitted, subjects=one, times=[later], given=2)
    expected = dp.stats.predict_visits(fitted, subjects=one[order[[0, 1, 2]]].copy(), times=[later], given="all")
    np.testing.assert_array_equal(table["predicted"], expected["predicted"])


def test_uncalibrated_intervals_are_never_infinite(fitted):
    table = dp.stats.predict_visits(fitted, times=[2.0], given=1, interval=0.9999)
    assert np.isfinite(table[["lower", "upper"]]).all().all()
    assert not table["unbounded"].any()


# Visits without any measurement.
MODELS = {"vae": {}, "first": {"estimator": "first"}, "process noise": {"process_noise": True}}


def with_empty_visits(adata):
    """The same visits, and more at which nothing was measured: of three subjects at other times, and of a new one."""
    extra = adata.obs[~adata.obs["patient"].duplicated()].iloc[[0, 1, 2, 3, 3]].copy()
    times = {name: own["time"].sort_values().to_numpy() for name, own in adata.obs.groupby("patient", observed=True)}
    first, second, third = (times[name] for name in extra["patient"].iloc[:3])
    # Before all of the first, between two visits of the second, after all of the third.
    extra["time"] = [first[0] - 0.7, second[:2].mean(), third[-1] + 0.7, 1.0, 2.0]
    extra["patient"] = extra["patient"].astype(str)
    extra.iloc[3:, extra.columns.get_loc("patient")] = "nobody"
    extra.index = ["before", "between", "after", "never 1", "never 2"]
    empty = anndata.AnnData(np.full((5, adata.n_vars), np.nan), obs=extra, var=adata.var)
    both = anndata.concat([adata, empty])
    both.obs["patient"] = both.obs["patient"].astype(str)
    return both


def quietly(adata, times, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return dp.stats.predict_visits(adata, times=times, **options)


@pytest.fixture(scope="module", params=MODELS)
def with_and_without(registry, request):
    """A fit of visits of which some say nothing, and one without these."""
    options = MODELS[request.param] | {"baseline": "~ y1"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no measurement at all")
        return fit(with_empty_visits(registry), **options), fit(registry, **options)


def test_visits_without_a_measurement_teach_nothing_and_change_no_forecast(with_and_without, registry):
    more, plain = with_and_without
    names = registry.obs_names
    for one, other in (
        (more[names].obsm["X_latent_dynamics"], plain.obsm["X_latent_dynamics"]),
        (more[names].obsm["latent_dynamics_std"], plain.obsm["latent_dynamics_std"]),
        (more[names].layers["latent_dynamics_fitted"], plain.layers["latent_dynamics_fitted"]),
    ):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)
    found = quietly(more, [3.0, 9.0]).set_index(["subject", "time", "item"])
    expected = quietly(plain, [3.0, 9.0]).set_index(["subject", "time", "item"])
    pd.testing.assert_frame_equal(
        found.loc[expected.index, ["predicted", "lower", "upper"]], expected[["predicted", "lower", "upper"]]
    )


def test_a_subject_without_any_measurement_has_no_forecast_and_is_flagged(with_and_without):
    more, plain = with_and_without
    with pytest.warns(
        UserWarning, match=r"2 of 62 predictions are NaN, since nothing.*subject 'nobody' at 3.*'extrapolated'"
    ):
        table = dp.stats.predict_visits(more, times=[3.0, 4.0], subjects=more)
    nobody = table["subject"] == "nobody"
    assert table.loc[nobody, ["predicted", "lower", "upper"]].isna().all(axis=None)
    assert table.loc[nobody, "extrapolated"].all()
    assert table.loc[~nobody, "predicted"].notna().all()
    assert not table.loc[~nobody, "extrapolated"].any()
    rows = more.obs["patient"] == "nobody"
    for slot in ("X_latent_dynamics", "latent_dynamics_encoded", "latent_dynamics_std"):
        assert np.isnan(more[rows].obsm[slot]).all()
    assert np.isnan(more[rows].layers["latent_dynamics_fitted"]).all()
    assert np.isfinite(dp.get.parameters(more).loc["nobody"]).all()
    # Nor is there one after a first visit that says nothing, though there are measurements later.
    first, time = more.obs.loc["before", ["patient", "time"]]
    early = quietly(more, [time + 0.3])
    assert early.loc[early["subject"] == first, "predicted"].isna().all()
    assert early.loc[early["subject"] == first, "extrapolated"].all()


def test_a_visit_without_a_measurement_lies_on_the_trajectory(with_and_without, registry):
    more, plain = with_and_without
    noisy = more.uns["latent_dynamics"]["params"]["model"] == "state_space"
    state = lambda name: more[name].obsm["X_latent_dynamics"][0]
    assert np.isnan(more[["before", "between", "after"]].obsm["latent_dynamics_encoded"]).all() or noisy
    assert np.isnan(state("before")).all() == noisy
    for name in ("between", "after"):
        assert np.isfinite(state(name)).all()
    # What is decoded there is what is forecast for that time from the visits before, if the states are those of a filter.
    if noisy:
        subject, time = more.obs.loc["after", ["patient", "time"]]
        table = quietly(plain, [time])
        there = table[table["subject"] == subject]["predicted"].to_numpy()
        np.testing.assert_allclose(more["after"].layers["latent_dynamics_fitted"][0], there, rtol=1e-6)
    else:
        own = registry[(registry.obs["patient"] == more.obs.loc["after", "patient"]).to_numpy()]
        model = dp.get.visit_model(plain)
        visits = model.read(own).visits
        since = more.obs.loc["after", "time"] - visits.times[0, 0]
        z, items = model.fitted.paths(visits, np.array([since]))
        np.testing.assert_allclose(state("after"), z[0, 0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(more["after"].layers["latent_dynamics_fitted"][0], items[0, 0], rtol=1e-3, atol=1e-3)


def test_a_time_that_means_a_visit_is_forecast_from_it(with_and_without, registry):
    time = float(registry.obs["time"].iloc[3])
    for nearly in (np.nextafter(time, -np.inf), np.nextafter(time, np.inf)):
        table, exact = quietly(with_and_without[1], [nearly]), quietly(with_and_without[1], [time])
        np.testing.assert_allclose(table["predicted"], exact["predicted"], rtol=1e-9)


def test_no_model_forecasts_before_the_last_visit(with_and_without, registry):
    model = dp.get.visit_model(with_and_without[1])
    visits = model.read(registry).visits
    last = visits.last_time()[:, None]
    mean, _ = model.fitted.predict(visits, last)
    assert np.isfinite(mean).all()
    earlier = last.copy()
    earlier[4] -= 0.01
    with pytest.raises(
        ValueError, match=f"Subject '{visits.subjects[4]}' is to be forecast at .*before its last visit.*history.first"
    ):
        model.fitted.predict(visits, earlier)


def test_subjects_with_one_visit_that_says_something_are_no_use(registry):
    adata = registry.copy()
    number = adata.obs.groupby("patient", observed=True)["time"].rank()
    adata.X[(number > 1).to_numpy()] = np.nan
    with (
        pytest.warns(UserWarning, match="no measurement"),
        pytest.raises(ValueError, match="No subject has two visits with a"),
    ):
        dp.stats.fit_latent_dynamics(adata, **KEYS, schedule=QUICK)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"times": [np.nan]}, "finite"),
        ({"times": [1.0], "given": 0}, "at least 1; it is 0"),
        ({"times": [1.0], "interval": 1.5}, "it is 1.5"),
    ],
)
def test_bad_requests_are_named(fitted, options, words):
    with pytest.raises(ValueError, match=words):
        dp.stats.predict_visits(fitted, **options)


def test_a_fit_that_is_not_there_is_named(registry, fitted):
    with pytest.raises(KeyError, match="no fit of dp.stats.fit_latent_dynamics"):
        dp.stats.predict_visits(registry, times=[1.0])
    with pytest.raises(KeyError, match="no item 'x1'"):
        dp.stats.predict_visits(fitted, subjects=registry[:, 1:], times=[1.0])
