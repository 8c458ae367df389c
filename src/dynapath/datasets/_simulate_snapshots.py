"""Snapshots of cells that move on latent linear ODEs and are seen as counts.

Group k moves by dz/dt = A_k z + b_k from z(0) ~ N(m_k, s0^2 I). The truth is computed here with `scipy.linalg.expm`
and not with `dynapath.dynamics`, so that either can be checked against the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float, Integer
from scipy import sparse
from scipy.linalg import expm
from scipy.special import softmax

from dynapath.datasets import _splatter as splatter
from dynapath.datasets._splatter import Splat

Numbers: TypeAlias = Sequence[float | int] | np.ndarray
Point: TypeAlias = tuple[float | int, float | int]

BLOCK_ENTRIES = 2_000_000  # (cell, gene) entries drawn at once: about 16 MB for each temporary array
N_BATCHES = 2


@dataclass(frozen=True)
class System:
    """Groups of linear dynamics dz/dt = A z + b on [0, 1], started at N(m, s0^2 I)."""

    m: Float[np.ndarray, "group latent"]
    A: Float[np.ndarray, "group latent latent"]
    b: Float[np.ndarray, "group latent"]
    s0: float = 0.35

    @property
    def n_groups(self) -> int:
        return len(self.m)

    @property
    def n_latent(self) -> int:
        return self.m.shape[1]


def _turn(w: float, r: float) -> Float[np.ndarray, "2 2"]:
    """R(w, r): rotation by w and growth by r per unit of time."""
    return np.array([[r, -w], [w, r]])


def _system(m: list[Point], A: list[np.ndarray], b: list[Point]) -> System:
    return System(m=np.array(m, dtype=float), A=np.stack(A), b=np.array(b, dtype=float))


SCENARIOS = {
    "separated": _system(
        m=[(-2, 2), (2, 2), (0, -2.5)],
        A=[_turn(0.8, -0.3), _turn(-0.8, -0.3), _turn(0.0, -0.2)],
        b=[(0.5, 0.5), (-0.3, 0.5), (1.5, 0.3)],
    ),
    "crossing": _system(
        m=[(-2.5, 0.5), (2.5, 0), (0, -2.5)],
        A=[_turn(0.0, 0.0), _turn(0.0, 0.0), _turn(1.2, 0.1)],
        b=[(5, 0.6), (-5, 1.5), (0, 0.5)],
    ),
    "rotating": _system(
        m=[(-2, 0), (1, 1.73), (1, -1.73)],
        A=[_turn(2.2, 0.1)] * 3,
        b=[(0, 0)] * 3,
    ),
    "branching": _system(
        m=[(0, -2), (0.15, -2), (-0.15, -2)],
        A=[_turn(0.0, 0.2)] * 3,
        b=[(0, 4.5), (3.5, 3), (-3.5, 3)],
    ),
}


@dataclass(frozen=True)
class Clock:
    """The times asked for, ascending, and the simulation time (time - origin)/unit at which the system is seen."""

    times: Float[np.ndarray, " time"]
    origin: float
    unit: float

    @property
    def simulation(self) -> Float[np.ndarray, " time"]:
        return (self.times - self.origin) / self.unit


@dataclass(frozen=True)
class Genes:
    """What is drawn once for each gene."""

    base_mean: Float[np.ndarray, " gene"]
    outlier: np.ndarray
    W: Float[np.ndarray, "gene latent"]
    nonlinear: np.ndarray
    chi2_factor: Float[np.ndarray, " gene"]

    def log_mean(self, z: Float[np.ndarray, "cell latent"]) -> Float[np.ndarray, "cell gene"]:
        """Log of the expression of each gene at the latent states z, before scaling to a library."""
        eta = z @ self.W.T
        eta[:, self.nonlinear] = splatter.nonlinear_response(eta[:, self.nonlinear])
        eta += np.log(self.base_mean)
        return eta


def simulate_snapshots(
    scenario: str = "crossing",
    *,
    n_cells: int = 150,
    n_genes: int = 200,
    times: Numbers = (0, 0.25, 0.5, 0.75, 1),
    growth: Numbers | None = None,
    dropout: Mapping[str, float | int] | None = None,
    batch_effect: bool = False,
    random_state: int | None = 0,
) -> AnnData:
    r"""Count snapshots of three groups of cells that move on latent linear ODEs, with the whole truth.

    Cells of group :math:`k` start at :math:`z(0) \sim N(m_k, s_0^2 I)` in two latent dimensions and move by
    :math:`dz/dt = A_k z + b_k`. Every cell is seen once, at one time. Its latent state shifts the log-means of the
    genes; counts follow the gamma-Poisson model of Splatter [1]_, with that model's default parameters.

    Parameters
    ----------
    scenario
        `"separated"` (three groups that stay apart), `"crossing"` (two groups swap sides, a third turns), `"rotating"`
        (three groups on a circle: a later group sits where another one was) or `"branching"` (one common progenitor).
    n_cells
        Cells of each group at each time. With `growth`, each time has `n_cells * 3` cells, whose groups are drawn.
    n_genes
        Genes. The library shrinks with it (log mean 11 + log(n_genes/10000), about 1,200 counts for 200 genes), since
        a panel of few genes sees few of a cell's molecules.
    times
        Times of the snapshots, in any order, evenly spaced or not. The systems are meant for [0, 1]; times within it
        are taken as they are. If any lies outside, all are shifted and scaled so that the first is at 0 and the last
        at 1 of the system, and the truth (velocity, A, b, growth) is reported in the unit of `times`. Hence (0, .5, 1)
        and (0, 5, 10) give the same counts, and (0, 1, 2, 6, 12) runs through the same system unevenly.
    growth
        Net relative growth rates r of the three groups, per unit of the system's own time: the proportions are
        softmax(r t). Only differences matter. By default groups are equal, and exactly so.
    dropout
        `{"mid": 0, "shape": -1}` (Splatter's values) sets counts to zero with probability
        1/(1 + exp(-shape (log rate - mid))), where `rate` is the Poisson rate of the entry; one curve for all cells.
        By default there is none, since molecule counts show no zeros beyond the gamma-Poisson model.
    batch_effect
        Two batches, each with its own log-normal factor for every gene. Every time has cells of both batches, so that
        batch and time can be told apart.
    random_state
        Seed. The same seed gives the same bits; numpy's global random state is neither read nor changed. `dropout` and
        `batch_effect` draw from streams of their own: with the same seed, dropout thins the same true counts.

    Returns
    -------
    AnnData
        One row per cell, ordered by time, then group:

        - `X` counts, CSR, float32, whole numbers.
        - `layers["expected"]` (cell, gene) float32: mean of the counts given state, library and batch, before biological
          noise and dropout. Rows sum to the library.
        - `layers["true_counts"]` CSR, only with `dropout`: the counts before it. Else `X` holds the true counts.
        - `obs["time"]` float, `obs["group"]` categorical "0", "1", "2", `obs["library"]` expected total count, and
          with `batch_effect` `obs["batch"]` categorical "0", "1".
        - `obsm["Z_true"]` (cell, 2) latent states, `obsm["velocity_true"]` (cell, 2) their velocity per unit of `times`.
        - `varm["W_true"]` (gene, 2) loadings: effect of one unit of the latent state on the log-mean of the gene.
        - `uns["truth"]` a dictionary with `times` (T,) ascending; `mean` (T, 3, 2) and `cov` (T, 3, 2, 2) of the groups;
          `proportions` (T, 3); `bcv2` (gene,) squared biological coefficient of variation, averaged over cells; and
          `parameters`:
          `scenario`; `A` (3, 2, 2) and `b` (3, 2) per unit of `times`; `m` (3, 2) and `s0`, the start at `time_origin`;
          `time_origin` and `time_unit`, so that (time - time_origin)/time_unit is the system's own time;
          `growth` (3,) per unit of `times`, counted from `time_origin`; per gene `base_mean`, `outlier`, `nonlinear`
          (responds by 1.5 tanh(eta) - .3 eta^2 to its effect eta) and `bcv_chi2_factor`; `bcv_common`; `lib_loc` and
          `lib_scale`, mean and standard deviation of the log library; with `batch_effect` `batch_factors` (2, gene); with
          `dropout` `dropout_mid` and `dropout_shape`.

          All of it can be written to h5ad and zarr.

    Raises
    ------
    ValueError
        For an unknown scenario, no cells or genes, times that are empty, not finite or repeated, a single time outside
        [0, 1], growth that is not three finite rates, or dropout without exactly the keys `mid` and `shape`.

    Notes
    -----
    The variance of a count given state and library is :math:`\lambda_0 + \lambda_0^2 BCV^2` with
    :math:`BCV = (0.1 + \lambda_0^{-1/2}) \sqrt{60/\chi^2_{60}}`, one :math:`\chi^2` draw for each gene. Each latent
    dimension acts on 30 % of the genes, a tenth of the genes respond nonlinearly, and 5 % are outliers with high means.

    Two snapshots do not decide which group is which at the other time, and no snapshots identify the path of a single
    cell: what can be compared with this truth are moments of groups, proportions and velocities.

    References
    ----------
    .. [1] L. Zappia, B. Phipson, A. Oshlack. Splatter: simulation of single-cell RNA sequencing data.
       Genome Biology 18:174, 2017. doi:10.1186/s13059-017-1305-0

    Examples
    --------
    >>> import dynapath as dp
    >>> cells = dp.datasets.simulate_snapshots("crossing", n_cells=20, n_genes=50, times=(0, 2, 6))
    >>> cells.shape
    (180, 50)
    >>> cells.obs["time"].unique()
    array([0., 2., 6.])
    >>> cells.uns["truth"]["mean"][:, 0].round(2)  # group 0 goes from left to right
    array([[-2.5 ,  0.5 ],
           [-0.83,  0.7 ],
           [ 2.5 ,  1.1 ]])
    """
    system = _checked_scenario(scenario)
    n_cells, n_genes = _checked_size("n_cells", n_cells), _checked_size("n_genes", n_genes)
    clock = _checked_times(times)
    rates = _checked_growth(growth, system.n_groups)
    curve = _checked_dropout(dropout)
    splat = Splat()
    # A stream for each part, so that an option that adds draws changes no other part.
    cell_rng, gene_rng, library_rng, batch_rng, count_rng, dropout_rng = np.random.default_rng(random_state).spawn(6)

    proportions = softmax(np.zeros(system.n_groups) + np.outer(clock.simulation, rates), axis=1)
    n_per_group = (
        np.full(proportions.shape, n_cells)
        if growth is None
        else cell_rng.multinomial(n_cells * system.n_groups, proportions)
    )
    time_index, group = _labels(n_per_group)
    flow, drift = _transport(system, clock.simulation)
    z = _states(cell_rng, system, flow, drift, time_index, group)
    velocity = (np.einsum("nij,nj->ni", system.A[group], z) + system.b[group]) / clock.unit

    genes = _draw_genes(gene_rng, n_genes, system.n_latent, splat)
    lib_loc = splat.log_library_mean(n_genes)
    library = library_rng.lognormal(lib_loc, splat.lib_scale, len(z))
    batch, log_batch = None, None
    if batch_effect:
        batch = _balanced_batches(batch_rng, n_per_group.sum(axis=1))
        log_batch = splatter.log_factors(
            batch_rng,
            (N_BATCHES, n_genes),
            prob=1.0,
            down_prob=splat.batch_down_prob,
            loc=splat.batch_loc,
            scale=splat.batch_scale,
        )
    counts, true_counts, expected, bcv2 = _observe(
        count_rng, dropout_rng, z, library, genes, batch=batch, log_batch=log_batch, curve=curve, splat=splat
    )

    adata = AnnData(
        X=counts,
        obs=pd.DataFrame(
            {
                "time": clock.times[time_index],
                "group": _categories(group, system.n_groups),
                "library": library,
            },
            index=[f"cell{i}" for i in range(len(z))],
        ),
        var=pd.DataFrame(index=[f"gene{g}" for g in range(n_genes)]),
        obsm={"Z_true": z, "velocity_true": velocity},
        varm={"W_true": genes.W},
        layers={"expected": expected},
    )
    parameters: dict[str, Any] = {
        "scenario": scenario,
        "A": system.A / clock.unit,
        "b": system.b / clock.unit,
        "m": system.m.copy(),
        "s0": system.s0,
        "time_origin": clock.origin,
        "time_unit": clock.unit,
        "growth": rates / clock.unit,
        "base_mean": genes.base_mean,
        "outlier": genes.outlier,
        "nonlinear": genes.nonlinear,
        "bcv_chi2_factor": genes.chi2_factor,
        "bcv_common": splat.bcv_common,
        "lib_loc": lib_loc,
        "lib_scale": splat.lib_scale,
    }
    if batch is not None and log_batch is not None:
        adata.obs["batch"] = _categories(batch, N_BATCHES)
        parameters["batch_factors"] = np.exp(log_batch)
    if curve is not None:
        adata.layers["true_counts"] = true_counts
        parameters["dropout_mid"], parameters["dropout_shape"] = curve["mid"], curve["shape"]
    adata.uns["truth"] = {
        "times": clock.times,
        "mean": np.einsum("tkij,kj->tki", flow, system.m) + drift,
        "cov": system.s0**2 * flow @ flow.swapaxes(-1, -2),
        "proportions": proportions,
        "bcv2": bcv2,
        "parameters": parameters,
    }
    return adata


def _checked_scenario(scenario: str) -> System:
    if scenario not in SCENARIOS:
        raise ValueError(f"Unknown scenario {scenario!r}. Choose one of: {', '.join(sorted(SCENARIOS))}.")
    return SCENARIOS[scenario]


def _checked_size(name: str, value: int) -> int:
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
    return int(value)


def _checked_times(times: Numbers) -> Clock:
    values = np.atleast_1d(np.asarray(times, dtype=float))
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"times must be a list of at least one time; got shape {values.shape}.")
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"times must be finite; times[{at}] is {values[at]}. Leave it out.")
    values = np.sort(values)
    if (repeated := values[1:][np.diff(values) == 0]).size:
        raise ValueError(f"times must differ; {repeated[0]:g} is given more than once. For more cells raise n_cells.")
    first, last = float(values[0]), float(values[-1])
    if first >= 0 and last <= 1:
        return Clock(values, origin=0.0, unit=1.0)
    if first == last:
        raise ValueError(
            f"A single time must lie in [0, 1], the system's own time, since one time has no unit; got {first:g}."
        )
    return Clock(values, origin=first, unit=last - first)


def _checked_growth(growth: Numbers | None, n_groups: int) -> Float[np.ndarray, " group"]:
    if growth is None:
        return np.zeros(n_groups)
    rates = np.asarray(growth, dtype=float)
    if rates.shape != (n_groups,) or not np.isfinite(rates).all():
        raise ValueError(f"growth must be {n_groups} finite rates, one for each group; got {growth!r}.")
    return rates


def _checked_dropout(dropout: Mapping[str, float | int] | None) -> dict[str, float] | None:
    if dropout is None:
        return None
    if set(dropout) != {"mid", "shape"}:
        raise ValueError(
            "dropout needs exactly the keys 'mid' and 'shape', such as {'mid': 0, 'shape': -1}; "
            f"got {sorted(dropout)}."
        )
    curve = {key: float(value) for key, value in dropout.items()}
    if not np.isfinite(list(curve.values())).all():
        raise ValueError(f"dropout needs finite values of 'mid' and 'shape'; got {dict(dropout)}.")
    return curve


def _labels(
    n_per_group: Integer[np.ndarray, "time group"],
) -> tuple[Integer[np.ndarray, " cell"], Integer[np.ndarray, " cell"]]:
    """Index of the time and group of each cell, ordered by time, then group."""
    time_index, group = np.indices(n_per_group.shape)
    repeats = n_per_group.ravel()
    return np.repeat(time_index.ravel(), repeats), np.repeat(group.ravel(), repeats)


def _transport(
    system: System, times: Float[np.ndarray, " time"]
) -> tuple[Float[np.ndarray, "time group latent latent"], Float[np.ndarray, "time group latent"]]:
    """Flow Phi and drift c with z(t) = Phi z(0) + c, by exp([[A, b], [0, 0]] t) = [[Phi, c], [0, 1]]."""
    d = system.n_latent
    M = np.zeros((system.n_groups, d + 1, d + 1))
    M[:, :d, :d], M[:, :d, d] = system.A, system.b
    E = expm(times[:, None, None, None] * M)
    return E[..., :d, :d], E[..., :d, d]


def _states(
    rng: np.random.Generator,
    system: System,
    flow: Float[np.ndarray, "time group latent latent"],
    drift: Float[np.ndarray, "time group latent"],
    time_index: Integer[np.ndarray, " cell"],
    group: Integer[np.ndarray, " cell"],
) -> Float[np.ndarray, "cell latent"]:
    """Latent state of each cell at its time, from a start of its own."""
    start = system.m[group] + system.s0 * rng.standard_normal((len(group), system.n_latent))
    return np.einsum("nij,nj->ni", flow[time_index, group], start) + drift[time_index, group]


def _draw_genes(rng: np.random.Generator, n_genes: int, n_latent: int, splat: Splat) -> Genes:
    base_mean, outlier = splatter.base_means(rng, n_genes, splat)
    W = splatter.log_factors(
        rng,
        (n_genes, n_latent),
        prob=splat.de_prob,
        down_prob=splat.de_down_prob,
        loc=splat.de_loc,
        scale=splat.de_scale,
    )
    return Genes(
        base_mean=base_mean,
        outlier=outlier,
        W=W,
        nonlinear=rng.random(n_genes) < splat.nonlinear_prob,
        chi2_factor=splat.bcv_df / rng.chisquare(splat.bcv_df, n_genes),
    )


def _balanced_batches(
    rng: np.random.Generator, n_per_time: Integer[np.ndarray, " time"]
) -> Integer[np.ndarray, " cell"]:
    """Batch of each cell, at random within each time; each time is split evenly, so that batches overlap in time."""
    return np.concatenate([rng.permutation(np.arange(n) % N_BATCHES) for n in n_per_time])


def _observe(
    count_rng: np.random.Generator,
    dropout_rng: np.random.Generator,
    z: Float[np.ndarray, "cell latent"],
    library: Float[np.ndarray, " cell"],
    genes: Genes,
    *,
    batch: Integer[np.ndarray, " cell"] | None,
    log_batch: Float[np.ndarray, "batch gene"] | None,
    curve: dict[str, float] | None,
    splat: Splat,
) -> tuple[sparse.csr_matrix, sparse.csr_matrix, Float[np.ndarray, "cell gene"], Float[np.ndarray, " gene"]]:
    """Counts, counts before dropout, expected counts, and squared BCV averaged over cells; by blocks of cells."""
    n_cells, n_genes = len(z), len(genes.base_mean)
    expected = np.empty((n_cells, n_genes), dtype=np.float32)
    bcv2_sum = np.zeros(n_genes)
    seen, true = [], []
    size = max(1, BLOCK_ENTRIES // n_genes)
    for first in range(0, n_cells, size):
        block = slice(first, first + size)
        log_mean = genes.log_mean(z[block])
        if batch is not None and log_batch is not None:
            log_mean += log_batch[batch[block]]
        lam0 = library[block, None] * softmax(log_mean, axis=1)
        bcv2 = splatter.squared_bcv(lam0, genes.chi2_factor, splat.bcv_common)
        counts, rate = splatter.draw_counts(count_rng, lam0, bcv2)
        expected[block] = lam0
        bcv2_sum += bcv2.sum(axis=0)
        true.append(sparse.csr_matrix(counts, dtype=np.float32))
        if curve is not None:
            kept = dropout_rng.random(true[-1].nnz) < splatter.keep_probability(rate[counts > 0], **curve)
            seen.append(_kept(true[-1], kept))
    true_counts = sparse.vstack(true, format="csr")
    counts = true_counts if curve is None else sparse.vstack(seen, format="csr")
    return counts, true_counts, expected, bcv2_sum / n_cells


def _kept(counts: sparse.csr_matrix, kept: np.ndarray) -> sparse.csr_matrix:
    """The entries that are kept; the others become zeros that are not stored."""
    thinned = counts.copy()
    thinned.data[~kept] = 0
    thinned.eliminate_zeros()
    return thinned


def _categories(codes: Integer[np.ndarray, " cell"], n: int) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, categories=[str(i) for i in range(n)])
