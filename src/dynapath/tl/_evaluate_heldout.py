"""dp.tl.evaluate_heldout: how close predicted cells come to a time that was held out, beside what needs no model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from dynapath._names import as_text
from dynapath._times import same_within
from dynapath.metrics import clouds, interpolate
from dynapath.models._random import concrete_seed, isolated_seed
from dynapath.read import counts as read

from ._fit_dynamic_vae import fit_dynamic_vae
from ._predict_cells import predict_cells

# Called with the training cells, the held-out time, the number of cells, and a generator; returns counts.
Method = Callable[[AnnData, float, int, np.random.Generator], Any]

MODEL = "dynvae"
BASELINES = ("forward", "backward", "mixture", "mean_shift", "ot_interpolation")
BUILT_IN = (MODEL, "floor", "oracle_vae", *BASELINES)
# An exact pairing takes time cubic in the number of cells.
_MOST_PAIRED = 1000
_FEWEST_CELLS = 4


def evaluate_heldout(
    adata: AnnData,
    *,
    time_key: str,
    holdout: float | Sequence[float],
    fit_kwargs: Mapping[str, Any] | None = None,
    methods: str | Sequence[str | Method] | Mapping[str, str | Method] = "all",
    n_pcs: int = 20,
    random_state: int | None = 0,
) -> pd.DataFrame:
    """Score predictions of a time that was held out, beside naive baselines and what the data allow at best.

    Each time in `holdout` is held out by itself: the dynamic VAE is fitted again without its cells, predicts as many
    cells as were measured there, and their counts are compared with the true ones.

    Parameters
    ----------
    adata
        One row per cell, raw counts. Nothing is written.
    time_key
        Column of `obs` with the time of each cell.
    holdout
        An observed time or several, in the unit of the data. The first and the last can be held out too; they are then
        extrapolated.
    fit_kwargs
        Arguments of :func:`dynapath.tl.fit_dynamic_vae`, such as `{"n_groups": 4, "batch_key": "donor"}`. `layer` says
        where the counts of all methods are; the others are refused where nothing is fitted.
    methods
        `"all"`; a list of names, or of names and functions of your own; or a dictionary that gives names to either, of
        which only those are run. Without `"dynvae"` nothing is fitted but, for `"oracle_vae"`, a static VAE.

        `"dynvae"` : the dynamic VAE.

        `"floor"` : one random half of the true cells against the other; what sampling alone makes of the truth.

        `"oracle_vae"` : a static VAE trained on all cells, the held-out ones included, that decodes the states it finds for
        them; the limit that the decoder sets.

        `"forward"`, `"backward"` : cells of the time before, or after, as they are.

        `"mixture"` : cells of both, in proportion to their closeness in time.

        `"mean_shift"` : cells of the nearest time, moved by the mean displacement per unit of time, in principal components;
        they have no counts, so metrics of counts are NaN.

        `"ot_interpolation"` : cells on the way between pairs of the neighbouring times, coupled by optimal transport, with
        the noise of counts.

        A function is called as `f(train, time, n_cells, rng)`, with the training cells as an AnnData of its own (counts in
        `X`, times as floats in `obs[time_key]`), the held-out time, and a :class:`numpy.random.Generator`. It returns
        counts of `n_cells` cells: an array or sparse matrix (cell, gene), or an AnnData with the same genes. Under the
        name of a method above, it takes its place: for simulated cells `"floor"` may give a fresh draw.
    n_pcs
        Number of principal components in which distances are taken, at most one fewer than there are genes or training
        cells. They are those of log-normalised counts (1e4) of the training cells alone.
    random_state
        Seed; the session's random state is not touched. The fit uses it too unless `fit_kwargs` names another.

    Returns
    -------
    Tidy DataFrame with one row per held-out time, method and metric, and columns

    `method`, `holdout` : as above; `holdout` in the unit of the data.

    `metric`, `value` : `"energy"`, the unbiased energy distance [1]_, 0 on average for a perfect prediction (so single values may
    be slightly negative) and in the unit of log-normalised counts; `"w2"`, the exact 2-Wasserstein distance between equal
    numbers of cells, which is positive for any prediction and rewards blur, so rank by energy; `"zero_error"`, mean over
    genes of the absolute difference of zero fractions; `"variance_ratio"`, median over genes of predicted/true variance of
    log-normalised counts.

    `n_cells` : cells on the predicted side. As many as true ones where there are enough: baselines use no cell twice, and
    the floor has half. `w2` takes as many true cells (at most 1,000) and grows as they get fewer.

    `seed` : the seed.

    `attrs["extrapolated"]` : held-out times outside the range of the others.

    Warns
    -----
    UserWarning : where a baseline has a lower energy than the dynamic VAE; for extrapolated times, and which methods these
    leave out; and for all that :func:`dynapath.tl.fit_dynamic_vae` warns of.

    Raises
    ------
    KeyError : for a column or layer that is not there.
    ValueError : for a held-out time that was not observed or leaves fewer than two; for counts that are none, from `adata`
    or from a function; for unknown methods or `fit_kwargs`.

    Notes
    -----
    Small differences of energy are noise: the floor shows of what size, and other seeds show more. Ratios of values near
    zero mean nothing.

    References
    ----------
    .. [1] G. J. Székely, M. L. Rizzo. Energy statistics: a class of statistics based on distances. Journal of Statistical
       Planning and Inference 143:1249-1272, 2013. doi:10.1016/j.jspi.2013.03.018

    Examples
    --------
    >>> import dynapath as dp
    >>> cells = dp.datasets.simulate_snapshots("branching", n_cells=50, n_genes=50)
    >>> scores = dp.tl.evaluate_heldout(cells, time_key="time", holdout=0.5, methods=["floor", "forward", "mixture"])
    >>> scores.pivot(index="method", columns="metric", values="value").round(2)  # doctest: +SKIP

    A function of your own, and a fresh draw of the simulation for the floor (twice the cells of the same seed are other
    cells with the same genes):

    >>> fresh = dp.datasets.simulate_snapshots("branching", n_cells=100, n_genes=50)
    >>> def redrawn(train, time, n_cells, rng):
    ...     return fresh[rng.choice(np.flatnonzero(fresh.obs["time"] == time), n_cells, replace=False)]
    >>> def all_times(train, time, n_cells, rng):
    ...     return train.X[rng.choice(train.n_obs, n_cells)]
    >>> own = {"all_times": all_times, "floor": redrawn}
    >>> scores = dp.tl.evaluate_heldout(cells, time_key="time", holdout=0.5, methods=own)
    """
    chosen = _chosen_methods(methods)
    options = _fit_options(adata, time_key, fit_kwargs or {})
    _refuse_unused(fit_kwargs or {}, chosen)
    if isinstance(n_pcs, bool) or n_pcs != int(n_pcs) or n_pcs < 1:
        msg = f"n_pcs must be a positive whole number; it is {n_pcs!r}."
        raise ValueError(msg)
    times = read.read_times(adata, time_key)
    column = adata.obs[time_key]
    held_out = _heldout_times(
        holdout, times, same_within(column if pd.api.types.is_float_dtype(column.dtype) else times), time_key
    )
    counts = read.read_counts(adata, options["layer"])
    cells = _Cells(adata, counts, times, time_key, options)
    seed = concrete_seed(random_state)
    reconstructed = _reconstructed(cells, seed) if "oracle_vae" in chosen.values() else None

    rows, extrapolated = [], []
    for time in held_out:
        task = _Task.hold_out(cells, time, n_pcs, seed, reconstructed)
        applicable = {name: method for name, method in chosen.items() if _applies(method, task)}
        if task.extrapolated:
            extrapolated.append(time)
            _warn_of_extrapolation(task, [name for name in chosen if name not in applicable])
        scores = {}
        for name, method in applicable.items():
            rng = np.random.default_rng([seed, crc32(name.encode())])
            generated = _built_in(task, method, rng) if isinstance(method, str) else _called(task, name, method, rng)
            scored = _scores(task, name, generated, rng)
            scores[name] = scored["energy"][0]
            rows += [(name, time, metric, value, n, seed) for metric, (value, n) in scored.items()]
        _warn_of_better_baselines(time, scores)
    if not rows:
        msg = f"None of the methods ({', '.join(chosen)}) has the times it needs beside {', '.join(f'{t:g}' for t in held_out)}."
        raise ValueError(msg)
    table = pd.DataFrame(rows, columns=["method", "holdout", "metric", "value", "n_cells", "seed"])
    table.attrs["extrapolated"] = extrapolated
    return table


# --- what is asked for ---------------------------------------------------------------------------------------------------------


def _chosen_methods(methods: str | Sequence[str | Method] | Mapping[str, str | Method]) -> dict[str, str | Method]:
    """Names and what they stand for: a built-in method by its name, or a function."""
    if isinstance(methods, Mapping):
        chosen = {str(name): method for name, method in methods.items()}
    else:
        listed = [methods] if isinstance(methods, str) or callable(methods) else list(methods)
        chosen = {}
        for method in listed:
            if isinstance(method, str):
                chosen |= {name: name for name in (BUILT_IN if method == "all" else [method])}
            else:
                chosen[getattr(method, "__name__", type(method).__name__)] = method
    if not chosen:
        msg = f"methods is empty. Name some of {', '.join(BUILT_IN)}, or give functions of your own."
        raise ValueError(msg)
    for name, method in chosen.items():
        if isinstance(method, str) and method not in BUILT_IN:
            msg = f"methods has {method!r}, which is none of {', '.join(BUILT_IN)}. For a method of your own give a function."
            raise ValueError(msg)
        if not isinstance(method, str) and not callable(method):
            msg = (
                f"methods[{name!r}] must be a function of (train, time, n_cells, rng) or the name of a method; it is a "
                f"{type(method).__name__}."
            )
            raise ValueError(msg)
    return chosen


def _refuse_unused(fit_kwargs: Mapping[str, Any], chosen: Mapping[str, str | Method]) -> None:
    """Raise for arguments of a fit where nothing is fitted."""
    given = [name for name, value in fit_kwargs.items() if value is not None and name != "layer"]
    if given and not {MODEL, "oracle_vae"} & {method for method in chosen.values() if isinstance(method, str)}:
        msg = (
            f"fit_kwargs has {given[0]!r}, but none of the methods ({', '.join(chosen)}) fits anything. Leave it out (only 'layer' is "
            f"for all methods), or add {MODEL!r}."
        )
        raise ValueError(msg)


def _fit_options(adata: AnnData, time_key: str, fit_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the fit, with its defaults; errors for those that cannot be used here."""
    reasons = {
        "adata": "is the one given",
        "time_key": "is the one given",
        "copy": "has no meaning here",
        "use_rep": "leaves no decoder, so no counts to compare",
        "model": "may have seen the held-out cells; the VAE is trained without them instead",
    }
    for name, reason in reasons.items():
        if fit_kwargs.get(name) is not None:
            msg = f"fit_kwargs must not have {name!r}: it {reason}. Leave it out."
            raise ValueError(msg)
    known = inspect.signature(fit_dynamic_vae).parameters
    for name in fit_kwargs:
        if name not in known:
            msg = f"fit_kwargs has {name!r}, which is no argument of dp.tl.fit_dynamic_vae."
            raise ValueError(msg)
    defaults = {name: p.default for name, p in known.items() if p.default is not p.empty}
    # Without one of its own the fit takes the seed of the evaluation.
    return {**defaults, "random_state": None, **fit_kwargs}


