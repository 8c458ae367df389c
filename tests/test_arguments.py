"""Every argument of every public function changes the numbers of its result, or is refused where it has no meaning.

`CASES` gives for each function a small call, and for each of its arguments another value. What is only recorded among the
settings of a fit (`params`) does not count as a change. A new function or argument without an entry fails the test.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import dynapath as dp

NAMESPACES = ("tl", "stats", "pp", "get", "datasets", "metrics", "dynamics")
OPTIONS = ("models.Prior", "models.Training", "models.Network", "models.LatentPenalty", "models.Supervision")
OPTIONS += ("stats.Schedule", "stats.Bootstrap")
# Where results go and how they are computed, not what they are; and the data themselves.
NO_NUMBERS = {"copy", "progress", "n_jobs", "key_added", "on_step", "path"}
DATA = {"adata", "edata", "df", "table", "program", "data"}
# Loaders of files, which have no other argument than where these are, and what returns models, which other tests compare.
ELSEWHERE = {
    "datasets.aids",
    "datasets.paquid",
    "datasets.pbc2",
    "datasets.larry",
    "datasets.pbmc8k",
    "pp.from_ehrdata",
}
ELSEWHERE |= {"pp.to_ehrdata"}


@dataclasses.dataclass(frozen=True)
class Refused:
    """A value that has no meaning in this call; `match` is part of what is said."""

    value: Any
    match: str


@dataclasses.dataclass(frozen=True)
class With:
    """A value that has a meaning beside others only; both calls are made with these."""

    value: Any
    others: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Needed:
    """A value without which these others are refused; `match` is part of what is said then."""

    value: Any
    others: dict[str, Any]
    match: str


@dataclasses.dataclass(frozen=True)
class Case:
    """A small call, and another value of each argument. Values that are made of fits are given as functions."""

    call: Callable[..., Any]
    base: Callable[[], dict[str, Any]]
    changes: dict[str, Any]
    slow: bool = False


CASES: dict[str, Case] = {}


def numbers(value: Any, place: str = "") -> dict[str, Any]:
    """All numbers and words of a result by their place, without what is a setting of a fit."""
    if isinstance(value, AnnData):
        parts = {
            "X": value.X,
            "obs": value.obs,
            "var": value.var,
            **{f"layers {k}": v for k, v in value.layers.items()},
        }
        parts |= {f"obsm {k}": v for k, v in value.obsm.items()} | {f"varm {k}": v for k, v in value.varm.items()}
        return numbers(parts | {"uns": dict(value.uns)}, place)
    if isinstance(value, Mapping):
        skipped = ("params", "versions", "schema", "settings", "random_state", "seed", "panel", "program", "problem")
        found: dict[str, Any] = {}
        for name, item in value.items():
            if str(name) not in skipped:
                found |= numbers(item, f"{place}/{name}")
        return found
    if isinstance(value, pd.DataFrame):
        return numbers({str(name): value[name].to_numpy() for name in value} | {"index": value.index.to_numpy()}, place)
    if isinstance(value, pd.Series):
        return numbers(value.to_numpy(), place)
    if hasattr(value, "toarray"):
        return {place: value.toarray()}
    if isinstance(value, torch.nn.Module):
        return numbers(dict(value.state_dict()), place)
    if isinstance(value, torch.Tensor):
        return {place: value.detach().numpy()}
    if hasattr(value, "to_arrays"):
        return numbers(value.to_arrays(), place)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return numbers({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, place)
    if isinstance(value, list | tuple):
        return numbers({str(i): item for i, item in enumerate(value)}, place)
    if callable(value) or value is None:
        return {}
    return {place: np.asarray(value)}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two results are the same to the last digit."""
    if a.keys() != b.keys():
        return False
    for place, x in a.items():
        x, y = np.asarray(x), np.asarray(b[place])
        if x.shape != y.shape:
            return False
        if x.dtype.kind in "fc" and y.dtype.kind in "fc":
            if not np.array_equal(x, y, equal_nan=True):
                return False
        elif not np.array_equal(x.astype(str), y.astype(str)):
            return False
    return True


def made(value: Any) -> Any:
    return value() if inspect.isfunction(value) and value.__name__.startswith("make") else value


def run(name: str, given: dict[str, Any]) -> dict[str, Any]:
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return numbers(case.call(**{key: made(value) for key, value in given.items()}))


@cache
def result_of_base(name: str) -> dict[str, Any]:
    return run(name, CASES[name].base())


def in_place(function: Callable[..., None]) -> Callable[..., AnnData]:
    """A function that writes, as one that returns what was written."""
    return lambda adata, **given: function(adata, copy=True, **given)


# --- data and fits that the calls share ----------------------------------------------------------------------------------------


@cache
def make_cells() -> AnnData:
    cells = dp.datasets.simulate_snapshots("crossing", n_cells=8, n_genes=12, times=(0, 0.5, 1))
    rng = np.random.default_rng(0)
    cells.layers["other"] = cells.X.copy()
    cells.layers["other"].data = cells.layers["other"].data + 1
    cells.obs["later"] = cells.obs["time"] ** 2 + cells.obs["time"]
    cells.obs["plate"] = pd.Categorical(np.where(rng.random(cells.n_obs) < 0.5, "a", "b"))
    cells.obs["label"] = (
        pd.Categorical(cells.obs["group"].astype(str)).remove_categories("2")
        if "2" in set(cells.obs["group"].astype(str))
        else cells.obs["group"]
    )
    cells.obs["size"] = cells.obs["library"] * rng.uniform(0.5, 2, cells.n_obs)
    cells.obsm["X_flat"] = cells.obsm["Z_true"] @ np.array([[1.0, 0.3], [-0.2, 1.0]])
    cells.obsm["X_other"] = cells.obsm["Z_true"][:, ::-1].copy()
    return cells


QUICK = {
    "n_restarts": 2,
    "prior_steps": 8,
    "finish_steps": 4,
    "static_epochs": 1,
    "joint_epochs": 1,
    "n_hidden": 8,
    "progress": False,
}


