"""dp.datasets.simulate_registry: visits of subjects in two groups with known dynamics.

An item is a latent dimension, an offset of the item and noise: x_ij(t) = u(t) + delta_j + eps_ij(t), u' = A u of the subject's
group. Designs and their parameters: Hackenberg et al. 2022 (Biometrical Journal) and 2023 (arXiv:2311.16286) and the code
published with them; `weak_baseline` and `registry` are ours, the last after published dummy tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.linalg import expm

Design = Literal["linear2", "linear4", "lotka_volterra", "visits", "weak_baseline", "registry"]


@dataclass(frozen=True)
class _Design:
    """Two groups, their dynamics, and what is measured. `dynamics` are A, or (a, b, g, d) of Lotka-Volterra."""

    dynamics: tuple
    start: tuple[float, float]
    n_subjects: int = 100
    n_items: int = 10
    follow_ups: tuple[int, int] = (1, 1)
    first_time: float = 1.5
    item_sd: float = 0.1
    noise_sd: float = 0.1
    n_covariates: int = 50
    n_informative: int = 10
    shift: float = 1.0
    covariate_sd: float = 0.5
    late_entry: float = 0.0


_DECAY, _GROWTH = ((-0.2, 0.0), (0.0, -0.2)), ((-0.2, 0.0), (0.0, 0.2))
_LINEAR2 = _Design((_DECAY, _GROWTH), (2.0, 1.0))
_VISITS = replace(_LINEAR2, follow_ups=(1, 9), noise_sd=0.5, covariate_sd=1.0)
DESIGNS = {
    "linear2": _LINEAR2,
    "linear4": _Design((((-0.2, 0.1), (0.1, -0.2)), ((-0.2, 0.1), (-0.1, 0.25))), (4.0, 2.0), n_informative=20),
    "lotka_volterra": _Design(
        ((1.0, 1.0, 1.0, 0.5), (0.5, 1.0, 1.0, 2.0)), (2.0, 2.0), n_subjects=200, n_informative=20, first_time=0.1
    ),
    "visits": _VISITS,
    "weak_baseline": replace(_VISITS, shift=0.25),
    "registry": _Design(
        (((-0.2, 0.1), (-0.1, -0.2)), ((-0.2, -0.1), (0.1, 0.1))),
        (3.0, 1.0),
        n_subjects=500,
        n_items=50,
        follow_ups=(0, 14),
        first_time=0.1,
        item_sd=0.12,
        noise_sd=0.49,
        n_covariates=40,
        covariate_sd=1.0,
        late_entry=0.1,
    ),
}
_GRID = np.linspace(0.0, 10.0, 101)


def simulate_registry(
    design: Design = "linear2",
    *,
    n_subjects: int | None = None,
    baseline: Literal["groups", "parameters"] = "groups",
    random_state: int | None = 0,
) -> AnnData:
    """Visits of subjects in two groups, with the truth they were drawn from.

    Parameters
    ----------
    design
        `"linear2"`: two visits, u' = diag(-.2, -.2) u or diag(-.2, .2) u from (2, 1), 10 items, 50 covariates, 10 of them
        informative. `"linear4"`: two visits, all rates non-zero, from (4, 2). `"lotka_volterra"`: two visits, from (2, 2).
        `"visits"`: as `"linear2"` with 1 to 9 follow-ups and noise of .5. `"weak_baseline"`: the same, with covariates that
        hardly tell the groups apart (means -.25 and .25, standard deviation 1). `"registry"`: 500 subjects with 1 to 15
        visits and 50 items, a tenth of whom enter late.
    n_subjects
        Number of subjects, half in each group; by default that of the design.
    baseline
        What informative covariates tell: the group (mean -1 or 1), or the subject's own parameters in equal blocks with
        standard deviation .1.
    random_state
        Seed; None draws a new one.

    Returns
    -------
    AnnData with one row per visit: `X` items; `obs` patient, time, group and covariates y1, y2, ...; `layers["expected"]` items
    without noise; `obsm["Z_true"]` latent states; `uns["truth"]` parameters, and on a grid of times the latent states
    `latent` (group, time, 2) and the items without noise `items` (group, time, item) of both groups.

    Raises
    ------
    ValueError : for an unknown design, or fewer than 2 subjects.

    Examples
    --------
    >>> import dynapath as dp
    >>> dp.datasets.simulate_registry("linear2", n_subjects=20).shape
    (40, 10)
    """
    if design not in DESIGNS:
        msg = f"design must be one of {', '.join(get_args(Design))}; it is {design!r}."
        raise ValueError(msg)
    if baseline not in ("groups", "parameters"):
        msg = f"baseline must be 'groups' or 'parameters'; it is {baseline!r}."
        raise ValueError(msg)
    plan = DESIGNS[design]
    n = plan.n_subjects if n_subjects is None else n_subjects
    if n < 2:
        msg = f"n_subjects must be at least 2, one for each group; it is {n!r}."
        raise ValueError(msg)
    rng = np.random.default_rng(random_state)
    group = (np.arange(n) >= (n + 1) // 2).astype(int)
    times = [_times(rng, plan) for _ in range(n)]
    subject = np.repeat(np.arange(n), [len(t) for t in times])
    time = np.concatenate(times)
    states = np.concatenate([_states(plan, g, t) for g, t in zip(group, times, strict=True)])
    # The first half of the items follows u1, the second u2.
    item_of = (np.arange(plan.n_items) >= plan.n_items // 2).astype(int)
    delta = rng.normal(0, plan.item_sd, plan.n_items)
    expected = states[:, item_of] + delta
    values = expected + rng.normal(0, plan.noise_sd, expected.shape)
    covariates = _covariates(rng, plan, group, baseline)

    grid = np.stack([_states(plan, g, _GRID) for g in (0, 1)])
    obs = pd.DataFrame(
        {
            "patient": pd.Categorical([f"P{i:04d}" for i in subject]),
            "time": time,
            "group": pd.Categorical.from_codes(group[subject], ["G1", "G2"]),
        }
    )
    columns = pd.DataFrame(covariates[subject], columns=[f"y{j + 1}" for j in range(plan.n_covariates)])
    obs = pd.concat([obs, columns], axis=1).set_index(pd.Index([f"visit{i}" for i in range(len(obs))]))
    return AnnData(
        X=values,
        obs=obs,
        var=pd.DataFrame({"latent": item_of + 1}, index=[f"x{j + 1}" for j in range(plan.n_items)]),
        layers={"expected": expected},
        obsm={"Z_true": states},
        uns={
            "truth": {
                "design": design,
                "parameters": np.array(plan.dynamics, dtype=float),
                "start": np.array(plan.start),
                "item_offsets": delta,
                "noise_sd": plan.noise_sd,
                "times": _GRID.copy(),
                "latent": grid,
                "items": grid[:, :, item_of] + delta,
            }
        },
    )


def _times(rng: np.random.Generator, plan: _Design) -> Float[NDArray, " visit"]:
    """0, and follow-ups on a grid of tenths up to 10, none twice."""
    low, high = plan.follow_ups
    possible = np.arange(round(10 * plan.first_time), 101) / 10
    # A binomial number has the published median, 8 of up to 15 visits, where these are asked for.
    number = rng.integers(low, high + 1) if low else rng.binomial(high, 0.5)
    later = np.sort(rng.choice(possible, number, replace=False))
    if plan.late_entry and number and rng.random() < plan.late_entry:
        return later
    return np.concatenate([[0.0], later])


def _states(plan: _Design, group: int, times: NDArray) -> Float[NDArray, "time 2"]:
    start, dynamics = np.array(plan.start), np.array(plan.dynamics[group])
    if dynamics.ndim == 2:
        return np.stack([expm(dynamics * t) @ start for t in times])
    a, b, g, d = dynamics
    field = lambda t, u: [a * u[0] - b * u[0] * u[1], g * u[0] * u[1] - d * u[1]]
    order = np.argsort(times)
    solved = solve_ivp(field, (0, 10.0), start, t_eval=times[order], rtol=1e-9, atol=1e-10).y.T
    return solved[np.argsort(order)]


def _covariates(
    rng: np.random.Generator, plan: _Design, group: NDArray, baseline: str
) -> Float[NDArray, "subject covariate"]:
    n, k = len(group), plan.n_informative
    mean = np.zeros((n, plan.n_covariates))
    sd = np.full(plan.n_covariates, plan.covariate_sd)
    if baseline == "groups":
        mean[:, :k] = np.where(group == 0, -plan.shift, plan.shift)[:, None]
    else:
        parameters = np.array(plan.dynamics, dtype=float).reshape(2, -1)
        varies = np.ptp(parameters, axis=0) + np.abs(parameters).sum(0) > 0
        own = parameters[:, varies]
        mean[:, :k] = own[group][:, np.arange(k) * own.shape[1] // k]
        sd[:k] = 0.1
    return rng.normal(mean, sd)
