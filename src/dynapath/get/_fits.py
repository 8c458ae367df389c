"""A fit's own record: where its slots are, and how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dynapath._keys import DynamicKeys
from dynapath.write import KINDS, LATENT_DYNAMICS, VAE

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike


def fit_record(adata: AnnData, key: str, kinds: Sequence[str] = KINDS) -> Mapping[str, Any]:
    """What a fit of cells left in `uns[key]`, if it is of one of these kinds."""
    fit = adata.uns.get(key)
    if not isinstance(fit, Mapping) or fit.get("kind") not in kinds:
        fits = [name for name, value in adata.uns.items() if isinstance(value, Mapping) and value.get("kind") in kinds]
        found = f"fits present: {', '.join(fits)}" if fits else "there is no fit in this AnnData"
        verb = "fit_vae" if kinds[0] == VAE else "fit_dynamic_vae"
        msg = f"uns has no fit under {key!r}; {found}. Run dp.tl.{verb}(adata, ..., key_added={key!r}) first."
        raise KeyError(msg)
    return fit


def cell_slots(adata: AnnData, key: str) -> DynamicKeys:
    """Names of the slots of a fit, once all of them are there."""
    fit_record(adata, key)
    names = DynamicKeys(key)
    missing = [f"obsm[{slot!r}]" for slot in names.obsm if slot not in adata.obsm]
    missing += [f"obs[{column!r}]" for column in names.obs if column not in adata.obs]
    if missing:
        msg = f"The fit {key!r} lacks {', '.join(missing)}. Was it removed? Run dp.tl.fit_dynamic_vae again."
        raise KeyError(msg)
    return names


def history(adata: AnnData, key: str = "dynvae") -> pd.DataFrame:
    """One row per epoch: `phase`, `loss` and its named terms, in nats per cell. For `use_rep`, one row per step.

    With several members, their tables one after another and a column `member`. Fits of :func:`dynapath.tl.fit_vae` have one too.
    """
    return pd.DataFrame(fit_record(adata, key, (*KINDS, VAE))["history"]).copy()


def restarts(adata: AnnData, key: str = "dynvae") -> pd.DataFrame:
    """One row per restart of the mixture fit, best first.

    Columns: `log_likelihood` (mean per cell) and `agreement` (adjusted Rand index with the groups of the best).
    """
    table = pd.DataFrame({name: np.asarray(values) for name, values in fit_record(adata, key)["restarts"].items()})
    return table.sort_values("log_likelihood", ascending=False, ignore_index=True)


def convergence(adata: AnnData, key: str = "dynvae") -> pd.DataFrame:
    """How far the second half of the training still moved the fit: what its status rests on.

    Columns: `what`; `change`, in units of what is uncertain anyway, the largest of the members; and the `limit` up to which a
    fit has converged. Changes are NaN where there were too few or too small steps to tell. For fits of
    :func:`dynapath.tl.fit_dynamic_vae`, :func:`dynapath.tl.fit_vae` and :func:`dynapath.stats.fit_latent_dynamics`.

    Notes
    -----
    The fit at the end is compared with the one when half of the steps' lengths were spent, averaged over a stretch of
    training. `groups`: share of the cells that change groups, over the share whose group is uncertain. `paths`: distance of
    group means, in the standard errors of means of as many cells. `states`: distance of cells in their posterior standard
    deviations. `predictions`: distance of predicted values, over what the posterior of the states and the errors of gene
    means make of it.
    """
    from dynapath.dynamics.changes import LIMITS

    stored = fit_record(adata, key, (*KINDS, VAE, LATENT_DYNAMICS)).get("convergence")
    if stored is None:
        msg = f"The fit {key!r} was stored by an earlier version, which did not keep its convergence. Fit it again."
        raise KeyError(msg)
    change = {str(name): float(value) for name, value in stored["change"].items()}
    return pd.DataFrame(
        {"what": list(change), "change": list(change.values()), "limit": [LIMITS[name] for name in change]}
    )


def members(adata: AnnData, key: str = "dynvae") -> pd.DataFrame:
    """One row per member of an ensemble.

    Columns: `member`, final `elbo` (nats per cell; lower is better), and `agreement` of its groups with those of the first
    (adjusted Rand index). A fit with one member has one row.
    """
    fit = fit_record(adata, key)
    table = fit.get("members")
    if table is None:
        last = history(adata, key).iloc[-1]
        table = {"elbo": [last.get("elbo", np.nan)], "agreement": [1.0]}
    return (
        pd.DataFrame({name: np.asarray(values) for name, values in table.items()}).rename_axis("member").reset_index()
    )


def strings(values: ArrayLike) -> list[str]:
    """As str, whichever string type the file format gave back."""
    return [str(value) for value in values]