@cache
def make_moving() -> AnnData:
    cells = make_cells().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quick = dp.models.Training(**QUICK)
        kept = dp.models.Training(**QUICK, keep_stages=True)
        dp.tl.fit_dynamic_vae(cells, time_key="time", n_groups=2, training=kept, n_bootstrap=4, key_added="dynvae")
        dp.tl.fit_dynamic_vae(
            cells, time_key="time", n_groups=3, use_rep="Z_true", training=quick, n_bootstrap=3, key_added="rep"
        )
        dp.tl.fit_vae(cells, n_latent=2, decoder="linear", max_epochs=1, batch_key="plate", key_added="vae")
        dp.tl.fit_vae(cells, n_latent=2, decoder="linear", max_epochs=8, key_added="vae2")
    return cells


@cache
def make_panel() -> AnnData:
    return dp.datasets.simulate_reports(n_units=8, n_days=30, silent=0.0, p_start=0.1)


@cache
def make_gappy_panel() -> AnnData:
    """Without the first reports of a unit, and that of another on the last day before the forecasts."""
    panel = make_panel().copy()
    panel.X[0, :4], panel.X[1, 20], panel.X[1, 21:23], panel.X[0, 20:23] = np.nan, np.nan, [5.0, 6.0], [4.0, 3.0, 4.0]
    return panel


@cache
def make_fitted_panel() -> AnnData:
    panel = make_panel().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.stats.fit_increment(panel, covariates="incidence", progress=False)
        dp.stats.fit_increment(panel, covariates="incidence", key_added="pooled", pooling="partial", progress=False)
    return panel


LINEAR = {"z": [[1.0, 2.0]], "A": [[[-0.5, 0.1], [0.2, -0.3]]], "b": [[0.1, 0.2]], "dt": [0.5]}


def tensors(**values: Any) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def add(
    name: str,
    base: Callable[[], dict[str, Any]] | dict[str, Any],
    *,
    call: Callable | None = None,
    slow: bool = False,
    **changes: Any,
) -> None:
    function = dp
    for part in name.split("."):
        function = getattr(function, part)
    CASES[name] = Case(call or function, base if callable(base) else lambda: dict(base), changes, slow)


# --- arrays ------------------------------------------------------------------------------------------------------------------

add(
    "dynamics.velocity",
    lambda: tensors(**{k: LINEAR[k] for k in "zAb"}),
    **{k: tensors(v=np.array(LINEAR[k]) + 0.1)["v"] for k in "zAb"},
)
add("dynamics.flow", lambda: tensors(**LINEAR), **{k: tensors(v=np.array(LINEAR[k]) + 0.1)["v"] for k in LINEAR})
add(
    "dynamics.propagator",
    lambda: tensors(**{k: LINEAR[k] for k in ("A", "b", "dt")}),
    **{k: tensors(v=np.array(LINEAR[k]) + 0.1)["v"] for k in ("A", "b", "dt")},
)

_cloud = np.random.default_rng(0).normal(size=(20, 3))
for _name in ("energy_distance", "wasserstein2"):
    add(f"metrics.{_name}", {"x": _cloud[:10], "y": _cloud[10:]}, x=_cloud[:10] + 1, y=_cloud[10:] + 1)
_counts = np.random.default_rng(1).poisson(2.0, (20, 4)).astype(float)
for _name in ("variance_ratio", "zero_error"):
    add(
        f"metrics.{_name}",
        {"predicted": _counts[:10], "true": _counts[10:]},
        predicted=_counts[:10] + (np.arange(10) % 2)[:, None] * 3,
        true=_counts[10:] + (np.arange(10) % 2)[:, None] * 3,
    )
add("metrics.affine_alignment", {"encoded": _cloud, "true": _cloud**2}, encoded=_cloud**3, true=_cloud**3)
add(
    "metrics.gaussian_crps",
    {"observed": np.ones(3), "mean": np.zeros(3), "sd": np.ones(3)},
    observed=np.zeros(3),
    mean=np.ones(3) * 3,
    sd=np.full(3, 2.0),
)
add(
    "metrics.gene_r2",
    {"predicted": _counts[:10] + 1, "true": _counts[10:] + 1},
    predicted=_counts[:10] ** 2 + 1,
    true=_counts[10:] ** 2 + 1,
    scale=10.0,
)
_table = pd.DataFrame(
    {
        "model": list("aabb"),
        "fold": [0, 1, 0, 1],
        "observed": [1.0, 2, 3, 5],
        "predicted": [1.5, 2, 2, 2],
        "crps": [0.1, 0.2, 0.3, 0.4],
        "lower50": 0.0,
        "upper50": 2.0,
        "lower90": -1.0,
        "upper90": 3.0,
    }
)
add("metrics.forecast_scores", {"table": _table}, by=("model", "fold"))

# --- panels -------------------------------------------------------------------------------------------------------------------

_reported = lambda: ~np.isnan(make_panel().X) & (np.arange(30) % 7 > 0)
add("stats.fit_increment", lambda: {"adata": make_panel(), "covariates": "incidence", "progress": False}, call=in_place(dp.stats.fit_increment),
    layer="complete", covariates=None, lags=2, observed=lambda: _reported(), pooling="global", method="gd", weights="gap", loss="huber", stable=(-0.01, 0.0),
    max_iter=1, learning_rate=With(1e-4, {"method": "gd", "stable": False}), se="sandwich", bias_correction=With(True, {"se": "bootstrap", "bootstrap": dp.stats.Bootstrap(n_refits=3)}),
    bootstrap=With(dp.stats.Bootstrap(n_refits=5), {"se": "bootstrap", "bootstrap": dp.stats.Bootstrap(n_refits=4)}), train_until=20, sigma=With("common", {"pooling": "partial"}),
    random_state=With(1, {"se": "bootstrap", "bootstrap": dp.stats.Bootstrap(n_refits=4)}))  # fmt: skip
