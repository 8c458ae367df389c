"""dp.stats.fit_latent_dynamics: latent trajectories of subjects from their visits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from anndata import AnnData

from dynapath import write
from dynapath._names import as_text
from dynapath._threads import threads_for
from dynapath.dynamics.named import NAMES
from dynapath.dynamics.smooth import Estimator
from dynapath.read.baseline import Missing
from dynapath.read.visits import TimeUnit, read_visits

from .registry.convergence import judge
from .registry.intervals import Intervals
from .registry.state_space import StateSpaceForecaster
from .registry.training import DEFAULT, WEIGHTS, Schedule
from .registry.visit_vae import VisitVAEForecaster
from .registry.visits import Visits

Preset = Literal["forecast", "bimj2022", "latentdynamics2023"]

# What a published analysis set, and by which a fit starts that asks for it.
PRESETS = {
    "bimj2022": VisitVAEForecaster(
        estimator="first",
        # Published as sums over the two visits, which are twice our means.
        weights={"reconstruction": 2.0, "kl": 1.0, "prediction": 0.0, "consistency": 2.0, "decoder": 0.01},
        schedule=Schedule(n_epochs=35, lr=5e-4, batch_size=1, weight_decay=0.0),
        width=0.5,
    ),
    "latentdynamics2023": VisitVAEForecaster(
        estimator="inverse_variance",
        weights={"reconstruction": 1.0, "kl": 0.5, "prediction": 0.0, "consistency": 1.0, "decoder": 0.01},
        schedule=Schedule(n_epochs=30, lr=5e-4, batch_size=1, weight_decay=0.0),
        width=0.25,
    ),
}
WITH_A_CHOICE_OF_OFFSET = ("full", "diagonal", "offdiagonal")


def fit_latent_dynamics(
    adata: AnnData,
    *,
    subject_key: str,
    time_key: str,
    baseline: str | Sequence[str] | None = None,
    baseline_missing: Missing = "error",
    time_unit: TimeUnit | None = None,
    layer: str | None = None,
    n_latent: int | None = None,
    dynamics: Any = None,
    offset: bool | None = None,
    estimator: Estimator | None = None,
    decoder: Literal["mlp", "linear"] | None = None,
    process_noise: bool | None = None,
    weights: Mapping[str, float] | None = None,
    n_restarts: int = 5,
    preset: Preset | None = None,
    schedule: Schedule | None = None,
    calibration_folds: int = 0,
    key_added: str = "latent_dynamics",
    random_state: int | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Latent trajectories of subjects, with parameters of the dynamics predicted from baseline variables.

    Parameters
    ----------
    adata
        One row per visit, in any order; `X` items, NaN = not measured. Items with values 0 and 1 only are Bernoulli items.
    subject_key, time_key
        Columns of `obs`. Times in any unit, which is that of the rates; or dates, with `time_unit`.
    baseline
        Formula over columns of `obs` that are constant within a subject, such as `"~ age + C(subtype)"`, or their names.
    baseline_missing
        `"mean+indicator"` fills missing numeric baseline variables by their mean and adds an indicator.
    time_unit
        Unit in which dates are counted.
    layer
        Layer with the items, instead of `X`.
    n_latent
        Latent dimensions: 2, and with `process_noise` two for each item, at most 16.
    dynamics
        `"full"` (the default), `"diagonal"`, `"offdiagonal"` or `"drift"`: linear, dz/dt = A z + b, solved in closed form.
        `"lotka_volterra"`, `"learned"`: solved by torchdiffeq. Or an object with `n_latent`, `n_params` and
        `flow(dt, z, theta)`, see :mod:`dynapath.dynamics.systems`.
    offset
        Whether linear dynamics have a b, by default not. Without one, states decay to 0 or grow from it: items are then scaled
        but not centred, so that their own zero is the zero of the decoder. Choose True where the items' zero means nothing.
        Other dynamics and `"drift"` have no such choice.
    estimator
        How the visits of a subject make one trajectory: `"gls"` (the default), generalised least squares, the only one with a covariance;
        `"inverse_variance"`, published, weights by how solutions from different visits agree; `"equal"` weights; `"first"`,
        the solution from the first visit.
    decoder
        `"mlp"` (the default), with one hidden layer, or `"linear"`.
    process_noise
        Let states move at random too, and fit by the exact likelihood of a Kalman filter: what forecasts best. The decoder is
        then linear, and the dynamics are diagonal in coordinates of their own, with an offset
        (:class:`dynapath.models.state_space.StateSpace`): `dynamics`, `offset`, `estimator`, `decoder` and `weights` are refused.
    weights
        Of the terms of the loss, where they are to differ from `reconstruction` 1, `kl` .5, `prediction` 1 (the next visit from
        the one before: without it, rates are not identified), `consistency` 1, `decoder` .01 (squares of its weights).
    n_restarts
        Starts, computed together; the lowest loss is kept. The losses of all are in `uns`.
    preset
        `"forecast"`: `process_noise=True`. `"bimj2022"`, `"latentdynamics2023"`: penalties, steps and learning rates as
        published (one subject a step, solution from the first visit or inverse variances); the first of them is for two
        visits of each subject and refuses more. Deviations: items are scaled,
        gaps are squared, weights of solutions are defined by time, and the penalty of the variance of solutions is left out,
        which made trajectories worse where the truth is known. A preset sets defaults: what is given beside it, such as
        `estimator`, one of the `weights` or the `n_epochs` of a `schedule`, takes its place.
    schedule
        Epochs, learning rate, batch size and weight decay, :class:`dynapath.stats.Schedule`. With `process_noise` its epochs
        are steps (100 of at most .05 by default).
    calibration_folds
        Refit so many times without a part of the subjects, to calibrate the intervals of :func:`predict_visits` on those
        left out (conformal quantiles for each item and landmark, over subjects); 5 is a good choice. An interval of probability
        p needs p / (1 - p) subjects, 9 for 90 %; with fewer it is infinite. 0: uncalibrated intervals.
    key_added
        Under which the results are stored. A previous fit under this key is replaced as a whole.
    random_state
        Seed.
    copy
        Work on a copy and return it.

    Returns
    -------
    None, or the copy if `copy=True`. Sets the following fields:

    `obsm["X_{key}"]` : state at each visit, from all visits of the subject (with `process_noise`: from it and earlier ones);
        NaN where nothing of these was measured.
    `obsm["{key}_encoded"]` : what each visit says by itself. `obsm["{key}_std"]` : standard deviation of the state.
    `obsm["{key}_theta"]` : parameters of the subject's dynamics, per unit of time, repeated on its visits.
    `layers["{key}_fitted"]` : decoded states, NaN for items that were left out and where there is no state.
    `uns["{key}"]` : settings, weights, coding of the baseline, history of the terms, losses of restarts, status;
        :func:`dynapath.get.model` makes the fitted model of it.

    Raises
    ------
    KeyError : for columns or layers that are not there.
    TypeError, ValueError : for input that cannot be used, before anything is written.
    RuntimeError : if all restarts diverge.

    Warns
    -----
    UserWarning : if restarts disagree in the sign of a rate; for what was left out; for a status other than `ok`.

    Notes
    -----
    The status is `ok`; `not_converged`, if the second half of the steps (by their lengths) has moved fitted values by more than
    half of what their subject's visits leave open (:func:`dynapath.get.convergence`), if the loss has risen, or after too few or too small steps to tell; or
    `restarts_diverged`, if some restarts did and were left out.

    What is identified are decoded trajectories, in the units of the items. Rates are not: a decoder can bend or shift an
    axis, which changes rates, even their sign. Missing items and visits are taken to be missing at random.

    References
    ----------
    Hackenberg et al. (2022), Biometrical Journal 64:1426-1445. Hackenberg et al. (2023), arXiv:2311.16286.

    Examples
    --------
    >>> import dynapath as dp
    >>> visits = dp.datasets.simulate_registry("linear2", n_subjects=30)
    >>> quick = dp.stats.Schedule(n_epochs=5)
    >>> dp.stats.fit_latent_dynamics(visits, subject_key="patient", time_key="time", n_restarts=1, schedule=quick)
    >>> visits.obsm["X_latent_dynamics"].shape
    (60, 2)
    """
    write.check_key_is_free(adata, key_added, kinds=(write.LATENT_DYNAMICS,))
    _check_options(
        n_latent, dynamics, offset, estimator, decoder, weights, n_restarts, preset, schedule, calibration_folds
    )
    schedule = Schedule() if schedule is None else schedule
    noisy = _has_process_noise(preset, process_noise=process_noise)
    if noisy:
        unused = {
            "dynamics": dynamics,
            "offset": offset,
            "estimator": estimator,
            "decoder": decoder,
            "weights": weights,
        }
        _refuse_with_process_noise(unused | {"weight_decay of schedule": schedule.weight_decay}, preset)
        forecaster: StateSpaceForecaster | VisitVAEForecaster = _state_space(
            n_latent, n_restarts, schedule, random_state
        )
    else:
        forecaster = _visit_vae(
            n_latent,
            dynamics,
            offset=offset,
            estimator=estimator,
            decoder=decoder,
            weights=weights,
            n_restarts=n_restarts,
            preset=preset,
            schedule=schedule,
            random_state=random_state,
        )
    read = read_visits(
        adata,
        subject_key=subject_key,
        time_key=time_key,
        baseline=baseline,
        baseline_missing=baseline_missing,
        time_unit=time_unit,
        layer=layer,
    )
    _check_span(read.visits, preset, subject_key)
    # Steps of all restarts at once, on a part of the subjects at most.
    with threads_for(min(read.visits.n_subjects, 1000) * n_restarts * read.visits.values[0].size):
        fitted = forecaster.fit(read.visits)
    intervals = None
    if calibration_folds:
        intervals = Intervals.by_folds(forecaster, read.visits.measured(), calibration_folds, random_state)
    n_epochs = forecaster.n_steps if noisy else forecaster.schedule.over(DEFAULT).n_epochs
    status, said = judge(fitted.convergence, fitted.losses, n_epochs)
    if said:
        warnings.warn(" ".join(said), UserWarning, stacklevel=2)
    if copy:
        adata = adata.to_memory() if adata.isbacked else adata.copy()
    found = fitted.describe(read.visits)
    items = np.full(adata.shape, np.nan)
    items[:, as_text(adata.var_names).get_indexer(list(read.visits.items))] = read.to_rows(found.items)
    used = {} if noisy else {
        "dynamics": forecaster.dynamics if isinstance(forecaster.dynamics, str) else "own",
        "n_latent": found.smooth.shape[-1],
        "offset": forecaster.offset,
        "estimator": forecaster.estimator,
        "linear_decoder": forecaster.linear_decoder,
        "weights": WEIGHTS | dict(forecaster.weights),
        "width": forecaster.width,
    }  # fmt: skip
    write.write_latent_dynamics(
        adata,
        key_added,
        smooth=read.to_rows(found.smooth),
        encoded=read.to_rows(found.encoded),
        std=read.to_rows(found.sd),
        theta=found.theta[read.place[:, 0]],
        fitted=items,
        fit={
            "params": used
            | {
                "model": fitted.kind,
                "schema": read.schema.to_arrays(),
                "covariates": list(read.visits.covariates),
                "param_names": list(fitted.param_names),
                "dropped_items": list(read.dropped_items),
                "times": np.array([read.visits.times.min(), read.visits.times.max()]),
                "longest": float((read.visits.times - read.visits.times[:, :1]).max()),
                "n_restarts": n_restarts,
                "preset": preset,
                "random_state": random_state,
            },
            "state": fitted.to_arrays() | ({} if intervals is None else {"intervals": intervals.to_arrays()}),
            "history": _history(fitted),
            "convergence": fitted.convergence.to_arrays(),
            "status": status,
            "messages": said,
        },
    )
    return adata if copy else None


