"""Fit the increment model to a panel of arrays: choose, check, estimate, and give errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.special import gammaln

from dynapath.dynamics.increments import IncrementDynamics
from dynapath.read.panel import Panel, check_counts

from .bootstrap import Bootstrap, Refits, refit
from .counts import estimate_overdispersion
from .errors import covariance_of, spreads_of
from .estimate import Estimate, estimate
from .problem import CLIPPED, CONSTANT, MAX_ITER, NO_DATA, OK, Problem, data_status
from .recursion import COUNT, LOSS, LOSSES, follow, reports_of
from .solve import PUBLISHED_STEPS, divergence_rule, feasible_params, gradient_descent

Pooling = Literal["individual", "global", "partial"]
Method = Literal["lm", "gd", "adam", "lbfgs"]
Loss = Literal["squared", "huber", "poisson", "negative_binomial"] | Callable[[Any, Any], Any]
MAX_ITER_OF = {"lm": 100, "gd": 150, "adam": 500, "lbfgs": 500}
STABLE = (-1.0, 0.0)
_HUBER = 1.345  # standard deviations: 95 % efficient where errors are normal
_DISPERSION_ROUNDS = 4


@dataclass(frozen=True)
class IncrementFit:
    """The fitted dynamics, and what they leave unexplained."""

    dynamics: IncrementDynamics
    loss: Float[NDArray, " unit"]  # mean over innovations: of e^2, or of the loss that was asked for
    n: Int[NDArray, " unit"]  # innovations: reports after the first
    n_iter: Int[NDArray, " unit"]
    pooling: dict[str, str]  # how each coefficient was pooled
    weights: str
    bounds: tuple[float, float]  # of the state coefficient
    state: Float[NDArray, "unit day"] = field(repr=False)
    resid: Float[NDArray, "unit day"] = field(repr=False)

    @property
    def params(self) -> Float[NDArray, "unit coefficient"]:
        """Coefficients."""
        return self.dynamics.params

    @property
    def covariance(self) -> Float[NDArray, "unit coefficient coefficient"] | None:
        """Of the coefficients, unit by unit."""
        return self.dynamics.covariance

    @property
    def se(self) -> Float[NDArray, "unit coefficient"] | None:
        """Standard errors."""
        return self.dynamics.se

    @property
    def status(self) -> NDArray[np.object_]:
        """How each unit's fit ended."""
        return self.dynamics.status

    @property
    def sigma2(self) -> Float[NDArray, " unit"]:
        """Variance of one day's innovation."""
        return self.dynamics.sigma2


def fit(
    panel: Panel,
    *,
    pooling: Pooling | Mapping[str, Pooling] = "individual",
    method: Method = "lm",
    weights: Literal["equal", "gap"] | None = None,
    loss: Loss = "squared",
    stable: bool | tuple[float, float] = True,
    max_iter: int | None = None,
    learning_rate: float | tuple[float, ...] | None = None,
    sigma: Literal["own", "common"] = "own",
    se: Literal["hessian", "sandwich", "bootstrap"] | None = None,
    bias_correction: bool = False,
    bootstrap: Bootstrap | None = None,
    random_state: int | None = 0,
    progress: bool = True,
) -> IncrementFit:
    """The increment model on a panel of arrays; arguments as in :func:`dynapath.stats.fit_increment`."""
    modes = modes_of(pooling, panel.coefficients)
    weights = weights or ("gap" if (modes == "partial").any() and loss == "squared" else "equal")
    check_choices(modes, method, weights, loss, sigma, se, refits=bias_correction or se == "bootstrap")
    if learning_rate is not None and method not in ("gd", "adam"):
        msg = f"learning_rate={learning_rate!r} is the step of method='gd' or 'adam'; method={method!r} finds its own. Leave it out."
        raise ValueError(msg)
    if bootstrap is not None and not (bias_correction or se == "bootstrap"):
        msg = f"bootstrap={bootstrap!r} says how refits are made, but se={se!r} makes none. Use se='bootstrap' or bias_correction=True."
        raise ValueError(msg)
    check_counts(panel, loss if isinstance(loss, str) else "")
    steps = max_iter if max_iter is not None else MAX_ITER_OF[method]
    problem = Problem(
        panel,
        kind=LOSSES[loss] if isinstance(loss, str) else LOSSES["squared"],
        gap=weights == "gap",
        bounds=bounds_of(stable=stable),
        max_iter=steps,
        progress=progress,
    )
    if method == "gd":
        found = _published(problem, modes, learning_rate)
    elif method in ("adam", "lbfgs"):
        from .torch_fit import estimate_with_torch

        found = estimate_with_torch(problem, modes, loss, method, learning_rate)
    else:
        problem = tuned(problem, modes, sigma)
        found = estimate(problem, modes, sigma=sigma)
    covariance = of_means = None
    if se is not None and method != "gd":  # which stops early, so that no theory of minima applies
        parts = None
        if not isinstance(loss, str):
            from .torch_fit import curvature_and_scores

            parts = curvature_and_scores(panel, found.params, loss)
        kind: Literal["hessian", "sandwich"] = "sandwich" if se == "sandwich" else "hessian"
        spreads = spreads_of(problem, modes, found) if se != "bootstrap" and (modes == "partial").any() else None
        covariance, of_means = covariance_of(problem, modes, found, kind, parts=parts, spreads=spreads)
    if se == "bootstrap" or bias_correction:
        posterior, _ = covariance_of(problem, modes, found, "hessian")
        refits = refit(
            problem,
            modes,
            found,
            bootstrap or Bootstrap(),
            sigma=sigma,
            posterior=posterior,
            rng=np.random.default_rng(random_state),
        )
        if se == "bootstrap" and (modes == "partial").any():
            covariance, of_means = covariance_of(problem, modes, found, "hessian", spreads=refits.spreads)
        elif se == "bootstrap":
            covariance, of_means = refits.covariance, refits.pooled_covariance
        if bias_correction:
            found = without_bias(problem, found, modes, refits)
            if covariance is not None and se != "bootstrap":
                fixed = found.status == CLIPPED
                covariance[fixed, 1, :] = covariance[fixed, :, 1] = np.nan
    result = assemble(problem, modes, found, covariance, of_means)
    if isinstance(loss, str):
        return result
    from .torch_fit import mean_loss

    return replace(result, loss=mean_loss(panel, found.params, loss))


