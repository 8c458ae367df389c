"""Daily counts of hospitals that do not report every day, with the whole truth.

A hospital has y[t-1] patients. Each stays with probability 1 + b2, and a Poisson number with mean b1 + b3 z[t-1] arrives:
an INAR(1) process (Al-Osh and Alzaid 1987, doi:10.1111/j.1467-9892.1987.tb00438.x), whose conditional mean is that of the
increment model, E y[t] = y[t-1] + b1 + b2 y[t-1] + b3 z[t-1]. Or the same mean with Gaussian noise.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float
from numpy.typing import NDArray

from dynapath._gaps import missing_by_chain

COEFFICIENTS = ("intercept", "state", "incidence")


def simulate_reports(
    n_units: int = 1281,
    n_days: int = 70,
    *,
    family: str = "counts",
    sigma: float | int = 0.5,
    p_start: float | int = 0.0147,
    p_stay: float | int = 0.8,
    silent: float | int = 0.36,
    first_day: str = "2020-04-16",
    random_state: int | None = 0,
) -> AnnData:
    r"""A panel of daily counts with missing reports, drawn from the increment model, with its truth.

    In size, level and gaps like the intensive-care units of [1]_: 1,281 hospitals on 70 days from 16 April 2020, few
    COVID-19 patients in most, none ever in many, and a smooth number of new infections around each.

    Parameters
    ----------
    n_units
        Number of hospitals.
    n_days
        Number of days.
    family
        `"counts"`: each patient stays with probability :math:`1 + b_2`, and Poisson(:math:`b_1 + b_3 z_{t-1}`) patients
        arrive. `"normal"`: the same mean with independent noise N(0, `sigma`\ :sup:`2`), the case in which Gaussian
        intervals have to be right; its values are no whole numbers, and some are negative.
    sigma
        Standard deviation of the noise per day, for `family="normal"`.
    p_start
        Probability that a unit that reported yesterday does not report today.
    p_stay
        Probability that a unit that did not report yesterday does not report today either. By default some 6 % of the
        reports are missing, in gaps of 5 days on average, and about 36 % of the units miss none.
    silent
        Share of units without a patient on any day; they report zeros.
    first_day
        Date of the first column.
    random_state
        Seed. The global random state is neither used nor changed.

    Returns
    -------
    AnnData with

    - `X` (unit, day) float64, NaN = not reported. The first day is always reported.
    - `layers["incidence"]` new infections around the unit, the covariate: the step to a day uses that of the day before.
    - `layers["complete"]` the values of all days, reported or not.
    - `obsm["params_true"]` coefficients `intercept`, `state`, `incidence` of each unit; `obs["silent"]`.
    - `var["date"]` and `var_names` ISO dates; `uns["panel"]` as of :func:`dynapath.pp.panel_from_long`; `uns["truth"]` the
      settings.

    Raises
    ------
    ValueError : for sizes, probabilities, or a family that cannot be.

    References
    ----------
    .. [1] M. Hackenberg, M. Grodd, C. Kreutz, M. Fischer, J. Esins, L. Grabenhenrich, C. Karagiannidis, H. Binder. Using
       differentiable programming for flexible statistical modeling. The American Statistician, 2021.
       doi:10.1080/00031305.2021.2002189

    Examples
    --------
    >>> import dynapath as dp
    >>> panel = dp.datasets.simulate_reports(n_units=3, n_days=5)
    >>> panel.shape
    (3, 5)
    """
    for name, value, least in (("n_units", n_units, 1), ("n_days", n_days, 2)):
        if not isinstance(value, Integral) or value < least:
            msg = f"{name} must be a whole number of at least {least}; it is {value!r}."
            raise ValueError(msg)
    if family not in ("counts", "normal"):
        msg = f"family must be 'counts' or 'normal'; it is {family!r}."
        raise ValueError(msg)
    if not 0 <= silent <= 1:
        msg = f"silent is a share of the units, from 0 to 1; it is {silent!r}."
        raise ValueError(msg)
    if not sigma >= 0:
        msg = f"sigma is a standard deviation, so not negative; it is {sigma!r}."
        raise ValueError(msg)
    rng = np.random.default_rng(random_state)
    is_silent = rng.permutation(n_units) < round(silent * n_units)
    z = _incidence(rng, n_units, n_days)
    params = _coefficients(rng, n_units)
    params[is_silent] = [0.0, -0.1, 0.0]
    y = _counts(rng, params, z) if family == "counts" else _normal(rng, params, z, np.where(is_silent, 0.0, sigma))
    missing = missing_by_chain(rng, n_units, n_days, p_start, p_stay)

    days = pd.date_range(first_day, periods=n_days, freq="D").strftime("%Y-%m-%d")
    units = pd.Index([f"{i:04d}" for i in range(1, n_units + 1)], name="hospital")
    return AnnData(
        X=np.where(missing, np.nan, y),
        obs=pd.DataFrame({"silent": is_silent}, index=units),
        var=pd.DataFrame({"date": days}, index=days),
        layers={"incidence": z, "complete": y},
        obsm={"params_true": pd.DataFrame(params, columns=list(COEFFICIENTS), index=units)},
        uns={
            "panel": {"unit": "hospital", "time": "date", "value": "patients", "freq": "D"},
            "truth": {"family": family, "p_start": p_start, "p_stay": p_stay, "silent": silent}
            | ({"sigma": sigma} if family == "normal" else {}),
        },
    )


def _incidence(rng: np.random.Generator, n_units: int, n_days: int) -> Float[NDArray, "unit day"]:
    """New infections a day around each unit: the end of one wave and the rise of a small second one, .2 to some 20."""
    t = np.arange(n_days) / 70  # in units of the published period
    size = np.exp(rng.normal(1.6, 0.8, (n_units, 1)))
    fall = rng.uniform(3, 7, (n_units, 1))
    again = size * rng.uniform(0, 0.3, (n_units, 1)) * np.exp(-((t - rng.uniform(0.4, 1, (n_units, 1))) ** 2) / 0.02)
    return 0.2 + size * np.exp(-fall * t) + again


def _coefficients(rng: np.random.Generator, n_units: int) -> Float[NDArray, "unit coefficient"]:
    """Moments near those published for the individual fits: state about -.09, incidence about .015, intercept near 0."""
    mean, spread = 0.09, 0.06
    total = mean * (1 - mean) / spread**2 - 1
    leave = rng.beta(mean * total, (1 - mean) * total, n_units)
    return np.column_stack([rng.exponential(0.01, n_units), -leave, rng.gamma(1.0, 0.02, n_units)])


def _start(params: Float[NDArray, "unit coefficient"], z: Float[NDArray, "unit day"]) -> Float[NDArray, " unit"]:
    """The level that coefficients and the first day's covariate tend to; at most some 30 patients."""
    level = (params[:, 0] + params[:, 2] * z[:, 0]) / np.maximum(-params[:, 1], 0.01)
    return np.minimum(level, 30.0)


def _counts(
    rng: np.random.Generator, params: Float[NDArray, "unit coefficient"], z: Float[NDArray, "unit day"]
) -> Float[NDArray, "unit day"]:
    y = np.empty(z.shape)
    y[:, 0] = rng.poisson(_start(params, z))
    for t in range(1, z.shape[1]):
        stay = rng.binomial(y[:, t - 1].astype(np.int64), 1 + params[:, 1])
        y[:, t] = stay + rng.poisson(params[:, 0] + params[:, 2] * z[:, t - 1])
    return y


def _normal(
    rng: np.random.Generator,
    params: Float[NDArray, "unit coefficient"],
    z: Float[NDArray, "unit day"],
    sigma: Float[NDArray, " unit"],
) -> Float[NDArray, "unit day"]:
    noise = rng.standard_normal(z.shape) * sigma[:, None]
    y = np.empty(z.shape)
    y[:, 0] = _start(params, z) + noise[:, 0]
    for t in range(1, z.shape[1]):
        y[:, t] = y[:, t - 1] + params[:, 0] + params[:, 1] * y[:, t - 1] + params[:, 2] * z[:, t - 1] + noise[:, t]
    return y
