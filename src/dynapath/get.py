"""Slots -> tidy tables and fitted models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ._keys import DynamicKeys, IncrementKeys, embedding_key
from .models._random import isolated_seed
from .write import INCREMENT, KINDS

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from .dynamics import GroupDynamics, IncrementDynamics
    from .models import DynamicVAE, Ensemble
    from .models.draws import Draws
    from .models.gene_paths import FoundGenes
    from .models.stage import Stage

__all__ = [
    "alternatives",
    "dynamics",
    "gene_trajectories",
    "history",
    "increment_fit",
    "increment_params",
    "long",
    "members",
    "model",
    "n_groups",
    "observed_genes",
    "observed_proportions",
    "restarts",
    "stages",
    "trajectories",
]


def model(adata: AnnData, key: str = "dynvae") -> DynamicVAE | Ensemble | GroupDynamics | IncrementDynamics:
    """The fitted model, built again from the arrays in `uns[key]`.

    Parameters
    ----------
    adata
        The AnnData that was fitted, a copy or a subset of its cells; the genes must be those of the fit.
    key
        `key_added` of the fit.

    Returns
    -------
    A :class:`dynapath.models.DynamicVAE` on these cells; for a fit with several members a
    :class:`dynapath.models.Ensemble` of them; for a fit with `use_rep` its :class:`dynapath.dynamics.GroupDynamics`.
    For a fit of the increment model its :class:`dynapath.dynamics.IncrementDynamics`, with the units of this AnnData.

    Raises
    ------
    KeyError : if there is no fit under `key`.
    ValueError : if genes or counts are no longer those of the fit.
    """
    stored = adata.uns.get(key)
    if isinstance(stored, Mapping) and stored.get("kind") == INCREMENT:
        return _increments(adata, key)
    fit = _fit(adata, key)
    if fit["kind"] == "group_dynamics":
        return dynamics(adata, key)
    states = [fit["state"], *fit["state"].get("members", {}).values()]
    rebuilt = _untrained(adata, key, fit["params"], copies=len(states))
    for one, state in zip(rebuilt, states, strict=True):
        one.load_arrays(state)
    if len(rebuilt) == 1:
        return rebuilt[0]
    from .metrics import AffineMap
    from .models import Ensemble

    d = rebuilt[0].module.n_latent
    maps = [AffineMap(np.eye(d), np.zeros(d))]
    for state in states[1:]:
        stored = state["to_reference"]
        maps.append(AffineMap(np.asarray(stored["matrix"], float), np.asarray(stored["offset"], float)))
    return Ensemble(tuple(rebuilt), tuple(maps))


def _untrained(adata: AnnData, key: str, params: Mapping[str, Any], copies: int) -> list[DynamicVAE]:
    """Models as the fit built them, on the counts of these cells, which are read once."""
    from .models import DynamicVAE, Prior, Training
    from .read.counts import Remembered, read_snapshots

    _check_genes(adata, _strings(params["genes"]), key)
    snapshots = read_snapshots(
        adata,
        **{name: params.get(name) for name in ("time_key", "layer", "batch_key", "labels_key", "size_factor_key")},
        remembered=Remembered(_strings(params.get("batches", ())), _strings(params.get("group_labels", ()))),
    )
    data, columns = snapshots.to_anndata()
    # Registering samples the counts and fresh networks draw weights: not from the session's random state.
    with isolated_seed(0):
        DynamicVAE.setup_anndata(data, **columns, observed_times=np.asarray(params["observed_times"]).tolist())
        return [
            DynamicVAE(
                data,
                n_groups=int(params["n_groups"]),
                n_latent=int(params["n_latent"]),
                likelihood=str(params["likelihood"]),
                growth=str(params["growth"]),
                prior=Prior(**_plain(params["prior"])),
                training=Training(**_plain(params["network"])),
                module_kwargs=_plain(params.get("module_kwargs", {})),
            )
            for _ in range(copies)
        ]


def dynamics(adata: AnnData, key: str = "dynvae", *, alternative: int | None = None) -> GroupDynamics:
    """The fitted group dynamics alone: trajectories, velocities and flows, without the network and its counts.

    Parameters
    ----------
    adata
        With a fit under `key`.
    key
        `key_added` of the fit.
    alternative
        Row of :func:`dynapath.get.alternatives`: that explanation instead of the fit.

    Raises
    ------
    KeyError : if there is no fit under `key`, or no such alternative.
    """
    from .dynamics import GroupDynamics

    fit = _fit(adata, key)
    if alternative is None:
        return GroupDynamics.from_arrays(fit["state"]["dynamics"])
    n = len(alternatives(adata, key))
    if not 0 <= alternative < n:
        found = f"they are 0 to {n - 1}" if n else "there are none"
        msg = f"The fit {key!r} has no alternative {alternative}; {found}. See dp.get.alternatives."
        raise KeyError(msg)
    return GroupDynamics.from_arrays(fit["alternatives"]["dynamics"]).select(alternative)


def alternatives(adata: AnnData, key: str = "dynvae") -> pd.DataFrame:
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
    from .dynamics.alternatives import table_of

    return pd.DataFrame(table_of(_fit(adata, key).get("alternatives")))


def trajectories(
    adata: AnnData, key: str = "dynvae", *, times: ArrayLike | None = None, n_grid: int = 50, level: float = 0.9
) -> pd.DataFrame:
    """Where the groups are over time.

    Parameters
    ----------
    adata
        With a fit under `key`.
    times
        In the unit of the data, not before the first snapshot; by default `n_grid` times from the first to the last.
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

    from .models.draws import check_level, half_width

    members = draws(adata, key)
    fitted = members[0].fit
    observed = fitted.observed_times
    grid = np.linspace(observed[0], observed[-1], n_grid) if times is None else np.atleast_1d(np.asarray(times, float))
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
            "group": pd.Categorical(group.astype(str), categories=[str(k) for k in range(K)]),
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
            "extrapolated": grid[time] > observed[-1],
        }
    )


