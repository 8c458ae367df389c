"""Genes along the paths of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dynapath._names import as_text
from dynapath.write import KINDS

from ._fits import cell_slots, find_fit, fit_record, strings
from ._groups import draws, dynamics, grid_of, group_names, snapshot_weights
from ._model import model
from ._stored import check_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray
    from scipy.sparse import csr_matrix

    from dynapath.models.gene_paths import FoundGenes

# All draws see the same cells, so fewer of them show as well how draws differ.
_POINTS_OF_A_DRAW = 32


def gene_trajectories(
    adata: AnnData,
    genes: str | Sequence[str],
    key: str | None = None,
    *,
    times: ArrayLike | None = None,
    n_grid: int | None = None,
    level: float = 0.9,
) -> pd.DataFrame:
    """Decoded means of genes along the paths of the groups, and how fast they change.

    Parameters
    ----------
    adata
        With a fit of counts under `key`; the genes and counts must be those of the fit. Of a subset of the cells, means are
        those of the subset.
    genes
        Names in `var_names`.
    times
        In the unit of the data, not before the first snapshot; by default `n_grid` times from the first to the last.
    n_grid
        Number of times where none are given, by default 25.
    level
        Probability of the bands.

    Returns
    -------
    One row per group, gene and time: `group`, `gene`, `time`; `mean`, the expected counts per 1e4 counts of a cell (per 1e4
    size factors where the fit had them), averaged over the cells of the group, carried to that time; `lower`, `upper`;
    `velocity`, the change of the mean per unit of time as these cells move on; `velocity_lower`, `velocity_upper`;
    `extrapolated`. Several batches are averaged with equal weight, whatever their number of cells; excess zeros are left out.
    With several members, means are theirs.

    Bands are about the mean, not of single cells. They need a bootstrap (:func:`dynapath.tl.bootstrap`), several members,
    or both, and are NaN without either.

    Raises
    ------
    KeyError : for unknown genes, with names like theirs.
    ValueError : for a fit with `use_rep`, which has no decoder, and for times before the first snapshot.

    Notes
    -----
    Measured cells stand for a group, weighted by their probability of it, since a decoder is exponential and sees in the tails
    of a Gaussian what no cell has. At the time of a snapshot they are its own cells; those of others, carried over one
    snapshot, weigh as much as a single cell, and describe a group where a snapshot has none of it. Between two snapshots the
    cells of both are carried there, and the mean goes over from the one to the other, which `velocity` leaves out.

    On the four simulated scenarios (2,250 cells, 200 genes, one member, two seeds each) bands of 90 % hold 83 to 90 % of the
    true group means and 82 to 94 % of the true velocities; the least for genes with many counts and at the last time.
    """
    from dynapath.models.draws import check_level, half_width

    check_level(level)
    names = gene_names(adata, genes)
    fitted = dynamics(adata, key)
    observed = fitted.observed_times
    grid = grid_of(observed, times, n_grid, default=25)
    found = gene_paths(adata, key, grid, as_text(adata.var_names).get_indexer(names))
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
            "group": pd.Categorical.from_codes(group, categories=group_names(adata, key)),
            "gene": pd.Categorical.from_codes(gene, categories=names),
            "time": grid[time],
            **{name: values.swapaxes(1, 2).ravel() for name, values in columns.items()},
            "extrapolated": fitted.is_after(grid)[time],
        }
    )


def gene_paths(adata: AnnData, key: str | None, times: NDArray[np.float64], columns: NDArray[np.intp]) -> FoundGenes:
    """Decoded group means of some genes: the estimate, and the draws of each member.

    Raises
    ------
    ValueError : for a fit with `use_rep`.
    """
    from dynapath.models._random import isolated_seed
    from dynapath.models.gene_paths import FoundGenes, GroupCells, gene_paths
    from dynapath.read.counts import read_times

    key = find_fit(adata, key, KINDS)
    fit = adata.uns[key]
    if fit["kind"] != "dynamic_vae":
        msg = f"The fit {key!r} was made with use_rep={fit['params']['use_rep']!r} and decodes no genes. Fit without use_rep."
        raise ValueError(msg)
    slots = cell_slots(adata, key)
    measured = read_times(adata, fit["params"]["time_key"], at_least=1)
    mean, std, groups = (np.asarray(adata.obsm[slot], dtype=float) for slot in (slots.latent, slots.std, slots.groups))
    fitted = model(adata, key)
    members = getattr(fitted, "members", None)
    models = members if isinstance(members, tuple) else (fitted,)
    own, drawn = [], []
    for m, (one, member) in enumerate(zip(models, draws(adata, key), strict=True)):
        if m:
            # Only the states of the first member are stored. Encoding draws a sample: not from the session's random state.
            with isolated_seed(0):
                mean, variance = one.get_latent_representation(return_dist=True)
            std = np.sqrt(variance)
        cells = GroupCells(mean.astype(float), std.astype(float), measured, groups)
        own.append(gene_paths(one.module, member.fit, cells, times, genes=columns))
        if member.bootstrap is None:
            drawn.append(own[-1])
        else:
            drawn.append(
                gene_paths(
                    one.module,
                    member.bootstrap,
                    cells,
                    times,
                    fit=member.fit,
                    genes=columns,
                    error=member.last_layer,
                    n_points=_POINTS_OF_A_DRAW,
                )
            )
    mean, velocity = (np.mean([getattr(paths, name)[0] for paths in own], axis=0) for name in ("mean", "velocity"))
    return FoundGenes(mean.astype(float), velocity.astype(float), tuple(drawn))


def observed_genes(
    adata: AnnData, genes: str | Sequence[str], key: str | None = None, *, level: float = 0.9
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
    from dynapath._sampling_error import weighted_mean
    from dynapath.read.counts import read_counts

    names = gene_names(adata, genes)
    key = find_fit(adata, key, KINDS)
    fit = adata.uns[key]
    params = fit["params"]
    if fit["kind"] != "dynamic_vae":
        msg = f"The fit {key!r} was made with use_rep={params['use_rep']!r} and knows no counts. Fit without use_rep."
        raise ValueError(msg)
    check_genes(adata, strings(params["genes"]), key)
    counts = read_counts(adata, params.get("layer"))
    library = _library(adata, counts, params)
    values = 1e4 * counts[:, as_text(adata.var_names).get_indexer(names)].toarray() / library
    tables, groups = [], group_names(adata, key)
    for time, cells, weights in snapshot_weights(adata, key):
        mean, lower, upper = weighted_mean(values[cells], weights, level)
        K, G = mean.shape
        columns = {"mean": mean, "lower": np.maximum(lower, 0), "upper": upper, "n_cells": weights.sum(0)[:, None]}
        table = pd.DataFrame({name: np.broadcast_to(column, (K, G)).ravel() for name, column in columns.items()})
        table.insert(0, "group", pd.Categorical(groups, categories=groups).repeat(G))
        table.insert(1, "gene", pd.Categorical(names * K, categories=names))
        table.insert(2, "time", time)
        tables.append(table)
    return pd.concat(tables).sort_values(["group", "gene", "time"], ignore_index=True)


@dataclass(frozen=True)
class CountedGenes:
    """What was measured of all genes of a fit, group by group."""

    times: NDArray[np.float64]  # of the snapshots
    mean: NDArray[np.float64]  # (group, time, gene), as in `observed_genes`; NaN below one cell
    depth: NDArray[np.float64]  # (group, time): summed counts (or size factors) of the group's cells
    n_counts: NDArray[np.float64]  # (gene,)
    n_cells: NDArray[np.int64]  # (gene,): in which it was seen
    n_cells_group: NDArray[np.float64]  # (group, gene): of them, in each group


def counted_genes(adata: AnnData, key: str) -> CountedGenes:
    """Counts of all genes, by the probabilities that the fit gives each cell."""
    from dynapath.read.counts import read_counts

    params = fit_record(adata, key)["params"]
    check_genes(adata, strings(params["genes"]), key)
    counts = read_counts(adata, params.get("layer"))
    library = _library(adata, counts, params)
    normalised, seen = counts.multiply(1e4 / library).tocsr(), counts > 0
    times, means, depths, cells_with = [], [], [], 0.0
    for time, cells, weights in snapshot_weights(adata, key):
        total = weights.sum(0)[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append(np.where(total >= 1, (normalised[cells].T @ weights).T / total, np.nan))
        depths.append(weights.T @ library[cells, 0])
        cells_with = cells_with + (seen[cells].T @ weights).T
        times.append(time)
    return CountedGenes(
        times=np.array(times),
        mean=np.stack(means, axis=1),
        depth=np.stack(depths, axis=1),
        n_counts=np.asarray(counts.sum(0), dtype=float).ravel(),
        n_cells=np.asarray(seen.sum(0), dtype=np.int64).ravel(),
        n_cells_group=cells_with,
    )


def _library(adata: AnnData, counts: csr_matrix, params: Mapping[str, Any]) -> NDArray[np.float64]:
    """Total counts or size factor of each cell (cell, 1)."""
    from dynapath._columns import column_of

    by = params.get("size_factor_key")
    return np.asarray(counts.sum(1) if by is None else column_of(adata.obs, by), dtype=float).reshape(-1, 1)


def gene_names(adata: AnnData, genes: str | Sequence[str]) -> list[str]:
    """`genes` as a list without repeats, all of them in `var_names`."""
    asked = [genes] if isinstance(genes, str) else list(dict.fromkeys(map(str, genes)))
    if not asked:
        msg = "genes is empty. Name at least one of var_names."
        raise ValueError(msg)
    present = as_text(adata.var_names)
    unknown = [gene for gene in asked if gene not in present]
    if unknown:
        from difflib import get_close_matches

        # Names often differ in case alone.
        known = {name.lower(): name for name in present}
        close = [known[name] for name in get_close_matches(unknown[0].lower(), list(known), n=3)]
        hint = f"close to it: {', '.join(map(repr, close))}" if close else "no name is close to it"
        more = f" ({len(unknown)} of {len(asked)} genes are unknown)" if len(unknown) > 1 else ""
        msg = f"var_names has no {unknown[0]!r}; {hint}{more}."
        raise KeyError(msg)
    return asked