def _history(fitted: Any) -> dict[str, Any]:
    """The curve of every term, or of the loss where there is one only."""
    from dynapath.models.visit_vae import TERMS

    if fitted.kind == "state_space":
        return {"loss": fitted.history[:, int(np.argmin(fitted.losses))], "restarts": fitted.losses}
    return {name: fitted.history[:, j] for j, name in enumerate(TERMS)} | {"restarts": fitted.losses}


def _state_space(
    n_latent: int | None, n_restarts: int, schedule: Schedule, random_state: int | None
) -> StateSpaceForecaster:
    forecaster = StateSpaceForecaster(n_latent=n_latent, n_restarts=n_restarts, random_state=random_state)
    given = {"n_steps": schedule.n_epochs, "lr": schedule.lr, "batch_size": schedule.batch_size}
    return replace(forecaster, **{name: value for name, value in given.items() if value is not None})


def _visit_vae(
    n_latent: int | None,
    dynamics: Any,
    *,
    offset: bool | None,
    estimator: Estimator | None,
    decoder: str | None,
    weights: Mapping[str, float] | None,
    n_restarts: int,
    preset: Preset | None,
    schedule: Schedule,
    random_state: int | None,
) -> VisitVAEForecaster:
    """The preset, and in its place what is given."""
    dynamics = "full" if dynamics is None else dynamics
    start = PRESETS.get(preset, VisitVAEForecaster())
    d = getattr(dynamics, "n_latent", start.n_latent) if n_latent is None else n_latent
    if not isinstance(dynamics, str) and dynamics.n_latent != d:
        msg = f"n_latent is {d}, but the dynamics given have {dynamics.n_latent} dimensions. Leave n_latent out."
        raise ValueError(msg)
    return replace(
        start,
        n_latent=d,
        dynamics=dynamics,
        offset=bool(offset),
        estimator=start.estimator if estimator is None else estimator,
        linear_decoder=decoder == "linear",
        weights={**start.weights, **(weights or {})},
        n_restarts=n_restarts,
        schedule=schedule.over(start.schedule),
        random_state=random_state,
    )


