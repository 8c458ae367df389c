"""dp.stats.predict_visits: items of subjects at any time, from their first visits."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from dynapath import get

from .registry.intervals import Intervals
from .registry.visits import FittedForecaster, Visits


def predict_visits(
    adata: AnnData,
    *,
    times: ArrayLike,
    given: Literal["all"] | int = "all",
    interval: float = 0.9,
    subjects: AnnData | None = None,
    key: str = "latent_dynamics",
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
        How many of a subject's first visits may be used, or `"all"`. A prediction for a time uses those of them that are not
        later: none reads what came after.
    interval
        Probability of the interval of a new measurement.
    subjects
        Visits of other subjects, with the items and baseline columns of the fit in any order; by default those in `adata`.
    key
        `key_added` of the fit.
    dynamics
        The dynamics of the fit, if they were an object of your own.

    Returns
    -------
    One row per subject, time and item: `subject`, `time`, `item`, `predicted`, `lower`, `upper` (NaN for Bernoulli items, whose
    prediction is a probability), `extrapolated` (the time since the first visit is longer than any in the fit, or there is no
    visit to start from, which gives NaN). Intervals are calibrated if the fit had `calibration_folds`; they are those of the
    next visit, so further ahead they rest on the model.

    Raises
    ------
    KeyError : if there is no such fit; for items or columns that `subjects` lacks.
    ValueError : for times that are not finite, or a `given` or `interval` out of range.

    Warns
    -----
    UserWarning : if a time is extrapolated.
    """
    when = np.atleast_1d(np.asarray(times, dtype=float))
    _check(when, given, interval)
    fit = get.visit_fit(adata, key)
    model = get.visit_model(adata, key, dynamics=dynamics)
    visits = model.read(adata if subjects is None else subjects).visits
    visits = visits if given == "all" else visits.first(int(given))
    mean, sd, k = at_times(model.fitted, visits, np.broadcast_to(when, (visits.n_subjects, len(when))))
    stored = fit["state"].get("intervals")
    if stored is None:
        half = np.full(mean.shape, norm.ppf(0.5 + interval / 2))
    else:
        widths = Intervals.from_arrays(stored).half_width(interval, k.ravel())
        half = widths.reshape(mean.shape)
    half = np.where(visits.gaussian, half * sd, np.nan)
    longest = float(fit["params"]["longest"])
    beyond = (when - visits.times[:, :1] > longest * (1 + 1e-9)) | (k == 0)
    if beyond.any():
        warnings.warn(
            f"{int(beyond.sum())} of {beyond.size} times are beyond the longest follow-up of the fit ({longest:g}) or before a "
            "subject's first visit; see the column 'extrapolated'.",
            UserWarning,
            stacklevel=2,
        )
    n, t, p = mean.shape
    return pd.DataFrame(
        {
            "subject": np.repeat(np.array(visits.subjects, dtype=object), t * p),
            "time": np.tile(np.repeat(when, p), n),
            "item": np.tile(np.array(visits.items, dtype=object), n * t),
            "predicted": mean.ravel(),
            "lower": (mean - half).ravel(),
            "upper": (mean + half).ravel(),
            "extrapolated": np.repeat(beyond.ravel(), p),
        }
    )


def at_times(
    fitted: FittedForecaster, visits: Visits, times: Float[NDArray, "subject time"]
) -> tuple[Float[NDArray, "subject time item"], Float[NDArray, "subject time item"], Int[NDArray, "subject time"]]:
    """Mean, standard deviation, and the number of visits used: those not later than the time."""
    k = (visits.present[:, None, :] & (visits.times[:, None, :] <= times[..., None])).sum(-1)
    shape = (*times.shape, visits.n_items)
    mean, sd = np.full(shape, np.nan), np.full(shape, np.nan)
    for used in np.unique(k[k > 0]):
        rows = np.flatnonzero((k == used).any(1))
        wanted = np.where(k[rows] == used, times[rows], np.nan)
        m, s = fitted.predict(visits.take(rows).first(int(used)), wanted)
        chosen = k[rows] == used
        mean[rows] = np.where(chosen[..., None], m, mean[rows])
        sd[rows] = np.where(chosen[..., None], s, sd[rows])
    return mean, sd, k


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