def _heldout_times(
    holdout: float | Sequence[float], times: NDArray[np.float64], within: float, time_key: str
) -> list[float]:
    """The observed times that `holdout` means; it may be off by `within`."""
    observed, sizes = np.unique(times, return_counts=True)
    listed = ", ".join(f"{t:g}" for t in observed)
    single = isinstance(holdout, str) or not isinstance(holdout, Iterable) or getattr(holdout, "ndim", 1) == 0
    asked = [holdout] if single else list(holdout)
    for value in asked:
        if isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0:
            msg = (
                f"holdout has {value!r}, which is no time. Several times cannot be held out at once; give them one by one, as "
                f"holdout=[{', '.join(map(str, value))}], and each is held out by itself."
            )
            raise ValueError(msg)
    if not asked:
        msg = f"holdout names no time. Observed times of obs[{time_key!r}]: {listed}."
        raise ValueError(msg)
    found: list[float] = []
    for value in asked:
        try:
            nearest = int(np.argmin(np.abs(observed - float(value))))
            matches = abs(observed[nearest] - float(value)) <= within
        except (TypeError, ValueError):
            matches = False
        if not matches:
            msg = f"holdout={value!r} was not observed. Times of obs[{time_key!r}]: {listed}."
            raise ValueError(msg)
        if sizes[nearest] < _FEWEST_CELLS:
            msg = f"Time {observed[nearest]:g} has {sizes[nearest]} cells; at least {_FEWEST_CELLS} are needed to hold it out."
            raise ValueError(msg)
        found.append(float(observed[nearest]))
    if len(observed) < 3:
        msg = (
            f"Holding out time {found[0]:g} of obs[{time_key!r}] leaves only {observed[observed != found[0]][0]:g}; dynamics "
            f"need at least two times. Observed: {listed}."
        )
        raise ValueError(msg)
    return list(dict.fromkeys(found))