add(
    "stats.predict_increment",
    lambda: {"adata": make_fitted_panel(), "horizon": 1},
    horizon=With(2, {"future_covariates": "carry"}),
    future_covariates=With({"incidence": np.full((8, 1), 50.0)}, {"horizon": 2, "future_covariates": "carry"}),
    interval=0.5,
    start="locf",
    key="pooled",
)
add(
    "stats.impute_increment",
    lambda: {"adata": make_fitted_panel(), "interval": 0.9},
    call=in_place(dp.stats.impute_increment),
    mode="filter",
    interval=0.5,
    key="pooled",
)
add(
    "stats.mask_reports",
    lambda: {"adata": make_panel(), "fraction": 0.3},
    fraction=0.5,
    p_start=With(0.3, {"fraction": None, "p_start": 0.1, "p_stay": 0.5}),
    p_stay=With(0.9, {"fraction": None, "p_start": 0.1, "p_stay": 0.5}),
    layer="complete",
    random_state=1,
)
add(
    "stats.backtest",
    lambda: {
        "adata": make_gappy_panel(),
        "models": ["mean", "increment_individual"],
        "covariates": "incidence",
        "origins": [20],
    },
    models=["zero", "increment_individual"],
    covariates=None,
    origins=[22],
    horizon=2,
    start="state",
    lags=2,
    layer="complete",
    observed=lambda: ~np.isnan(make_gappy_panel().X) & (np.arange(30) % 7 > 0),
    interval=0.5,
    before_first="zero",
)
add("get.increment_params", lambda: {"adata": make_fitted_panel()}, key="pooled", level=0.5)
add("get.increment_fit", lambda: {"adata": make_fitted_panel()}, key="pooled")
add("get.long", lambda: {"adata": make_panel()}, layers=["incidence"])

# --- simulators -----------------------------------------------------------------------------------------------------------------

add("datasets.elephant", {"n_points": 20}, n_points=30, noise=0.5, swing=0.5, random_state=With(1, {"noise": 0.5}))
add(
    "datasets.simulate_reports",
    {"n_units": 4, "n_days": 10},
    n_units=5,
    n_days=11,
    family="normal",
    sigma=With(0.9, {"family": "normal"}),
    p_start=0.5,
    p_stay=With(0.1, {"p_start": 0.5}),
    silent=0.9,
    first_day="2020-05-01",
    random_state=1,
)
add(
    "datasets.simulate_snapshots",
    {"n_cells": 5, "n_genes": 6},
    scenario="rotating",
    n_cells=6,
    n_genes=7,
    times=(0, 1),
    growth=(1.0, 0.0, -1.0),
    dropout={"mid": 1.0, "shape": -1.0},
    batch_effect=True,
    random_state=1,
)
add(
    "datasets.simulate_registry",
    {"n_subjects": 5},
    design="lotka_volterra",
    n_subjects=6,
    baseline="parameters",
    random_state=1,
)

# --- fits of cells ----------------------------------------------------------------------------------------------------------------

add(
    "get.trajectories",
    lambda: {"adata": make_moving(), "n_grid": 5},
    key="rep",
    times=With([0.2, 0.4], {"n_grid": None}),
    n_grid=6,
    level=0.5,
)
add("get.dynamics", lambda: {"adata": make_moving()}, key="rep", alternative=Refused(7, "has no alternative 7"))
add("get.observed_proportions", lambda: {"adata": make_moving()}, key="rep", level=0.5)
add("get.restarts", lambda: {"adata": make_moving()}, key="rep")
add("get.members", lambda: {"adata": make_moving()}, key="rep")
add("get.history", lambda: {"adata": make_moving(), "key": "dynvae"}, key="rep")
add("get.loadings", lambda: {"adata": make_moving()}, key="vae2")
_genes = lambda: list(make_cells().var_names[:2])
add(
    "get.gene_trajectories",
    lambda: {"adata": make_moving(), "genes": _genes(), "n_grid": 5},
    genes=lambda: list(make_cells().var_names[2:4]),
    key=Refused("rep", "use_rep"),
    times=With([0.1], {"n_grid": None}),
    n_grid=6,
    level=0.5,
)
add(
    "get.observed_genes",
    lambda: {"adata": make_moving(), "genes": _genes()},
    genes=lambda: list(make_cells().var_names[2:4]),
    key=Refused("rep", "use_rep"),
    level=0.5,
)
add(
    "tl.bootstrap",
    lambda: {"adata": make_moving(), "key": "rep", "n_bootstrap": 2},
    call=in_place(dp.tl.bootstrap),
    key="dynvae",
    n_bootstrap=3,
    random_state=1,
)
add(
    "tl.embed_velocity",
    lambda: {"adata": make_moving(), "basis": "flat", "n_neighbors": 5},
    call=in_place(dp.tl.embed_velocity),
    basis="other",
    key="rep",
    n_neighbors=6,
)
add(
    "tl.predict_cells",
    lambda: {"adata": make_moving(), "times": 0.7, "n_cells": 5},
    times=0.8,
    n_cells=6,
    source="prior",
    key="rep",
    random_state=1,
)
add("tl.sample_prior", lambda: {"adata": make_moving(), "n_cells": 5}, n_cells=6, batch="b", key="vae2", random_state=1)
add("tl.sample_posterior", lambda: {"adata": make_moving()}, key="vae2", random_state=1)
add(
    "tl.rank_dynamic_genes",
    lambda: {"adata": make_moving()},
    key=Refused("rep", "use_rep"),
    times=[0.5],
    groups=["1"],
    level=0.5,
    n_genes=3,
    pseudocount=0.1,
    min_cells=60,
    min_counts=60,
)

_quick = lambda **more: dp.models.Training(**(QUICK | more))
_dynamic = in_place(dp.tl.fit_dynamic_vae)
add("tl.fit_dynamic_vae", lambda: {"adata": make_cells(), "time_key": "time", "n_groups": 2, "training": _quick()}, call=_dynamic, slow=True,
    time_key="later", n_groups=3, n_latent=3, layer="other", batch_key="plate", labels_key="label", size_factor_key="size", use_rep="Z_true",
    likelihood="poisson", growth="off", n_members=2, prior=dp.models.Prior(ridge=1.0), training=_quick(lr=0.01),
    max_epochs=With(6, {"training": dp.models.Training(n_restarts=1, prior_steps=8, finish_steps=4, n_hidden=8, progress=False), "max_epochs": 4}),
    n_bootstrap=2, random_state=1, train_kwargs={"plan_kwargs": {"weight_decay": 1.0}}, model=lambda: dp.get.model(make_moving(), "dynvae"))  # fmt: skip
