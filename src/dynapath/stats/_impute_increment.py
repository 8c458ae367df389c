"""dp.stats.impute_increment: what was not reported, from a fitted panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dynapath import get
from dynapath.write import write_imputed

from ._fit_increment import on_all_days
from ._predict_increment import check_probability, read_fitted_panel
from .increment.impute import impute

if TYPE_CHECKING:
    from anndata import AnnData


def impute_increment(
    adata: AnnData,
    *,
    mode: Literal["filter", "smooth"] = "smooth",
    interval: float | None = None,
    key: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Fill in the days without a report, with each unit's own dynamics.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.stats.fit_increment` under `key`, or some of its units. Its reports stay as they are.
    mode
        `"filter"`: from the reports before that day, as one would have known it then. `"smooth"`: from the reports on both
        sides of the gap, which is the better guess in hindsight. After the last report both are the same.
    interval
        Probability of intervals to be written as well, such as .9.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    copy
        Work on a copy and return it.

    Returns
    -------
    None, or the copy if `copy=True`. Sets the following fields:

    `layers["{key}_imputed"]` : reports, and the imputed value where there is none; NaN before a unit's first report, after
        the last day of the fit, and in the gaps of units without an estimate.
    `layers["{key}_imputed_lower"]`, `layers["{key}_imputed_upper"]` : the interval, if asked for; the report itself where
        there is one.
    `uns["{key}"]["imputed"]` : `mode` and `interval`.

    Raises
    ------
    KeyError : if there is no such fit.
    ValueError : for an unknown mode, or an interval that is no probability.

    Notes
    -----
    Intervals contain the innovations of the days in the gap, not the uncertainty of the coefficients.

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=20)
    >>> dp.stats.fit_increment(panel, covariates="incidence", pooling="partial")
    >>> dp.stats.impute_increment(panel, mode="smooth", interval=0.9)
    """
    if interval is not None:
        check_probability(interval)
    key = get.increment_slots(adata, key).key
    panel = read_fitted_panel(adata, key)
    filled = impute(get.model(adata, key), panel, mode=mode, interval=interval)
    if copy:
        adata = adata.to_memory() if adata.isbacked else adata.copy()
    mean, lower, upper = (
        None if values is None else on_all_days(values, adata.n_vars)
        for values in (filled.mean, filled.lower, filled.upper)
    )
    write_imputed(adata, key, mean=mean, lower=lower, upper=upper, settings={"mode": mode, "interval": interval})
    return adata if copy else None