# --- one held-out time ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cells:
    """All cells: checked counts and times, and how to fit them."""

    adata: AnnData
    counts: sparse.csr_matrix
    times: NDArray[np.float64]
    time_key: str
    options: dict[str, Any]

    def anndata(self, rows: NDArray[np.bool_] | slice, columns: Sequence[str] | None = None) -> AnnData:
        """Some cells as an AnnData of its own: counts in `X`, times as floats, and nothing that was derived before."""
        obs = self.adata.obs.iloc[rows if isinstance(rows, slice) else np.flatnonzero(rows)].copy()
        obs[self.time_key] = self.times[rows]
        obs = obs if columns is None else obs[list(columns)]
        return AnnData(X=self.counts[rows].copy(), obs=obs, var=pd.DataFrame(index=self.adata.var_names))

    @property
    def fit_columns(self) -> list[str]:
        """Columns of `obs` that a fit reads."""
        given = (self.options[name] for name in ("batch_key", "labels_key", "size_factor_key"))
        return list(dict.fromkeys([self.time_key, *(name for name in given if name is not None)]))


@dataclass(frozen=True)
class _Generated:
    """Cells as a method has them: coordinates, and counts unless it knows none."""

    pcs: NDArray[np.float64]
    counts: sparse.csr_matrix | None
    truth: NDArray[np.int64] | None = None  # true cells to compare with; None for all