add(
    "models.Prior",
    lambda: {},
    call=lambda **o: _dynamic(make_cells(), time_key="time", n_groups=2, training=_quick(), prior=dp.models.Prior(**o)),
    slow=True,
    ridge=1.0,
    growth_penalty=50.0,
    decoder_ridge=5.0,
    share="A",
    tie_initial=True,
    floor=0.5,
    relaxation=0.5,
)
add(
    "models.Training",
    lambda: dict(QUICK),
    call=lambda **o: _dynamic(make_cells(), time_key="time", n_groups=2, training=dp.models.Training(**o)),
    slow=True,
    static_epochs=2,
    joint_epochs=2,
    batch_size=16,
    lr=0.01,
    prior_lr=0.03,
    n_restarts=3,
    prior_steps=12,
    finish_steps=8,
    n_hidden=9,
    n_layers=2,
    dropout_rate=0.5,
    decoder="mlp",
    gradient_clip=0.01,
    keep_stages=True,
)
_vae = in_place(dp.tl.fit_vae)
add(
    "tl.fit_vae",
    lambda: {"adata": make_cells(), "n_latent": 2, "max_epochs": 2},
    call=_vae,
    slow=True,
    n_latent=3,
    likelihood="poisson",
    decoder="linear",
    layer="other",
    batch_key="plate",
    labels_key=With("group", {"labels_key": "plate", "dispersion": "gene-label"}),
    size_factor_key="size",
    library="encoded",
    dispersion="gene-batch",
    latent_distribution="ln",
    latent_penalty=dp.models.LatentPenalty("tsne", perplexity=5.0),
    target="X_other",
    supervision=With(dp.models.Supervision(weight=300.0), {"target": "X_other"}),
    network=dp.models.Network(n_hidden=9),
    max_epochs=3,
    random_state=1,
    train_kwargs={"plan_kwargs": {"lr": 0.05}},
)
add(
    "models.Network",
    lambda: {"n_hidden": 8},
    call=lambda **o: _vae(make_cells(), n_latent=2, max_epochs=2, network=dp.models.Network(**o)),
    slow=True,
    n_hidden=9,
    n_layers=2,
    dropout_rate=0.5,
    batch_norm="none",
    layer_norm="both",
    activation="ELU",
    bias="none",
    log_input=False,
    variance="softplus",
    variance_floor=0.5,
)


def _penalised(kind: str, perplexity: float, **options: Any) -> AnnData:
    """With the perplexity of so few cells where the penalty has one."""
    penalty = dp.models.LatentPenalty(kind, **({"perplexity": perplexity} if kind == "tsne" else {}), **options)
    return _vae(make_cells(), n_latent=2, max_epochs=8, latent_penalty=penalty)


add(
    "models.LatentPenalty",
    lambda: {"kind": "tsne", "perplexity": 5.0},
    call=_penalised,
    slow=True,
    kind="umap",
    weight=9.0,
    perplexity=3.0,
    exaggeration=2.0,
    exaggeration_epochs=1,
    n_neighbors=With(3, {"kind": "umap"}),
    min_dist=With(0.1, {"kind": "umap"}),
    n_pcs=2,
    scaled=False,
    use_rep="Z_true",
)
add(
    "models.Supervision",
    lambda: {"weight": 5.0},
    call=lambda **o: _vae(
        make_cells(), n_latent=2, max_epochs=2, target="X_other", supervision=dp.models.Supervision(**o)
    ),
    slow=True,
    weight=50.0,
    stages=2,
)

_rng = np.random.default_rng(0)
_y = _rng.normal(1.0, 1.0, (6, 1)) + 0.3 * _rng.normal(size=(6, 5))
_line = lambda p, y: y - p["a"]
_nll = lambda p, y: 0.5 * (y - p["a"]) ** 2
add("stats.estimate", lambda: {"program": _line, "data": {"y": _y}, "params": {"a": 0.0}, "kind": "residuals"},
    params={"a": 5.0}, per="all", kind=With("loglik", {"program": lambda p, y: -torch.log1p((y - p["a"]) ** 2), "kind": "residuals"}), constraints=With({"a": (0.5, 1.5)}, {"params": {"a": 1.0}}),
    pooling="partial", method=With("adam", {"kind": "nll", "program": _nll}), se=None, slots=Refused({"y": "X"}, "slots goes with an AnnData"),
    shared=With("x", {"program": lambda p, y, x: y - p["a"] * x.sum(), "data": {"y": _y, "x": np.arange(1.0, 7.0)}}),
    simulate=With(lambda p, y: {"y": p["a"] + torch.randn(y.shape)}, {"se": "bootstrap", "n_bootstrap": 5}),
    n_bootstrap=With(7, {"se": "bootstrap", "n_bootstrap": 5}), n_restarts=With(3, {"program": lambda p, y: y - torch.sin(3 * p["a"])}),
    max_iter=With(1, {"program": lambda p, y: y - torch.exp(p["a"])}), learning_rate=With(0.5, {"kind": "nll", "program": _nll, "method": "adam", "max_iter": 5}),
    random_state=With(1, {"se": "bootstrap", "n_bootstrap": 5}))  # fmt: skip

# --- visits and long tables -----------------------------------------------------------------------------------------------------


@cache
def make_visits() -> AnnData:
    visits = dp.datasets.simulate_registry("visits", n_subjects=16)[:, [0, 1, 5, 6]].copy()
    later = visits.obs.groupby("patient", observed=True).cumcount() > 2
    visits.obs["half"] = visits.obs["patient"].astype(str) + np.where(later, " later", "")
    visits.obs["later"] = visits.obs["time"] ** 2 + visits.obs["time"]
    visits.obs["date"] = pd.Timestamp("2020-01-01") + pd.to_timedelta((visits.obs["time"] * 365).round(), unit="D")
    visits.obs["unknown"] = visits.obs["y1"].where(visits.obs["patient"] != visits.obs["patient"].iloc[0])
    visits.layers["other"] = visits.X**2
    return visits


