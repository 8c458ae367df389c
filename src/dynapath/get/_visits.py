"""Fits of latent dynamics of visits: the model, the parameters of subjects, and the terms of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from dynapath._keys import LatentDynamicsKeys
from dynapath.read.visits import ReadVisits, Schema, read_new_visits, read_row_times
from dynapath.write import KINDS, LATENT_DYNAMICS

from ._fits import find_fit, fit_record, strings

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from dynapath.models.visit_forecast import FittedStateSpace, FittedVisitVAE


@dataclass(frozen=True)
class VisitModel:
    """A fitted model of visits, with how it reads an AnnData.

    `read(adata)` gives the visits of any subjects, coded as in the fit; `fitted` describes and predicts such visits.
    """

    fitted: FittedVisitVAE | FittedStateSpace
    schema: Schema

    def read(self, adata: AnnData) -> ReadVisits:
        """Visits with the items, levels and centring of the fit."""
        return read_new_visits(adata, self.schema)


def visit_fit(adata: AnnData, key: str | None = None) -> Mapping[str, Any]:
    """What a fit of latent dynamics left in `uns[key]`."""
    return fit_record(adata, key, (LATENT_DYNAMICS,))


def visit_slots(adata: AnnData, key: str | None) -> LatentDynamicsKeys:
    """Names of the slots of a fit of latent dynamics."""
    return LatentDynamicsKeys(find_fit(adata, key, (LATENT_DYNAMICS,)))


def visit_times(adata: AnnData, key: str | None = None) -> NDArray[np.float64]:
    """Time of each row as the fit counts it: dates from the subject's first visit on."""
    return read_row_times(adata, Schema.from_arrays(visit_fit(adata, key)["params"]["schema"]))


def is_visit_fit(adata: AnnData, key: str | None) -> bool:
    """Whether the fit that is meant is one of latent dynamics of visits."""
    meant = adata.uns.get(find_fit(adata, key, (*KINDS, LATENT_DYNAMICS)))
    return meant["kind"] == LATENT_DYNAMICS


def visit_model(adata: AnnData, key: str | None = None, *, dynamics: Any = None) -> VisitModel:
    """The fitted model, built again from the arrays in `uns[key]`.

    Parameters
    ----------
    adata
        The AnnData that was fitted, a copy or a subset.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.
    dynamics
        The dynamics given to the fit, if they were an object of your own.

    Returns
    -------
    VisitModel : `read(adata)` reads visits of any subjects as the fit did, `fitted.predict(history, times)` forecasts.

    Raises
    ------
    KeyError : if there is no fit under `key`.
    ValueError : if the fit had dynamics of your own and these are not given, or had not and some are.
    """
    import torch

    from dynapath.dynamics.named import dynamics_by_name
    from dynapath.models._random import isolated_seed
    from dynapath.models.visit_forecast import FittedStateSpace, FittedVisitVAE
    from dynapath.models.visit_vae import VisitVAE

    key = find_fit(adata, key, (LATENT_DYNAMICS,))
    fit = adata.uns[key]
    params, state = fit["params"], fit["state"]
    schema = Schema.from_arrays(params["schema"])
    covariates = tuple(strings(params["covariates"]))
    names = (schema.items, schema.kinds, covariates)
    if dynamics is not None and params.get("dynamics") != "own":
        own = repr(str(params["dynamics"])) if "dynamics" in params else "those of a model with process noise"
        msg = f"The dynamics of the fit {key!r} are {own}, no object of your own. Leave dynamics out."
        raise ValueError(msg)
    if params["model"] == FittedStateSpace.kind:
        return VisitModel(FittedStateSpace.from_arrays(state, *names), schema)
    if params["dynamics"] == "own" and dynamics is None:
        msg = f"The fit {key!r} has dynamics of your own. Give them again: dp.get.visit_model(adata, {key!r}, dynamics=...)."
        raise ValueError(msg)
    with isolated_seed(0):
        if params["dynamics"] != "own":
            dynamics = dynamics_by_name(str(params["dynamics"]), int(params["n_latent"]), offset=bool(params["offset"]))
        model = VisitVAE(
            len(schema.items),
            len(covariates),
            dynamics,
            bernoulli=torch.tensor([kind == "bernoulli" for kind in schema.kinds]),
            estimator=str(params["estimator"]),
            linear_decoder=bool(params["linear_decoder"]),
            width=float(params["width"]),
        )
    return VisitModel(FittedVisitVAE.from_arrays(state, model.requires_grad_(requires_grad=False), *names), schema)


