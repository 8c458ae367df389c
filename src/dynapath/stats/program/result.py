"""What `estimate` returns: estimates with their errors, and the evidence of their own convergence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student
from torch import Tensor
from torch.func import jvp, vmap

from dynapath._names import as_text
from dynapath.get import find_fit
from dynapath.read.program import read_arguments
from dynapath.write import ESTIMATE

from .arguments import Arguments, argument_names, arguments_of, check_names
from .bootstrap import bootstrap_draws
from .constraints import Constraint
from .fit import AT_BOUND, OK
from .parameters import Parameters
from .pooled import Shared
from .problem import Problem
from .profile import profile

_BY_UNIT = ("units", "free", "status", "loss", "n", "sigma2", "n_iter", "agreement")


class Prediction(NamedTuple):
    """What a program says at the estimates, with the first axis the units (`per="unit"`)."""

    mean: NDArray[np.float64]
    se: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Parameters of a program, unit by unit.

    Attributes
    ----------
    params : dict of arrays (unit, shape of the parameter); without the unit axis for `per="all"`
    se : their standard errors, or None
    covariance : (unit, element, element) over all numbers of all parameters, in the order of `elements`; or None
    status : how each unit's search ended: `ok`; `at_bound` (a parameter has run to the end of its constraint and has no
        error); `no_data`; `rank_deficient` (the data leave a combination of parameters open); `indefinite` (the Hessian is
        not positive definite: no minimum, no errors); `max_iter` (not converged)
    loss : sum of squared residuals, or negative log-likelihood; n : number of residuals or rows
    sigma2 : residual variance (of residuals); n_iter : steps of the search
    agreement : share of the starts that led to the same loss
    units : names
    """

    parameters: Parameters
    units: pd.Index
    free: Float[NDArray, "unit k"]
    free_covariance: Float[NDArray, "unit k k"] | None = field(repr=False)
    status: NDArray[np.object_]
    loss: Float[NDArray, " unit"]
    n: Int[NDArray, " unit"]
    sigma2: Float[NDArray, " unit"]
    n_iter: Int[NDArray, " unit"]
    agreement: Float[NDArray, " unit"]
    settings: dict[str, Any]
    shared: Shared | None = None
    history: Float[NDArray, "step unit"] | None = field(default=None, repr=False)
    problem: Problem | None = field(default=None, repr=False)
    simulate: Callable[..., Mapping[str, Tensor]] | None = field(default=None, repr=False)

    @property
    def per_unit(self) -> bool:
        """Whether every unit has estimates."""
        return self.settings["per"] == "unit"

    @property
    def elements(self) -> list[str]:
        """Names of all numbers, such as "beta[0]"."""
        return self.parameters.elements

    @property
    def estimates(self) -> Float[NDArray, "unit element"]:
        """All numbers of all parameters."""
        return self.parameters.natural(self.free)

    @property
    def params(self) -> dict[str, NDArray[np.float64]]:
        """Estimates by name."""
        return self._named(self.estimates)

    @property
    def covariance(self) -> Float[NDArray, "unit element element"] | None:
        """Of all numbers, by the delta method where there are constraints."""
        if self.free_covariance is None:
            return None
        return _delta(self.parameters, self.free, self.free_covariance)

    @property
    def standard_errors(self) -> Float[NDArray, "unit element"]:
        """Of all numbers; NaN where there are none."""
        covariance = self.covariance
        if covariance is None:
            return np.full(self.estimates.shape, np.nan)
        return _roots(covariance)

    @property
    def se(self) -> dict[str, NDArray[np.float64]] | None:
        """Standard errors by name."""
        return None if self.free_covariance is None else self._named(self.standard_errors)

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each unit's search ended at a minimum."""
        return np.isin(self.status, (OK, AT_BOUND))

    def summary(self, level: float = 0.9) -> pd.DataFrame:
        """One row per unit and number.

        Parameters
        ----------
        level
            Probability of the intervals. Of residuals Student's t with n - k degrees of freedom, else normal; of a positive
            or bounded parameter on the scale on which it is free, so that they stay inside.

        Returns
        -------
        Columns `unit` (with `per="unit"`), `parameter`, `estimate`, `se`, `lower`, `upper`, `status`. If parameters are
        pooled, the first rows are their means over units, with `unit` missing and status `pooled`.
        """
        _check_level(level)
        own = self._table(self.free, self.free_covariance, self._quantile(level))
        own["status"] = np.repeat(self.status, len(self.elements))
        if not self.per_unit:
            return own
        own.insert(0, "unit", np.repeat(self.units.to_numpy(dtype=object), len(self.elements)))
        if self.shared is None:
            return own
        pooled = self.shared.modes != "individual"
        mean = np.where(pooled, self.shared.mean, np.nan)[None]
        covariance = None if self.shared.mean_covariance is None else self.shared.mean_covariance[None]
        normal = np.full((1, self.parameters.k), student.ppf((1 + level) / 2, np.inf))
        means = self._table(mean, covariance, normal)
        means["status"] = "pooled"
        means.insert(0, "unit", None)
        owners = set(self.parameters.owner[pooled])
        means = means[np.isin(self.parameters.element_owner, list(owners))]
        return pd.concat([means, own], ignore_index=True)

    def predict(
        self, program: Callable[..., Tensor], data: Mapping[str, Any] | None = None, *, level: float = 0.9
    ) -> Prediction:
        """Another program at the estimates, such as fitted values, a forecast, or a contrast.

        Parameters
        ----------
        program
            `program(params, **data)`, as for the estimation; it may take fewer of the data.
        data
            Arrays with the units along their first axis; by default those of the estimation.
        level
            Probability of the intervals, by the delta method: of the mean, without the noise of a new observation.
        """
        _check_level(level)
        if data is None:
            if self.problem is None:
                msg = (
                    "This Estimate was read from an AnnData without its data. Give data=..., or program= to from_adata."
                )
                raise ValueError(msg)
            arguments = _only(self.problem.arguments, program)
        else:
            shared = [name for name in data if self.problem is not None and name in self.problem.arguments.shared]
            arguments = arguments_of(data, per=self.settings["per"], shared=shared)
            check_names(program, list(data))
            if arguments.n_units != len(self.units):
                msg = f"data has {arguments.n_units} units, the estimates have {len(self.units)}."
                raise ValueError(msg)
        eye = torch.eye(self.parameters.k, dtype=torch.float64)

        def one(u: Tensor, by_unit: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            run = lambda u: program(self.parameters.unpack(u), **by_unit, **arguments.shared).double()
            value, slope = vmap(lambda v: jvp(run, (u,), (v,)))(eye)
            return value[0], slope

        value, slope = vmap(one)(torch.from_numpy(np.ascontiguousarray(self.free)), arguments.by_unit)
        mean, J = value.numpy(), slope.numpy()
        if self.free_covariance is None:
            se = np.full(mean.shape, np.nan)
        else:
            flat = J.reshape(*J.shape[:2], -1)
            used = np.abs(flat).sum((0, 2)) > 0
            # A number that the prediction does not use does not spoil it, even if it has no error.
            covariance = self.free_covariance[:, used][:, :, used]
            variance = np.einsum("uim,uij,ujm->um", flat[:, used], covariance, flat[:, used])
            se = np.sqrt(np.maximum(variance, 0.0)).reshape(mean.shape)
        df = self._degrees()
        half = student.ppf((1 + level) / 2, df).reshape(-1, *[1] * (mean.ndim - 1)) * se
        found = (mean, se, mean - half, mean + half)
        return Prediction(*(x if self.per_unit else x[0] for x in found))

    def profile(
        self,
        parameter: str,
        *,
        values: ArrayLike | None = None,
        units: str | Sequence[str] | None = None,
        n_grid: int | None = None,
        level: float = 0.9,
    ) -> pd.DataFrame:
        """The loss over one number, all others at their best: how well a unit knows it.

        Parameters
        ----------
        parameter
            Its name, such as "beta[0]". Numbers of simplex and ordered parameters cannot be held fixed one by one.
        values
            Grid; by default five standard errors around the estimate on its free scale, or a factor around it.
        units
            Which, by default all.
        n_grid
            Number of values where none are given, by default 41.
        level
            Confidence of the threshold.

        Returns
        -------
        One row per unit and value: `unit`, `coefficient`, `value`, `loss` (mean square of the residuals, or the negative
        log-likelihood), `threshold` (values with a loss below form the confidence set of the likelihood ratio), `n`.
        `attrs["loss"]` says which loss it is. Drawn by :func:`dynapath.pl.loss_profile`.
        """
        _check_level(level)
        self._needs_program("profile")
        if values is not None and n_grid is not None:
            msg = f"n_grid={n_grid!r} is the number of values where none are given, but values are. Leave one of them out."
            raise ValueError(msg)
        n_grid = 41 if n_grid is None else n_grid
        names = [units] if isinstance(units, str) else list(self.units if units is None else units)
        rows = self.units.get_indexer(as_text(names))
        if (rows < 0).any():
            msg = f"{names[int(np.argmin(rows))]!r} is no unit of this estimate; there are {', '.join(map(str, self.units[:5]))} ..."
            raise KeyError(msg)
        if self.shared is not None:
            msg = "Profiles of pooled parameters would move all units at once; fit with pooling='individual', or per='all'."
            raise ValueError(msg)
        j = self._place(parameter)
        se = np.full(self.free.shape, np.nan)
        if self.free_covariance is not None:
            se = _roots(self.free_covariance)
        return profile(
            self.problem, self.free, se, self.n, rows, parameter, j, values=values, n_grid=n_grid, level=level
        )

    def bootstrap(
        self,
        n: int = 200,
        *,
        simulate: Callable[..., Mapping[str, Tensor]] | None = None,
        random_state: int | None = 0,
    ) -> pd.DataFrame:
        """Parametric bootstrap: simulate data from the estimates, and estimate from them again.

        Parameters
        ----------
        n
            Number of simulated data sets.
        simulate
            `simulate(params, **data)` returns a dict with the simulated data of one unit, drawn with torch (`torch.normal`,
            `torch.poisson`, ...); by default that of the fit. Not needed for `kind="residuals"`: there normal noise of the
            estimated variance is added.
        random_state
            Seed.

        Returns
        -------
        One row per data set, unit and number: `replicate`, `unit` (with `per="unit"`), `parameter`, `estimate`, `status`.
        """
        self._needs_program("bootstrap")
        draw = self.simulate if simulate is None else simulate
        draws, status = bootstrap_draws(self.problem, self.free, self.sigma2, self.settings, n, draw, random_state)
        values = self.parameters.natural(draws.reshape(-1, self.parameters.k))
        p, n_units = len(self.elements), len(self.units)
        table = {"replicate": np.repeat(np.arange(n), n_units * p)}
        if self.per_unit:
            table["unit"] = np.tile(np.repeat(self.units.to_numpy(dtype=object), p), n)
        table |= {
            "parameter": np.tile(self.elements, n * n_units),
            "estimate": values.ravel(),
            "status": np.repeat(status.ravel(), p),
        }
        return pd.DataFrame(table)

    def to_arrays(self) -> dict[str, Any]:
        """Everything but the program and its data, as arrays and strings."""
        out: dict[str, Any] = {
            "units": self.units.to_numpy(dtype=str),
            "free": self.free,
            "status": self.status.astype(str),
            "loss": self.loss,
            "n": self.n,
            "sigma2": self.sigma2,
            "n_iter": self.n_iter,
            "agreement": self.agreement,
            "names": list(self.parameters.names),
            "start": dict(self.parameters.start),
            "constraints": json.dumps({k: [c.kind, c.low, c.high] for k, c in self.parameters.constraints.items()}),
            "settings": json.dumps(self.settings),
        }
        if self.free_covariance is not None:
            out["free_covariance"] = self.free_covariance
        if self.shared is not None:
            s = self.shared
            parts = {"modes": s.modes.astype(str), "mean": s.mean, "spread": s.spread, "rounds": s.rounds}
            parts["mean_covariance"] = s.mean_covariance
            out["shared"] = {name: value for name, value in parts.items() if value is not None}
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], problem: Problem | None = None) -> Estimate:
        """From what `to_arrays` gave."""
        limits = json.loads(str(arrays["constraints"]))
        names = [str(name) for name in arrays["names"]]
        start = {name: np.asarray(arrays["start"][name], float) for name in names}
        parameters = Parameters(start, {name: Constraint(*limits[name]) for name in names})
        covariance = arrays.get("free_covariance")
        sigma2 = np.asarray(arrays["sigma2"], float)
        shared = None
        if "shared" in arrays:
            s = arrays["shared"]
            of_mean = s.get("mean_covariance")
            shared = Shared(
                np.asarray(s["modes"]).astype(str),
                np.asarray(s["mean"], float),
                None if of_mean is None else np.asarray(of_mean, float),
                np.asarray(s["spread"], float),
                None,
                sigma2,
                int(s["rounds"]),
            )
        return cls(
            parameters=parameters,
            units=pd.Index(np.asarray(arrays["units"]).astype(str).astype(object)),
            free=np.asarray(arrays["free"], float),
            free_covariance=None if covariance is None else np.asarray(covariance, float),
            status=np.asarray(arrays["status"]).astype(str).astype(object),
            loss=np.asarray(arrays["loss"], float),
            n=np.asarray(arrays["n"]),
            sigma2=sigma2,
            n_iter=np.asarray(arrays["n_iter"]),
            agreement=np.asarray(arrays["agreement"], float),
            settings=json.loads(str(arrays["settings"])),
            shared=shared,
            problem=problem,
        )

    @classmethod
    def from_adata(
        cls, adata: AnnData, key: str | None = None, *, program: Callable[..., Tensor] | None = None
    ) -> Estimate:
        """From the slots in which :func:`dynapath.stats.estimate` left it, for the units of this AnnData.

        Parameters
        ----------
        program
            The program that was fitted: with it profiles, bootstraps and predictions from the same data are possible again.

        Raises
        ------
        KeyError : if there is no estimate under `key`.
        ValueError : if a unit was not among those of the fit.
        """
        key = find_fit(adata, key, (ESTIMATE,))
        fit = adata.uns[key]
        found = cls.from_arrays(fit["state"])
        if found.per_unit:
            rows = as_text(found.units).get_indexer(as_text(adata.obs_names))
            if (rows < 0).any():
                unknown = adata.obs_names[rows < 0]
                msg = f"The estimate {key!r} does not know unit {unknown[0]!r} ({len(unknown)} in all). Run dp.stats.estimate again."
                raise ValueError(msg)
            found = found.take(rows)
        if program is None:
            return found
        slots = {str(name): str(place) for name, place in dict(fit["params"].get("slots", {})).items()}
        required, optional, _ = argument_names(program)
        arrays, of_var = read_arguments(adata, required, slots, optional=optional)
        per = found.settings["per"]
        arguments = arguments_of(arrays, per=per, shared=of_var if per == "unit" else (), units=adata.obs_names)
        start = torch.from_numpy(np.nan_to_num(found.free[:1])).repeat(arguments.n_units, 1)
        problem = Problem(program, arguments, found.parameters, found.settings["kind"])
        size = problem.take(torch.arange(1)).values(start[:1]).shape[1]
        return replace(found, problem=replace(problem, size=size))

    def take(self, rows: NDArray[np.integer]) -> Estimate:
        """Some units."""
        rows = np.asarray(rows)
        some = {name: getattr(self, name)[rows] for name in _BY_UNIT}
        covariance = None if self.free_covariance is None else self.free_covariance[rows]
        problem = None if self.problem is None else self.problem.take(torch.from_numpy(rows))
        history = None if self.history is None else self.history[:, rows]
        return replace(self, **some, free_covariance=covariance, problem=problem, history=history)

    def __repr__(self) -> str:
        found, counts = np.unique(self.status.astype(str), return_counts=True)
        ended = ", ".join(f"{count} {name}" for name, count in zip(found, counts, strict=True))
        what = f"{len(self.units)} units" if self.per_unit else "all data"
        return f"Estimate of {', '.join(self.elements[:6])}{', ...' if len(self.elements) > 6 else ''} from {what}: {ended}"

    def _named(self, flat: NDArray) -> dict[str, NDArray]:
        named = self.parameters.by_name(flat)
        return named if self.per_unit else {name: value[0] for name, value in named.items()}

    def _degrees(self) -> Float[NDArray, " unit"]:
        """Degrees of freedom of each unit's variance."""
        if self.settings["kind"] != "residuals" or self.shared is not None:
            return np.full(len(self.units), np.inf)
        return np.maximum(self.n - self.parameters.k, 1).astype(float)

    def _quantile(self, level: float) -> Float[NDArray, "unit k"]:
        df = np.repeat(self._degrees()[:, None], self.parameters.k, axis=1)
        if self.shared is not None and self.settings["kind"] == "residuals":
            own = self.shared.modes == "individual"
            df[:, own] = np.maximum(self.n - own.sum(), 1)[:, None]
        return student.ppf((1 + level) / 2, df)

    def _table(self, free: NDArray, covariance: NDArray | None, quantile: NDArray) -> pd.DataFrame:
        p = self.parameters
        estimate = p.natural(free)
        se = lower = upper = np.full(estimate.shape, np.nan)
        if covariance is not None:
            se = _roots(_delta(p, free, covariance))
            widest = quantile.max(axis=1, keepdims=True)
            lower, upper = estimate - widest * se, estimate + widest * se
            half = quantile * _roots(covariance)
            ends = np.sort([p.natural(free - half), p.natural(free + half)], axis=0)
            plain = np.array([p.constraints[name].elementwise for name in p.element_owner])
            lower, upper = np.where(plain, ends[0], lower), np.where(plain, ends[1], upper)
        return pd.DataFrame(
            {
                "parameter": np.tile(self.elements, len(free)),
                "estimate": estimate.ravel(),
                "se": se.ravel(),
                "lower": lower.ravel(),
                "upper": upper.ravel(),
            }
        )

    def _place(self, parameter: str) -> int:
        if parameter not in self.elements:
            msg = f"There is no parameter {parameter!r}; there are {', '.join(self.elements)}."
            raise KeyError(msg)
        owner = self.parameters.element_owner[self.elements.index(parameter)]
        if not self.parameters.constraints[owner].elementwise:
            msg = f"{parameter!r} is tied to other numbers ({self.parameters.constraints[owner]}), so it has no profile of its own."
            raise ValueError(msg)
        return self.parameters.free_names.index(parameter)

    def _needs_program(self, verb: str) -> None:
        if self.problem is None:
            msg = f"This Estimate was read without its program, which {verb} needs: Estimate.from_adata(adata, key, program=...)."
            raise ValueError(msg)


