"""Groups of cells: their dynamics, how sure they are, and how many there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dynapath._keys import DynamicKeys
from dynapath._times import in_decimals
from dynapath.write import KINDS

from ._fits import cell_slots, find_fit, fit_record, history, strings

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from dynapath.dynamics import GroupDynamics
    from dynapath.models.draws import Draws
    from dynapath.models.stage import Stage


def dynamics(adata: AnnData, key: str | None = None, *, alternative: int | None = None) -> GroupDynamics:
    """The fitted group dynamics alone: trajectories, velocities and flows, without the network and its counts.

    Parameters
    ----------
    adata
        With a fit under `key`.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    alternative
        Row of :func:`dynapath.get.alternatives`: that explanation instead of the fit.

    Raises
    ------
    KeyError : if there is no fit under `key`, or no such alternative.
    """
    from dynapath.dynamics import GroupDynamics

    key = find_fit(adata, key, KINDS)
    fit = adata.uns[key]
    if alternative is None:
        return GroupDynamics.from_arrays(fit["state"]["dynamics"])
    n = len(alternatives(adata, key))
    if not 0 <= alternative < n:
        found = f"they are 0 to {n - 1}" if n else "there are none"
        msg = f"The fit {key!r} has no alternative {alternative}; {found}. See dp.get.alternatives."
        raise KeyError(msg)
    return GroupDynamics.from_arrays(fit["alternatives"]["dynamics"]).select(alternative)


def alternatives(adata: AnnData, key: str | None = None) -> pd.DataFrame:
    """Other explanations of the data: restarts that came close to the fit with other groups, refitted to its states.

    Parameters
    ----------
    adata
        With a fit under `key`.

    Returns
    -------
    One row per alternative, best first; none if the restarts agree, or do so once they are refitted. `alternative`, the
    number by which :func:`dynapath.get.dynamics` gives it; `log_likelihood`, of all cells, minus that of the fit;
    `agreement`, the adjusted Rand index of its groups with those of the fit; `equivalent`, whether it is within 2 units of
    log-likelihood.

    Notes
    -----
    Restarts are candidates when they come within .02 nats per cell of the best before the latent space adapts to it, which
    is what the warning of :func:`dynapath.tl.fit_dynamic_vae` counts. With two snapshots, fits in which two groups trade
    their ends are candidates too. Here they are compared where that space has adapted
    to the fit, so that an alternative below 2 units may still be worth a fit of its own, from known labels.
    """
    from dynapath.dynamics.alternatives import table_of

    return pd.DataFrame(table_of(fit_record(adata, key).get("alternatives")))


def trajectories(
    adata: AnnData,
    key: str | None = None,
    *,
    times: ArrayLike | None = None,
    n_grid: int | None = None,
    level: float = 0.9,
) -> pd.DataFrame:
    """Where the groups are over time.

    Parameters
    ----------
    adata
        With a fit under `key`.
    times
        In the unit of the data, not before the first snapshot; by default `n_grid` times from the first to the last.
    n_grid
        Number of times where none are given, by default 50.
    level
        Probability of the bands.

    Returns
    -------
    One row per group, time and latent dimension: `group`, `time`, `dimension` (from 1); `mean`, `sd`, `lower`, `upper` (the
    band in which a cell of the group lies); `velocity` of the mean per unit of time; `proportion` of the group at that time;
    `extrapolated`. How well the data fix these is in `mean_lower`, `mean_upper`, `velocity_lower`, `velocity_upper`,
    `proportion_lower`, `proportion_upper`: of a bootstrap (:func:`dynapath.tl.bootstrap`), of several members, or of both;
    NaN without either.
    """
    from scipy.special import expit, logit
    from scipy.stats import norm

    from dynapath.models.draws import check_level, half_width

    members = draws(adata, key)
    fitted = members[0].fit
    observed = fitted.observed_times
    grid = grid_of(observed, times, n_grid, default=50)
    path = fitted.trajectories(grid)
    K, T, d = path.mean.shape
    group, time, dimension = (axis.ravel() for axis in np.meshgrid(range(K), range(T), range(d), indexing="ij"))
    mean, velocity = path.mean.ravel(), path.velocity.ravel()
    sd = np.sqrt(np.diagonal(path.cov, axis1=-2, axis2=-1)).ravel()
    half = norm.ppf((1 + check_level(level)) / 2) * sd

    drawn = [member.dynamics.trajectories(grid) for member in members]
    to_reference = [member.to_reference for member in members]
    batched = lambda values, ndim: values if values.ndim > ndim else values[None]
    of_mean = half_width([batched(m.points(p.mean), 3) for m, p in zip(to_reference, drawn, strict=True)], level)
    of_velocity = half_width(
        [batched(m.velocities(p.velocity), 3) for m, p in zip(to_reference, drawn, strict=True)], level
    )
    # Proportions are about normal as log-odds.
    odds = lambda share: logit(np.clip(share, 1e-12, 1 - 1e-12))
    of_share = half_width([odds(batched(p.proportions, 2)) for p in drawn], level)
    share = path.proportions
    return pd.DataFrame(
        {
            "group": pd.Categorical.from_codes(group, categories=group_names(adata, key)),
            "time": grid[time],
            "dimension": dimension + 1,
            "mean": mean,
            "sd": sd,
            "lower": mean - half,
            "upper": mean + half,
            "mean_lower": mean - of_mean.ravel(),
            "mean_upper": mean + of_mean.ravel(),
            "velocity": velocity,
            "velocity_lower": velocity - of_velocity.ravel(),
            "velocity_upper": velocity + of_velocity.ravel(),
            "proportion": share[group, time],
            "proportion_lower": expit(odds(share) - of_share)[group, time],
            "proportion_upper": expit(odds(share) + of_share)[group, time],
            "extrapolated": fitted.is_after(grid)[time],
        }
    )


def grid_of(
    observed: NDArray[np.float64], times: ArrayLike | None, n_grid: int | None, *, default: int
) -> NDArray[np.float64]:
    """The times asked for; without any, `n_grid` of them from the first observed time to the last."""
    if times is None:
        return np.linspace(observed[0], observed[-1], default if n_grid is None else n_grid)
    if n_grid is not None:
        msg = f"n_grid={n_grid!r} is the number of times where none are given, but times are. Leave one of them out."
        raise ValueError(msg)
    return np.atleast_1d(in_decimals(times))


def draws(adata: AnnData, key: str | None = None) -> list[Draws]:
    """Each member of a fit with its bootstrap, as far as there is one; neither networks nor counts are needed."""
    from dynapath.dynamics import GroupDynamics
    from dynapath.metrics import AffineMap
    from dynapath.models.draws import Draws
    from dynapath.models.last_layer import LastLayerError

    key = find_fit(adata, key, KINDS)
    fit = adata.uns[key]
    d = int(fit["params"]["n_latent"])
    resampled = fit.get("bootstrap", {})
    found = []
    for m, state in {"0": fit["state"], **fit["state"].get("members", {})}.items():
        mapped = state.get("to_reference", {"matrix": np.eye(d), "offset": np.zeros(d)})
        own = resampled.get(m, {})
        found.append(
            Draws(
                fit=GroupDynamics.from_arrays(state["dynamics"]),
                bootstrap=GroupDynamics.from_arrays(own["dynamics"]) if "dynamics" in own else None,
                to_reference=AffineMap(np.asarray(mapped["matrix"], float), np.asarray(mapped["offset"], float)),
                last_layer=LastLayerError.from_arrays(own["last_layer"]) if "last_layer" in own else None,
            )
        )
    return found


def observed_proportions(adata: AnnData, key: str | None = None, *, level: float = 0.9) -> pd.DataFrame:
    """Shares of the groups among the cells of each snapshot, to be held against the fitted proportions.

    Parameters
    ----------
    adata
        With a fit under `key`.
    level
        Probability of the intervals.

    Returns
    -------
    One row per group and snapshot: `group`, `time`, `proportion` (mean probability of the group over the cells),
    `lower`, `upper` (Wilson's interval for as many independent cells: of sampling cells, not donors or libraries), and
    `n_cells` of the snapshot.
    """
    from dynapath._sampling_error import share_interval

    tables, names = [], group_names(adata, key)
    for time, _, weights in snapshot_weights(adata, key):
        share = weights.mean(0)
        lower, upper = share_interval(share, len(weights), level)
        columns = {"time": time, "proportion": share, "lower": lower, "upper": upper, "n_cells": len(weights)}
        tables.append(pd.DataFrame({"group": pd.Categorical(names, categories=names), **columns}))
    return pd.concat(tables).sort_values(["group", "time"], ignore_index=True)


# Files keep the names of columns, not their order.
_CHOICE = ["n_groups", "log_likelihood", "n_parameters", "bic", "delta_bic", "chosen", "n_cells"]
_CHOICE += ["smallest_share", "eligible", "agreement", "restart_gap"]


def n_groups(adata: AnnData, key: str | None = None) -> pd.DataFrame:
    """One row per number of groups that was tried, for a fit with `n_groups="auto"` or several to choose from.

    Columns: `n_groups`; `log_likelihood`, the sum over `n_cells` cells (a part of them above 5,000) in the latent space of
    the static phase; `n_parameters`; `bic` = -2 log_likelihood + n_parameters log(n_cells), `delta_bic` above the lowest;
    `chosen`; `smallest_share`, of the cells, of a group; `eligible`, whether all groups have 2 % of the cells, chosen being
    the smallest such number whose `bic` is within 2 of the lowest of these; of the restarts, `agreement` (mean adjusted
    Rand index of the others with the best) and `restart_gap` (by how much the BIC of the second best is higher: where it
    exceeds `delta_bic`, the choice leans on one restart).

    Raises
    ------
    KeyError : if there is no fit under `key`, or its number of groups was given.
    """
    key = find_fit(adata, key, KINDS)
    fit = adata.uns[key]
    if "n_groups" not in fit:
        msg = (
            f"The fit {key!r} was given n_groups={int(fit['params']['n_groups'])}, so there is none to compare it with. "
            "Fit with n_groups='auto'."
        )
        raise KeyError(msg)
    return pd.DataFrame({name: np.asarray(values) for name, values in fit["n_groups"].items()})[_CHOICE]


def stages(adata: AnnData, key: str | None = None) -> list[Stage]:
    """What the model made of the cells in the course of its training.

    Parameters
    ----------
    adata
        With a fit under `key` made with `Training(keep_stages=True)`, or some of its cells.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.

    Returns
    -------
    One :class:`dynapath.models.Stage` each, in the order of training, with `name`, `epoch`, `z` (cell, latent) and
    `dynamics`: before training (`"untrained"`; not for a fit with `model`), after the static phase with the mixture fitted
    to it (`"static"`), and the fit (`"joint"`). Groups have the numbers of the fit. Of several members, the first.

    Raises
    ------
    KeyError : if no stages were kept.
    """
    from dynapath.models.stage import Stage

    slots = cell_slots(adata, key)
    key = slots.key
    fit = adata.uns[key]
    if "stages" not in fit:
        msg = (
            f"The fit {key!r} kept no stages of its training. Run dp.tl.fit_dynamic_vae(adata, ..., key_added={key!r}, "
            "training=dp.models.Training(keep_stages=True)), without use_rep."
        )
        raise KeyError(msg)
    missing = [slots.stage(name) for name in fit["stages"] if slots.stage(name) not in adata.obsm]
    if missing:
        msg = f"The fit {key!r} lacks obsm[{missing[0]!r}]. Was it removed? Run dp.tl.fit_dynamic_vae again."
        raise KeyError(msg)
    kept = [
        Stage.from_arrays(name, arrays, np.asarray(adata.obsm[slots.stage(name)]))
        for name, arrays in fit["stages"].items()
    ]
    epochs = history(adata, key)
    n_epochs = int((epochs["member"] == 0).sum()) if "member" in epochs else len(epochs)
    final = Stage("joint", n_epochs, np.asarray(adata.obsm[slots.latent]), dynamics(adata, key))
    # Files keep the names of stages, not their order.
    return [*sorted(kept, key=lambda stage: stage.epoch), final]


def snapshot_weights(adata: AnnData, key: str) -> Iterator[tuple[float, NDArray[np.intp], NDArray[np.float64]]]:
    """Each snapshot: its time, the rows of its cells, and their probabilities of the groups (cell, group)."""
    from dynapath.read.counts import read_times

    slots = cell_slots(adata, key)
    times = read_times(adata, fit_record(adata, key)["params"]["time_key"], at_least=1)
    weights = np.asarray(adata.obsm[slots.groups], dtype=float)
    # They were stored in single precision.
    weights = weights / weights.sum(1, keepdims=True)
    for time in np.unique(times):
        cells = np.flatnonzero(times == time)
        yield float(time), cells, weights[cells]


def group_names(adata: AnnData, key: str | None = None) -> list[str]:
    """Names of the groups, in their order: of the labels or numbers that the fit gave them, or as they were renamed since.

    Parameters
    ----------
    adata
        With a fit under `key`, or some of its cells. Groups are renamed by the categories of `obs["{key}_group"]`; those
        without cells here keep the name of the fit.
    key
        `key_added` of the fit.
    """
    key = find_fit(adata, key, KINDS)
    fit, slots = fit_record(adata, key), DynamicKeys(key)
    n_groups = int(fit["params"]["n_groups"])
    names = strings(fit["groups"]) if "groups" in fit else [str(k) for k in range(n_groups)]
    if slots.group not in adata.obs or slots.groups not in adata.obsm:
        return names
    # Categories may have been put into another order, or dropped; what cells are called tells which is which.
    given = adata.obs[slots.group]
    best = np.asarray(adata.obsm[slots.groups]).argmax(1)
    called = pd.crosstab(best[given.notna()], given[given.notna()].astype(str).to_numpy())
    found = {int(k): str(name) for k, name in called.idxmax(axis=1).items()} if called.size else {}
    mixed = bool((called.max(axis=1) < 0.99 * called.sum(axis=1)).any())
    if mixed or len(set(found.values())) < len(found):
        # Cells were put into groups of another kind, which are not those of the fit under other names.
        return names
    taken = set(found.values())
    rest = {k: name if name not in taken else f"group {k}" for k, name in enumerate(names) if k not in found}
    return [found[k] if k in found else rest[k] for k in range(n_groups)]


def chosen_groups(
    adata: AnnData, key: str | None, groups: str | int | Iterable[str | int] | None
) -> tuple[list[int], list[str]]:
    """Numbers of the groups that are asked for, by name or number, in the order asked; and the names of all.

    Raises
    ------
    ValueError : for one that is not there, naming those that are.
    """
    key = find_fit(adata, key, KINDS)
    names = group_names(adata, key)
    if groups is None:
        return list(range(len(names))), names
    # The fit's own names go on being understood where groups were renamed.
    known = {str(name): k for k, name in enumerate(fit_record(adata, key).get("groups", ()))}
    known |= {name: k for k, name in enumerate(names)}
    asked = [groups] if isinstance(groups, str | int | np.integer) else list(groups)
    found = [
        int(group) if isinstance(group, int | np.integer) and 0 <= group < len(names) else known.get(str(group))
        for group in asked
    ]
    if None in found or not asked:
        what = f"{str(asked[found.index(None)])!r} is none of them" if asked else "none was given"
        msg = f"groups must be among the groups of the fit {key!r}, {', '.join(names)}; {what}."
        raise ValueError(msg)
    return [k for k in dict.fromkeys(found) if k is not None], names
