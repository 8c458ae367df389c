"""Landmark forecasts: folds of patients, every model fitted without them, forecasts from their first k visits.

Within the training patients of each fold, every model is fitted again without a fifth of them at a time. These inner
forecasts calibrate intervals and weigh the models that are combined; no test patient has a part in either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy.typing import NDArray

from dynapath._threads import few_threads
from dynapath.metrics.forecasts import gaussian_crps

from .calibrate import LEVELS, Calibration, Errors
from .combine import stacking_weights
from .history import Horizon, Landmark, landmarks
from .visits import FittedForecaster, Forecaster, Visits

INNER_FOLDS = 5
COLUMNS = (
    "model", "fold", "subject", "landmark", "time", "item", "observed", "predicted", "sd",
    "lower50", "upper50", "lower90", "upper90", "unbounded", "crps", "ahead", "kind",
)  # fmt: skip


@dataclass(frozen=True)
class Combination:
    """A forecast that is the weighted mean of others, by name; the first is the one in question."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class Cases:
    """Forecasts to be made, one row for each subject, landmark, later visit and item that can be scored."""

    cuts: tuple[Landmark, ...] = field(repr=False)
    subject: Int[NDArray, " row"]
    k: Int[NDArray, " row"]
    item: Int[NDArray, " row"]
    time: Float[NDArray, " row"]
    dt: Float[NDArray, " row"]  # since the last visit of the history
    observed: Float[NDArray, " row"]

    @classmethod
    def of(cls, visits: Visits, horizon: Horizon, ks: tuple[int, ...] | None) -> Cases:
        """All cases of these visits."""
        cuts = tuple(landmarks(visits, horizon, ks))
        parts: list[tuple[NDArray, ...]] = []
        for cut in cuts:
            row, ahead, item = np.nonzero(cut.scored)
            time = cut.times[row, ahead]
            parts.append(
                (
                    cut.subjects[row],
                    np.full(len(row), cut.k),
                    item,
                    time,
                    time - cut.history.last_time()[row],
                    cut.values[row, ahead, item],
                )
            )
        if not parts:
            nothing = np.zeros(0, dtype=np.int64)
            return cls((), nothing, nothing, nothing, np.zeros(0), np.zeros(0), np.zeros(0))
        return cls(cuts, *(np.concatenate(column) for column in zip(*parts, strict=True)))

    def forecast(self, fitted: FittedForecaster) -> tuple[Float[NDArray, " row"], Float[NDArray, " row"]]:
        """Mean and standard deviation of every case."""
        means, sds = [np.zeros(0)], [np.zeros(0)]
        for cut in self.cuts:
            mean, sd = fitted.predict(cut.history, cut.times)
            means.append(mean[cut.scored])
            sds.append(sd[cut.scored])
        return np.concatenate(means), np.concatenate(sds)


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of the real-valued items of the training patients."""

    mean: Float[NDArray, " item"]
    sd: Float[NDArray, " item"]

    @classmethod
    def of(cls, visits: Visits) -> Standard:
        """Of all measurements; items of 0 and 1 stay as they are."""
        measured = visits.values[visits.present]
        known = ~np.isnan(measured)
        n = np.maximum(known.sum(0), 1)
        mean = np.where(known, measured, 0.0).sum(0) / n
        sd = np.sqrt(np.where(known, (measured - mean) ** 2, 0.0).sum(0) / n)
        varies = visits.gaussian & (sd > 0)
        return cls(np.where(visits.gaussian, mean, 0.0), np.where(varies, sd, 1.0))

    def apply(self, visits: Visits) -> Visits:
        """The same visits in these units."""
        return visits.with_values((visits.values - self.mean) / self.sd)


@dataclass(frozen=True)
class FoldForecasts:
    """Forecasts of one fold: inner ones of its training patients, and those of its test patients."""

    inner: Cases
    test: Cases
    inner_forecast: dict[str, tuple[NDArray, NDArray]]
    test_forecast: dict[str, tuple[NDArray, NDArray]]
    weights: dict[str, dict[str, float]]  # of combinations


def patient_folds(n_subjects: int, folds: int, random_state: int | None) -> list[Int[NDArray, " subject"]]:
    """Positions of the test patients of each fold: shuffled once, then every `folds`-th."""
    order = np.arange(n_subjects)
    np.random.RandomState(random_state).shuffle(order)
    return [np.sort(order[fold::folds]) for fold in range(folds)]


@few_threads(lambda visits, *_, **__: visits.values.size)
def forecast_fold(
    visits: Visits,
    test: Int[NDArray, " subject"],
    models: Mapping[str, Forecaster],
    combinations: Mapping[str, Combination],
    *,
    horizon: Horizon,
    ks: tuple[int, ...] | None,
    random_state: int | None,
) -> FoldForecasts:
    """Everything that is fitted for one fold, in units of the training patients' standard deviations."""
    train = np.setdiff1d(np.arange(visits.n_subjects), test)
    units = Standard.of(visits.take(train))
    known = units.apply(visits.take(train))
    unknown = units.apply(visits.take(test))
    inner = patient_folds(known.n_subjects, INNER_FOLDS, random_state)
    inner_cases = [Cases.of(known.take(held), horizon, ks) for held in inner]
    test_cases = Cases.of(unknown, horizon, ks)
    inner_forecast, test_forecast = {}, {}
    for name, model in models.items():
        parts = []
        for held, cases in zip(inner, inner_cases, strict=True):
            rest = np.setdiff1d(np.arange(known.n_subjects), held)
            parts.append(cases.forecast(model.fit(known.take(rest))))
        inner_forecast[name] = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
        test_forecast[name] = test_cases.forecast(model.fit(known))
    together = _joined(inner_cases, inner)
    weights = {}
    for name, combination in combinations.items():
        predicted = np.column_stack([inner_forecast[part][0] for part in combination.parts])
        w = stacking_weights(together.observed, predicted)
        weights[name] = dict(zip(combination.parts, w.tolist(), strict=True))
        # Standard deviations of those parts that have them.
        has_sd = np.array([np.isfinite(inner_forecast[part][1]).all() for part in combination.parts])
        v = np.where(has_sd, w, 0.0) if (w[has_sd] > 0).any() else has_sd.astype(float)
        v = v / max(v.sum(), 1e-12)
        for forecast in (inner_forecast, test_forecast):
            mean = sum(weight * forecast[part][0] for weight, part in zip(w, combination.parts, strict=True))
            sd = sum(
                weight * forecast[part][1] for weight, part in zip(v, combination.parts, strict=True) if weight > 0
            )
            forecast[name] = mean, sd if has_sd.any() else np.full_like(mean, np.nan)
    return FoldForecasts(together, test_cases, inner_forecast, test_forecast, weights)