def _delta(parameters: Parameters, free: NDArray, covariance: NDArray) -> NDArray:
    D = parameters.derivative(free)
    if D is None:
        return covariance
    # A number without an error must not take those of others with it.
    unknown = np.isnan(np.einsum("ukk->uk", covariance))
    out = D @ np.where(np.isnan(covariance), 0.0, covariance) @ np.swapaxes(D, 1, 2)
    lost = np.zeros(out.shape[:2], dtype=bool)
    for name, constraint in parameters.constraints.items():
        free, element = parameters.owner == name, parameters.element_owner == name
        if constraint.elementwise:
            lost[:, element] = unknown[:, free]
        else:
            lost[:, element] = unknown[:, free].any(1, keepdims=True)
    return np.where(lost[:, :, None] | lost[:, None, :], np.nan, out)


def _roots(covariance: NDArray) -> NDArray:
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.einsum("ukk->uk", covariance))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        msg = f"level={level!r} must be a probability between 0 and 1."
        raise ValueError(msg)


def _only(arguments: Arguments, program: Callable[..., Tensor]) -> Arguments:
    """Those arguments that a program takes."""
    required, optional, anything = argument_names(program)
    have = {**arguments.by_unit, **arguments.shared}
    check_names(program, [name for name in have if anything or name in (*required, *optional)])
    wanted = lambda name: anything or name in (*required, *optional)
    return Arguments(
        {name: value for name, value in arguments.by_unit.items() if wanted(name)},
        {name: value for name, value in arguments.shared.items() if wanted(name)},
        arguments.units,
    )