@dataclass(frozen=True)
class _Task:
    """Training cells, the true cells of one held-out time, and the space in which they are compared."""

    cells: _Cells
    time: float
    seed: int
    training: NDArray[np.bool_]  # (cell,)
    counts: sparse.csr_matrix  # of training cells
    times: NDArray[np.float64]
    pcs: NDArray[np.float64]
    truth: sparse.csr_matrix
    true_pcs: NDArray[np.float64]
    space: clouds.PrincipalSpace
    reconstructed: sparse.csr_matrix | None  # of all cells, by the oracle

    @classmethod
    def hold_out(
        cls, cells: _Cells, time: float, n_pcs: int, seed: int, reconstructed: sparse.csr_matrix | None
    ) -> _Task:
        training = cells.times != time
        counts, truth = cells.counts[training], cells.counts[~training]
        space = clouds.PrincipalSpace.fit(counts, n_pcs)
        pcs, true_pcs = space.project(counts), space.project(truth)
        return cls(
            cells, time, seed, training, counts, cells.times[training], pcs, truth, true_pcs, space, reconstructed
        )

    @property
    def n_cells(self) -> int:
        return self.truth.shape[0]

    @property
    def neighbours(self) -> tuple[float | None, float | None]:
        return interpolate.neighbouring_times(self.times, self.time)

    @property
    def extrapolated(self) -> bool:
        return None in self.neighbours

    def generated(self, counts: sparse.csr_matrix) -> _Generated:
        return _Generated(self.space.project(counts), counts)