_few = dp.stats.Schedule(n_epochs=2)
_latent = lambda **o: dp.stats.fit_latent_dynamics(copy=True, **o)
_of_visits = {"subject_key": "patient", "time_key": "time", "n_restarts": 2}
_latent_base = lambda: {"adata": make_visits(), **_of_visits, "baseline": "~ y1", "schedule": _few}


@cache
def make_fitted_visits() -> AnnData:
    visits = make_visits().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.stats.fit_latent_dynamics(visits, **_of_visits, baseline="~ y1", schedule=_few)
        dp.stats.fit_latent_dynamics(
            visits, **_of_visits, dynamics="diagonal", offset=True, schedule=_few, key_added="diagonal"
        )
    return visits


add(
    "stats.fit_latent_dynamics",
    _latent_base,
    call=_latent,
    subject_key="half",
    time_key="later",
    baseline="~ y1 + y2",
    baseline_missing=Needed("mean+indicator", {"baseline": "~ unknown"}, "baseline_missing='mean\\+indicator'"),
    time_unit=Needed("year", {"time_key": "date"}, "time_unit='year'"),
    layer="other",
    n_latent=3,
    dynamics="diagonal",
    offset=True,
    estimator="equal",
    decoder="linear",
    process_noise=True,
    weights={"kl": 2.0},
    n_restarts=3,
    preset="latentdynamics2023",
    schedule=dp.stats.Schedule(n_epochs=3),
    calibration_folds=2,
    random_state=1,
)
add(
    "stats.Schedule",
    {"n_epochs": 2},
    call=lambda **o: _latent(**(_latent_base() | {"schedule": dp.stats.Schedule(**o)})),
    n_epochs=3,
    lr=0.02,
    batch_size=4,
    weight_decay=9.0,
)
add(
    "stats.predict_visits",
    lambda: {"adata": make_fitted_visits(), "times": [3.0]},
    times=[4.0],
    given=1,
    interval=0.5,
    subjects=lambda: make_visits()[make_visits().obs["patient"].isin(make_visits().obs["patient"].unique()[:3])],
    key="diagonal",
    dynamics=Refused("full", "Leave dynamics out"),
)
add("get.parameters", lambda: {"adata": make_fitted_visits()}, key="diagonal")
add(
    "get.visit_model",
    lambda: {"adata": make_fitted_visits()},
    call=lambda **o: dp.get.visit_model(**o).fitted.to_arrays(),
    key="diagonal",
    dynamics=Refused("full", "Leave dynamics out"),
)
add(
    "stats.landmark_forecast",
    lambda: {"adata": make_visits(), "models": ["mean", "ar_ridge"], "folds": 2, "baseline": "~ y1"},
    subject_key="half",
    time_key="later",
    baseline="~ y1 + y2",
    models=["lmm"],
    horizon="all",
    landmarks=[1],
    folds=3,
    baseline_missing=Needed("mean+indicator", {"baseline": "~ unknown"}, "baseline_missing='mean\\+indicator'"),
    time_unit=Needed("year", {"time_key": "date"}, "time_unit='year'"),
    layer="other",
    random_state=1,
)


@cache
def make_landmark_table() -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dp.stats.landmark_forecast(make_visits(), models=["locf", "mean", "ols_shift"], folds=2)


add(
    "stats.compare_landmarks",
    lambda: {"table": make_landmark_table(), "model": "mean", "n_bootstrap": 50},
    model="locf",
    reference="locf",
    score="crps",
    n_bootstrap=60,
    level=0.5,
    random_state=1,
)

_reports = pd.DataFrame(
    {
        "hospital": ["a", "a", "a", "b", "b"],
        "ward": ["a1", "a2", "a1", "b1", "b2"],
        "day": pd.to_datetime(["2020-03-01", "2020-03-02", "2020-03-03", "2020-03-01", "2020-03-03"]),
        "shifted": pd.to_datetime(["2020-03-02", "2020-03-01", "2020-03-03", "2020-03-01", "2020-03-02"]),
        "sunday": pd.to_datetime(["2020-03-01", "2020-03-08", "2020-03-15", "2020-03-01", "2020-03-15"]),
        "patients": [1.0, 2.0, 3.0, 4.0, 5.0],
        "cases": [5.0, 1.0, 3.0, 0.0, 2.0],
        "told": [True, True, False, True, True],
    }
)
add(
    "pp.panel_from_long",
    {"df": _reports, "unit": "hospital", "time": "day", "value": "patients"},
    unit="ward",
    time="shifted",
    value="cases",
    covariates="cases",
    observed="told",
    freq=Needed("W-SUN", {"time": "sunday"}, "say so with freq"),
)
_tests = pd.DataFrame(
    {
        "patient": ["a", "a", "a", "b"],
        "person": ["a", "a", "c", "b"],
        "month": [0, 0, 6, 0],
        "day": [0, 1, 180, 0],
        "test": ["x", "y", "x", "x"],
        "name": ["u", "v", "u", "u"],
        "score": [20.0, 31.0, 22.0, 17.0],
        "scaled": [2.0, 3.1, 2.2, 1.7],
        "sex": ["f", "f", "f", "m"],
    }
)
add(
    "pp.visits_from_long",
    {"df": _tests, "subject": "patient", "time": "month", "item": "test", "value": "score"},
    subject="person",
    time="day",
    item="name",
    value="scaled",
    baseline=["sex"],
)

# --- comparisons of panels ------------------------------------------------------------------------------------------------------


@cache
def make_nearly_complete_panel() -> AnnData:
    """All reports of all units but the last."""
    panel = make_panel().copy()
    panel.X = panel.layers["complete"].copy()
    panel.X[-1, 5] = np.nan
    panel.layers["other"] = panel.X**2
    return panel


def make_mask() -> np.ndarray:
    return _shown(make_nearly_complete_panel())


