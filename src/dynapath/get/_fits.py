"""A fit's own record: where its slots are, and how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dynapath._keys import DynamicKeys
from dynapath.write import ESTIMATE, INCREMENT, KINDS, LATENT_DYNAMICS, VAE

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike


# Of each kind of fit: what wrote it, and the key under which it is without `key_added`.
_WRITTEN_BY = {
    "dynamic_vae": ("dp.tl.fit_dynamic_vae", "dynvae"),
    "group_dynamics": ("dp.tl.fit_dynamic_vae", "dynvae"),
    VAE: ("dp.tl.fit_vae", "vae"),
    INCREMENT: ("dp.stats.fit_increment", "increment"),
    LATENT_DYNAMICS: ("dp.stats.fit_latent_dynamics", "latent_dynamics"),
    ESTIMATE: ("dp.stats.estimate", "estimate"),
}
_OF = {INCREMENT: " of the increment model", LATENT_DYNAMICS: " of latent dynamics", ESTIMATE: " of a program"}
EVERY_KIND = tuple(_WRITTEN_BY)
WITH_HISTORY = (*KINDS, VAE)


def find_fit(adata: AnnData, key: str | None, kinds: Sequence[str] = EVERY_KIND) -> str:
    """The key of the fit that is meant: `key` if it is of one of these kinds; without `key` the only such fit.

    Of several, the one under the standard name of its kind.

    Raises
    ------
    KeyError : if there is no such fit, or if it is not clear which is meant; naming those there are.
    """
    there = {
        str(name): str(fit["kind"])
        for name, fit in adata.uns.items()
        if isinstance(fit, Mapping) and isinstance(fit.get("kind"), str) and fit["kind"] in _WRITTEN_BY
    }
    suited = [name for name, kind in there.items() if kind in kinds]
    if key is not None and key in suited:
        return key
    verbs = list(dict.fromkeys(_WRITTEN_BY[kind][0] for kind in kinds))
    if key is None:
        standard = [name for name in suited if name == _WRITTEN_BY[there[name]][1]]
        for some in (suited, standard):
            if len(some) == 1:
                return some[0]
        if suited:
            listed = ", ".join(f"{name!r} ({_WRITTEN_BY[there[name]][0]})" for name in suited)
            msg = f"There are several fits: {listed}. Say which with key=."
            raise KeyError(msg)
    others = [f"{name!r} of {_WRITTEN_BY[kind][0]}" for name, kind in there.items() if kind not in kinds]
    if key is not None and key in there:
        what = f"uns[{key!r}] is a fit of {_WRITTEN_BY[there[key]][0]}, not of {' or '.join(verbs)}"
        others = [other for other in others if not other.startswith(f"{key!r} of ")]
    elif key is not None:
        what = f"uns has no fit{_OF.get(kinds[0], '')} under {key!r}"
    else:
        what = f"uns has no fit of {' or '.join(verbs)}"
    found = [f"fits present: {', '.join(suited)}"] if suited else []
    found += [f"fits of another kind: {', '.join(others)}"] if others else []
    if not there:
        found = ["there is no fit in this AnnData"]
    added = "" if key is None or key in there else f", key_added={key!r}"
    msg = f"{'; '.join([what, *found])}. Run {verbs[0]}(adata, ...{added}) first."
    raise KeyError(msg)


def fit_record(adata: AnnData, key: str | None, kinds: Sequence[str] = KINDS) -> Mapping[str, Any]:
    """What a fit of one of these kinds left in `uns`; see `find_fit`."""
    return adata.uns[find_fit(adata, key, kinds)]


def cell_slots(adata: AnnData, key: str | None) -> DynamicKeys:
    """Names of the slots of a fit of moving groups, once all of them are there."""
    key = find_fit(adata, key, KINDS)
    names = DynamicKeys(key)
    missing = [f"obsm[{slot!r}]" for slot in names.obsm if slot not in adata.obsm]
    missing += [f"obs[{column!r}]" for column in names.obs if column not in adata.obs]
    if missing:
        msg = f"The fit {key!r} lacks {', '.join(missing)}. Was it removed? Run dp.tl.fit_dynamic_vae again."
        raise KeyError(msg)
    return names


def history(adata: AnnData, key: str | None = None) -> pd.DataFrame:
    """One row per epoch: `phase`, `loss` and its named terms, in nats per cell. For `use_rep`, one row per step.

    With several members, their tables one after another and a column `member`. Fits of :func:`dynapath.tl.fit_vae` have one too.
    Without `key` it is that of the only fit, or of several that under the standard name.
    """
    return pd.DataFrame(fit_record(adata, key, WITH_HISTORY)["history"]).copy()


def restarts(adata: AnnData, key: str | None = None) -> pd.DataFrame:
    """One row per restart of the mixture fit, best first.

    Columns: `log_likelihood` (mean per cell) and `agreement` (adjusted Rand index with the groups of the best).
    """
    table = pd.DataFrame({name: np.asarray(values) for name, values in fit_record(adata, key)["restarts"].items()})
    return table.sort_values("log_likelihood", ascending=False, ignore_index=True)


def convergence(adata: AnnData, key: str | None = None) -> pd.DataFrame:
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

    key = find_fit(adata, key, (*KINDS, VAE, LATENT_DYNAMICS))
    stored = adata.uns[key].get("convergence")
    if stored is None:
        msg = f"The fit {key!r} was stored by an earlier version, which did not keep its convergence. Fit it again."
        raise KeyError(msg)
    change = {str(name): float(value) for name, value in stored["change"].items()}
    return pd.DataFrame(
        {"what": list(change), "change": list(change.values()), "limit": [LIMITS[name] for name in change]}
    )


def members(adata: AnnData, key: str | None = None) -> pd.DataFrame:
    """One row per member of an ensemble.

    Columns: `member`, final `elbo` (nats per cell; lower is better), and `agreement` of its groups with those of the first
    (adjusted Rand index). A fit with one member has one row.
    """
    key = find_fit(adata, key, KINDS)
    table = adata.uns[key].get("members")
    if table is None:
        last = history(adata, key).iloc[-1]
        table = {"elbo": [last.get("elbo", np.nan)], "agreement": [1.0]}
    return (
        pd.DataFrame({name: np.asarray(values) for name, values in table.items()}).rename_axis("member").reset_index()
    )


def strings(values: ArrayLike) -> list[str]:
    """Return a str, whichever string type the file format gave back."""
    return [str(value) for value in values]