def _applies(method: str | Method, task: _Task) -> bool:
    before, after = task.neighbours
    if method == "forward":
        return before is not None
    if method == "backward":
        return after is not None
    return method not in ("mixture", "ot_interpolation") or not task.extrapolated


def _built_in(task: _Task, method: str, rng: np.random.Generator) -> _Generated:
    here = (task.times, task.time, task.n_cells, rng)
    match method:
        case "dynvae":
            return task.generated(_predicted(task))
        case "oracle_vae":
            assert task.reconstructed is not None
            return task.generated(task.reconstructed[~task.training])
        case "floor":
            one, other = np.split(rng.permutation(task.n_cells)[: task.n_cells // 2 * 2], 2)
            return _Generated(task.true_pcs[one], task.truth[one], truth=other)
        case "mean_shift":
            return _Generated(interpolate.mean_shift(task.pcs, *here), None)
        case "ot_interpolation":
            return task.generated(interpolate.ot_interpolation(task.counts, task.pcs, *here))
        case _:
            carry = {
                "forward": interpolate.forward,
                "backward": interpolate.backward,
                "mixture": interpolate.mixture,
            }[method]
            return task.generated(carry(task.counts, *here))


def _predicted(task: _Task) -> sparse.csr_matrix:
    """Counts of the dynamic VAE fitted without the held-out time."""
    cells = task.cells
    train = cells.anndata(task.training, cells.fit_columns)
    own = {name: value for name, value in cells.options.items() if name not in ("layer", "copy", "random_state")}
    fit_dynamic_vae(train, time_key=cells.time_key, random_state=_fit_seed(cells, task.seed), **own)
    with warnings.catch_warnings():
        # Said already, with what else it means here.
        warnings.filterwarnings("ignore", "Times .* lie outside", UserWarning)
        predicted = predict_cells(
            train, times=task.time, n_cells=task.n_cells, key=cells.options["key_added"], random_state=task.seed
        )
    return predicted.X


def _fit_seed(cells: _Cells, seed: int) -> int:
    return seed if cells.options["random_state"] is None else int(cells.options["random_state"])


def _reconstructed(cells: _Cells, seed: int) -> sparse.csr_matrix:
    """All cells, encoded and decoded by a static VAE that was trained on all of them: one for all held-out times."""
    from dynapath.models.dynamic_vae import DynamicVAE
    from dynapath.models.options import Training

    options = cells.options
    snapshots = read.read_snapshots(
        cells.anndata(slice(None), cells.fit_columns),
        time_key=cells.time_key,
        batch_key=options["batch_key"],
        size_factor_key=options["size_factor_key"],
    )
    data, columns = snapshots.to_anndata()
    training = options["training"] or Training()
    with isolated_seed(_fit_seed(cells, seed)):
        DynamicVAE.setup_anndata(data, **columns)
        vae = DynamicVAE(
            data, n_groups=1, n_latent=options["n_latent"], likelihood=options["likelihood"], training=training
        )
        vae.train(
            options["max_epochs"],
            training=training,
            static_only=True,
            random_state=_fit_seed(cells, seed),
            **(options["train_kwargs"] or {}),
        )
        mean, variance = vae.get_latent_representation(return_dist=True)
    rng = np.random.default_rng([seed, crc32(b"oracle_vae")])
    z = mean + np.sqrt(variance) * rng.standard_normal(mean.shape)
    return vae.decode(z, vae.library_sizes(), vae.batch_codes(), random_state=int(rng.integers(2**31)))


def _called(task: _Task, name: str, method: Method, rng: np.random.Generator) -> _Generated:
    """What a function returned, checked."""
    genes = as_text(task.cells.adata.var_names)
    result = method(task.cells.anndata(task.training), task.time, task.n_cells, rng)
    where = f"The method {name!r}, called for time {task.time:g},"
    if isinstance(result, pd.DataFrame):
        result = AnnData(result)
    if isinstance(result, AnnData):
        names = as_text(result.var_names)
        missing, extra = genes.difference(names), names.difference(genes)
        if len(missing) or len(extra) or result.n_vars != len(genes):
            odd = f"without {str(missing[0])!r}" if len(missing) else f"with {str([*extra, 'a gene twice'][0])!r}"
            msg = (
                f"{where} returned {result.n_vars} genes, {odd}; they must be the {len(genes)} of the training cells. "
                "Return result[:, train.var_names]."
            )
            raise ValueError(msg)
        result = result.X if names.equals(genes) else result[:, names.get_indexer(genes)].X
    result = result if sparse.issparse(result) else np.asarray(result)
    expected = (task.n_cells, len(genes))
    if result.shape != expected:
        msg = f"{where} returned an array of shape {result.shape}; it must return counts of shape {expected} (n_cells, genes)."
        raise ValueError(msg)
    numeric = result.dtype.kind in "biuf"
    counts = sparse.csr_matrix(result if numeric else expected)
    values = counts.data
    if not numeric or not np.isfinite(values).all() or (values < 0).any() or (values != np.round(values)).any():
        msg = (
            f"{where} returned values that are no counts (not finite, negative, or not whole numbers). Return sampled counts "
            "on the scale of train.X, not expectations or log-normalised values."
        )
        raise ValueError(msg)
    return task.generated(counts.astype(np.float32))


# --- scores --------------------------------------------------------------------------------------------------------------------


def _scores(task: _Task, name: str, generated: _Generated, rng: np.random.Generator) -> dict[str, tuple[float, int]]:
    """Value and number of predicted cells of each metric."""
    rows = np.arange(task.n_cells) if generated.truth is None else generated.truth
    x, y = generated.pcs, task.true_pcs[rows]
    n = len(x)
    if n < 2:
        msg = (
            f"The method {name!r} has {n} cells to offer for time {task.time:g}; distances need two. Leave the method out, or "
            "merge small snapshots."
        )
        raise ValueError(msg)
    paired = min(n, len(y), _MOST_PAIRED)
    some = partial(_some, n=paired, rng=rng)
    scored = {
        "energy": (clouds.energy_distance(x, y), n),
        "w2": (clouds.wasserstein2(some(x), some(y)), paired),
        "zero_error": (float("nan"), n),
        "variance_ratio": (float("nan"), n),
    }
    if generated.counts is not None:
        truth = task.truth[rows]
        scored["zero_error"] = (clouds.zero_error(generated.counts, truth), n)
        scored["variance_ratio"] = (clouds.variance_ratio(generated.counts, truth), n)
    return scored


def _some(points: NDArray[np.float64], *, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return points if len(points) == n else points[rng.permutation(len(points))[:n]]


def _warn_of_extrapolation(task: _Task, left_out: list[str]) -> None:
    end = "first" if task.neighbours[0] is None else "last"
    said = f"Time {task.time:g} is the {end} observed: without it, predictions are extrapolated beyond the times in the data."
    if left_out:
        said += f" Left out, since they need times on the other side: {', '.join(left_out)}."
    warnings.warn(said, UserWarning, stacklevel=3)


def _warn_of_better_baselines(time: float, energy: Mapping[str, float]) -> None:
    baselines = {name: value for name, value in energy.items() if name in BASELINES}
    if MODEL not in energy or not baselines:
        return
    best = min(baselines, key=baselines.__getitem__)
    model = energy[MODEL]
    if baselines[best] < model:
        better = sum(value < model for value in baselines.values())
        warnings.warn(
            f"At the held-out time {time:g} the baseline {best!r} is closer to the true cells than the dynamic VAE (energy "
            f"distance {baselines[best]:.3g} against {model:.3g}; {better} of {len(baselines)} baselines closer). Unless "
            "the difference is as small as the floor varies between seeds, the model adds nothing to that rule at such times.",
            UserWarning,
            stacklevel=3,
        )