def draws(adata: AnnData, key: str = "dynvae") -> list[Draws]:
    """Each member of a fit with its bootstrap, as far as there is one; neither networks nor counts are needed."""
    from .dynamics import GroupDynamics
    from .metrics import AffineMap
    from .models.draws import Draws
    from .models.last_layer import LastLayerError

    fit = _fit(adata, key)
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


def gene_trajectories(
    adata: AnnData,
    genes: str | Sequence[str],
    key: str = "dynvae",
    *,
    times: ArrayLike | None = None,
    n_grid: int = 25,
    level: float = 0.9,
) -> pd.DataFrame:
    """Decoded means of genes along the paths of the groups, and how fast they change.

    Parameters
    ----------
    adata
        With a fit of counts under `key`; the genes and counts must be those of the fit, a subset of the cells will do.
    genes
        Names in `var_names`.
    times
        In the unit of the data, not before the first snapshot; by default `n_grid` times from the first to the last.
    level
        Probability of the bands.

    Returns
    -------
    One row per group, gene and time: `group`, `gene`, `time`; `mean`, the expected counts per 1e4 counts of a cell (per 1e4
    size factors where the fit had them), averaged over the states of the group at that time; `lower`, `upper`; `velocity`,
    the change of the mean per unit of time; `velocity_lower`, `velocity_upper`; `extrapolated`. Several batches are averaged
    with equal weight, whatever their number of cells; excess zeros are left out. With several members, means are theirs.

    Bands are about the mean, not of single cells. They need a bootstrap (:func:`dynapath.tl.bootstrap`), several members,
    or both, and are NaN without either.

    Raises
    ------
    KeyError : for unknown genes, with names like theirs.
    ValueError : for a fit with `use_rep`, which has no decoder, and for times before the first snapshot.

    Notes
    -----
    On the four simulated scenarios (2,250 cells, 200 genes, n_bootstrap=50, one member) bands of 90 % hold 89 to 93 % of the
    true group means and 86 to 98 % of the true velocities; the least where groups lie far apart, and at the last time.
    """
    from .models.draws import check_level, half_width

    check_level(level)
    names = gene_names(adata, genes)
    observed = dynamics(adata, key).observed_times
    grid = np.linspace(observed[0], observed[-1], n_grid) if times is None else np.atleast_1d(np.asarray(times, float))
    found = gene_paths(adata, key, grid, adata.var_names.get_indexer(names))
    # Means are about normal as logarithms.
    factor = np.exp(half_width([np.log(paths.mean) for paths in found.draws], level))
    half = half_width([paths.velocity for paths in found.draws], level)
    columns = {
        "mean": found.mean,
        "lower": found.mean / factor,
        "upper": found.mean * factor,
        "velocity": found.velocity,
        "velocity_lower": found.velocity - half,
        "velocity_upper": found.velocity + half,
    }
    K, T, G = found.mean.shape
    group, gene, time = (axis.ravel() for axis in np.meshgrid(range(K), range(G), range(T), indexing="ij"))
    return pd.DataFrame(
        {
            "group": pd.Categorical(group.astype(str), categories=[str(k) for k in range(K)]),
            "gene": pd.Categorical.from_codes(gene, categories=names),
            "time": grid[time],
            **{name: values.swapaxes(1, 2).ravel() for name, values in columns.items()},
            "extrapolated": grid[time] > observed[-1],
        }
    )


