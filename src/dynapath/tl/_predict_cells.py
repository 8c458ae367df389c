"""dp.tl.predict_cells: counts of cells at any time, from a fitted dynamic VAE."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import vstack

from dynapath import get
from dynapath._names import as_text
from dynapath._times import in_decimals, same_within
from dynapath.metrics import AffineMap
from dynapath.models._random import concrete_seed, isolated_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from dynapath.dynamics import GroupDynamics
    from dynapath.models import DynamicVAE


@dataclass(frozen=True)
class _Draw:
    """Cells at one time: their states, groups, and the observed cells they come from."""

    z: NDArray[np.float64]
    group: NDArray[np.int64]
    origin: NDArray[np.int64]


def predict_cells(
    adata: AnnData,
    *,
    times: float | Sequence[float],
    n_cells: int = 500,
    source: str | ArrayLike = "neighbours",
    key: str | None = None,
    random_state: int | None = 0,
) -> AnnData:
    """Cells, with counts, at times that need not have been observed.

    Parameters
    ----------
    adata
        With a fit under `key`, and the counts it was fitted to.
    times
        In the unit of the data. Times outside the observed range are allowed, flagged, and warned of.
    n_cells
        Number of cells per time.
    source
        What is carried to each time. `"neighbours"`: cells of the observed times next to it, each along the flow of its
        group, mixed by closeness in time and number of cells; keeps shapes that a few Gaussians cannot hold. `"prior"`:
        samples of the mixture (only from the first snapshot on). Or cells of your own: a boolean mask over the rows or
        a list of `obs_names`.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    random_state
        Seed; the session's random state is not touched.

    Returns
    -------
    AnnData with `n_cells` rows per time. `X`: sampled counts (CSR float32, whole numbers); for a fit with `use_rep`, which
    has no decoder, no genes. `obs`: the time column of the fit, `{key}_group`, `library`, `extrapolated`, and the batch
    column if there is one; `member` for an ensemble. `obsm["X_{key}"]`: states, in the latent space of the first member.

    Notes
    -----
    The group of a carried cell is drawn from its responsibilities, its weight follows the growth of that group, and its
    state is drawn from its posterior. Library size and batch are its own. Cells are drawn by systematic resampling, so
    that groups and sources have their expected share. The members of an ensemble contribute equally many cells, each with
    its own states, groups and decoder.

    Raises
    ------
    KeyError : without a fit under `key`, or for names that are not there.
    ValueError : for times that are not finite, an empty source, or ambiguous names.
    """
    names = get.cell_slots(adata, key)
    key = names.key
    params = adata.uns[key]["params"]
    times = np.atleast_1d(in_decimals(times))
    if not len(times) or not np.isfinite(times).all():
        msg = f"times must be finite numbers; they are {times.tolist()}."
        raise ValueError(msg)
    if n_cells < 1:
        msg = f"n_cells must be at least 1; it is {n_cells}."
        raise ValueError(msg)
    dynamics = get.dynamics(adata, key)
    chosen = _chosen_cells(adata, source)
    rng = np.random.default_rng(concrete_seed(random_state))
    first, last = dynamics.observed_times[[0, -1]]
    extrapolated = dynamics.is_before(times) | dynamics.is_after(times)
    if extrapolated.any():
        warnings.warn(
            f"Times {', '.join(f'{t:g}' for t in times[extrapolated])} lie outside the observed range {first:g} to "
            f"{last:g}: the dynamics are continued, which no data support. obs['extrapolated'] marks these cells.",
            UserWarning,
            stacklevel=2,
        )

    from dynapath.read.counts import read_times

    members = _read_members(adata, key, read_times(adata, params["time_key"], at_least=1))
    parts = []
    for m, cells in enumerate(members):
        # Shares of the members differ by one cell at most.
        share = (n_cells + m) // len(members)
        if not share:
            continue
        for i, time in enumerate(times):
            if isinstance(source, str) and source == "prior":
                draw = _from_prior(cells, time, share, rng)
            else:
                draw = _carried(cells, chosen, time, share, rng)
            parts.append((i, m, draw))
    rows = np.concatenate([np.full(len(draw.z), i) for i, _, draw in parts])
    # Members are mixed within a time, so that any part of its cells is a sample.
    order = np.argsort(rows, kind="stable") if len(members) == 1 else np.lexsort((rng.random(len(rows)), rows))
    member = np.concatenate([np.full(len(draw.z), m) for _, m, draw in parts])
    z = np.concatenate([members[m].to_reference.points(draw.z) for _, m, draw in parts])[order]
    origin = np.concatenate([draw.origin for *_, draw in parts])
    obs = pd.DataFrame(
        {
            params["time_key"]: np.repeat(times, n_cells),
            names.group: pd.Categorical.from_codes(
                np.concatenate([draw.group for *_, draw in parts])[order], categories=get.group_names(adata, key)
            ),
            "extrapolated": np.repeat(extrapolated, n_cells),
        },
        index=[f"predicted_{i}" for i in range(len(z))],
    )
    states = {names.latent: z.astype(np.float32)}
    if members[0].model is None:
        return AnnData(obs=obs, obsm=states)

    library = members[0].model.library_sizes()[origin]
    batch = members[0].model.batch_codes()[origin]
    obs.insert(2, "library", library[order])
    if params.get("batch_key") is not None:
        obs[params["batch_key"]] = adata.obs[params["batch_key"]].to_numpy()[origin[order]]
    if len(members) > 1:
        obs["member"] = pd.Categorical(member[order].astype(str), categories=[str(m) for m in range(len(members))])
    own = np.concatenate([draw.z for *_, draw in parts])
    counts = vstack(
        [
            cells.model.decode(own[here], library[here], batch[here], random_state=int(rng.integers(2**31)))
            for m, cells in enumerate(members)
            if (here := member == m).any()
        ],
        format="csr",
    )
    return AnnData(X=counts[order], obs=obs, var=pd.DataFrame(index=adata.var_names), obsm=states)


@dataclass(frozen=True)
class _Cells:
    """Observed cells as one member of the fit sees them."""

    z: NDArray[np.float64]
    std: NDArray[np.float64]
    responsibilities: NDArray[np.float64]
    times: NDArray[np.float64]
    dynamics: GroupDynamics
    model: DynamicVAE | None
    to_reference: AffineMap


def _read_members(adata: AnnData, key: str, times: NDArray[np.float64]) -> list[_Cells]:
    """One entry per member: a single model's states are in `obsm`, those of an ensemble are encoded anew."""
    fitted = get.model(adata, key)
    dynamics = get.dynamics(adata, key)
    same = AffineMap(np.eye(dynamics.n_latent), np.zeros(dynamics.n_latent))
    if not isinstance(getattr(fitted, "members", None), tuple):
        names = get.cell_slots(adata, key)
        z, std, responsibilities = (
            np.asarray(adata.obsm[slot], dtype=float) for slot in (names.latent, names.std, names.groups)
        )
        model = None if adata.uns[key]["kind"] == "group_dynamics" else fitted
        return [_Cells(z, std, responsibilities, times, dynamics, model, same)]
    members = []
    for model, to_reference in zip(fitted.members, fitted.to_reference, strict=True):
        # Encoding draws a sample: not from the session's random state.
        with isolated_seed(0):
            mean, variance = model.get_latent_representation(return_dist=True)
        own = model.dynamics
        responsibilities = own.responsibilities(mean, times, model.known_groups())
        members.append(_Cells(mean.astype(float), np.sqrt(variance), responsibilities, times, own, model, to_reference))
    return members