def modes_of(pooling: Pooling | Mapping[str, Pooling], coefficients: tuple[str, ...]) -> NDArray[np.str_]:
    """How each coefficient is pooled; those that a mapping leaves out are individual."""
    if isinstance(pooling, Mapping):
        unknown = set(pooling) - set(coefficients)
        if unknown:
            msg = f"pooling names {', '.join(sorted(map(repr, unknown)))}; the coefficients are {', '.join(coefficients)}."
            raise KeyError(msg)
        chosen = [pooling.get(name, "individual") for name in coefficients]
    else:
        chosen = [pooling] * len(coefficients)
    for mode in chosen:
        _check_literal("pooling", mode, ("individual", "global", "partial"))
    return np.array(chosen)


def check_choices(
    modes: NDArray[np.str_], method: str, weights: str, loss: Loss, sigma: str, se: str | None, *, refits: bool
) -> None:
    """Whether method, loss, weights, pooling and errors go together."""
    _check_literal("method", method, tuple(MAX_ITER_OF))
    _check_literal("weights", weights, ("equal", "gap"))
    _check_literal("sigma", sigma, ("own", "common"))
    _check_literal("se", se, ("hessian", "sandwich", "bootstrap", None))
    if refits and method != "lm":
        msg = f"Refits (se='bootstrap', bias_correction=True) are made with method='lm' only, not with {method!r}."
        raise ValueError(msg)
    if isinstance(loss, str):
        _check_literal("loss", loss, tuple(LOSSES))
    elif not callable(loss):
        msg = (
            f"loss must be one of {', '.join(LOSSES)}, or a function of predicted and reported values; it is {loss!r}."
        )
        raise TypeError(msg)
    if callable(loss) and method not in ("adam", "lbfgs"):
        msg = f"method={method!r} minimises known losses only; for your own loss use method='lbfgs' or 'adam'."
        raise ValueError(msg)
    if weights == "gap" and loss != "squared":
        msg = "weights='gap' is the normal likelihood, so it goes with loss='squared'. Use weights='equal'."
        raise ValueError(msg)
    if method == "gd" and (loss != "squared" or weights == "gap"):
        msg = "method='gd' is the published procedure, with loss='squared' and weights='equal'. Use method='lm' for others."
        raise ValueError(msg)
    if method in ("adam", "lbfgs") and weights == "gap":
        msg = f"method={method!r} goes with weights='equal'. Use method='lm' for weights='gap'."
        raise ValueError(msg)
    if method in ("adam", "lbfgs") and loss in ("huber", "negative_binomial"):
        msg = f"loss={loss!r} estimates a scale on its way: use method='lm', or give your own loss with its scale."
        raise ValueError(msg)
    if method != "lm" and (modes == "partial").any():
        msg = f"method={method!r} knows individual and global coefficients. Use method='lm' for partial pooling."
        raise ValueError(msg)
    if se is not None and method in ("adam", "lbfgs") and (modes == "global").any():
        msg = f"Errors of shared coefficients need method='lm', not {method!r}. Use that, or se=None."
        raise ValueError(msg)
    if se == "hessian" and callable(loss):
        msg = "se='hessian' needs a likelihood; for your own loss use se='sandwich', or None."
        raise ValueError(msg)