def gene_paths(adata: AnnData, key: str, times: NDArray[np.float64], columns: NDArray[np.intp]) -> FoundGenes:
    """Decoded group means of some genes: the estimate, and the draws of each member.

    Raises
    ------
    ValueError : for a fit with `use_rep`.
    """
    from .models.gene_paths import FoundGenes, gene_paths

    fit = _fit(adata, key)
    if fit["kind"] != "dynamic_vae":
        msg = f"The fit {key!r} was made with use_rep={fit['params']['use_rep']!r} and decodes no genes. Fit without use_rep."
        raise ValueError(msg)
    fitted = model(adata, key)
    members = getattr(fitted, "members", None)
    models = members if isinstance(members, tuple) else (fitted,)
    own, drawn = [], []
    for one, member in zip(models, draws(adata, key), strict=True):
        own.append(gene_paths(one.module, member.fit, times, genes=columns))
        if member.bootstrap is None:
            drawn.append(own[-1])
        else:
            drawn.append(gene_paths(one.module, member.bootstrap, times, genes=columns, error=member.last_layer))
    mean, velocity = (np.mean([getattr(paths, name)[0] for paths in own], axis=0) for name in ("mean", "velocity"))
    return FoundGenes(mean.astype(float), velocity.astype(float), tuple(drawn))


def observed_proportions(adata: AnnData, key: str = "dynvae", *, level: float = 0.9) -> pd.DataFrame:
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
    from ._sampling_error import share_interval

    tables = []
    for time, _, weights in _snapshot_weights(adata, key):
        share = weights.mean(0)
        lower, upper = share_interval(share, len(weights), level)
        columns = {"time": time, "proportion": share, "lower": lower, "upper": upper, "n_cells": len(weights)}
        tables.append(pd.DataFrame({"group": _group_names(len(share)), **columns}))
    return pd.concat(tables).sort_values(["group", "time"], ignore_index=True)