_shown = lambda panel: ~np.isnan(panel.X) & (np.arange(panel.n_vars) % 7 > 0)
add(
    "stats.censoring_study",
    lambda: {
        "adata": make_nearly_complete_panel(),
        "fractions": 0.5,
        "methods": ["locf", "smooth_individual"],
        "n_repeats": 1,
    },
    fractions=0.25,
    methods=["linear", "smooth_individual"],
    covariates="incidence",
    n_repeats=2,
    p_stay=0.6,
    complete_only=False,
    layer="complete",
    observed=With(make_mask, {"complete_only": False}),
    interval=0.5,
    random_state=1,
)
add(
    "stats.temporal_subsets",
    lambda: {
        "adata": make_gappy_panel(),
        "models": ["mean", "increment_individual"],
        "covariates": "incidence",
        "length": 15,
        "starts": [7],
    },
    models=["zero", "increment_individual"],
    covariates=None,
    length=16,
    starts=[8],
    min_reports=13,
    start="state",
    lags=2,
    layer="complete",
    observed=lambda: _shown(make_gappy_panel()),
    interval=0.5,
)


@cache
def make_backtest() -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dp.stats.backtest(make_gappy_panel(), models=["zero", "mean", "modified_mean"], origins=[20, 24])


add(
    "stats.compare_forecasts",
    lambda: {"table": make_backtest(), "n_bootstrap": 50},
    reference="mean",
    n_bootstrap=60,
    level=0.5,
    random_state=1,
)
add(
    "stats.profile_loss",
    lambda: {
        "adata": make_gappy_panel(),
        "units": [make_gappy_panel().obs_names[0]],
        "covariates": "incidence",
        "values": [-0.5, -0.2],
    },
    units=lambda: [make_gappy_panel().obs_names[1]],
    coefficient="intercept",
    values=[-0.5, -0.1],
    covariates=None,
    lags=2,
    layer="complete",
    observed=lambda: _shown(make_gappy_panel()),
    level=0.5,
)
add(
    "stats.sensitivity",
    lambda: {"adata": make_panel(), "alternatives": ["incidence"]},
    alternatives={"none": []},
    fit_kwargs={"weights": "gap"},
)
add(
    "stats.Bootstrap",
    {"n_refits": 4},
    call=lambda **o: in_place(dp.stats.fit_increment)(
        make_panel(), se="bootstrap", bootstrap=dp.stats.Bootstrap(**o), progress=False
    ),
    n_refits=5,
    kind="residual",
)


def _observed_log(observed, value, inputs, **options):
    """The value and its derivative: the stand-in is what the function is computed from where nothing was observed."""
    rate = torch.tensor(2.0, requires_grad=True)
    computed = (lambda y: value(y, rate)) if callable(value) else value
    found = dp.stats.where_observed(observed, computed, *inputs, **options)
    return {"value": found, "derivative": torch.autograd.grad(found.sum(), rate)[0]}


add(
    "stats.where_observed",
    {
        "observed": torch.tensor([True, False]),
        "value": lambda y, rate: torch.log(y * rate),
        "inputs": [torch.tensor([2.0, torch.nan])],
    },
    call=_observed_log,
    observed=torch.tensor([False, True]),
    value=With(torch.mul, {}),
    inputs=[torch.tensor([3.0, torch.nan])],
    otherwise=1.0,
    stand_in=0.0,
)

# --- more of cells ----------------------------------------------------------------------------------------------------------------

add(
    "tl.evaluate_heldout",
    lambda: {
        "adata": make_cells(),
        "time_key": "time",
        "holdout": 0.5,
        "methods": ["floor", "forward", "mixture"],
        "n_pcs": 3,
    },
    time_key=With("later", {"holdout": 0.0, "methods": ["mean_shift"]}),
    holdout=1,
    methods=["floor", "backward"],
    n_pcs=4,
    fit_kwargs={"layer": "other"},
    random_state=1,
)


@cache
def make_two_snapshots() -> AnnData:
    """Fits with a choice of the number of groups, and with explanations that two times cannot tell apart."""
    cells = make_cells()[make_cells().obs["time"] != 0.5].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, rep in (("first", "Z_true"), ("second", "X_flat")):
            dp.tl.fit_dynamic_vae(
                cells, time_key="time", n_groups=(2, 3), use_rep=rep, training=_quick(), n_bootstrap=0, key_added=key
            )
    return cells


add("get.n_groups", lambda: {"adata": make_two_snapshots(), "key": "first"}, key="second")
add("get.alternatives", lambda: {"adata": make_two_snapshots(), "key": "first"}, key="second")
add("get.convergence", lambda: {"adata": make_moving(), "key": "rep"}, key="vae2")
add("get.stages", lambda: {"adata": make_moving()}, key=Refused("rep", "kept no stages"))
add(
    "get.model",
    lambda: {"adata": make_moving(), "key": "vae"},
    call=lambda **o: dp.get.model(**o).module,
    key="vae2",
)


@cache
def make_counties():
    from tempfile import mkdtemp

    days = {"spring2020": "2020-04-25", "autumn2020": "2020-10-01"}
    rows = [
        (window, county, day, 1.0 + i, 2.0, 3.0, True, 1, 1)
        for window, first in days.items()
        for i, day in enumerate(pd.date_range(first, periods=3))
        for county in ("01001", "01002")
    ]
    columns = [
        "window",
        "county_ags",
        "date",
        "icu_covid",
        "cases_7d_mean",
        "cases_new",
        "reported",
        "n_sites",
        "n_areas",
    ]
    file = f"{mkdtemp()}/divi.csv"
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    return file


add("datasets.divi_icu", lambda: {"path": make_counties()}, window="autumn2020")

# --- more of arrays ---------------------------------------------------------------------------------------------------------------

