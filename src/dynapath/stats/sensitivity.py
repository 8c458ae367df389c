"""The same model with other covariates: how much do its coefficients depend on a choice?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from dynapath.read.panel import read_panel

from .increment.fit import fit


def sensitivity(
    adata: AnnData,
    alternatives: Sequence[str | Sequence[str]] | Mapping[str, str | Sequence[str]],
    *,
    fit_kwargs: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Fit the increment model with each of several covariate layers, such as the bounds of an uncertain covariate.

    Parameters
    ----------
    adata
        Units in rows, days in columns, NaN = not reported.
    alternatives
        What to use as covariates in each fit: names of layers, or lists of them where a fit has several. A mapping gives
        them names of your choice, e.g. `{"lower": "cases_lb", "estimate": "cases", "upper": "cases_ub"}`.
    fit_kwargs
        Other arguments of :func:`dynapath.stats.fit_increment`, the same for all.

    Returns
    -------
    One row per alternative, unit and coefficient: `alternative`, `unit`, `coefficient` (covariates are numbered `covariate`,
    `covariate_2`, ... so that alternatives can be compared), `layer` (empty for `intercept` and `state`), `estimate`, `se`,
    `status`, `loss`. Nothing is written to `adata`.

    Raises
    ------
    KeyError : for an unknown layer.
    ValueError : without alternatives.

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=40)
    >>> panel.layers["twice"] = 2 * panel.layers["incidence"]
    >>> table = dp.stats.sensitivity(panel, ["incidence", "twice"])  # doctest: +SKIP
    """
    if isinstance(alternatives, str) or not alternatives:
        msg = f"alternatives must list at least one layer, e.g. ['cases', 'cases_ub']; it is {alternatives!r}."
        raise ValueError(msg)
    if not isinstance(alternatives, Mapping):
        alternatives = {one if isinstance(one, str) else " + ".join(one): one for one in alternatives}
    settings = dict(fit_kwargs or {})
    given = {name: settings.pop(name) for name in ("layer", "observed", "lags", "train_until") if name in settings}
    settings.setdefault("se", "hessian")
    parts = []
    for name, layers in alternatives.items():
        # An alternative may be to have none.
        unused = ("lags",) if not len(layers) else ()
        panel = read_panel(adata, covariates=layers, **{k: v for k, v in given.items() if k not in unused})
        result = fit(panel, **settings)
        n_units, k = result.params.shape
        covariates = ["covariate" if j == 0 else f"covariate_{j + 1}" for j in range(k - 2)]
        parts.append(
            pd.DataFrame(
                {
                    "alternative": name,
                    "unit": np.repeat(panel.units.to_numpy(), k),
                    "coefficient": np.tile(["intercept", "state", *covariates], n_units),
                    "layer": np.tile(["", "", *panel.columns], n_units),
                    "estimate": result.params.ravel(),
                    "se": np.full(n_units * k, np.nan) if result.se is None else result.se.ravel(),
                    "status": np.repeat(result.status, k),
                    "loss": np.repeat(result.loss, k),
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)
    table["alternative"] = pd.Categorical(table["alternative"], categories=list(alternatives))
    return table