def observed_genes(
    adata: AnnData, genes: str | Sequence[str], key: str = "dynvae", *, level: float = 0.9
) -> pd.DataFrame:
    """Mean measured counts of the groups at each snapshot, to be held against the decoded ones.

    Parameters
    ----------
    adata
        With a fit under `key`, and the counts it was fitted to.
    genes
        Names in `var_names`.
    level
        Probability of the intervals.

    Returns
    -------
    One row per group, gene and snapshot: `group`, `gene`, `time`, `mean` (counts per 1e4 of the cell, or per 1e4 size
    factors, weighted by the probability of the group), `lower`, `upper` (of sampling cells, Student's t; not below zero),
    and `n_cells`, the sum of the weights. The mean is NaN below one cell, the bounds below two.

    Raises
    ------
    KeyError : for unknown genes, with names like theirs.
    ValueError : for a fit with `use_rep`, which has no counts.
    """
    from ._sampling_error import weighted_mean
    from .read.counts import read_counts

    names = gene_names(adata, genes)
    fit = _fit(adata, key)
    params = fit["params"]
    if fit["kind"] != "dynamic_vae":
        msg = f"The fit {key!r} was made with use_rep={params['use_rep']!r} and knows no counts. Fit without use_rep."
        raise ValueError(msg)
    _check_genes(adata, _strings(params["genes"]), key)
    counts = read_counts(adata, params.get("layer"))
    by = params.get("size_factor_key")
    library = np.asarray(counts.sum(1) if by is None else adata.obs[by], dtype=float).reshape(-1, 1)
    values = 1e4 * counts[:, adata.var_names.get_indexer(names)].toarray() / library
    tables = []
    for time, cells, weights in _snapshot_weights(adata, key):
        mean, lower, upper = weighted_mean(values[cells], weights, level)
        K, G = mean.shape
        columns = {"mean": mean, "lower": np.maximum(lower, 0), "upper": upper, "n_cells": weights.sum(0)[:, None]}
        table = pd.DataFrame({name: np.broadcast_to(column, (K, G)).ravel() for name, column in columns.items()})
        table.insert(0, "group", _group_names(K).repeat(G))
        table.insert(1, "gene", pd.Categorical(names * K, categories=names))
        table.insert(2, "time", time)
        tables.append(table)
    return pd.concat(tables).sort_values(["group", "gene", "time"], ignore_index=True)


def gene_names(adata: AnnData, genes: str | Sequence[str]) -> list[str]:
    """`genes` as a list without repeats, all of them in `var_names`."""
    asked = [genes] if isinstance(genes, str) else list(dict.fromkeys(genes))
    if not asked:
        msg = "genes is empty. Name at least one of var_names."
        raise ValueError(msg)
    unknown = [gene for gene in asked if gene not in adata.var_names]
    if unknown:
        from difflib import get_close_matches

        # Names often differ in case alone.
        known = {str(name).lower(): str(name) for name in adata.var_names}
        close = [known[name] for name in get_close_matches(str(unknown[0]).lower(), list(known), n=3)]
        hint = f"close to it: {', '.join(map(repr, close))}" if close else "no name is close to it"
        more = f" ({len(unknown)} of {len(asked)} genes are unknown)" if len(unknown) > 1 else ""
        msg = f"var_names has no {unknown[0]!r}; {hint}{more}."
        raise KeyError(msg)
    return asked


def _snapshot_weights(adata: AnnData, key: str) -> Iterator[tuple[float, NDArray[np.intp], NDArray[np.float64]]]:
    """Each snapshot: its time, the rows of its cells, and their probabilities of the groups (cell, group)."""
    from .read.counts import read_times

    slots = cell_slots(adata, key)
    times = read_times(adata, _fit(adata, key)["params"]["time_key"], at_least=1)
    weights = np.asarray(adata.obsm[slots.groups], dtype=float)
    # They were stored in single precision.
    weights = weights / weights.sum(1, keepdims=True)
    for time in np.unique(times):
        cells = np.flatnonzero(times == time)
        yield float(time), cells, weights[cells]


def _group_names(n_groups: int) -> pd.Categorical:
    names = [str(k) for k in range(n_groups)]
    return pd.Categorical(names, categories=names)