_paths = np.random.default_rng(2).normal(size=(2, 4, 2))
_plane = _cloud[:, :2]
add("metrics.match_groups", {"found": _paths, "true": _paths + 0.01}, found=_paths[::-1], true=_paths[::-1])
_aligned = {"encoded": _plane, "true": _plane**2 + _plane}
add(
    "metrics.trajectory_error",
    {"mean": _paths, "true_mean": _paths + 0.1, **_aligned},
    mean=_paths * 2,
    true_mean=_paths * 2,
    encoded=_plane**3,
    true=_plane**3,
)
add(
    "metrics.velocity_cosine",
    {"velocity": _plane, "true_velocity": _plane[::-1].copy(), **_aligned},
    velocity=_plane**2,
    true_velocity=_plane**2,
    encoded=_plane**3,
    true=_plane**3,
)
add(
    "dynamics.project_velocity",
    {"z": _plane, "velocity": _plane**2, "embedding": _plane**3 + _plane, "n_neighbors": 6},
    z=_plane**3,
    velocity=_plane,
    embedding=_plane**2,
    n_neighbors=7,
)
_noisy = {"A": LINEAR["A"][0], "Q": [[0.3, 0.1], [0.1, 0.2]]}
add(
    "dynamics.noise_covariance",
    lambda: tensors(**_noisy, dt=0.5),
    **{k: tensors(v=np.array(v) + 0.1)["v"] for k, v in {**_noisy, "dt": 0.5}.items()},
)
_moved = {**_noisy, "b": [0.1, 0.2], "mean0": [1.0, 2.0], "cov0": [[0.4, 0.0], [0.0, 0.5]], "times": [0.0, 0.5]}
add(
    "dynamics.moments",
    lambda: tensors(**_moved),
    **{k: tensors(v=np.array(v) + 0.1)["v"] for k, v in _moved.items()},
)
_swing = lambda t, u: torch.stack([u[..., 1], -u[..., 0] * (1 + t)], -1)
add(
    "dynamics.solve",
    lambda: {"system": _swing} | tensors(u0=[1.0, 0.5], times=[0.5, 1.0]),
    system=torch.eye(2, dtype=torch.float64),
    u0=tensors(v=[1.0, 0.6])["v"],
    times=tensors(v=[0.5, 1.1])["v"],
    t0=0.1,
    method="dopri5",
    n_steps=2,
    rtol=With(1e-2, {"method": "dopri5"}),
    atol=With(1.0, {"method": "dopri5", "rtol": 1e-2}),
)
_joint = tensors(v=np.log(np.random.default_rng(3).uniform(size=(5, 2))))["v"]
add(
    "dynamics.marginal_log_prob",
    {"joint": _joint},
    joint=_joint + 1,
    labels=torch.tensor([0, -1, 1, -1, -1]),
    temperature=2.0,
)


@cache
def make_points() -> dict[str, Any]:
    """Two groups that move and change their shares, at three times."""
    rng = np.random.default_rng(4)
    index = np.repeat([0, 1, 2], 120)
    group = rng.random(360) < 0.3 + 0.2 * index
    z = rng.normal(size=(360, 2)) * 0.3 + np.column_stack([np.where(group, 1.0, -1.0), 0.5 * index * group])
    at = {"z": torch.as_tensor(z, dtype=torch.float32), "time_index": torch.as_tensor(index)}
    return at | {"times": torch.tensor([0.0, 0.5, 1.0])}


_known = torch.full((360,), -1)
_known[:40] = torch.arange(40) % 2
_points = {
    "z": lambda: make_points()["z"] + 0.1 * make_points()["z"] ** 2,
    "time_index": lambda: make_points()["time_index"].flip(0),
    "times": torch.tensor([0.0, 0.4, 1.0]),
    "labels": _known,
}
_descent = _points | {
    "ridge": 1.0,
    "growth_penalty": 50.0,
    "n_steps": 6,
    "lr": 0.1,
    "max_cells": 150,
    "random_state": 1,
}
_shared = dp.dynamics.LinearMixture(2, 2, share="A")


@cache
def make_mixture(seed: int = 0) -> dp.dynamics.LinearMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = dp.dynamics.LinearMixture(2, 2)
        return dp.dynamics.fit_mixture(start, **make_points(), n_restarts=1, n_steps=10, random_state=seed).mixture


def make_other_mixture() -> dp.dynamics.LinearMixture:
    return make_mixture(1)


_start = lambda: {"mixture": dp.dynamics.LinearMixture(2, 2), **make_points()}
add(
    "dynamics.fit_mixture",
    lambda: _start() | {"n_restarts": 2, "n_steps": 5},
    mixture=_shared,
    **_descent,
    n_restarts=3,
)
add(
    "dynamics.choose_n_groups",
    lambda: make_points() | {"candidates": (2, 3), "n_restarts": 1, "n_steps": 5},
    candidates=(2, 4),
    structure=_shared,
    **_descent,
    n_restarts=2,
)
_fitted = lambda: {"mixture": make_mixture(), **make_points()}
add(
    "dynamics.bootstrap_mixture",
    lambda: _fitted() | {"n_bootstrap": 2, "n_steps": 5},
    mixture=make_other_mixture,
    n_bootstrap=3,
    **_descent,
)
_swapped = lambda: dp.dynamics.swapped_links(make_mixture(), make_points()["times"])
add(
    "dynamics.refit_alternatives",
    lambda: _fitted() | {"candidates": _swapped(), "n_steps": 5},
    call=lambda **o: dataclasses.asdict(dp.dynamics.refit_alternatives(**o)),
    mixture=make_other_mixture,
    candidates=lambda: dp.dynamics.LinearMixture.stack([make_mixture(2)]),
    **(_descent | {"random_state": With(1, {"max_cells": 150})}),
)


def _refit_a_copy(mixture, **options):
    copied = deepcopy(mixture)
    dp.dynamics.refit_proportions(copied, **options)
    return copied


add(
    "dynamics.refit_proportions",
    _fitted,
    call=_refit_a_copy,
    mixture=make_other_mixture,
    **_points,
    weights=torch.linspace(0.5, 1.5, 360),
    n_rounds=1,
)
add(
    "dynamics.swapped_links",
    lambda: {"mixture": make_mixture(), "times": make_points()["times"]},
    mixture=make_other_mixture,
    times=torch.tensor([0.0, 0.5, 2.0]),
)


# --- the walk -----------------------------------------------------------------------------------------------------------------


def arguments_of(name: str) -> list[str]:
    found = dp
    for part in name.split("."):
        found = getattr(found, part)
    return [argument for argument in inspect.signature(found).parameters if argument not in NO_NUMBERS | DATA]