def _has_process_noise(preset: Preset | None, *, process_noise: bool | None) -> bool:
    if preset is None:
        return bool(process_noise)
    noisy = preset == "forecast"
    if process_noise is not None and bool(process_noise) is not noisy:
        msg = f"preset={preset!r} is a model {'with' if noisy else 'without'} process noise. Leave out process_noise, or the preset."
        raise ValueError(msg)
    return noisy


def _refuse_with_process_noise(unused: Mapping[str, Any], preset: Preset | None) -> None:
    given = [name for name, value in unused.items() if value is not None]
    if given:
        otherwise = "process_noise" if preset is None else f"preset={preset!r}"
        msg = (
            f"{given[0]} ({unused[given[0]]!r}) has no part in a model with process noise, which has a linear decoder, diagonal "
            f"dynamics with an offset, and the likelihood of a Kalman filter. Leave it out, or {otherwise}."
        )
        raise ValueError(msg)


def _check_options(
    n_latent: Any,
    dynamics: Any,
    offset: Any,
    estimator: Any,
    decoder: Any,
    weights: Any,
    n_restarts: Any,
    preset: Any,
    schedule: Any,
    folds: Any,
) -> None:
    choices = (
        ("estimator", estimator, get_args(Estimator)),
        ("decoder", decoder, ("mlp", "linear")),
        ("preset", preset, get_args(Preset)),
    )
    for name, value, allowed in choices:
        if value is not None and value not in allowed:
            msg = f"{name} must be one of {', '.join(map(repr, allowed))}; it is {value!r}."
            raise ValueError(msg)
    _check_weights({} if weights is None else weights)
    _check_dynamics("full" if dynamics is None else dynamics, offset=offset)
    for name, value, smallest in (
        ("n_latent", n_latent, 1),
        ("n_restarts", n_restarts, 1),
        ("calibration_folds", folds, 0),
    ):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | np.integer) or value < smallest
        ):
            msg = f"{name} must be a whole number of at least {smallest}; it is {value!r}."
            raise ValueError(msg)
    if folds == 1:
        msg = "calibration_folds must be 0 or at least 2; it is 1."
        raise ValueError(msg)
    if schedule is not None and not isinstance(schedule, Schedule):
        msg = f"schedule must be a dp.stats.Schedule, such as Schedule(n_epochs=100); it is {schedule!r}."
        raise TypeError(msg)


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, value in weights.items():
        if name not in WEIGHTS:
            msg = f"weights has no term {name!r}; the terms are {', '.join(WEIGHTS)}."
            raise KeyError(msg)
        if not isinstance(value, Real) or not np.isfinite(value) or value < 0:
            msg = f"weights[{name!r}] must be a number of at least 0; it is {value!r}."
            raise ValueError(msg)