def parameters(adata: AnnData, key: str | None = None) -> pd.DataFrame:
    """Parameters of the dynamics of each subject, one row per subject.

    Parameters
    ----------
    adata
        With a fit of :func:`dynapath.stats.fit_latent_dynamics`, or a subset of its visits.
    key
        `key_added` of the fit; by default the only one, or of several that under the standard name.

    Returns
    -------
    DataFrame indexed by subject: the parameters, per unit of time (`A11` row 1 column 1 of A, `b1`; `rate1`, `drift1` with
    process noise), and `n_visits`. Rates are not identified, see :func:`dynapath.stats.fit_latent_dynamics`.

    Raises
    ------
    KeyError : if there is no such fit.
    """
    key = find_fit(adata, key, (LATENT_DYNAMICS,))
    params = adata.uns[key]["params"]
    theta = np.asarray(adata.obsm[LatentDynamicsKeys(key).theta], dtype=float)
    subject_key = str(params["schema"]["subject_key"])
    subject = adata.obs[subject_key].astype(str).to_numpy()
    table = pd.DataFrame(theta, columns=strings(params["param_names"]), index=pd.Index(subject, name=subject_key))
    n_visits = table.groupby(level=0, sort=False).size()
    table = table[~table.index.duplicated()]
    return table.assign(n_visits=n_visits.loc[table.index].to_numpy())


def visit_predictions(
    adata: AnnData,
    key: str | None,
    *,
    times: NDArray[np.float64],
    given: str | int = "all",
    interval: float = 0.9,
    subjects: AnnData | None = None,
    only: str | None = None,
    dynamics: Any = None,
) -> tuple[pd.DataFrame, float]:
    """The table of :func:`dynapath.stats.predict_visits`, for `only` one subject if named, and the longest follow-up of the fit."""
    from dynapath.models.visit_forecast import at_times, half_widths

    fit = visit_fit(adata, key)
    model = visit_model(adata, key, dynamics=dynamics)
    # All rows are read for one subject too: the dates of others may say how its own are written.
    visits = model.read(adata if subjects is None else subjects).visits
    if only is not None:
        visits = visits.take(np.array([name == only for name in visits.subjects]))
    visits = visits if given == "all" else visits.first_measured(int(given))
    mean, sd, k = at_times(model.fitted, visits, np.broadcast_to(times, (visits.n_subjects, len(times))))
    stored = fit["state"].get("intervals")
    if stored is None:
        half = np.full(mean.shape, norm.ppf(0.5 + interval / 2))
    else:
        quantiles = np.asarray(stored["quantiles"], dtype=float)
        if interval > len(quantiles) / (len(quantiles) + 1):
            msg = (
                f"interval={interval:g} is more than .99, the largest for which the calibrated fit {key!r} keeps quantiles. Ask "
                "for at most .99, or fit with calibration_folds=0 for intervals of the model."
            )
            raise ValueError(msg)
        half = half_widths(quantiles, interval, k.ravel()).reshape(mean.shape)
    unbounded = np.isinf(half) & visits.gaussian & ~np.isnan(mean)
    with np.errstate(invalid="ignore"):
        half = np.where(np.isinf(half), np.inf, half * sd)
    half = np.where(visits.gaussian, half, np.nan)
    longest = float(fit["params"]["longest"])
    nothing = np.isnan(mean).all(-1)
    beyond = (times - visits.times[:, :1] > longest * (1 + 1e-9)) | nothing
    n, t, p = mean.shape
    table = pd.DataFrame(
        {
            "subject": np.repeat(np.array(visits.subjects, dtype=object), t * p),
            "time": np.tile(np.repeat(times, p), n),
            "item": np.tile(np.array(visits.items, dtype=object), n * t),
            "predicted": mean.ravel(),
            "lower": (mean - half).ravel(),
            "upper": (mean + half).ravel(),
            "unbounded": unbounded.ravel(),
            "extrapolated": np.repeat(beyond.ravel(), p),
        }
    )
    return table, longest
