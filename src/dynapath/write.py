"""Results -> slots, and the sanitizer in front of `uns`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from ._keys import DynamicKeys, EstimateKeys, IncrementKeys, LatentDynamicsKeys, VAEKeys, colors_key

SCHEMA = 1
UNDETERMINED_BELOW = 0.6


KINDS = ("dynamic_vae", "group_dynamics")
INCREMENT = "increment"
VAE = "count_vae"
LATENT_DYNAMICS = "latent_dynamics"
ESTIMATE = "estimate"


def check_key_is_free(adata: AnnData, key: str, *, kinds: Sequence[str] = KINDS) -> None:
    """Raise when writing under `key` would overwrite something that is not an earlier fit of its kind under that key."""
    if not key or "/" in key:
        msg = f"key_added={key!r} cannot name slots: it must not be empty or contain a slash."
        raise ValueError(msg)
    previous = adata.uns.get(key)
    if isinstance(previous, Mapping) and previous.get("kind") in kinds:
        return
    of_kind = {
        INCREMENT: IncrementKeys,
        VAE: VAEKeys,
        ESTIMATE: EstimateKeys,
        LATENT_DYNAMICS: LatentDynamicsKeys,
    }
    names = of_kind.get(kinds[0], DynamicKeys)(key)
    taken = [f"layers[{layer!r}]" for layer in getattr(names, "layers", ()) if layer in adata.layers]
    taken += [f"obsm[{slot!r}]" for slot in (*names.obsm, *getattr(names, "stages", ())) if slot in adata.obsm]
    taken += [f"obs[{column!r}]" for column in names.obs if column in adata.obs]
    taken += [f"varm[{slot!r}]" for slot in getattr(names, "varm", ()) if slot in adata.varm]
    taken += [f"uns[{key!r}]"] if key in adata.uns else []
    if taken:
        msg = (
            f"key_added={key!r} would overwrite {', '.join(taken)}, not written by an earlier fit. Choose another "
            "key_added, or delete what is there."
        )
        raise ValueError(msg)


def write_group_dynamics(
    adata: AnnData,
    key: str,
    *,
    latent: NDArray[np.floating],
    std: NDArray[np.floating],
    velocity: NDArray[np.floating],
    responsibilities: NDArray[np.floating],
    groups: Sequence[str],
    fit: Mapping[str, Any],
    stages: Mapping[str, NDArray[np.floating]] | None = None,
) -> None:
    """Write cell states, groups and the fit itself; whatever stood under `key` before is removed first.

    `stages` are cell states at earlier stages of the training, by name. `groups` are the names of the groups.
    """
    names = DynamicKeys(key)
    content = for_uns({"schema": SCHEMA, "versions": _versions(), "groups": list(groups), **fit})
    embedded = adata.uns.get(key, {}).get("embedded", {})
    for slot in [*names.obsm, *names.stages, *map(names.embedded_velocity, embedded)]:
        adata.obsm.pop(slot, None)
    for column in names.obs:
        if column in adata.obs:
            del adata.obs[column]
    # Colours of more or fewer groups than there are now would make scanpy complain.
    adata.uns.pop(colors_key(names.group), None)
    adata.uns.pop(key, None)

    best = responsibilities.argmax(1)
    prob = responsibilities.max(1)
    adata.obsm[names.latent] = np.asarray(latent, dtype=np.float32)
    adata.obsm[names.std] = np.asarray(std, dtype=np.float32)
    adata.obsm[names.velocity] = np.asarray(velocity, dtype=np.float32)
    adata.obsm[names.groups] = np.asarray(responsibilities, dtype=np.float32)
    for name, z in (stages or {}).items():
        adata.obsm[names.stage(name)] = np.asarray(z, dtype=np.float32)
    adata.obs[names.group] = pd.Categorical.from_codes(best, categories=list(groups))
    adata.obs[names.prob] = prob
    adata.obs[names.undetermined] = prob < UNDETERMINED_BELOW
    adata.uns[key] = content


def write_bootstrap(adata: AnnData, key: str, content: Mapping[str, Any]) -> None:
    """Put draws beside the fit they belong to, in place of earlier ones."""
    adata.uns[key]["bootstrap"] = for_uns(content)


def write_embedded_velocity(
    adata: AnnData, key: str, basis: str, arrows: NDArray[np.floating], settings: Mapping[str, Any]
) -> None:
    """Write arrows in an embedding, and note them in the fit they belong to."""
    adata.obsm[DynamicKeys(key).embedded_velocity(basis)] = np.asarray(arrows, dtype=np.float32)
    adata.uns[key].setdefault("embedded", {})[basis] = for_uns(settings)


def write_increment(
    adata: AnnData,
    key: str,
    *,
    params: pd.DataFrame,
    se: pd.DataFrame | None,
    status: pd.Categorical,
    loss: NDArray[np.floating],
    n: NDArray[np.integer],
    state: NDArray[np.floating],
    resid: NDArray[np.floating],
    observed: NDArray[np.bool_] | None,
    fit: Mapping[str, Any],
) -> None:
    """Write coefficients, states and the fit itself; whatever stood under `key` before is removed first.

    `observed` is a mask that has no layer of its own yet; the fit names the layer.
    """
    names = IncrementKeys(key)
    settings = dict(fit["params"])
    if observed is not None:
        settings["observed"] = names.observed
    content = for_uns({"schema": SCHEMA, "versions": _versions(), "kind": INCREMENT, **fit, "params": settings})
    for slots, stored in ((names.obsm, adata.obsm), (names.layers, adata.layers), (names.obs, adata.obs)):
        for slot in slots:
            if slot in stored:
                del stored[slot]
    adata.obsm[names.params] = params
    if se is not None:
        adata.obsm[names.se] = se
    adata.obs[names.status], adata.obs[names.loss], adata.obs[names.n] = status, loss, n
    adata.layers[names.state], adata.layers[names.resid] = state, resid
    if observed is not None:
        adata.layers[names.observed] = observed
    adata.uns[key] = content


def write_imputed(
    adata: AnnData,
    key: str,
    *,
    mean: NDArray[np.floating],
    lower: NDArray[np.floating] | None,
    upper: NDArray[np.floating] | None,
    settings: Mapping[str, Any],
) -> None:
    """Write imputed values into the slots of a fit; those written before are removed first."""
    names = IncrementKeys(key)
    for slot, values in ((names.imputed, mean), (names.imputed_lower, lower), (names.imputed_upper, upper)):
        if slot in adata.layers:
            del adata.layers[slot]
        if values is not None:
            adata.layers[slot] = values
    adata.uns[key]["imputed"] = for_uns(settings)


def write_vae(
    adata: AnnData,
    key: str,
    *,
    latent: NDArray[np.floating],
    std: NDArray[np.floating],
    loadings: NDArray[np.floating] | None,
    fit: Mapping[str, Any],
) -> None:
    """Write cell states, loadings of a linear decoder and the fit itself; whatever stood under `key` is removed first."""
    names = VAEKeys(key)
    content = for_uns({"schema": SCHEMA, "versions": _versions(), "kind": VAE, **fit})
    for slots, stored in ((names.obsm, adata.obsm), (names.varm, adata.varm)):
        for slot in slots:
            if slot in stored:
                del stored[slot]
    adata.obsm[names.latent] = np.asarray(latent, dtype=np.float32)
    adata.obsm[names.std] = np.asarray(std, dtype=np.float32)
    if loadings is not None:
        adata.varm[names.loadings] = np.asarray(loadings, dtype=np.float32)
    adata.uns[key] = content


def write_estimate(
    adata: AnnData,
    key: str,
    *,
    params: pd.DataFrame | None,
    se: pd.DataFrame | None,
    obs: pd.DataFrame | None,
    fit: Mapping[str, Any],
) -> None:
    """Write the parameters of a program; whatever stood under `key` before is removed first.

    Tables are those of the units, none if all data share one set of parameters. `obs` has columns status, loss, n.
    """
    names = EstimateKeys(key)
    content = for_uns({"schema": SCHEMA, "versions": _versions(), "kind": ESTIMATE, **fit})
    for slots, stored in ((names.obsm, adata.obsm), (names.obs, adata.obs)):
        for slot in slots:
            if slot in stored:
                del stored[slot]
    for slot, table in ((names.params, params), (names.se, se)):
        if table is not None:
            adata.obsm[slot] = table
    if obs is not None:
        for slot, column in zip(names.obs, obs, strict=True):
            adata.obs[slot] = obs[column].array
    adata.uns[key] = content


def write_latent_dynamics(
    adata: AnnData,
    key: str,
    *,
    smooth: NDArray[np.floating],
    encoded: NDArray[np.floating],
    std: NDArray[np.floating],
    theta: NDArray[np.floating],
    fitted: NDArray[np.floating],
    fit: Mapping[str, Any],
) -> None:
    """Write states, parameters and the fit itself; whatever stood under `key` before is removed first."""
    names = LatentDynamicsKeys(key)
    content = for_uns({"schema": SCHEMA, "versions": _versions(), "kind": LATENT_DYNAMICS, **fit})
    for slots, stored in ((names.obsm, adata.obsm), (names.layers, adata.layers)):
        for slot in slots:
            if slot in stored:
                del stored[slot]
    adata.obsm[names.latent], adata.obsm[names.encoded] = smooth, encoded
    adata.obsm[names.std], adata.obsm[names.theta] = std, theta
    adata.layers[names.fitted] = fitted
    adata.uns[key] = content


def for_uns(value: Any) -> Any:
    """A copy that h5ad and zarr can hold: str keys, arrays, numbers, strings; None entries are left out.

    Raises
    ------
    TypeError : for anything else, naming its place.
    """
    return _clean(value, "uns")


def _clean(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        bad = [name for name in value if "/" in str(name)]
        if bad:
            msg = f"{place} has a key with a slash ({bad[0]!r}), which h5ad would split into groups."
            raise TypeError(msg)
        return {str(name): _clean(item, f"{place}[{name!r}]") for name, item in value.items() if item is not None}
    if isinstance(value, pd.DataFrame):
        return value.copy()
    if isinstance(value, list | tuple):
        # Empty lists have no type to write.
        strings = not len(value) or any(isinstance(item, str) for item in value)
        value = np.array(
            [_clean(item, f"{place}[{i}]") for i, item in enumerate(value)], dtype=object if strings else None
        )
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biufcSUT" or all(isinstance(item, str) for item in value.flat):
            return value.copy()
        msg = f"{place} holds an array of {value.dtype}, which cannot be written to h5ad."
        raise TypeError(msg)
    if isinstance(value, bool | int | float | str | np.bool_ | np.number | np.str_):
        return value
    msg = f"{place} holds a {type(value).__name__}, which cannot be written to h5ad."
    raise TypeError(msg)


def _versions() -> dict[str, str]:
    found = {}
    for package in ("dynapath", "anndata", "scvi-tools", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