def long(adata: AnnData, *, layers: Sequence[str] | None = None) -> pd.DataFrame:
    """A panel as a long table, the way back from :func:`dynapath.pp.panel_from_long`.

    Parameters
    ----------
    adata
        Units in rows, days in columns.
    layers
        Layers to add as columns, by default all: covariates, and what a fit wrote.

    Returns
    -------
    One row per unit and day, unit by unit: the unit, the day, the value in `X` (NaN = not reported), then the layers. The
    first three columns are named as in the table that the panel was made of, else `unit`, `date` and `value`. Days are
    timestamps where they read as dates.

    Raises
    ------
    KeyError : for a layer that does not exist.
    """
    present = [name for name in adata.layers if name is not None]
    chosen = present if layers is None else list(layers)
    for name in chosen:
        if name not in present:
            msg = f"layers has no {name!r}; present: {', '.join(sorted(present)) or 'none'}."
            raise KeyError(msg)
    names = {"unit": "unit", "time": "date", "value": "value"} | dict(adata.uns.get("panel", {}))
    days = pd.Series(adata.var["date"] if "date" in adata.var else adata.var_names).reset_index(drop=True)
    try:
        days = pd.to_datetime(days.astype(str), format="ISO8601")
    except ValueError:
        pass  # the user's own names of the days
    dense = lambda matrix: np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix).ravel()
    table = {
        str(names["unit"]): np.repeat(adata.obs_names.to_numpy(), adata.n_vars),
        str(names["time"]): np.tile(days.to_numpy(), adata.n_obs),
        str(names["value"]): dense(adata.X),
    }
    return pd.DataFrame(table | {name: dense(adata.layers[name]) for name in chosen})


def history(adata: AnnData, key: str = "dynvae") -> pd.DataFrame:
    """One row per epoch: `phase`, `loss` and its named terms, in nats per cell. For `use_rep`, one row per step.

    With several members, their tables one after another and a column `member`.
    """
    return pd.DataFrame(_fit(adata, key)["history"]).copy()


def restarts(adata: AnnData, key: str = "dynvae") -> pd.DataFrame:
    """One row per restart of the mixture fit, best first.

    Columns: `log_likelihood` (mean per cell) and `agreement` (adjusted Rand index with the groups of the best).
    """
    table = pd.DataFrame({name: np.asarray(values) for name, values in _fit(adata, key)["restarts"].items()})
    return table.sort_values("log_likelihood", ascending=False, ignore_index=True)


# Files keep the names of columns, not their order.
_CHOICE = ["n_groups", "log_likelihood", "n_parameters", "bic", "delta_bic", "chosen", "n_cells"]
_CHOICE += ["smallest_share", "eligible", "agreement", "restart_gap"]


def n_groups(adata: AnnData, key: str = "dynvae") -> pd.DataFrame:
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
    fit = _fit(adata, key)
    if "n_groups" not in fit:
        msg = (
            f"The fit {key!r} was given n_groups={int(fit['params']['n_groups'])}, so there is none to compare it with. "
            "Fit with n_groups='auto'."
        )
        raise KeyError(msg)
    return pd.DataFrame({name: np.asarray(values) for name, values in fit["n_groups"].items()})[_CHOICE]


def members(adata: AnnData, key: str = "dynvae") -> pd.DataFrame:
    """One row per member of an ensemble.

    Columns: `member`, final `elbo` (nats per cell; lower is better), and `agreement` of its groups with those of the first
    (adjusted Rand index). A fit with one member has one row.
    """
    fit = _fit(adata, key)
    table = fit.get("members")
    if table is None:
        last = history(adata, key).iloc[-1]
        table = {"elbo": [last.get("elbo", np.nan)], "agreement": [1.0]}
    return (
        pd.DataFrame({name: np.asarray(values) for name, values in table.items()}).rename_axis("member").reset_index()
    )


def stages(adata: AnnData, key: str = "dynvae") -> list[Stage]:
    """What the model made of the cells in the course of its training.

    Parameters
    ----------
    adata
        With a fit under `key` made with `Training(keep_stages=True)`, or some of its cells.
    key
        `key_added` of the fit.

    Returns
    -------
    One :class:`dynapath.models.Stage` each, in the order of training, with `name`, `epoch`, `z` (cell, latent) and
    `dynamics`: before training (`"untrained"`; not for a fit with `model`), after the static phase with the mixture fitted
    to it (`"static"`), and the fit (`"joint"`). Groups have the numbers of the fit. Of several members, the first.

    Raises
    ------
    KeyError : if no stages were kept.
    """
    from .models.stage import Stage

    slots = cell_slots(adata, key)
    fit = _fit(adata, key)
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


