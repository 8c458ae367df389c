"""dp.pl.calibration and dp.pl.landmarks: are forecasts of visits as sure as they say, and how good are they when?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dynapath._forecast_tables import check_one_kind, inside

from ._colors import SAFE
from ._days import legend_below
from ._figure import INK, LABEL_SIZE, TICK_SIZE, TWO_COLUMNS, finish, new_figure, plain_axes
from ._over_time import given_panels

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NARROW = 5.0
_SIMPLE = ("locf", "mean", "ols_shift", "lmm", "ar_ridge", "ar_boosted")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SCORES = {"rmse": "RMSE (training SD)", "crps": "CRPS (training SD)", "cover90": "coverage of 90 % intervals"}


def calibration(
    table: pd.DataFrame,
    *,
    model: str = "latent_dynamics",
    most_landmarks: int = 3,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """Whether a model's forecasts are as sure as they say: coverage of its intervals, and where observations fall.

    Parameters
    ----------
    table
        From :func:`dynapath.stats.landmark_forecast`.
    model
        Which model.
    most_landmarks
        Landmarks from this one on are taken together.
    legend
        Whether to add a legend, below the panels.
    figsize
        Width and height in inches. Below 5 inches the panels are put on top of each other.
    axes
        Draw on these two Axes instead of on a new figure: coverage, distribution.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of two Axes with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : for a table that is not one of landmark forecasts.
    ValueError : for a model that is not in it, or has no finite intervals.

    Notes
    -----
    Left: share of observations inside the 50 and 90 % intervals that are finite, by item and landmark; bars are 95 % intervals from 300
    resamples of patients. Right: where observations fall in the normal distribution with the forecast's mean and standard
    deviation; flat if that is right, higher at both ends if it is too sure. The intervals on the left are conformal
    and may hold where the normal distribution does not; they hold for patients, and shares of forecasts are above what they
    promise where patients with many visits are covered more often.

    Examples
    --------
    >>> import dynapath as dp
    >>> table = dp.stats.landmark_forecast(dp.datasets.pbc2(), models=["ar_ridge"])  # doctest: +SKIP
    >>> axes = dp.pl.calibration(table, model="ar_ridge", show=False)  # doctest: +SKIP
    """
    own = _of_model(table, model)
    if own["lower90"].isna().all():
        msg = f"{model!r} has no intervals in this table. Items of 0 and 1 have none."
        raise ValueError(msg)
    own = own[own["lower90"].notna()]
    if np.isinf(own["lower90"]).all():
        msg = (
            f"All intervals of {model!r} are infinite: too few patients calibrate them. Give a table of more patients."
        )
        raise ValueError(msg)
    own = own.assign(stratum=own["landmark"].clip(upper=most_landmarks))
    items = [str(item) for item in pd.unique(own["item"])]
    strata = sorted(own["stratum"].unique())
    panels = _two_panels(figsize, 0.9 + 0.34 * len(items)) if axes is None else None
    panels = given_panels(axes, 2, "coverage and distribution") if panels is None else panels
    _draw_coverage(panels[0], own, items, strata)
    _draw_pit(panels[1], own)
    if legend:
        handles = [
            Line2D([], [], ls="", marker=_MARKS[j], ms=4, color=SAFE[j], label=_landmark_name(s, most_landmarks))
            for j, s in enumerate(strata)
        ]
        handles.append(Line2D([], [], color=INK, lw=0.8, ls="--", label="as promised"))
        _legend(panels, handles, own=axes is None)
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def landmarks(
    table: pd.DataFrame,
    *,
    score: str = "rmse",
    models: Sequence[str] | None = None,
    most_landmarks: int = 4,
    n_bins: int = 4,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure | None:
    """How well models forecast, by the number of visits known and by the time to the visit that is forecast.

    Parameters
    ----------
    table
        From :func:`dynapath.stats.landmark_forecast`; with `horizon="all"` the right panel reaches far ahead.
    score
        `"rmse"`, `"crps"` or `"cover90"`.
    models
        Which to draw; by default all but `"ols_shift"`, which is off the scale of the others.
    most_landmarks
        Landmarks from this one on are taken together.
    n_bins
        Intervals of time ahead, with equally many forecasts.
    legend
        Whether to add a legend, below the panels.
    figsize
        Width and height in inches. Below 5 inches the panels are put on top of each other.
    axes
        Draw on these two Axes instead of on a new figure: landmarks, time ahead.
    show
        Show the figure and return None; by default as `scanpy.settings.autoshow` says.
    return_fig
        Return the figure, without showing it.

    Returns
    -------
    An array of two Axes with `show=False`; the Figure with `return_fig=True`; None once shown.

    Raises
    ------
    KeyError : for a table that is not one of landmark forecasts.
    ValueError : for a score or models that are not there; for errors of real-valued items and of items of 0 and 1 together.

    Notes
    -----
    Patients with many visits are those who stayed: a score at a late landmark is of other patients than one at the first.

    Examples
    --------
    >>> import dynapath as dp
    >>> table = dp.stats.landmark_forecast(dp.datasets.pbc2(), models=["locf", "ar_ridge"])  # doctest: +SKIP
    >>> axes = dp.pl.landmarks(table, show=False)  # doctest: +SKIP
    """
    if score not in _SCORES:
        msg = f"score must be one of {', '.join(map(repr, _SCORES))}; it is {score!r}."
        raise ValueError(msg)
    _check(table)
    present = [str(name) for name in pd.unique(table["model"])]
    chosen = [name for name in present if name != "ols_shift" or len(present) == 1] if models is None else list(models)
    wrong = [name for name in chosen if name not in present]
    if wrong or not chosen:
        what = f"{wrong[0]!r} is not in the table" if wrong else "models is empty"
        msg = f"{what}; its models are {', '.join(present)}."
        raise ValueError(msg)
    parts = table[table["model"].astype(str).isin(chosen)]
    if score != "cover90":
        check_one_kind(parts, np.zeros(len(parts)), "table[table['kind'] == 'gaussian'], or 'bernoulli'")
    stratum = parts["landmark"].clip(upper=most_landmarks)
    bins = pd.qcut(parts["ahead"], n_bins, duplicates="drop")
    panels = _two_panels(figsize, 2.5) if axes is None else None
    panels = given_panels(axes, 2, "landmarks and time ahead") if panels is None else panels
    middle = parts["ahead"].groupby(bins, observed=True).median()
    styles = _styles(chosen)
    for ax, group, x in ((panels[0], stratum, None), (panels[1], bins, middle)):
        for name in chosen:
            own = (parts["model"].astype(str) == name).to_numpy()
            values = _score(parts[own], group[own], score)
            at = values.index.to_numpy(float) if x is None else x.reindex(values.index).to_numpy(float)
            ax.plot(at, values.to_numpy(), lw=1.3, ms=3.5, mec="white", mew=0.4, gid=f"model {name}", **styles[name])
        if score == "cover90":
            ax.axhline(0.9, color=INK, lw=0.8, ls="--", zorder=0.5)
        plain_axes(ax)
        ax.set_ylabel(_SCORES[score], size=LABEL_SIZE)
    ticks = sorted(stratum.unique())
    more = (table["landmark"] > most_landmarks).any()
    panels[0].set_xticks(ticks, [f"{t:g}" + ("+" if t == most_landmarks and more else "") for t in ticks])
    panels[0].set_xlabel("visits known", size=LABEL_SIZE)
    panels[1].set_xlabel("time since the last visit known", size=LABEL_SIZE)
    panels[1].set_xlim(left=0)
    panels[1].xaxis.set_major_locator(MaxNLocator(6))
    if legend:
        handles = [Line2D([], [], lw=1.3, ms=3.5, label=name, **styles[name]) for name in chosen]
        _legend(panels, handles, own=axes is None)
    return finish(panels[0].figure, panels, show=show, return_fig=return_fig)


def _check(table: pd.DataFrame) -> None:
    for name in ("model", "landmark", "item", "observed", "predicted", "sd", "lower90", "upper90", "crps", "ahead"):
        if name not in table:
            msg = f"table has no column {name!r}. Give what dp.stats.landmark_forecast returned."
            raise KeyError(msg)


def _of_model(table: pd.DataFrame, model: str) -> pd.DataFrame:
    _check(table)
    own = table[table["model"].astype(str) == model]
    if own.empty:
        msg = f"{model!r} is not in the table; its models are {', '.join(map(str, pd.unique(table['model'])))}."
        raise ValueError(msg)
    return own


def _two_panels(figsize: tuple[float, float] | None, height: float) -> NDArray[np.object_]:
    figsize = (TWO_COLUMNS, max(2.6, height)) if figsize is None else figsize
    figure = new_figure(figsize)
    panels = np.empty(2, dtype=object)
    narrow = figsize[0] < _NARROW
    grid = figure.add_gridspec(2, 1) if narrow else figure.add_gridspec(1, 2)
    panels[:] = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    return panels


def _legend(panels: NDArray[np.object_], handles: list[Line2D], *, own: bool) -> None:
    if own:
        legend_below(panels[0].figure, handles)
    else:
        panels[1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=TICK_SIZE)


def _landmark_name(stratum: int, most: int) -> str:
    visits = "visit" if stratum == 1 and most > 1 else "visits"
    return f"{stratum}{'+' if stratum == most else ''} {visits} known"


def _draw_coverage(ax: Axes, own: pd.DataFrame, items: list[str], strata: list[int]) -> None:
    for level in (50, 90):
        ax.axvline(level / 100, color=INK, lw=0.8, ls="--", zorder=0.5)
        covered = inside(own["observed"], own[f"lower{level}"], own[f"upper{level}"])
        for j, stratum in enumerate(strata):
            shift = 0.22 * (j - (len(strata) - 1) / 2)
            for row, item in enumerate(items):
                chosen = ((own["item"].astype(str) == item) & (own["stratum"] == stratum)).to_numpy() & ~np.isnan(
                    covered
                )
                if not chosen.any():
                    continue
                share, low, high = _share(covered[chosen], own.loc[chosen, "subject"])
                ax.plot([low, high], [row + shift] * 2, color=SAFE[j], lw=0.9, alpha=0.7, zorder=2)
                ax.plot(
                    share, row + shift, marker=_MARKS[j], ms=3.6, color=SAFE[j], mec="white", mew=0.4, zorder=3,
                    gid=f"cover{level} {item} {stratum}",
                )  # fmt: skip
    ax.set_yticks(range(len(items)), items)
    ax.set_ylim(len(items) - 0.4, -0.6)
    ax.set_xlim(0.35, 1.0)
    ax.set_xticks([0.5, 0.7, 0.9])
    plain_axes(ax)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("share inside the 50 and 90 % intervals", size=LABEL_SIZE)


def _share(covered: NDArray[np.float64], subject: pd.Series) -> tuple[float, float, float]:
    """Share, and its 95 % interval over patients."""
    sums = pd.Series(covered).groupby(subject.astype(str).to_numpy()).agg(["sum", "count"]).to_numpy()
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), 300) @ sums
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(covered.mean()), float(low), float(high)


def _draw_pit(ax: Axes, own: pd.DataFrame) -> None:
    """Histogram of the distribution function of each forecast at what was observed."""
    from scipy.special import ndtr

    position = ndtr((own["observed"] - own["predicted"]) / own["sd"])
    ax.hist(position, bins=np.linspace(0, 1, 11), density=True, color="0.8", edgecolor="white", lw=0.6)
    ax.axhline(1, color=INK, lw=0.8, ls="--")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, max(1.6, ax.get_ylim()[1]))
    plain_axes(ax)
    ax.set_xlabel("position in the normal forecast", size=LABEL_SIZE)
    ax.set_ylabel("density of observations", size=LABEL_SIZE)


def _styles(names: list[str]) -> dict[str, dict]:
    """Models of interest in colour, simple ones in greys; a mark for each."""
    colours, greys = iter(SAFE), iter(np.linspace(0.75, 0.3, max(sum(name in _SIMPLE for name in names), 1)))
    return {
        name: {
            "color": f"{next(greys):.3f}" if name in _SIMPLE else next(colours),
            "marker": _MARKS[i % len(_MARKS)],
            "zorder": 2 if name in _SIMPLE else 3,
        }
        for i, name in enumerate(names)
    }


def _score(parts: pd.DataFrame, group: pd.Series, score: str) -> pd.Series:
    if score == "crps":
        return parts["crps"].groupby(group, observed=True).mean()
    if score == "cover90":
        covered = inside(parts["observed"], parts["lower90"], parts["upper90"])
        return pd.Series(covered, index=parts.index).groupby(group, observed=True).mean()
    return np.sqrt(((parts["observed"] - parts["predicted"]) ** 2).groupby(group, observed=True).mean())
