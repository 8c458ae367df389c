"""Hide reports that are known, recover them, and compare: how good is a way to fill gaps?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from dynapath._forecast_tables import inside
from dynapath._gaps import missing_by_chain
from dynapath.read.panel import Panel, read_panel

from .backtest import INCREMENT, steps
from .baselines import REGRESSIONS, carry_forward, interpolate, mean_increment, ols_coefficients, published_coefficients
from .increment.fit import fit
from .increment.impute import impute

Filled = tuple[Float[NDArray, "unit day"], Float[NDArray, "unit day"] | None, Float[NDArray, "unit day"] | None]


def mask_reports(
    adata: AnnData,
    fraction: float | None = None,
    *,
    p_start: float | None = None,
    p_stay: float | None = None,
    layer: str | None = None,
    random_state: int | None = 0,
) -> AnnData:
    """Hide some of the reports, to see how well they are recovered.

    Parameters
    ----------
    adata
        Units in rows, days in columns, NaN = not reported.
    fraction
        Share of each unit's reports to hide, rounded down, on random days. With `p_stay`, the share of days in the long
        run of the chain.
    p_start
        Probability that a gap starts after a day without one. With `p_stay`, instead of `fraction`: gaps that last.
    p_stay
        Probability that a gap goes on for another day; gaps last 1 / (1 - `p_stay`) days on average.
    layer
        Layer with the reports; by default `X`.
    random_state
        Seed. The global random state is neither used nor changed.

    Returns
    -------
    A copy in which hidden reports are NaN. `layers["hidden"]` (bool) says which, `layers["unmasked"]` has all that were
    there. The first report of a unit is never hidden: without it nothing could start.

    Raises
    ------
    ValueError : unless either `fraction`, or `p_start` and `p_stay`, or `fraction` and `p_stay` are given; for values out of
        range.

    Notes
    -----
    The chain compares uniform numbers with the two probabilities. (The published code compares normal ones, which hides
    another share of the days than asked for.)

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=5, n_days=20)
    >>> half = dp.stats.mask_reports(panel, 0.5)
    >>> bool(half.layers["hidden"][:, 0].any())
    False
    """
    panel = read_panel(adata, layer=layer)
    hidden = _hidden(np.random.default_rng(random_state), panel.observed, fraction, p_start, p_stay)
    masked = adata.copy()
    masked.layers["unmasked"] = panel.y.copy()
    masked.layers["hidden"] = hidden
    values = np.where(hidden, np.nan, panel.y)
    if layer is None:
        masked.X = values
    else:
        masked.layers[layer] = values
    return masked


def censoring_study(
    adata: AnnData,
    *,
    fractions: float | Sequence[float] = (0.1, 0.25, 0.5, 0.75),
    methods: str | Sequence[str] = ("locf", "linear", "filter_partial", "smooth_partial"),
    covariates: str | Sequence[str] | None = None,
    n_repeats: int = 10,
    p_stay: float | None = None,
    complete_only: bool = True,
    layer: str | None = None,
    observed: str | NDArray | None = None,
    interval: float | None = None,
    random_state: int | None = 0,
) -> pd.DataFrame:
    """Hide reports, recover them in several ways, and measure the errors.

    Parameters
    ----------
    adata
        Units in rows, days in columns, NaN = not reported.
    fractions
        Shares of the reports to hide.
    methods
        `"all"`, or some of

        - `"locf"`: the last report carried forward.
        - `"linear"`: a straight line between the reports around a gap; the last one carried forward after the last.
        - `"filter_{pooling}"`, `"smooth_{pooling}"`: :func:`dynapath.stats.impute_increment` after a fit with pooling
          `individual`, `global` or `partial`. The filter uses what was reported before a day, the smoother also what came
          after.
        - `"mean"`, `"modified_mean"`, `"ols"`, `"ols_published"`: one step from the last report, however long ago it was, as
          in the published study.
    covariates
        Layers with covariates, for regressions and increment models.
    n_repeats
        How often to hide other days.
    p_stay
        If given, hidden days come in gaps that go on with this probability; else single days are drawn.
    complete_only
        Whether to use units only that reported on all days, as published. Else hidden days are drawn among the reported.
    layer
        Layer with the reports; by default `X`.
    observed
        Mask of what was reported, or the name of a layer with it.
    interval
        Probability of the intervals of increment models, by default .9.
    random_state
        Seed. Each repetition hides the same days from every method.

    Returns
    -------
    One row per fraction, repetition, method and unit: `fraction`, `repeat`, `method`, `unit`, `n_hidden`, `sse` (over the
    hidden days), `mse` (per hidden day), `mse_all_days` (over all days but the first, as published: days that were not hidden
    count as zero error), `covered` (share of hidden days within their interval, where it is finite; NaN without).

    Raises
    ------
    ValueError : for an unknown method or a fraction out of range, if no unit is complete, or for an argument that none of the
        methods uses.

    Notes
    -----
    Whoever wants to know a value in retrospect should look at both sides of the gap, and compare with the straight line.
    The filter is for those who cannot wait.
    """
    fractions = [fractions] if np.isscalar(fractions) else list(fractions)
    methods = list(METHODS) if methods == "all" else [methods] if isinstance(methods, str) else list(methods)
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        what = f"There is no method {unknown[0]!r}" if unknown else "methods is empty"
        msg = f"{what}; there are {', '.join(METHODS)}."
        raise ValueError(msg)
    increments = any(method not in SIMPLE for method in methods)
    for name, value, used, by in (
        (
            "covariates",
            covariates,
            increments or bool({*methods} & {*REGRESSIONS}),
            f"{', '.join(REGRESSIONS)}, filters and smoothers",
        ),
        ("interval", interval, increments, "filters and smoothers"),
    ):
        if value is not None and not used:
            msg = f"{name}={value!r} is for {by}, and methods has none of them: {', '.join(methods)}. Leave {name} out."
            raise ValueError(msg)
    interval = 0.9 if interval is None else interval
    if n_repeats < 1:
        msg = f"n_repeats must be at least 1; it is {n_repeats!r}."
        raise ValueError(msg)
    panel = read_panel(adata, layer=layer, covariates=covariates, observed=observed)
    if complete_only:
        complete = panel.observed.all(1)
        if not complete.any():
            msg = "No unit reported on all days. Use complete_only=False to hide some of the reports there are."
            raise ValueError(msg)
        panel = panel.take(np.flatnonzero(complete))
    rng = np.random.default_rng(random_state)
    rows = []
    for fraction in fractions:
        for repeat in range(n_repeats):
            hidden = _hidden(rng, panel.observed, fraction, None, p_stay)
            seen = panel.with_y(np.where(hidden, np.nan, panel.y))
            for method, (values, lower, upper) in _recover(seen, methods, interval):
                rows.append(_errors(panel, hidden, values, lower, upper, fraction, repeat, method))
    return pd.concat(rows, ignore_index=True)


def _hidden(
    rng: np.random.Generator,
    observed: Bool[NDArray, "unit day"],
    fraction: float | None,
    p_start: float | None,
    p_stay: float | None,
) -> Bool[NDArray, "unit day"]:
    if (fraction is None) == (p_start is None) or (p_start is not None and p_stay is None):
        msg = "Give fraction (single days), fraction and p_stay, or p_start and p_stay (gaps that last)."
        raise ValueError(msg)
    if fraction is not None and not 0 <= fraction < 1:
        msg = f"fraction is the share of reports to hide, from 0 to below 1; it is {fraction!r}."
        raise ValueError(msg)
    first = observed.argmax(1)
    may = observed & (np.arange(observed.shape[1]) > first[:, None])
    if p_stay is None:
        wanted = np.floor(fraction * observed.sum(1) + 1e-9).astype(int)
        order = np.where(may, rng.random(observed.shape), np.inf).argsort(1).argsort(1)
        return may & (order < wanted[:, None])
    if p_start is None:
        p_start = fraction * (1 - p_stay) / (1 - fraction)
        if not 0 <= p_start <= 1:
            msg = f"Gaps that go on with p_stay={p_stay!r} cannot hide {fraction:.0%} of the days. Raise p_stay."
            raise ValueError(msg)
    return may & missing_by_chain(rng, *observed.shape, p_start, p_stay)


def _recover(seen: Panel, methods: Iterable[str], interval: float) -> Iterable[tuple[str, Filled]]:
    """What each method fills in; a fit is shared by the filter and the smoother."""
    fits = {}
    for method in methods:
        how, _, pooling = method.partition("_")
        if how not in ("filter", "smooth"):
            yield method, (SIMPLE[method](seen), None, None)
            continue
        if pooling not in fits:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*reports are negative")  # not once per repetition
                fits[pooling] = fit(seen, pooling=pooling)
        filled = impute(fits[pooling].dynamics, seen, mode=how, interval=interval)
        # Too few reports for a fit of its own: nothing is known but the last one.
        values = np.where(np.isnan(filled.mean), carry_forward(seen.y), filled.mean)
        yield method, (values, filled.lower, filled.upper)


def _errors(
    panel: Panel,
    hidden: Bool[NDArray, "unit day"],
    values: Float[NDArray, "unit day"],
    lower: Float[NDArray, "unit day"] | None,
    upper: Float[NDArray, "unit day"] | None,
    fraction: float,
    repeat: int,
    method: str,
) -> pd.DataFrame:
    n_hidden = hidden.sum(1)
    sse = np.where(hidden, (panel.y - values) ** 2, 0.0).sum(1)
    covered = np.full(panel.n_units, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        if lower is not None:
            within = np.where(hidden, inside(panel.y, lower, upper), np.nan)
            covered = np.nansum(within, axis=1) / np.isfinite(within).sum(1)
        mse = sse / n_hidden
    return pd.DataFrame(
        {
            "fraction": fraction,
            "repeat": repeat,
            "method": method,
            "unit": panel.units.to_numpy(),
            "n_hidden": n_hidden,
            "sse": sse,
            "mse": mse,
            "mse_all_days": sse / (panel.n_days - 1),
            "covered": covered,
        }
    )


def _one_step(increment: Float[NDArray, "unit day"], y: Float[NDArray, "unit day"]) -> Float[NDArray, "unit day"]:
    """The increment of each day added to the report carried forward to the day before."""
    before = np.column_stack([y[:, 0], carry_forward(y)[:, :-1]])
    return np.where(np.isnan(y), before + increment, y)


def _mean(seen: Panel) -> Float[NDArray, "unit day"]:
    return _one_step(np.repeat(mean_increment(seen.y)[:, None], seen.n_days, axis=1), seen.y)


def _modified_mean(seen: Panel) -> Float[NDArray, "unit day"]:
    """Predicts 0 after a 0."""
    before = np.column_stack([seen.y[:, 0], carry_forward(seen.y)[:, :-1]])
    return np.where(np.isnan(seen.y) & (before == 0), 0.0, _mean(seen))


def _ols(seen: Panel) -> Float[NDArray, "unit day"]:
    x, _ = steps(seen, 1)
    return _regression(seen, ols_coefficients(seen.y, x), x)


def _ols_published(seen: Panel) -> Float[NDArray, "unit day"]:
    x, ahead = steps(seen, 1)
    return _regression(seen, published_coefficients(seen.y, np.concatenate([x, ahead], axis=2)), x)


def _regression(seen: Panel, b: Float[NDArray, "unit coefficient"], x: Float[NDArray, "column unit day"]) -> NDArray:
    before = np.column_stack([seen.y[:, 0], carry_forward(seen.y)[:, :-1]])
    increment = b[:, [0]] + b[:, [1]] * before + np.einsum("uj,jut->ut", b[:, 2:], x)
    return _one_step(increment, seen.y)


SIMPLE: dict[str, Callable[[Panel], NDArray[np.float64]]] = {
    "locf": lambda seen: carry_forward(seen.y),
    "linear": lambda seen: interpolate(seen.y),
    "mean": _mean,
    "modified_mean": _modified_mean,
    "ols": _ols,
    "ols_published": _ols_published,
}
METHODS = (
    *SIMPLE,
    *(f"{how}_{name.removeprefix('increment_')}" for how in ("filter", "smooth") for name in INCREMENT),
)
