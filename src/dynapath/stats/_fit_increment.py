"""dp.stats.fit_increment: a panel of reports -> coefficients, their errors and states, written into the AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from dynapath import write
from dynapath.read.panel import read_panel

from .increment.bootstrap import Bootstrap
from .increment.fit import Loss, Method, Pooling, fit
from .increment.problem import STATUS

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def fit_increment(
    adata: AnnData,
    *,
    layer: str | None = None,
    covariates: str | Sequence[str] | None = None,
    lags: int | Sequence[int] | Mapping[str, int | Sequence[int]] = 1,
    observed: str | NDArray[np.bool_] | None = None,
    pooling: Pooling | Mapping[str, Pooling] = "individual",
    method: Method = "lm",
    weights: Literal["equal", "gap"] | None = None,
    loss: Loss = "squared",
    stable: bool | tuple[float, float] = True,
    max_iter: int | None = None,
    learning_rate: float | tuple[float, ...] | None = None,
    se: Literal["hessian", "sandwich", "bootstrap"] | None = "hessian",
    bias_correction: bool = False,
    bootstrap: Bootstrap | None = None,
    train_until: int | str | pd.Timestamp | None = None,
    sigma: Literal["own", "common"] = "own",
    key_added: str = "increment",
    random_state: int | None = 0,
    copy: bool = False,
    progress: bool = True,
) -> AnnData | None:
    r"""Model the daily increments of counts whose reports are partly missing.

    From day t - 1 to day t a unit changes by d = b1 + b2 s + b3 z, where s is its state on day t - 1 and z the covariate
    of that day. The state is the last report; over days without one the model carries it on, s <- s + d. What is
    compared with a report is thus a forecast over as many days as there was none, and reports that are missing need not
    be filled in before the fit.

    Parameters
    ----------
    adata
        Rows are units, columns are consecutive days (`var["date"]`, or names that are dates or numbers), X is what was
        reported. NaN: not reported. See :func:`dynapath.pp.panel_from_long`.
    layer
        Layer with the reports; None for `X`.
    covariates
        Layers with covariates, in the columns of their own days. Their values must be finite from a unit's first report
        to its last; elsewhere they are not used.
    lags
        Which earlier days of the covariates a step uses: 1 the day before, p the days 1 to p before, a list those days,
        a mapping something else for each. With several the first reports only start the recursion.
    observed
        Layer or array (unit, day) that is True where a report was received; values elsewhere are never used. By default
        all that are not NaN.
    pooling
        `"individual"`: each unit has its own coefficients. `"global"`: all share them, each unit counting the same.
        `"partial"`: they come from a normal distribution over units, which is estimated as well (empirical Bayes): units
        with few reports lean on the others. Or a mapping with one of these for `"intercept"`, `"state"` and every
        covariate; what it leaves out is individual. Units that are constant or without reports teach the others nothing.
    method
        `"lm"`: Levenberg-Marquardt to convergence. `"gd"`: the publication's gradient descent (from 0, steps of 1e-3,
        1e-2 and 1e-3 for every covariate, 150 iterations, no bounds), which stops long before the optimum and diverges for
        larger units, of which a warning tells beforehand. `"adam"`, `"lbfgs"`: through automatic differentiation, for
        losses of your own.
    weights
        `"equal"`: all innovations count the same, as published. `"gap"`: those after a gap less, by their larger variance
        (maximum likelihood). By default `"gap"` with partial pooling, which is a likelihood method, and else `"equal"`.
    loss
        Of an innovation: `"squared"`; `"huber"`, for single outliers; `"poisson"` or `"negative_binomial"`, for small
        counts, with means that are never below 0; or a function of predicted and reported values (1-D tensors) that
        returns a loss for each, with `method="lbfgs"` or `"adam"`.
    stable
        Keep the coefficient of the state in [-1, 0], so that states do not explode over long gaps; a unit at the bound has
        the status `"clipped"`, its other coefficients are estimated given that. Or other bounds, or False for none.
    max_iter
        Iterations, by default 100 (`"lm"`), 150 (`"gd"`) or 500 (`"adam"`, `"lbfgs"`).
    learning_rate
        Steps of `"gd"` for intercept, state and covariates, or of `"adam"` relative to the scale of each (.01).
    se
        Standard errors: `"hessian"` trusts the model, `"sandwich"` the observed squares of residuals (of units where
        coefficients are shared), `"bootstrap"` refits simulated panels, about as long as 1,000 fits. With partial pooling
        errors contain how uncertain the distribution over units is: by its posterior, or by the refits. None with
        `method="gd"`, of whose early stop no theory tells.
    bias_correction
        Subtract the small-sample bias of autoregressions, towards too fast a return, as found in simulated panels.
    bootstrap
        How to simulate, see :class:`dynapath.stats.Bootstrap`.
    train_until
        The last day used: its index, name or date, as `"2020-03-04"`. By default all days.
    sigma
        Whether the variance of a day's innovation is each unit's own or common to all.
    key_added
        Under which the results are stored. A previous fit under this key is replaced as a whole.
    random_state
        Seed of the bootstrap.
    copy
        Work on a copy and return it.
    progress
        Whether large panels and bootstraps show a progress bar.

    Returns
    -------
    None, or the copy if `copy=True`. Sets the following fields:

    `obsm["{key}_params"]` : coefficients, columns `intercept`, `state`, then the covariates. Per day, and per unit of the
        covariate.
    `obsm["{key}_se"]` : standard errors, if any; NaN at a bound and for units without an estimate of their own.
    `obs["{key}_status"]` : `ok`; `clipped` (the state coefficient is at its bound); `constant` (all reports are equal: own
        coefficients are 0, so the forecast is the last report); `no_data` (no two reports: own coefficients are NaN, pooled
        ones those of all); `rank_deficient` (too few reports or collinear: the smallest solution); `max_iter` (not
        converged; with `"gd"`: diverged).
    `obs["{key}_loss"]` : mean loss of an innovation, by default its mean square; `obs["{key}_n"]` their number.
    `layers["{key}_state"]` : reports, and the filtered state where there is none; NaN before the first.
    `layers["{key}_resid"]` : innovations; NaN where there is none. `layers["{key}_observed"]`, if `observed` was an array.
    `uns["{key}"]` : settings, coefficients with their covariances, innovation variances; :func:`dynapath.get.model` makes
        a :class:`dynapath.dynamics.IncrementDynamics` of it, :func:`dynapath.get.increment_params` a table.

    Raises
    ------
    KeyError : for an unknown layer or coefficient.
    TypeError, ValueError : for input that cannot be used, before anything is written.

    Notes
    -----
    The innovations are those of a Kalman filter for an ARX(1) process that is observed exactly or not at all; with nothing
    missing the estimates are those of least squares. Errors of individual coefficients are too small in short series,
    as in all autoregressions; see the user guide for how often intervals cover.

    References
    ----------
    Hackenberg et al. (2022), The American Statistician 76:270-279, doi:10.1080/00031305.2021.2002189.

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=20)
    >>> dp.stats.fit_increment(panel, covariates="incidence")
    >>> panel.obsm["increment_params"].columns.tolist()
    ['intercept', 'state', 'incidence']
    """
    write.check_key_is_free(adata, key_added, kinds=(write.INCREMENT,))
    panel = read_panel(adata, layer=layer, covariates=covariates, lags=lags, observed=observed, train_until=train_until)
    result = fit(
        panel,
        pooling=pooling,
        method=method,
        weights=weights,
        loss=loss,
        stable=stable,
        max_iter=max_iter,
        learning_rate=learning_rate,
        sigma=sigma,
        se=se,
        bias_correction=bias_correction,
        bootstrap=bootstrap,
        random_state=random_state,
        progress=progress,
    )
    if copy:
        adata = adata.to_memory() if adata.isbacked else adata.copy()
    coefficients, last = list(panel.coefficients), adata.n_vars
    table = lambda values: pd.DataFrame(values, index=adata.obs_names, columns=coefficients)
    write.write_increment(
        adata,
        key_added,
        params=table(result.params),
        se=None if result.se is None else table(result.se),
        status=pd.Categorical(result.status, categories=list(STATUS)),
        loss=result.loss,
        n=result.n,
        state=on_all_days(result.state, last),
        resid=on_all_days(result.resid, last),
        # A mask given as an array is needed again to forecast and impute.
        observed=None if observed is None or isinstance(observed, str) else np.asarray(observed, dtype=bool),
        fit={
            "params": {
                "layer": layer,
                "covariates": list(panel.covariates),
                "lags": {name: panel.lag[panel.source == i] for i, name in enumerate(panel.covariates)},
                "observed": observed if isinstance(observed, str) else None,
                "pooling": result.pooling,
                "method": method,
                "weights": result.weights,
                "loss": loss if isinstance(loss, str) else getattr(loss, "__name__", "own"),
                "bounds": np.array(result.bounds),
                "se": se,
                "bias_correction": bias_correction,
                "train_until": panel.n_days - 1,
                "sigma": sigma,
                "random_state": random_state,
            },
            "state": result.dynamics.to_arrays(),
            "history": {"n_iter": result.n_iter},
        },
    )
    return adata if copy else None


def on_all_days(values: NDArray[Any], n_days: int) -> NDArray[Any]:
    """With NaN on the days after the fit, of which there may be some."""
    rest = np.full((len(values), n_days - values.shape[1]), np.nan)
    return np.concatenate([values, rest], axis=1) if rest.size else values