def increment_fit(adata: AnnData, key: str = "increment") -> Mapping[str, Any]:
    """What a fit of the increment model left in `uns[key]`: `params` (its settings), `state` (its arrays), `versions`.

    Raises
    ------
    KeyError : if there is no such fit, or its slots were removed.
    """
    fit = adata.uns.get(key)
    if not isinstance(fit, Mapping) or fit.get("kind") != INCREMENT:
        fits = [
            name for name, value in adata.uns.items() if isinstance(value, Mapping) and value.get("kind") == INCREMENT
        ]
        found = f"fits of it are under: {', '.join(fits)}" if fits else "there is none in this AnnData"
        msg = f"uns has no fit of the increment model under {key!r}; {found}. Run dp.stats.fit_increment(adata, ...) first."
        raise KeyError(msg)
    names = IncrementKeys(key)
    missing = [f"obsm[{names.params!r}]"] if names.params not in adata.obsm else []
    missing += [f"layers[{name!r}]" for name in (names.state, names.resid) if name not in adata.layers]
    if missing:
        msg = f"The fit {key!r} lacks {', '.join(missing)}. Was it removed? Run dp.stats.fit_increment again."
        raise KeyError(msg)
    return fit


def _increments(adata: AnnData, key: str) -> IncrementDynamics:
    """Of the units of this AnnData, in its order."""
    from .dynamics import IncrementDynamics

    fitted = IncrementDynamics.from_arrays(increment_fit(adata, key)["state"])
    rows = pd.Index(fitted.units).get_indexer(adata.obs_names.astype(str))
    if (rows < 0).any():
        unknown = adata.obs_names[rows < 0]
        msg = (
            f"The fit {key!r} does not know unit {unknown[0]!r} ({len(unknown)} in all). Were units renamed or added? "
            "Run dp.stats.fit_increment again."
        )
        raise ValueError(msg)
    return fitted.take(rows)


def increment_params(adata: AnnData, key: str = "increment", *, level: float = 0.9) -> pd.DataFrame:
    """Coefficients of the increment model with their errors and intervals.

    Parameters
    ----------
    adata
        With a fit under `key`, or some of its units.
    key
        `key_added` of the fit.
    level
        Probability of the intervals: normal, or Student's t where an individual coefficient has few residuals.

    Returns
    -------
    One row per unit and coefficient: `unit`, `coefficient`, `estimate`, `se`, `lower`, `upper`, `status`. If coefficients
    are pooled, the first rows are their means over units, with `unit` missing.
    """
    from scipy.stats import t as student

    if not 0 < level < 1:
        msg = f"level={level!r} must be a probability between 0 and 1."
        raise ValueError(msg)
    fitted = _increments(adata, key)
    n_units, k = fitted.params.shape
    se = fitted.se if fitted.se is not None else np.full((n_units, k), np.nan)
    n = adata.obs[IncrementKeys(key).n].to_numpy(dtype=float)
    # A unit's own coefficients come with a variance estimated from its own residuals.
    own = np.ones(k, bool) if fitted.mean is None else np.isnan(fitted.mean)
    df = np.where(own, np.maximum(n - k, 1.0)[:, None], np.inf)
    half = student.ppf((1 + level) / 2, df) * se
    tables = []
    if fitted.mean is not None:
        of_means = np.sqrt(np.diag(fitted.mean_covariance))[~own]
        reach = student.ppf((1 + level) / 2, np.inf) * of_means
        mean = fitted.mean[~own]
        pooled = {"unit": None, "coefficient": np.array(fitted.coefficients)[~own], "estimate": mean, "se": of_means}
        tables.append(pd.DataFrame({**pooled, "lower": mean - reach, "upper": mean + reach, "status": "pooled"}))
    tables.append(
        pd.DataFrame(
            {
                "unit": np.repeat(fitted.units, k),
                "coefficient": np.tile(fitted.coefficients, n_units),
                "estimate": fitted.params.ravel(),
                "se": se.ravel(),
                "lower": (fitted.params - half).ravel(),
                "upper": (fitted.params + half).ravel(),
                "status": np.repeat(fitted.status, k),
            }
        )
    )
    return pd.concat(tables, ignore_index=True)