def without_bias(problem: Problem, found: Estimate, modes: NDArray[np.str_], refits: Refits) -> Estimate:
    """Estimates less the bias that refits showed; the state coefficient stays within its bounds, and the status says where."""
    low, high = problem.bounds
    params, status = found.params - np.nan_to_num(refits.bias), found.status.copy()
    beyond = (params[:, 1] <= low) | (params[:, 1] >= high)
    params[:, 1] = np.clip(params[:, 1], low, high)
    if found.pooled is None:
        status[(status == OK) & beyond] = CLIPPED
        return replace(found, params=params, status=status)
    mean = found.pooled.mean - refits.pooled_bias
    if modes[1] != "individual":
        place = int(modes[0] != "individual")
        if modes[1] == "global":
            beyond = np.full(len(params), not low < mean[place] < high)
        mean[place] = np.clip(mean[place], low, high)
    status[(status == OK) & beyond] = CLIPPED
    shared = modes == "global"
    params[:, shared] = mean[shared[modes != "individual"]]
    return replace(found, params=params, status=status, pooled=replace(found.pooled, mean=mean))


def bounds_of(*, stable: bool | tuple[float, float]) -> tuple[float, float]:
    """Bounds of the state coefficient: [-1, 0], none, or those given."""
    if stable is True:
        return STABLE
    if stable is False:
        return -np.inf, np.inf
    low, high = (float(bound) for bound in stable)
    if not low < high or not low <= 0.0 <= high:
        msg = f"stable={stable!r} must be True, False, or bounds of the state coefficient around 0, such as (-1, 0)."
        raise ValueError(msg)
    return low, high


