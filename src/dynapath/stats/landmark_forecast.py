"""Forecasts of visits from the first k of them, for patients whom no model has seen; and the comparison of models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData

from dynapath._forecast_tables import check_one_kind
from dynapath.read.baseline import Missing
from dynapath.read.visits import TimeUnit, read_visits

from .baselines import FORECASTERS
from .registry.baselines import Autoregression, Rule
from .registry.calibrate import patients_needed
from .registry.history import Horizon
from .registry.landmark import Combination, fold_table, forecast_fold, patient_folds
from .registry.state_space import StateSpaceForecaster
from .registry.visits import Forecaster, Visits

MODELS = ("locf", "mean", "ols_shift", "lmm", "ar_ridge", "ar_boosted", "latent_alone", "latent_dynamics")
COMBINED = ("latent_alone", "ar_boosted", "lmm")

Models = str | Sequence[str] | Mapping[str, str | Forecaster]


def landmark_forecast(
    adata: AnnData,
    *,
    subject_key: str = "patient",
    time_key: str = "time",
    baseline: str | Sequence[str] | None = None,
    models: Models = MODELS,
    horizon: Horizon = "next",
    landmarks: Sequence[int] | None = None,
    folds: int = 5,
    baseline_missing: Missing = "error",
    time_unit: TimeUnit | None = None,
    layer: str | None = None,
    n_jobs: int = 1,
    random_state: int | None = 0,
) -> pd.DataFrame:
    """Forecast the visits of patients who are no part of any fit, with several models on the same cases.

    Parameters
    ----------
    adata
        One row per visit, NaN = not measured. Put skewed items on a scale on which their errors are even (log, square root).
    subject_key, time_key
        Columns of `obs`. Visits are sorted by them.
    baseline
        Formula over columns of `obs` that are constant within a subject, such as `"~ age + C(subtype)"`, or their names. Never
        give outcomes, which are known only later.
    models
        Some of

        - `"locf"`: the last value carried forward. `"mean"`: the mean of the past.
        - `"ols_shift"`: least squares of the past, shifted through the last value; the comparator of the published
          analyses, and worse than `"locf"` on most registries.
        - `"lmm"`: a linear mixed model of each item (REML, random intercept and slope), with the BLUP of the new patient.
        - `"ar_ridge"`: ridge regression on last values, past means, time and baseline of all items.
        - `"ar_boosted"`: the same, plus boosted trees on its residuals.
        - `"latent_alone"`: latent linear dynamics with process noise, fitted by the exact predictive likelihood
          (:class:`dynapath.stats.registry.state_space.StateSpaceForecaster`).
        - `"latent_dynamics"`: the weighted mean of `"latent_alone"`, `"ar_boosted"` and `"lmm"`, with weights learned on training
          patients. Read it beside `"latent_alone"`: a gain that the latent dynamics have no part in is not theirs.

        Or a mapping from names of your choice to one of these names, or to an object with
        `fit(visits) -> fitted` and `fitted.predict(history, times) -> (mean, sd)`, both (subject, ahead, item).
    horizon
        `"next"`: from each number of first visits, the visit after them. `"all"`: every later visit. Autoregressions then
        learn from all later visits at once, with the time ahead as a regressor, instead of being iterated.
    landmarks
        Numbers of first visits at which anything was measured; those without any measurement are left out. By default all with `"next"`, and 1, 2, 3 with `"all"`.
    folds
        Folds of patients, or 2 for a quick look.
    baseline_missing
        `"mean+indicator"` fills missing numeric baseline variables by their mean and adds an indicator.
    time_unit
        Unit in which dates are counted; None for numbers.
    layer
        Layer with the items, instead of `X`.
    n_jobs
        Processes, each with folds of its own.
    random_state
        Seed of the folds (`RandomState(random_state).shuffle(patients)`, then every `folds`-th) and of the models.

    Returns
    -------
    One row per forecast of a measured item that was measured at least once before: `model`, `fold`, `subject`, `landmark`
    (number of visits known), `time` of the visit, `item`, `observed`, `predicted`,
    `sd`, `lower50`, `upper50`, `lower90`, `upper90`, `unbounded` (an interval is infinite, since too few patients calibrate it),
    `crps`, `ahead` (time since the last known visit), `kind` of the item. All but the times in units of the item's standard
    deviation in the training patients (its origin their mean); items of 0 and 1 (`kind` is `"bernoulli"`, else `"gaussian"`) as
    probabilities, with the Brier score as `crps` and without intervals. `attrs["weights"]` has one dict per fold: the weights of the models combined in `"latent_dynamics"`.

    Raises
    ------
    KeyError : for unknown columns.
    ValueError : for an unknown model, too few patients, visits that no model can use, or a baseline that none of them uses.

    Warns
    -----
    UserWarning : if intervals are infinite, or models return NaN.

    Notes
    -----
    Intervals of all models are calibrated in the same way, on patients outside the fit but within the training folds: see
    :mod:`dynapath.stats.registry.calibrate`. A forecast drawn from those of a new patient is inside with at least the
    probability of the interval, however errors go together within patients; for 90 % this takes 9 patients with forecasts of
    the item at the landmark, or, at later ones, with fewer visits known. They hold for patients like those in the data whose visits are missing at random
    given what was seen. Where visits end with death, forecasts are for those who live to have the visit.

    See Also
    --------
    dynapath.metrics.forecast_scores : RMSE, CRPS and coverage.
    compare_landmarks : paired differences between models, with intervals over patients.

    Examples
    --------
    >>> import dynapath as dp
    >>> visits = dp.datasets.pbc2()  # doctest: +SKIP
    >>> table = dp.stats.landmark_forecast(visits, baseline="~ age_entry + female + drug_dpca")  # doctest: +SKIP
    >>> dp.metrics.forecast_scores(table)  # doctest: +SKIP
    """
    if horizon not in ("next", "all"):
        msg = f"horizon must be 'next' or 'all'; it is {horizon!r}."
        raise ValueError(msg)
    built, combinations, names = _build(models, horizon, random_state)
    if baseline is not None and all(isinstance(model, Rule) for model in built.values()):
        msg = (
            f"baseline={baseline!r} is for models that are fitted, and models has only rules of each subject's own past: "
            f"{', '.join(names)}. Leave it out, or add a model such as 'lmm'."
        )
        raise ValueError(msg)
    visits = read_visits(
        adata,
        subject_key=subject_key,
        time_key=time_key,
        baseline=baseline,
        baseline_missing=baseline_missing,
        time_unit=time_unit,
        layer=layer,
    ).visits.measured()
    ks = _landmarks(landmarks, horizon, visits)
    _check_folds(folds, visits)
    tests = patient_folds(visits.n_subjects, folds, random_state)

    def one(fold: int) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
        found = forecast_fold(
            visits, tests[fold], built, combinations, horizon=horizon, ks=ks, random_state=random_state
        )
        return fold_table(found, visits, tests[fold], fold, names), found.weights

    if n_jobs == 1:
        parts = [one(fold) for fold in range(folds)]
    else:
        from joblib import Parallel, delayed

        parts = Parallel(n_jobs=n_jobs)(delayed(one)(fold) for fold in range(folds))
    table = pd.concat([part for part, _ in parts], ignore_index=True)
    table["model"] = pd.Categorical(table["model"], categories=names)
    table.attrs["weights"] = [weights for _, weights in parts]
    _warn_of_unbounded(table)
    failed = table.loc[table["predicted"].isna(), "model"].value_counts()
    failed = failed[failed > 0]
    if len(failed):
        which = ", ".join(f"{name} {count} times" for name, count in failed.items())
        warnings.warn(f"Models returned NaN: {which}. Scores will refuse them.", UserWarning, stacklevel=2)
    return table


def compare_landmarks(
    table: pd.DataFrame,
    *,
    model: str = "latent_dynamics",
    reference: str | None = None,
    score: str = "rmse",
    n_bootstrap: int = 2000,
    level: float = 0.95,
    random_state: int | None = 0,
) -> pd.DataFrame:
    """Differences in a score between one model and others on the same forecasts, with intervals over patients.

    Parameters
    ----------
    table
        Of :func:`landmark_forecast`.
    model
        The model in question.
    reference
        What to compare it with; by default every other model in the table.
    score
        `"rmse"` or `"crps"`.
    n_bootstrap
        Resamples of patients. All forecasts of a patient go together.
    level
        Probability of the interval.
    random_state
        Seed of the bootstrap.

    Returns
    -------
    One row per reference: `reference`, `model`, `score`, its values `of_model` and `of_reference`, `difference` (model -
    reference: negative is better), `lower`, `upper` (percentiles of the bootstrap).

    Raises
    ------
    ValueError : for models that are not in the table, or were not scored on the same forecasts; for a table with real-valued
        items and items of 0 and 1, whose errors have no unit in common.
    """
    names = [str(name) for name in pd.unique(table["model"])]
    others = [name for name in names if name != model] if reference is None else [reference]
    for name in (model, *others):
        if name not in names:
            msg = f"{name!r} is not in the table; its models are {', '.join(names)}."
            raise ValueError(msg)
    if score not in ("rmse", "crps"):
        msg = f"score must be 'rmse' or 'crps'; it is {score!r}."
        raise ValueError(msg)
    check_one_kind(table, np.zeros(len(table)), "table[table['kind'] == 'gaussian'], or 'bernoulli'")
    loss = (table["observed"] - table["predicted"]) ** 2 if score == "rmse" else table["crps"]
    parts = table[["subject"]].assign(model=table["model"].astype(str), loss=loss)
    sums = parts.pivot_table(index="subject", columns="model", values="loss", aggfunc=["sum", "count"])
    counts = sums["count"][names].to_numpy()
    if not (counts == counts[:, :1]).all():
        msg = "The models were not scored on the same forecasts. Compare models of one call of landmark_forecast."
        raise ValueError(msg)
    totals, n = sums["sum"][names].to_numpy(), counts[:, 0]
    drawn = np.random.default_rng(random_state).multinomial(len(n), np.full(len(n), 1 / len(n)), n_bootstrap)
    root = np.sqrt if score == "rmse" else np.asarray
    resampled = root((drawn @ totals) / (drawn @ n)[:, None])
    whole = root(totals.sum(0) / n.sum())
    at = names.index(model)
    rows = []
    for name in others:
        other = names.index(name)
        difference = resampled[:, at] - resampled[:, other]
        lower, upper = np.quantile(difference, [(1 - level) / 2, (1 + level) / 2])
        rows.append((name, model, score, whole[at], whole[other], whole[at] - whole[other], lower, upper))
    columns = ["reference", "model", "score", "of_model", "of_reference", "difference", "lower", "upper"]
    return pd.DataFrame(rows, columns=columns)


def _build(
    models: Models, horizon: Horizon, random_state: int | None
) -> tuple[dict[str, Forecaster], dict[str, Combination], list[str]]:
    """Models to be fitted, those to be combined from them, and the names of those that were asked for."""
    if isinstance(models, str):
        models = MODELS if models == "all" else (models,)
    if not isinstance(models, Mapping):
        models = {name: name for name in models}
    if not models:
        msg = f"models is empty; there are {', '.join(MODELS)}."
        raise ValueError(msg)
    built, combinations = {}, {}
    for name, model in models.items():
        if not isinstance(model, str):
            if not hasattr(model, "fit"):
                msg = f"Model {name!r} must be a name or have a method fit; it is {type(model).__name__}."
                raise ValueError(msg)
            built[name] = model
        elif model == "latent_dynamics":
            combinations[name] = Combination(COMBINED)
        else:
            built[name] = _named(model, horizon, random_state)
    if combinations:
        for part in COMBINED:
            built.setdefault(part, _named(part, horizon, random_state))
    return built, combinations, list(models)


def _named(name: str, horizon: Horizon, random_state: int | None) -> Forecaster:
    if name in FORECASTERS:
        model = FORECASTERS[name]
        return (
            replace(model, horizon=horizon, random_state=random_state) if isinstance(model, Autoregression) else model
        )
    if name == "latent_alone":
        return StateSpaceForecaster(random_state=random_state)
    msg = f"There is no model {name!r}; there are {', '.join(MODELS)}. Your own: models={{{name!r}: forecaster}}."
    raise ValueError(msg)


def _warn_of_unbounded(table: pd.DataFrame) -> None:
    unbounded = table[table["unbounded"]]
    if len(unbounded):
        first = unbounded.iloc[0]
        msg = (
            f"{len(unbounded)} of {len(table)} forecasts have an infinite interval of 90 %, first of item {first['item']!r} at "
            f"landmark {first['landmark']}: fewer than {patients_needed(0.9)} patients calibrate them. See the column 'unbounded'; "
            "more patients, or fewer folds with more of them to train on, make them finite."
        )
        warnings.warn(msg, UserWarning, stacklevel=3)


def _landmarks(chosen: Sequence[int] | None, horizon: Horizon, visits: Visits) -> tuple[int, ...] | None:
    if chosen is None:
        return None if horizon == "next" else (1, 2, 3)
    longest = int(visits.n_visits.max())
    ks = tuple(chosen)
    for k in ks:
        if not isinstance(k, int | np.integer) or isinstance(k, bool) or not 1 <= k < longest:
            msg = f"landmarks are numbers of first visits from 1 to {longest - 1}, which leave a visit; {k!r} is not."
            raise ValueError(msg)
    if not ks or len(set(ks)) < len(ks):
        msg = f"landmarks must name each number of visits once; they are {ks}."
        raise ValueError(msg)
    return tuple(sorted(map(int, ks)))


def _check_folds(folds: int, visits: Visits) -> None:
    if not isinstance(folds, int | np.integer) or folds < 2:
        msg = f"folds must be a whole number of at least 2; it is {folds!r}."
        raise ValueError(msg)
    needed = 4 * folds
    if (visits.n_visits > 1).sum() < needed:
        msg = f"{int((visits.n_visits > 1).sum())} subjects have two visits or more; {folds} folds need {needed}. Use fewer folds."
        raise ValueError(msg)
