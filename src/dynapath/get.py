"""Slots -> tidy tables and fitted models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ._keys import DynamicKeys
from .models._random import isolated_seed
from .write import KINDS

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike

    from .dynamics import GroupDynamics
    from .models import DynamicVAE

__all__ = ["dynamics", "history", "model", "restarts", "trajectories"]


def model(adata: AnnData, key: str = "dynvae") -> DynamicVAE | GroupDynamics:
    """The fitted model, built again from the arrays in `uns[key]`.

    Parameters
    ----------
    adata
        The AnnData that was fitted, a copy or a subset of its cells; the genes must be those of the fit.
    key
        `key_added` of the fit.

    Returns
    -------
    A :class:`dynapath.models.DynamicVAE` on these cells; for a fit with `use_rep`, its
    :class:`dynapath.dynamics.GroupDynamics`.

    Raises
    ------
    KeyError : if there is no fit under `key`.
    ValueError : if genes or counts are no longer those of the fit.
    """
    fit = _fit(adata, key)
    if fit["kind"] == "group_dynamics":
        return dynamics(adata, key)
    from .models import DynamicVAE, Prior, Training
    from .read.counts import Remembered, read_snapshots

    params = fit["params"]
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
        rebuilt = DynamicVAE(
            data,
            n_groups=int(params["n_groups"]),
            n_latent=int(params["n_latent"]),
            likelihood=str(params["likelihood"]),
            growth=str(params["growth"]),
            prior=Prior(**_plain(params["prior"])),
            training=Training(**_plain(params["network"])),
            module_kwargs=_plain(params.get("module_kwargs", {})),
        )
    rebuilt.load_arrays(fit["state"])
    return rebuilt


def dynamics(adata: AnnData, key: str = "dynvae") -> GroupDynamics:
    """The fitted group dynamics alone: trajectories, velocities and flows, without the network and its counts.

    Parameters
    ----------
    adata
        With a fit under `key`.
    key
        `key_added` of the fit.
    """
    from .dynamics import GroupDynamics

    return GroupDynamics.from_arrays(_fit(adata, key)["state"]["dynamics"])


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
        Probability of the band in which a cell of the group lies.

    Returns
    -------
    One row per group, time and latent dimension: `group`, `time`, `dimension` (from 1), `mean`, `sd`, `lower`, `upper`
    (the band of cells, not the uncertainty of the mean), `proportion` of the group at that time, `extrapolated`.
    """
    from scipy.stats import norm

    fitted = dynamics(adata, key)
    observed = fitted.observed_times
    grid = np.linspace(observed[0], observed[-1], n_grid) if times is None else np.atleast_1d(np.asarray(times, float))
    path = fitted.trajectories(grid)
    K, T, d = path.mean.shape
    group, time, dimension = (axis.ravel() for axis in np.meshgrid(range(K), range(T), range(d), indexing="ij"))
    mean = path.mean.ravel()
    sd = np.sqrt(np.diagonal(path.cov, axis1=-2, axis2=-1)).ravel()
    half = norm.ppf((1 + level) / 2) * sd
    return pd.DataFrame(
        {
            "group": pd.Categorical(group.astype(str), categories=[str(k) for k in range(K)]),
            "time": grid[time],
            "dimension": dimension + 1,
            "mean": mean,
            "sd": sd,
            "lower": mean - half,
            "upper": mean + half,
            "proportion": path.proportions[group, time],
            "extrapolated": grid[time] > observed[-1],
        }
    )


def history(adata: AnnData, key: str = "dynvae") -> pd.DataFrame:
    """One row per epoch: `phase`, `loss` and its named terms, in nats per cell. For `use_rep`, one row per step."""
    return pd.DataFrame(_fit(adata, key)["history"]).copy()


def restarts(adata: AnnData, key: str = "dynvae") -> pd.DataFrame:
    """One row per restart of the mixture fit, best first.

    Columns: `log_likelihood` (mean per cell) and `agreement` (adjusted Rand index with the groups of the best).
    """
    table = pd.DataFrame({name: np.asarray(values) for name, values in _fit(adata, key)["restarts"].items()})
    return table.sort_values("log_likelihood", ascending=False, ignore_index=True)


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
