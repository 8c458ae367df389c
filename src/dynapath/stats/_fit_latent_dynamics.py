"""dp.stats.fit_latent_dynamics: latent trajectories of subjects from their visits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from anndata import AnnData

from dynapath import write
from dynapath._names import as_text
from dynapath.dynamics.named import NAMES
from dynapath.dynamics.smooth import Estimator
from dynapath.read.baseline import Missing
from dynapath.read.visits import TimeUnit, read_visits

from .registry.intervals import Intervals
from .registry.state_space import StateSpaceForecaster
from .registry.training import WEIGHTS, Schedule
from .registry.visit_vae import VisitVAEForecaster
from .registry.visits import Visits

Preset = Literal["forecast", "bimj2022", "latentdynamics2023"]


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
    dynamics: Any = "full",
    offset: bool = False,
    estimator: Estimator = "gls",
    decoder: Literal["mlp", "linear"] = "mlp",
    process_noise: bool = False,
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
        `"full"`, `"diagonal"`, `"offdiagonal"` or `"drift"`: linear, dz/dt = A z + b, solved in closed form.
        `"lotka_volterra"`, `"learned"`: solved by torchdiffeq. Or an object with `n_latent`, `n_params` and
        `flow(dt, z, theta)`, see :mod:`dynapath.dynamics.systems`.
    offset
        Whether linear dynamics have a b. Without one, states decay to 0 or grow from it: items are then scaled but not centred,
        so that their own zero is the zero of the decoder. Choose True where the items' zero means nothing.
    estimator
        How the visits of a subject make one trajectory: `"gls"`, generalised least squares, the only one with a covariance;
        `"inverse_variance"`, published, weights by how solutions from different visits agree; `"equal"` weights; `"first"`,
        the solution from the first visit.
    decoder
        `"mlp"`, with one hidden layer, or `"linear"`.
    process_noise
        Let states move at random too, and fit by the exact likelihood of a Kalman filter: what forecasts best. The decoder is
        then linear, and the dynamics are diagonal in coordinates of their own, with an offset
        (:class:`dynapath.models.state_space.StateSpace`).
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
        which made trajectories worse where the truth is known. A preset overrides what it sets.
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

    `obsm["X_{key}"]` : state at each visit, from all visits of the subject (with `process_noise`: from it and earlier ones).
    `obsm["{key}_encoded"]` : what each visit says by itself. `obsm["{key}_std"]` : standard deviation of the state.
    `obsm["{key}_theta"]` : parameters of the subject's dynamics, per unit of time, repeated on its visits.
    `layers["{key}_fitted"]` : decoded states, NaN for items that were left out.
    `uns["{key}"]` : settings, weights, coding of the baseline, history of the terms, losses of restarts;
        :func:`dynapath.get.model` makes the fitted model of it.

    Raises
    ------
    KeyError : for columns or layers that are not there.
    TypeError, ValueError : for input that cannot be used, before anything is written.
    RuntimeError : if all restarts diverge.

    Warns
    -----
    UserWarning : if restarts disagree in the sign of a rate; for what was left out.

    Notes
    -----
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
    _check_options(dynamics, estimator, decoder, weights, n_restarts, preset, calibration_folds)
    noisy = process_noise or preset == "forecast"
    if noisy:
        forecaster: StateSpaceForecaster | VisitVAEForecaster = StateSpaceForecaster(
            n_latent=n_latent, n_restarts=n_restarts, random_state=random_state
        )
        if schedule is not None:
            given = {"n_steps": schedule.n_epochs, "lr": schedule.lr, "batch_size": schedule.batch_size}
            forecaster = replace(forecaster, **{name: value for name, value in given.items() if value is not None})
    else:
        d = getattr(dynamics, "n_latent", 2) if n_latent is None else n_latent
        forecaster = VisitVAEForecaster(
            d, dynamics, offset, estimator, decoder == "linear", dict(weights or {}), n_restarts,
            schedule=schedule or Schedule(), random_state=random_state,
        )  # fmt: skip
        forecaster = _with_preset(forecaster, preset)
        if not isinstance(dynamics, str) and dynamics.n_latent != d:
            msg = f"n_latent is {d}, but the dynamics given have {dynamics.n_latent} dimensions. Leave n_latent out."
            raise ValueError(msg)
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
    fitted = forecaster.fit(read.visits)
    intervals = None
    if calibration_folds:
        intervals = Intervals.by_folds(forecaster, read.visits, calibration_folds, random_state)
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
        },
    )
    return adata if copy else None


def _history(fitted: Any) -> dict[str, Any]:
    """The curve of every term, or of the loss where there is one only."""
    from dynapath.models.visit_vae import TERMS

    if fitted.kind == "state_space":
        return {"loss": fitted.history[:, int(np.argmin(fitted.losses))], "restarts": fitted.losses}
    return {name: fitted.history[:, j] for j, name in enumerate(TERMS)} | {"restarts": fitted.losses}


def _with_preset(forecaster: VisitVAEForecaster, preset: Preset | None) -> VisitVAEForecaster:
    if preset == "bimj2022":
        # Published as sums over the two visits, which are twice our means.
        published = {"reconstruction": 2.0, "kl": 1.0, "prediction": 0.0, "consistency": 2.0, "decoder": 0.01}
        schedule = Schedule(n_epochs=35, lr=5e-4, batch_size=1, weight_decay=0.0)
        return replace(forecaster, estimator="first", weights=published, schedule=schedule, width=0.5)
    if preset == "latentdynamics2023":
        published = {"reconstruction": 1.0, "kl": 0.5, "prediction": 0.0, "consistency": 1.0, "decoder": 0.01}
        schedule = Schedule(n_epochs=30, lr=5e-4, batch_size=1, weight_decay=0.0)
        return replace(forecaster, estimator="inverse_variance", weights=published, schedule=schedule, width=0.25)
    return forecaster


def _check_options(
    dynamics: Any, estimator: str, decoder: str, weights: Any, n_restarts: int, preset: Any, folds: int
) -> None:
    choices = (
        ("estimator", estimator, get_args(Estimator)),
        ("decoder", decoder, ("mlp", "linear")),
        ("preset", preset, (None, *get_args(Preset))),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            msg = f"{name} must be one of {', '.join(map(repr, allowed))}; it is {value!r}."
            raise ValueError(msg)
    unknown = [name for name in weights or {} if name not in WEIGHTS]
    if unknown:
        msg = f"weights has no term {unknown[0]!r}; the terms are {', '.join(WEIGHTS)}."
        raise KeyError(msg)
    if isinstance(dynamics, str) and dynamics not in NAMES:
        msg = f"dynamics must be one of {', '.join(map(repr, NAMES))}, or an object with a flow; it is {dynamics!r}."
        raise ValueError(msg)
    lacking = (
        [] if isinstance(dynamics, str) else [n for n in ("n_latent", "n_params", "flow") if not hasattr(dynamics, n)]
    )
    if lacking:
        msg = f"The dynamics given ({type(dynamics).__name__}) have no {lacking[0]}; they need n_latent, n_params and flow."
        raise TypeError(msg)
    if n_restarts < 1 or folds < 0 or folds == 1:
        msg = f"n_restarts must be at least 1 and calibration_folds 0 or at least 2; they are {n_restarts!r} and {folds!r}."
        raise ValueError(msg)


def _check_span(visits: Visits, preset: Preset | None, subject_key: str) -> None:
    if not (visits.n_visits > 1).any():
        msg = "No subject has two visits, so nothing is known of change. At least some must have two."
        raise ValueError(msg)
    many = visits.n_visits > 2
    if preset == "bimj2022" and many.any():
        msg = (
            f"preset='bimj2022' is a design of two visits, but {many.sum()} subjects have more, first {subject_key} "
            f"{visits.subjects[int(many.argmax())]}. Give two visits of each, or use preset='latentdynamics2023'."
        )
        raise ValueError(msg)