def _chosen_cells(adata: AnnData, source: str | ArrayLike) -> NDArray[np.int64] | None:
    """Rows that the user chose, or None to choose by time."""
    if isinstance(source, str):
        if source not in ("neighbours", "prior"):
            msg = f"source must be 'neighbours', 'prior', a boolean mask or obs_names; it is {source!r}."
            raise ValueError(msg)
        return None
    given = np.asarray(source)
    if given.dtype == bool:
        if given.shape != (adata.n_obs,):
            msg = f"source is a mask of shape {given.shape}, but there are {adata.n_obs} cells."
            raise ValueError(msg)
        rows = np.flatnonzero(given)
    else:
        if not adata.obs_names.is_unique:
            msg = "source names cells, but obs_names are not unique. Run adata.obs_names_make_unique() or give a mask."
            raise ValueError(msg)
        rows = as_text(adata.obs_names).get_indexer(as_text(given))
        if (rows < 0).any():
            msg = f"source names cells that are not in obs_names, such as {str(given[rows < 0][0])!r}."
            raise KeyError(msg)
    if not len(rows):
        msg = "source selects no cells."
        raise ValueError(msg)
    return rows


def _neighbouring_times(observed: NDArray[np.float64], time: float) -> list[float]:
    """The observed time itself, or the nearest before and after it; outside the range only the nearest."""
    nearest = float(observed[np.argmin(np.abs(observed - time))])
    if abs(nearest - time) <= same_within(observed):
        return [nearest]
    before, after = observed[observed < time], observed[observed > time]
    return [*(float(t) for t in before[-1:]), *(float(t) for t in after[:1])]


