"""dp.stats.predict_visits: items of subjects at any time, from their first visits."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from dynapath import get
from dynapath._times import in_decimals


def predict_visits(
    adata: AnnData,
    *,
    times: ArrayLike,
    given: Literal["all"] | int = "all",
    interval: float = 0.9,
    subjects: AnnData | None = None,
    key: str | None = None,
    dynamics: Any = None,
) -> pd.DataFrame:
    """Items of every subject at `times`, from its first visits.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.stats.fit_latent_dynamics`.
    times
        Times in the unit and with the origin of the fit (dates: time since a subject's first visit).
    given
        How many of a subject's first visits may be used, or `"all"`; visits at which nothing was measured do not count. A
        prediction for a time uses those of them that are not
        later: none reads what came after.
    interval
        Probability of the interval of a new measurement.
    subjects
        Visits of other subjects, with the items and baseline columns of the fit in any order; by default those in `adata`.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    dynamics
        The dynamics of the fit, if they were an object of your own.

    Returns
    -------
    One row per subject, time and item: `subject`, `time`, `item`, `predicted`, `lower`, `upper` (NaN for Bernoulli items, whose
    prediction is a probability), `unbounded` (the interval is infinite, since too few subjects calibrate it: n of them allow
    probabilities up to n / (n + 1)), `extrapolated` (the time since the first visit is longer than any in the fit, or nothing of
    the subject was measured by then, which gives NaN). Intervals are calibrated if the fit had `calibration_folds`; they are those of the
    next visit, so further ahead they rest on the model.

    Raises
    ------
    KeyError : if there is no such fit; for items or columns that `subjects` lacks.
    ValueError : for times that are not finite, a `given` or `interval` out of range, or `dynamics` that the fit has not or lacks.

    Warns
    -----
    UserWarning : if a time is extrapolated, a prediction is NaN, or an interval is infinite.
    """
    when = np.atleast_1d(in_decimals(times))
    _check(when, given, interval)
    predicted, longest = get.visit_predictions(
        adata, key, times=when, given=given, interval=interval, subjects=subjects, dynamics=dynamics
    )
    _warn_of_times(predicted, longest)
    unbounded = predicted["unbounded"]
    if unbounded.any():
        warnings.warn(
            f"{int(unbounded.sum())} of {len(predicted)} intervals are infinite (first: item {predicted['item'][unbounded].iloc[0]!r}): "
            f"too few subjects calibrate interval={interval:g}, see the column 'unbounded'. Ask for a smaller one, or use a fit with "
            "calibration_folds=0 for intervals that rest on the model.",
            UserWarning,
            stacklevel=2,
        )
    return predicted


def _warn_of_times(predicted: pd.DataFrame, longest: float) -> None:
    """Of what is extrapolated, and of what cannot be predicted."""
    beyond, nothing = predicted["extrapolated"], predicted["predicted"].isna()
    n_items = predicted["item"].nunique()
    n = len(predicted) // n_items
    said = []
    if (beyond & ~nothing).any():
        late = int((beyond & ~nothing).sum()) // n_items
        said.append(f"{late} of {n} times are beyond the longest follow-up of the fit ({longest:g})")
    if nothing.any():
        first = predicted[nothing].iloc[0]
        said.append(
            f"{int(nothing.sum()) // n_items} of {n} predictions are NaN, since nothing of the subject was measured by then (first: "
            f"subject {first['subject']!r} at {first['time']:g})"
        )
    if said:
        warnings.warn(f"{'; '.join(said)}. See the column 'extrapolated'.", UserWarning, stacklevel=3)


def _check(times: NDArray, given: Any, interval: float) -> None:
    if times.ndim != 1 or not len(times) or not np.isfinite(times).all():
        msg = f"times must be a list of finite numbers, the same for all subjects; it is {times!r}."
        raise ValueError(msg)
    if given != "all" and (not isinstance(given, int | np.integer) or isinstance(given, bool) or given < 1):
        msg = f"given must be 'all' or a number of visits of at least 1; it is {given!r}."
        raise ValueError(msg)
    if not 0 < interval < 1:
        msg = f"interval is a probability between 0 and 1; it is {interval!r}."
        raise ValueError(msg)