def fold_table(found: FoldForecasts, visits: Visits, test: NDArray, fold: int, names: Sequence[str]) -> pd.DataFrame:
    """One row per model and forecast, with calibrated intervals."""
    cases, inner = found.test, found.inner
    binary = ~visits.gaussian[cases.item]
    rows = []
    for name in names:
        mean, sd = found.inner_forecast[name]
        errors = Errors(inner.subject, inner.item, inner.k, inner.dt, inner.observed - mean, sd)
        calibration = Calibration.of(errors, visits.n_items)
        mean, sd = found.test_forecast[name]
        calibrated, half = calibration.apply(cases.item, cases.k, cases.dt, sd)
        crps = gaussian_crps(cases.observed, mean, calibrated)
        # For 0 and 1 the CRPS of a probability is its Brier score, and an interval says nothing.
        p = np.clip(mean, 0.0, 1.0)
        mean = np.where(binary, p, mean)
        crps = np.where(binary, (p - cases.observed) ** 2, crps)
        half = np.where(binary, np.nan, half)
        row = {
            "model": name,
            "fold": fold,
            "subject": np.array(visits.subjects, dtype=object)[test[cases.subject]],
            "landmark": cases.k,
            "time": cases.time,
            "ahead": cases.dt,
            "item": np.array(visits.items, dtype=object)[cases.item],
            "observed": cases.observed,
            "predicted": mean,
            "sd": np.where(binary, np.sqrt(p * (1 - p)), calibrated),
            "unbounded": np.isinf(half).any(0),
            "crps": crps,
            "kind": np.array(visits.kinds, dtype=object)[cases.item],
        }
        for level, width in zip(LEVELS, half, strict=True):
            row[f"lower{100 * level:.0f}"] = mean - width
            row[f"upper{100 * level:.0f}"] = mean + width
        rows.append(pd.DataFrame(row, columns=list(COLUMNS)))
    return pd.concat(rows, ignore_index=True)


def _joined(cases: list[Cases], folds: list[Int[NDArray, " subject"]]) -> Cases:
    """The cases of all inner folds, in their order; subjects are positions in the visits that were folded."""
    subject = np.concatenate([held[one.subject] for one, held in zip(cases, folds, strict=True)])
    columns = ("k", "item", "time", "dt", "observed")
    return Cases((), subject, *(np.concatenate([getattr(one, column) for one in cases]) for column in columns))