def _carried(
    cells: _Cells,
    chosen: NDArray[np.int64] | None,
    time: float,
    n_cells: int,
    rng: np.random.Generator,
) -> _Draw:
    if chosen is None:
        sides = _neighbouring_times(np.unique(cells.times), time)
        rows = np.flatnonzero(np.isin(cells.times, sides))
        gap = np.abs(cells.times[rows] - time)
        # Each cell counts by its closeness, so a side counts by closeness times its number of cells.
        weight = np.ones(len(rows)) if len(sides) == 1 else 1 / gap
    else:
        rows, weight = chosen, np.ones(len(chosen))
    # A group's cells become more or fewer on the way, as its growth says.
    dynamics = cells.dynamics
    now, then = np.log(dynamics.proportions([time]))[:, 0], cells.times[rows]
    distinct, index = np.unique(then, return_inverse=True)
    grown = np.exp(now[:, None] - np.log(dynamics.proportions(distinct)))[:, index].T
    member, group = _systematic(weight[:, None] * cells.responsibilities[rows] * grown, n_cells, rng)
    origin = rows[member]
    z = cells.z[origin] + cells.std[origin] * rng.standard_normal((n_cells, cells.z.shape[1]))
    moved = dynamics.push(z, group, cells.times[origin], np.full(n_cells, time))
    return _Draw(moved, group, origin)


def _systematic(weight: NDArray[np.float64], n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
    """Rows and columns of `n` entries, drawn in proportion to `weight` (row, column) by systematic resampling.

    One random offset and equal steps through the columns one after another: the number of draws from a column, and from
    neighbouring rows of it, is its expectation up to one, where independent draws would add their own noise.
    """
    ends = np.cumsum(weight.T.ravel())
    position = (rng.random() + np.arange(n)) / n * ends[-1]
    column, row = np.divmod(np.minimum(np.searchsorted(ends, position, side="right"), ends.size - 1), len(weight))
    shuffled = rng.permutation(n)
    return row[shuffled], column[shuffled]


def _from_prior(cells: _Cells, time: float, n_cells: int, rng: np.random.Generator) -> _Draw:
    z, group = cells.dynamics.sample([time], n_cells, random_state=int(rng.integers(2**31)))
    near = np.flatnonzero(np.isin(cells.times, _neighbouring_times(np.unique(cells.times), time)))
    return _Draw(z[0], group[0], rng.choice(near, size=n_cells))