def public() -> set[str]:
    functions = {
        f"{space}.{name}"
        for space in NAMESPACES
        for name in getattr(dp, space).__all__
        if inspect.isfunction(getattr(getattr(dp, space), name))
    }
    return (functions | set(OPTIONS)) - ELSEWHERE


def walk() -> list[Any]:
    marks = lambda case: [pytest.mark.slow] if case.slow else []
    return [
        pytest.param(name, argument, id=f"{name}-{argument}", marks=marks(case))
        for name, case in CASES.items()
        for argument in case.changes
    ]


def test_every_public_function_and_argument_has_an_entry():
    assert public() == set(CASES)
    for name, case in CASES.items():
        assert set(arguments_of(name)) - DATA == set(case.changes) - DATA, name


@pytest.mark.parametrize(("name", "argument"), walk())
def test_an_argument_changes_the_result_or_is_refused(name, argument):
    case, change = CASES[name], CASES[name].changes[argument]
    base = case.base()
    if isinstance(change, Refused):
        with pytest.raises((ValueError, KeyError, TypeError), match=change.match):
            run(name, base | {argument: change.value})
        return
    if isinstance(change, Needed):
        with pytest.raises((ValueError, TypeError), match=change.match):
            run(name, base | change.others)
        assert run(name, base | change.others | {argument: change.value})
        return
    if isinstance(change, With):
        before, after = run(name, base | change.others), run(name, base | change.others | {argument: change.value})
    else:
        value = change() if inspect.isfunction(change) else change
        before, after = result_of_base(name), run(name, base | {argument: value})
    assert not same(before, after), f"{name} takes {argument} and drops it"


@pytest.mark.parametrize(
    ("name", "more", "match"),
    [
        ("stats.fit_increment", {"bootstrap": dp.stats.Bootstrap(n_refits=5)}, "se='hessian' makes none"),
        ("stats.fit_increment", {"learning_rate": 0.1}, "method='lm' finds its own"),
        ("stats.estimate", {"learning_rate": 0.1}, "method='lm' finds its own steps"),
        ("stats.estimate", {"slots": {"y": "X"}}, "slots goes with an AnnData"),
        ("stats.estimate", {"n_bootstrap": 50}, "n_bootstrap=50 .* se='hessian' simulates none"),
        ("stats.estimate", {"per": "all", "shared": "y"}, "shared='y' .* with per='all'"),
        (
            "stats.backtest",
            {"models": ["zero"]},
            "covariates='incidence' is for ols, ols_published and increment models",
        ),
        ("stats.backtest", {"models": ["ols"], "start": "state"}, "start='state' is for increment models"),
        ("stats.backtest", {"models": ["ols"], "interval": 0.5}, "interval=0.5 is for increment models"),
        (
            "stats.backtest",
            {"models": ["increment_global"], "before_first": "zero"},
            "before_first='zero' is for the base",
        ),
        ("stats.backtest", {"covariates": None, "lags": 2}, "lags=2 .* there are none"),
        ("stats.temporal_subsets", {"models": ["ols"], "start": "locf"}, "start='locf' is for increment models"),
        ("stats.fit_increment", {"covariates": None, "lags": [2]}, r"lags=\[2\] .* there are none"),
        ("stats.censoring_study", {"methods": "linear", "interval": 0.5}, "interval=0.5 is for filters"),
        ("stats.censoring_study", {"methods": "mean", "covariates": "incidence"}, "covariates='incidence' is for ols"),
        ("stats.landmark_forecast", {"models": ["locf", "mean"]}, "baseline='~ y1' is for models that are fitted"),
        (
            "stats.where_observed",
            {"value": torch.ones(2), "stand_in": 2.0, "inputs": []},
            "stand_in=2.0 goes with a func",
        ),
        ("tl.evaluate_heldout", {"fit_kwargs": {"n_groups": 2}}, "fit_kwargs has 'n_groups', but none of the methods"),
        ("tl.fit_vae", {"labels_key": "plate"}, "labels_key='plate' .* dispersion='gene' has none"),
        ("tl.fit_vae", {"likelihood": "poisson", "dispersion": "gene-cell"}, "no part in likelihood='poisson'"),
        ("tl.fit_vae", {"library": "encoded", "size_factor_key": "size"}, "library='encoded' has no part"),
        ("models.LatentPenalty", {"min_dist": 0.1}, "min_dist.* is an option of 'umap', and kind is 'tsne'"),
        (
            "models.LatentPenalty",
            {"kind": "umap", "exaggeration": 2.0},
            "exaggeration.* is an option of 'tsne', and kind is 'umap'",
        ),
        ("models.LatentPenalty", {"use_rep": "Z_true", "n_pcs": 2}, "n_pcs.* where neighbours are sought in obsm"),
        ("get.trajectories", {"times": [0.5]}, "n_grid=5 is the number of times where none are given"),
        ("get.gene_trajectories", {"times": [0.5]}, "n_grid=5 is the number of times where none are given"),
        ("dynamics.solve", {"rtol": 0.1}, "rtol=0.1 .* a fixed number of steps has no tolerances"),
        ("dynamics.solve", {"method": "dopri5", "n_steps": 3}, "n_steps=3 .* chooses its steps itself"),
        ("dynamics.solve", {"system": torch.eye(2), "n_steps": 3}, "n_steps=3 .* a linear system is solved exactly"),
    ],
)
def test_an_argument_without_a_meaning_is_refused_by_its_name(name, more, match):
    with pytest.raises((ValueError, TypeError), match=match):
        run(name, CASES[name].base() | more)


def test_the_simulator_of_a_fit_is_that_of_its_bootstrap():
    simulate = lambda p, y: {"y": p["a"] + torch.randn(y.shape)}
    fitted = dp.stats.estimate(_nll, {"y": _y}, params={"a": 0.0}, simulate=simulate)
    pd.testing.assert_frame_equal(fitted.bootstrap(3), fitted.bootstrap(3, simulate=simulate))


def test_the_same_call_gives_the_same_numbers():
    """Otherwise a change would prove nothing."""
    for name in ("get.trajectories", "tl.predict_cells", "stats.fit_increment", "datasets.simulate_snapshots"):
        assert same(result_of_base(name), run(name, CASES[name].base()))