def _fit(adata: AnnData, key: str) -> Mapping[str, Any]:
    fit = adata.uns.get(key)
    if not isinstance(fit, Mapping) or fit.get("kind") not in KINDS:
        fits = [name for name, value in adata.uns.items() if isinstance(value, Mapping) and value.get("kind") in KINDS]
        found = f"fits present: {', '.join(fits)}" if fits else "there is no fit in this AnnData"
        msg = f"uns has no fit under {key!r}; {found}. Run dp.tl.fit_dynamic_vae(adata, ..., key_added={key!r}) first."
        raise KeyError(msg)
    return fit


def cell_slots(adata: AnnData, key: str) -> DynamicKeys:
    """Names of the slots of a fit, once all of them are there."""
    _fit(adata, key)
    names = DynamicKeys(key)
    missing = [f"obsm[{slot!r}]" for slot in names.obsm if slot not in adata.obsm]
    missing += [f"obs[{column!r}]" for column in names.obs if column not in adata.obs]
    if missing:
        msg = f"The fit {key!r} lacks {', '.join(missing)}. Was it removed? Run dp.tl.fit_dynamic_vae again."
        raise KeyError(msg)
    return names


def embedding(adata: AnnData, basis: str) -> tuple[str, NDArray[np.float64]]:
    """Name and coordinates of an embedding: of basis "umap" or "X_umap", "umap" and `obsm["X_umap"]`.

    Raises
    ------
    KeyError : if there is no such embedding, naming those there are.
    """
    name = str(basis).removeprefix(embedding_key(""))
    slot = embedding_key(name)
    if slot not in adata.obsm:
        there = [other.removeprefix(embedding_key("")) for other in adata.obsm if other.startswith(embedding_key(""))]
        msg = (
            f"obsm has no {slot!r} (basis={basis!r}); bases present: {', '.join(there) or 'none'}. Compute it first, e.g. "
            "with sc.pp.neighbors(adata, use_rep=...) and sc.tl.umap(adata)."
        )
        raise KeyError(msg)
    return name, np.asarray(adata.obsm[slot], dtype=float)


def embedded_velocity(adata: AnnData, basis: str, key: str) -> tuple[str, NDArray[np.float64], NDArray[np.float64]]:
    """Name and coordinates of an embedding, and the arrows of a fit in it."""
    name, coordinates = embedding(adata, basis)
    slot = cell_slots(adata, key).embedded_velocity(name)
    if slot not in adata.obsm:
        msg = f"obsm has no {slot!r}. Run dp.tl.embed_velocity(adata, basis={name!r}, key={key!r}) first."
        raise KeyError(msg)
    return name, coordinates, np.asarray(adata.obsm[slot], dtype=float)


def _strings(values: ArrayLike) -> list[str]:
    """As str, whichever string type the file format gave back."""
    return [str(value) for value in values]


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as Python's own, whichever scalar type the file format gave back."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in settings.items()}


def _check_genes(adata: AnnData, genes: list[str], key: str) -> None:
    wanted = pd.Index(genes)
    if adata.var_names.equals(wanted):
        return
    missing = wanted.difference(adata.var_names)
    if len(missing):
        what = f"{len(missing)} of them are missing, such as {missing[0]!r}"
    else:
        what = "their order or number differs"
    msg = f"The fit {key!r} used {len(wanted)} genes; {what}. Use adata[:, adata.uns[{key!r}]['params']['genes']]."
    raise ValueError(msg)
