"""dp.stats.estimate: a program and data -> its parameters, with errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from dynapath import write
from dynapath.models._random import concrete_seed
from dynapath.read.program import read_arguments

from .program.arguments import Arguments, argument_names, arguments_of
from .program.bootstrap import bootstrap_draws
from .program.check import checked
from .program.errors import check_sandwich, covariance_of, variance_of
from .program.fit import AT_BOUND, OK, STATUS, Method, estimate_each, method_of, without_data
from .program.marginal import check_against_marginal
from .program.parameters import Parameters
from .program.pooled import Pooling, estimate_pooled, modes_of
from .program.problem import Kind
from .program.result import Estimate


def estimate(
    program: Callable[..., Tensor],
    data: Mapping[str, Any] | AnnData,
    *,
    params: str | Sequence[str] | Mapping[str, Any],
    per: Literal["unit", "all"] = "unit",
    kind: Kind = "nll",
    constraints: Mapping[str, Any] | None = None,
    pooling: Pooling | Mapping[str, Pooling] = "individual",
    method: Method = "auto",
    se: Literal["hessian", "sandwich", "bootstrap"] | None = "hessian",
    slots: Mapping[str, str] | None = None,
    shared: Sequence[str] = (),
    simulate: Callable[..., Mapping[str, Tensor]] | None = None,
    n_bootstrap: int | None = None,
    n_restarts: int = 1,
    max_iter: int | None = None,
    learning_rate: float | None = None,
    key_added: str | None = "estimate",
    random_state: int | None = 0,
) -> Estimate:
    r"""Estimate the parameters of any differentiable program.

    The program is written as the model is on paper, for one unit, with torch functions. It is run for all units at once,
    differentiated automatically, and its parameters are those that minimise its loss.

    Parameters
    ----------
    program
        `program(params, **data)`: a dict of tensors of the shapes in `params`, and the data of one unit by name. It may loop
        and call itself, but not branch in Python on values (`if y > 0`): that is `torch.where`. What it returns is said by
        `kind`.
    data
        Dict of arrays, with the units along the first axis for `per="unit"`. Or an AnnData: arguments of the program are
        then looked up by name in `X`, layers, columns of obs, obsm, and columns of var (the same for all units).
    params
        Names with starting values, which also give the shapes: `{"a": 0.0, "beta": np.zeros(3)}`. Names alone are numbers
        that start at 0, or inside their bounds.
    per
        `"unit"`: every unit has its own parameters (unless pooled), and the program sees one unit. `"all"`: one set, and the
        program sees all data as they are.
    kind
        `"residuals"`: the program returns observed minus fitted values, of any shape with at least one axis; least squares.
        `"nll"`: the negative log-likelihood of each row (a vector), or its sum. `"loglik"`: the same with the other sign.
    constraints
        For some of the parameters `"positive"`, `"unit"` (between 0 and 1), `(low, high)` with None for an open side,
        `"simplex"` (positive, adding up to 1) or `"ordered"` (increasing) along the last axis.
    pooling
        `"individual"`; `"global"`: all units share the parameter; `"partial"`: it comes from a normal distribution over
        units that is estimated as well, on the free scale, so that positive parameters are log-normal. Or a mapping for some
        of the parameters. As in :func:`dynapath.stats.fit_increment`; with `per="unit"`.
    method
        `"lm"`: Levenberg-Marquardt, for residuals. `"newton"`: damped Newton steps. `"lbfgs"`: gradients only. `"adam"`: for
        programs that draw random numbers. `"auto"`: the first that fits; L-BFGS beyond 60 numbers.
    se
        `"hessian"`: trusts the model. `"sandwich"`: the observed scores of residuals, rows, or units (for shared
        parameters). `"bootstrap"`: refits simulated data. None: no errors, and no Hessian with `"lbfgs"`.
    slots
        Where arguments are in the AnnData if not under their own name, e.g. `{"y": "X", "t": "var/day"}`.
    shared
        Arrays in a dict of data that are the same for all units; with `per="unit"`.
    simulate
        `simulate(params, **data)` that draws the data of one unit, for `se="bootstrap"` of likelihoods, and for
        :meth:`Estimate.bootstrap` afterwards.
    n_bootstrap
        Number of simulated data sets of `se="bootstrap"`, by default 200.
    n_restarts
        Number of starts: the one given, then some around it. The best is kept; `agreement` says how many found it.
    max_iter
        Steps, by default 100 (`"lm"`, `"newton"`), 1,000 (`"lbfgs"`) or 2,000 (`"adam"`).
    learning_rate
        First step of `"adam"`, by default .05.
    key_added
        Under which results are stored if `data` is an AnnData; None: nowhere.
    random_state
        Seed of restarts, bootstrap, and of programs that draw random numbers.

    Returns
    -------
    Estimate : with `params`, `se`, `covariance`, `status`, and `summary()`, `predict()`, `profile()`, `bootstrap()`.

    With an AnnData and `per="unit"` also writes `obsm["{key}_params"]`, `obsm["{key}_se"]`, `obs["{key}_status"]`,
    `obs["{key}_loss"]`, `obs["{key}_n"]`, and always `uns["{key}"]`; :meth:`Estimate.from_adata` reads them.

    Raises
    ------
    KeyError, TypeError, ValueError : for data or a program that cannot be used, saying what to write instead.

    Notes
    -----
    Everything is computed in float64. Missing values are left out by the program, with
    :func:`dynapath.stats.where_observed`; terms that are exactly 0 with all their derivatives do not count as data.

    Partial pooling maximises the joint likelihood. A likelihood in which a shared parameter would be off by more than a quarter
    of its standard error against the marginal one, as scales and dispersions are, is refused; the user guide on programs says
    what to write instead. Individual parameters beside a shared scale are estimated by maximum likelihood, which has too small a
    scale if there are few values per unit.

    Residuals of pooled parameters weigh as in the increment model: shared ones minimise the mean over units of each unit's
    mean square. For the sum of all squares use `per="all"`.

    Examples
    --------
    >>> import numpy as np, torch, dynapath as dp
    >>> t = np.linspace(0, 2, 9)
    >>> y = np.exp(-np.outer([0.5, 1.0, 2.0], t))
    >>> decay = lambda p, t, y: y - p["start"] * torch.exp(-p["rate"] * t)
    >>> data = {"t": np.tile(t, (3, 1)), "y": y}
    >>> fitted = dp.stats.estimate(decay, data, params={"start": 0.8, "rate": 0.8}, kind="residuals")
    >>> fitted.params["rate"].round(3)
    array([0.5, 1. , 2. ])
    """
    _check_choices(per, kind, se, pooling, n_restarts, max_iter, simulate)
    if learning_rate is not None and not learning_rate > 0:
        msg = f"learning_rate must be positive; it is {learning_rate!r}."
        raise ValueError(msg)
    if n_bootstrap is not None and se != "bootstrap":
        msg = (
            f"n_bootstrap={n_bootstrap!r} is the number of data sets that se='bootstrap' simulates; se={se!r} simulates none. Use "
            "se='bootstrap', or leave it out (afterwards there is Estimate.bootstrap)."
        )
        raise ValueError(msg)
    adata = data if isinstance(data, AnnData) else None
    if adata is not None and key_added is not None:
        write.check_key_is_free(adata, key_added, kinds=(write.ESTIMATE,))
    parameters = Parameters.of(params, constraints)
    modes = modes_of(pooling, parameters)
    pooled = bool((modes != "individual").any())
    arguments = _arguments(program, data, per, slots, shared)
    seed = concrete_seed(random_state)
    problem, start = checked(program, arguments, parameters, kind, seed)
    method = method_of(problem, method)
    if learning_rate is not None and method != "adam":
        msg = f"learning_rate={learning_rate!r} is the first step of method='adam'; method={method!r} finds its own steps. Leave it out."
        raise ValueError(msg)
    if problem.seed is not None:
        se = None  # the loss is not the same twice, and has no Hessian
    if pooled and method in ("lbfgs", "adam"):
        msg = f"Pooling needs the curvature of the loss, which method={method!r} does not compute. Use method='auto', or pooling='individual'."
        raise ValueError(msg)
    if se == "sandwich" and not pooled:
        check_sandwich(problem)
    own = estimate_each(
        problem,
        start,
        method=method,
        n_restarts=n_restarts,
        max_iter=max_iter,
        learning_rate=learning_rate,
        random_state=seed,
        curvature=se is not None,
    )
    settings = {
        "per": per,
        "kind": kind,
        "method": method,
        "se": se,
        "pooling": pooling if isinstance(pooling, str) else dict(pooling),
        "pooled": pooled,
        "n_restarts": n_restarts,
        "max_iter": max_iter,
        "random_state": seed,
        "program": getattr(program, "__name__", type(program).__name__),
    }
    errors = "hessian" if se == "bootstrap" else se
    common = None
    if pooled:
        found, common = estimate_pooled(problem, start, own, modes, se=errors, max_iter=max_iter or 100)
        covariance, sigma2 = common.covariance, common.sigma2
        if (modes == "partial").any():
            check_against_marginal(problem, found, common, errors=se is not None)
    else:
        found, sigma2 = own, variance_of(problem, own)
        covariance = None if errors is None else covariance_of(problem, own, errors)
    if se == "bootstrap":
        draws, ended = bootstrap_draws(
            problem, found.u, sigma2, settings, 200 if n_bootstrap is None else n_bootstrap, simulate, seed
        )
        covariance = _covariance_of_draws(draws, ended, found.status)
    found = without_data(found) if not pooled else found
    result = Estimate(
        parameters=parameters,
        units=arguments.units,
        free=found.u,
        free_covariance=covariance,
        status=found.status,
        loss=2.0 * found.f if kind == "residuals" else found.f,
        n=found.n,
        sigma2=sigma2 if kind == "residuals" else np.full(len(found.f), np.nan),
        n_iter=found.n_iter,
        agreement=found.agreement,
        settings=settings,
        shared=common,
        history=found.history,
        problem=problem,
        simulate=simulate,
    )
    if adata is not None and key_added is not None:
        _write(adata, key_added, result, slots)
    return result


def _check_choices(
    per: str, kind: str, se: str | None, pooling: object, n_restarts: int, max_iter: int | None, simulate: object
) -> None:
    for name, value, known in (
        ("per", per, ("unit", "all")),
        ("kind", kind, ("nll", "loglik", "residuals")),
        ("se", se, ("hessian", "sandwich", "bootstrap", None)),
    ):
        if value not in known:
            msg = f"{name} must be one of {', '.join(map(repr, known))}; it is {value!r}."
            raise ValueError(msg)
    if per == "all" and pooling != "individual":
        msg = "With per='all' there is one set of parameters, and nothing to pool. Use per='unit' for pooling."
        raise ValueError(msg)
    if n_restarts < 1 or (max_iter is not None and max_iter < 1):
        msg = f"n_restarts and max_iter must be at least 1; they are {n_restarts!r} and {max_iter!r}."
        raise ValueError(msg)
    if se == "bootstrap" and kind != "residuals" and simulate is None:
        msg = (
            f"se='bootstrap' with kind={kind!r} needs simulate=..., a function simulate(params, **data) that returns the simulated "
            "data of one unit as a dict. Or use se='hessian' or 'sandwich'."
        )
        raise ValueError(msg)


def _arguments(
    program: Callable[..., Tensor],
    data: Mapping[str, Any] | AnnData,
    per: str,
    slots: Mapping[str, str] | None,
    shared: Sequence[str],
) -> Arguments:
    if len(shared) and (isinstance(data, AnnData) or per == "all"):
        reason = (
            "in an AnnData, columns of var are the same for all units"
            if isinstance(data, AnnData)
            else "with per='all' the program sees all data as they are"
        )
        msg = f"shared={shared!r} says which arrays of a dict are the same for all units; {reason}. Leave it out."
        raise ValueError(msg)
    if isinstance(data, AnnData):
        required, optional, _ = argument_names(program)
        arrays, of_var = read_arguments(data, required, slots, optional=optional)
        return arguments_of(arrays, per=per, shared=of_var if per == "unit" else (), units=data.obs_names)
    if not isinstance(data, Mapping):
        msg = f"data must be a dict of arrays or an AnnData; it is a {type(data).__name__}."
        raise TypeError(msg)
    if slots is not None:
        msg = "slots goes with an AnnData; the arrays of a dict are under their names already."
        raise ValueError(msg)
    return arguments_of(data, per=per, shared=(shared,) if isinstance(shared, str) else tuple(shared))


def _covariance_of_draws(
    draws: NDArray[np.float64], ended: NDArray[np.object_], status: NDArray[np.object_]
) -> NDArray[np.float64]:
    """Of the free numbers over simulated data sets that could be estimated; NaN for units without an estimate."""
    good = np.isin(ended, (OK, AT_BOUND)) & np.isfinite(draws).all(2)
    n = good.sum(0)
    values = np.where(good[:, :, None], draws, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = values.sum(0) / n[:, None]
        away = np.where(good[:, :, None], draws - mean, 0.0)
        covariance = np.einsum("rui,ruj->uij", away, away) / (n - 1)[:, None, None]
    covariance[~np.isin(status, (OK, AT_BOUND)) | (n < 0.5 * len(draws))] = np.nan
    return covariance


def _write(adata: AnnData, key: str, result: Estimate, slots: Mapping[str, str] | None) -> None:
    tables: dict[str, pd.DataFrame | None] = {"params": None, "se": None, "obs": None}
    if result.per_unit:
        table = lambda values: pd.DataFrame(values, index=adata.obs_names, columns=result.elements)
        tables["params"] = table(result.estimates)
        if result.free_covariance is not None:
            tables["se"] = table(result.standard_errors)
        status = pd.Categorical(result.status, categories=list(STATUS))
        tables["obs"] = pd.DataFrame({"status": status, "loss": result.loss, "n": result.n}, index=adata.obs_names)
    history = {"n_iter": result.n_iter} | ({} if result.history is None else {"loss": result.history})
    fit = {"params": result.settings | {"slots": dict(slots or {})}, "state": result.to_arrays(), "history": history}
    write.write_estimate(adata, key, fit=fit, **tables)
