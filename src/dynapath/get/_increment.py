"""The increment model: its fit and its coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dynapath._keys import IncrementKeys
from dynapath._names import as_text
from dynapath.write import INCREMENT

from ._fits import find_fit

if TYPE_CHECKING:
    from anndata import AnnData

    from dynapath.dynamics import IncrementDynamics


def increment_fit(adata: AnnData, key: str | None = None) -> Mapping[str, Any]:
    """What a fit of the increment model left in `uns[key]`: `params` (its settings), `state` (its arrays), `versions`.

    Raises
    ------
    KeyError : if there is no such fit, or its slots were removed.
    """
    key = find_fit(adata, key, (INCREMENT,))
    fit = adata.uns[key]
    names = IncrementKeys(key)
    missing = [f"obsm[{names.params!r}]"] if names.params not in adata.obsm else []
    missing += [f"layers[{name!r}]" for name in (names.state, names.resid) if name not in adata.layers]
    if missing:
        msg = f"The fit {key!r} lacks {', '.join(missing)}. Was it removed? Run dp.stats.fit_increment again."
        raise KeyError(msg)
    return fit


def increment_slots(adata: AnnData, key: str | None) -> IncrementKeys:
    """Names of the slots of a fit of the increment model."""
    return IncrementKeys(find_fit(adata, key, (INCREMENT,)))


def increments(adata: AnnData, key: str | None) -> IncrementDynamics:
    """Return the dynamics of the units of this AnnData, in its order."""
    from dynapath.dynamics import IncrementDynamics

    key = find_fit(adata, key, (INCREMENT,))
    fitted = IncrementDynamics.from_arrays(increment_fit(adata, key)["state"])
    rows = as_text(fitted.units).get_indexer(as_text(adata.obs_names))
    if (rows < 0).any():
        unknown = adata.obs_names[rows < 0]
        msg = (
            f"The fit {key!r} does not know unit {unknown[0]!r} ({len(unknown)} in all). Were units renamed or added? "
            "Run dp.stats.fit_increment again."
        )
        raise ValueError(msg)
    return fitted.take(rows)


def increment_params(adata: AnnData, key: str | None = None, *, level: float = 0.9) -> pd.DataFrame:
    """Coefficients of the increment model with their errors and intervals.

    Parameters
    ----------
    adata
        With a fit under `key`, or some of its units.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
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
    key = find_fit(adata, key, (INCREMENT,))
    fitted = increments(adata, key)
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