def _check_dynamics(dynamics: Any, *, offset: bool | None) -> None:
    if isinstance(dynamics, str):
        if dynamics not in NAMES:
            msg = (
                f"dynamics must be one of {', '.join(map(repr, NAMES))}, or an object with a flow; it is {dynamics!r}."
            )
            raise ValueError(msg)
    else:
        lacking = [name for name in ("n_latent", "n_params", "flow") if not hasattr(dynamics, name)]
        if lacking:
            msg = f"The dynamics given ({type(dynamics).__name__}) have no {lacking[0]}; they need n_latent, n_params and flow."
            raise TypeError(msg)
    if offset is not None and not (isinstance(dynamics, str) and dynamics in WITH_A_CHOICE_OF_OFFSET):
        shown = repr(dynamics) if isinstance(dynamics, str) else f"an object of your own ({type(dynamics).__name__})"
        msg = (
            f"offset is {offset!r}, but only {', '.join(map(repr, WITH_A_CHOICE_OF_OFFSET))} dynamics may have one or not; dynamics "
            f"is {shown}. Leave offset out."
        )
        raise ValueError(msg)


def _check_span(visits: Visits, preset: Preset | None, subject_key: str) -> None:
    if not (visits.observed.any(2).sum(1) > 1).any():
        msg = (
            "No subject has two visits with a measurement, so nothing is known of change. At least some must have two."
        )
        raise ValueError(msg)
    many = visits.n_visits > 2
    if preset == "bimj2022" and many.any():
        msg = (
            f"preset='bimj2022' is a design of two visits, but {many.sum()} subjects have more, first {subject_key} "
            f"{visits.subjects[int(many.argmax())]}. Give two visits of each, or use preset='latentdynamics2023'."
        )
        raise ValueError(msg)