def tuned(problem: Problem, modes: NDArray[np.str_], sigma: str) -> Problem:
    """With the threshold of Huber's loss, or the overdispersion, of each unit.

    Huber's threshold is 1.345 times the scale of the residuals of least squares: 1.4826 median |e|, but not below a tenth
    of their root mean square, since most days may bring no change at all.
    """
    if problem.kind == LOSSES["huber"]:
        squares = replace(problem, kind=LOSSES["squared"])
        resid = _residuals(problem, estimate(squares, np.full(len(modes), "individual")).params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # rows without a residual
            scale = np.fmax(1.4826 * np.nanmedian(np.abs(resid), axis=1), 0.1 * np.sqrt(np.nanmean(resid**2, axis=1)))
        return replace(problem, tuning=_HUBER * np.where(scale > 0, scale, 1.0))
    if problem.kind == LOSSES["negative_binomial"]:
        individual = np.full(len(modes), "individual")
        poisson = estimate(replace(problem, kind=LOSSES["poisson"]), individual)
        for _ in range(_DISPERSION_ROUNDS):
            mean = problem.panel.y - _residuals(problem, poisson.params)
            alpha = estimate_overdispersion(problem.panel.y, mean, common=sigma == "common")
            problem = replace(problem, tuning=alpha)
            poisson = estimate(problem, individual, near=poisson)
    return problem


def _residuals(problem: Problem, params: NDArray) -> NDArray:
    panel = problem.panel
    alpha = problem.tuning if problem.counts else None
    return follow(panel.y, panel.z, panel.source, panel.lag, params, first=panel.first_day, overdispersion=alpha)[1]


def steps_of(learning_rate: float | tuple[float, ...] | None, k: int) -> Float[NDArray, " coefficient"]:
    """Step sizes: intercept, state, and one for every regressor or for each."""
    given = PUBLISHED_STEPS if learning_rate is None else np.atleast_1d(np.asarray(learning_rate, float))
    if len(given) == 1:
        return np.full(k, given[0])
    if len(given) == 3 and k != 3:
        given = [given[0], given[1], *[given[2]] * (k - 2)]
    if len(given) != k or not (np.asarray(given) > 0).all():
        msg = f"learning_rate={learning_rate!r} must be positive: one number, three (intercept, state, regressors), or {k}."
        raise ValueError(msg)
    return np.asarray(given, float)


def _published(problem: Problem, modes: NDArray[np.str_], learning_rate: float | tuple[float, ...] | None) -> Estimate:
    """Gradient descent as in the publication, with its warning beforehand."""
    panel, k = problem.panel, len(modes)
    status = data_status(panel)
    steps = steps_of(learning_rate, k)
    sums, _, products = problem.sums(np.zeros((panel.n_units, k)))
    diverging = divergence_rule(products, sums[:, COUNT], steps) > 1.0
    if diverging.any():
        names = ", ".join(map(repr, panel.units[diverging][:5]))
        more = f" and {int(diverging.sum()) - 5} more" if diverging.sum() > 5 else ""
        warnings.warn(
            f"Gradient descent with these steps will diverge for {int(diverging.sum())} of {panel.n_units} units: {names}{more}. "
            "Their reports or covariates are too large for the step. Use method='lm', or a smaller learning_rate.",
            UserWarning,
            stacklevel=4,
        )
    params = gradient_descent(
        *problem.arrays, first=panel.first_day, shared=modes == "global", steps=steps, max_iter=problem.max_iter
    )
    ended = status.copy()
    ended[(status == OK) & ~feasible_params(params)] = MAX_ITER
    params[~np.isfinite(params).all(1)] = np.nan
    params[np.ix_(status == NO_DATA, modes != "global")] = np.nan
    if (status == NO_DATA).any() and (modes == "global").any():
        feasible = (status != NO_DATA) & feasible_params(params)
        params[np.ix_(status == NO_DATA, modes == "global")] = params[feasible][:, modes == "global"].mean(0)
    sigma2 = np.where(np.isin(status, (NO_DATA, CONSTANT)), np.nan, problem.residual_variance(params, float(k)))
    return Estimate(params, ended, np.full(panel.n_units, problem.max_iter), sigma2)


def assemble(
    problem: Problem,
    modes: NDArray[np.str_],
    found: Estimate,
    covariance: NDArray | None = None,
    of_means: NDArray | None = None,
) -> IncrementFit:
    """From estimates to the result, with the states that follow from them."""
    panel, k = problem.panel, len(modes)
    alpha = None
    if problem.counts:
        alpha = problem.tuning if problem.kind == LOSSES["negative_binomial"] else np.zeros(panel.n_units)
    state, resid, _ = follow(
        panel.y, panel.z, panel.source, panel.lag, found.params, first=panel.first_day, overdispersion=alpha
    )
    n = np.maximum(reports_of(panel.y, panel.first_day)[0] - 1, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        if problem.kind == LOSSES["squared"] and not problem.gap:
            total = np.nansum(resid**2, axis=1)
        else:
            total = problem.sums(found.params)[0][:, LOSS] * (2.0 if problem.kind == LOSSES["squared"] else 1.0)
    if problem.counts:  # log y!, which no coefficient changes
        total += np.where(np.isfinite(resid), gammaln(np.nan_to_num(panel.y) + 1.0), 0.0).sum(1)
    known = (n > 0) & np.isfinite(found.params).all(1)
    loss = np.where(known, total / np.maximum(n, 1), np.nan)
    mean = spread = None
    mean_covariance = None
    if found.pooled is not None:
        pooled = modes != "individual"
        square = np.ix_(pooled, pooled)
        mean, mean_covariance, spread = np.full(k, np.nan), np.full((k, k), np.nan), np.full((k, k), np.nan)
        mean[pooled], spread[square] = found.pooled.mean, found.pooled.covariance
        mean_covariance[square] = found.pooled.mean_covariance if of_means is None else of_means
    dynamics = IncrementDynamics(
        coefficients=panel.coefficients,
        covariates=panel.covariates,
        source=panel.source,
        lag=panel.lag,
        units=np.asarray(panel.units, dtype=object),
        params=found.params,
        sigma2=found.sigma2,
        status=found.status,
        covariance=covariance,
        overdispersion=alpha,
        mean=mean,
        mean_covariance=mean_covariance,
        spread=spread,
    )
    pooling = dict(zip(panel.coefficients, map(str, modes), strict=True))
    weights = "gap" if problem.gap else "equal"
    return IncrementFit(dynamics, loss, n, found.n_iter, pooling, weights, problem.bounds, state, resid)


def _check_literal(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        msg = f"{name} must be one of {', '.join(map(repr, known))}; it is {value!r}."
        raise ValueError(msg)
