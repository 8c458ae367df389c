"""What a forecast of visits must beat: the last value, the mean, straight lines, and autoregressions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from .history import SHORTEST, TICK, Clock, Horizon, landmarks, summarise
from .visits import Visits

Forecast = tuple[Float[NDArray, "subject ahead item"], Float[NDArray, "subject ahead item"]]


@dataclass(frozen=True)
class Rule:
    """A forecast from the subject's own past, without anything to fit, and without a standard deviation (NaN).

    `"locf"` carries the last value forward; `"mean"` is the mean of the past; `"ols_shift"` goes on with the slope of least
    squares of the past from the last value, the comparator of the published analyses.
    """

    name: Literal["locf", "mean", "ols_shift"]

    def fit(self, visits: Visits) -> FittedRule:
        """Nothing to learn but how short a time is next to none."""
        return FittedRule(self.name, SHORTEST * Clock.of(visits).span)


@dataclass(frozen=True)
class FittedRule:
    """A rule, and the time within which visits have no slope."""

    name: Literal["locf", "mean", "ols_shift"]
    shortest: float

    def predict(self, history: Visits, times: Float[NDArray, "subject ahead"]) -> Forecast:
        """NaN for an item that was never measured."""
        past = summarise(history, self.shortest)
        start = past.mean if self.name == "mean" else past.last
        slope = past.slope if self.name == "ols_shift" else np.where(past.seen, 0.0, np.nan)
        mean = start[:, None] + slope[:, None] * (times - past.time[:, None])[..., None]
        return mean, np.full_like(mean, np.nan)


@dataclass(frozen=True)
class Autoregression:
    """The next visit by ridge regression on the last values and the means of all items; `boosted`, plus trees on the rest.

    Columns: last value and mean of the past of every item, dt, last value x dt, covariates, covariates x dt, time of the
    last visit; with `horizon="all"`, when every later visit is learned from, also a saturating function of dt and its
    products, so that long gaps are not extrapolated from short ones. Columns are standardised, then shrunk by `ridge`.

    The trees (gradient boosting, scikit-learn) see the same columns, the number of visits and what was ever measured. Times are
    in units of the longest follow-up and rounded, so that neither columns nor splits depend on the unit they came in.
    """

    horizon: Horizon = "next"
    boosted: bool = False
    ridge: float = 3.0
    random_state: int | None = 0

    def fit(self, visits: Visits) -> FittedAutoregression:
        """One regression for each item, from every visit and what was known before it."""
        clock = Clock.of(visits)
        gaps = clock.gap(np.diff(visits.times, axis=1)[visits.present[:, 1:]])
        measured = visits.values[visits.present]
        counts = (~np.isnan(measured)).sum(0)
        items = np.where(counts > 0, np.nansum(measured, axis=0) / np.maximum(counts, 1), 0.0)
        gap = max(float(np.median(gaps)), TICK) if gaps.size else 1.0
        columns = Columns(items, clock, gap, self.horizon)
        X, extra, Y = [], [], []
        for landmark in landmarks(visits, self.horizon):
            row, ahead = np.nonzero(np.isfinite(landmark.times))
            x, more = columns.of(landmark.history, landmark.times)
            X.append(x[row, ahead])
            extra.append(more[row, ahead])
            Y.append(landmark.values[row, ahead])
        if not X:
            msg = "No subject has two visits, so that nothing can be learned about the next one."
            raise ValueError(msg)
        x, extra, y = np.concatenate(X), np.concatenate(extra), np.concatenate(Y)
        center, scale = x.mean(0), x.std(0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        x = (x - center) / scale
        intercept, beta, trees = np.zeros(y.shape[1]), np.zeros((y.shape[1], x.shape[1])), []
        for item in range(y.shape[1]):
            known = ~np.isnan(y[:, item])
            if not known.any():
                intercept[item] = items[item]
                trees.append(None)
                continue
            x0, y0 = x[known].mean(0), y[known, item].mean()
            xc, yc = x[known] - x0, y[known, item] - y0
            beta[item] = np.linalg.solve(xc.T @ xc + self.ridge * np.eye(x.shape[1]), xc.T @ yc)
            intercept[item] = y0 - x0 @ beta[item]
            rest = yc - xc @ beta[item]
            trees.append(self._trees(np.hstack([x, extra])[known], rest) if self.boosted else None)
        return FittedAutoregression(columns, center, scale, intercept, beta, tuple(trees), visits.gaussian)

    def _trees(self, x: NDArray, rest: NDArray) -> Any:
        from sklearn.ensemble import HistGradientBoostingRegressor

        if len(rest) < 40:
            return None
        trees = HistGradientBoostingRegressor(
            max_iter=60,
            learning_rate=0.05,
            max_depth=3,
            min_samples_leaf=20,
            l2_regularization=5.0,
            early_stopping=False,
            random_state=self.random_state,
        )
        return trees.fit(x, rest)


@dataclass(frozen=True)
class Columns:
    """The regressors of an autoregression."""

    items: Float[NDArray, " item"]  # stand in for what was never measured
    clock: Clock
    gap: float  # median, on the clock
    horizon: Horizon

    def of(
        self, history: Visits, times: Float[NDArray, "subject ahead"]
    ) -> tuple[Float[NDArray, "subject ahead column"], Float[NDArray, "subject ahead extra"]]:
        """Columns of the ridge regression, and those that only trees see."""
        past = summarise(self.clock.before_last(history), SHORTEST)
        now = history.last_time()[:, None]
        last = np.where(past.seen, past.last, self.items)
        mean = np.where(past.seen, past.mean, self.items)
        dt = self.clock.gap(np.where(np.isnan(times), 0.0, times - now))[..., None]

        def each(rows: NDArray) -> NDArray:
            return np.broadcast_to(rows[:, None], (*times.shape, rows.shape[1]))

        last, mean, covariates = each(last), each(mean), each(history.baseline)
        columns = [last, mean, dt, last * dt, covariates, covariates * dt, each(self.clock.time(now))]
        if self.horizon == "all":
            late = 1 - np.exp(-dt / (3 * self.gap))
            columns += [late, last * late, mean * late, covariates * late]
        extra = [each(past.n_visits[:, None].astype(float)), each(past.seen.astype(float)), each(past.slope * self.gap)]
        return np.concatenate(columns, -1), np.nan_to_num(np.concatenate(extra, -1))


@dataclass(frozen=True)
class FittedAutoregression:
    """Coefficients on standardised columns, and the trees of each item."""

    columns: Columns = field(repr=False)
    center: Float[NDArray, " column"]
    scale: Float[NDArray, " column"]
    intercept: Float[NDArray, " item"]
    beta: Float[NDArray, "item column"]
    trees: tuple[Any, ...] = field(repr=False)
    gaussian: NDArray[np.bool_] = field(repr=False)

    def predict(self, history: Visits, times: Float[NDArray, "subject ahead"]) -> Forecast:
        """Means; standard deviations are NaN."""
        x, extra = self.columns.of(history, times)
        x = (x - self.center) / self.scale
        mean = self.intercept + np.einsum("...j,ij->...i", x, self.beta)
        both = np.concatenate([x, extra], -1)
        for item, trees in enumerate(self.trees):
            if trees is not None and mean.size:
                mean[..., item] += trees.predict(both.reshape(-1, both.shape[-1])).reshape(times.shape)
        mean = np.where(self.gaussian, mean, np.clip(mean, 0.01, 0.99))
        mean[np.isnan(times)] = np.nan
        return mean, np.full_like(mean, np.nan)
