"""dp.tl.fit_dynamic_vae: snapshots -> groups, dynamics and cell states, written into the AnnData."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score
from tqdm import tqdm

from dynapath import write
from dynapath._threads import threads_for
from dynapath.dynamics.changes import Convergence
from dynapath.dynamics.fit_mixture import AS_GOOD, SAME_GROUPS
from dynapath.metrics import AffineMap, affine_alignment
from dynapath.models._random import concrete_seed, isolated_seed
from dynapath.models.options import Prior, Training
from dynapath.read import counts as read

from ._alternatives import refitted
from ._bootstrap import bootstrap, check_n_bootstrap
from ._number_of_groups import judge_choice, numbers_to_try

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from dynapath.dynamics import GroupDynamics
    from dynapath.dynamics.mixture import Growth
    from dynapath.models.stage import Stage

# And one this far ahead of the next has not been confirmed by any other.
_ALONE = 0.05
_SMALL_GROUP = 0.02
# By default.
_N_LATENT = 2


def fit_dynamic_vae(
    adata: AnnData,
    *,
    time_key: str,
    n_groups: int | Literal["auto"] | Sequence[int] = 3,
    n_latent: int = _N_LATENT,
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    use_rep: str | None = None,
    model: Any | None = None,
    likelihood: Literal["nb", "zinb", "poisson"] = "nb",
    growth: Growth = "shrunk",
    n_members: int = 1,
    prior: Prior | None = None,
    training: Training | None = None,
    max_epochs: int | None = None,
    n_bootstrap: int = 0,
    key_added: str = "dynvae",
    random_state: int | None = 0,
    copy: bool = False,
    train_kwargs: Mapping[str, Any] | None = None,
) -> AnnData | None:
    """Infer groups of cells, their latent dynamics and each cell's state from snapshots, all together.

    Every group k follows dz/dt = A_k z + b_k in the latent space of a count VAE; a cell seen at time t comes from the
    mixture of the groups at t. Cells need not be, and are not, matched between times.

    Parameters
    ----------
    adata
        One row per cell, raw counts.
    time_key
        Column of `obs` with the time at which each cell was measured: numbers in any unit, unevenly spaced or not, or
        categories that read as numbers. Velocities and rates are per that unit.
    n_groups
        Number of groups K. Groups that the data do not need end up nearly empty (a warning says so). `"auto"` takes
        the number from 1 to 6 with the lowest BIC on the latent space of the static phase, and goes on with its fit: of
        numbers within 2 of the lowest the smallest, not below the number of labels, and without groups of less than 2 %
        of the cells. `range(2, 9)` or a list gives other numbers to choose from. See :func:`dynapath.get.n_groups`.
    n_latent
        Latent dimensions d. Rates are identified by the data alone when there are at least d + 2 times. With `use_rep`
        all columns of the representation are used, and with `model` its latent space.
    layer
        Layer with the counts; None for `X`.
    batch_key, size_factor_key
        As in scvi-tools. Batches must overlap between times.
    labels_key
        Column with the known group of some cells (missing: unknown). These cells are in their group with probability 1, and
        groups have the names of the labels, in sorted order; further groups have numbers.
    use_rep
        Fit the dynamics on this `obsm` instead, without a VAE (e.g. `"X_pca"`, `"X_scVI"`): seconds, but the
        representation does not adapt to the dynamics and counts cannot be predicted. What is about counts and networks (layer,
        batches, size factors, likelihood, epochs, `train_kwargs`) is refused then; of `training`, the restarts and
        `prior_steps` apply.
    model
        A trained :class:`scvi.model.SCVI` on the same genes, which takes the place of the static phase.
    likelihood
        Of the counts: negative binomial by default; zero-inflated where zeros exceed it; Poisson.
    growth
        Whether log proportions of groups change linearly in time: `"shrunk"` (penalised during the fit, then estimated
        without penalty), `"free"`, `"off"`.
    n_members
        Number of models that differ only in their seed, one after another or several at a time
        (`Training(n_jobs=...)`). :func:`dynapath.tl.predict_cells` pools them, which extrapolates better than one, and
        their spread enters every band. The first is the fit without an ensemble.
    prior, training
        Rarer options, see :class:`dynapath.models.Prior` and :class:`dynapath.models.Training`.
    max_epochs
        Epochs of the static phase; the joint phase takes four fifths as many. By default by number of cells.
    n_bootstrap
        Refits to resampled cells, which give trajectories and genes their bands: :func:`dynapath.tl.bootstrap` right after
        the fit. 0 for none.
    key_added
        Under which the results are stored. A previous fit under this key is replaced as a whole.
    random_state
        Seed. The same seed gives the same bits on a CPU; the session's random state is not touched.
    copy
        Work on a copy and return it.
    train_kwargs
        Handed to scvi-tools' `train` as they are (`accelerator`, `devices`, `strategy`, `plan_kwargs`, ...).

    Returns
    -------
    None, or the copy if `copy=True`. Sets the following fields:

    `obsm["X_{key}"]` : state of each cell (cell, latent), posterior mean.
    `obsm["{key}_std"]` : its posterior standard deviation.
    `obsm["{key}_velocity"]` : dz/dt (cell, latent) per unit of time, averaged over the cell's groups.
    `obsm["{key}_groups"]` : probability of each group (cell, group).
    `obs["{key}_group"]` : most probable group, a categorical of their names: the labels of `labels_key`, else "0".."K-1". They
    may be renamed (`adata.obs["{key}_group"].cat.rename_categories`), and go by their new names from then on.
    `obs["{key}_prob"]` : its probability.
    `obs["{key}_undetermined"]` : whether that is below .6, as where groups cross or have not parted yet.
    `uns["{key}"]["groups"]` : names of the groups, in their order.
    `uns["{key}"]["n_groups"]` : only where it was chosen, the numbers tried and their BIC (:func:`dynapath.get.n_groups`).
    `obsm["{key}_stage_untrained"]`, `obsm["{key}_stage_static"]` : states at earlier stages of the training, with
    `Training(keep_stages=True)` only.
    `uns["{key}"]` : settings, parameters, history, restarts and status; :func:`dynapath.get.model` rebuilds the model.

    Raises
    ------
    KeyError, ValueError : for input that cannot be used, before anything is written.
    FloatingPointError : if training diverges; nothing is written. If only the bootstrap does, the fit stays.

    Notes
    -----
    `uns["{key}"]["status"]` is one of `ok`; `not_converged`, which comes before those that follow; `undetermined`: no cell has a
    group; `best_restart_alone`, `restarts_disagree`, `members_disagree`. Each has a message and a warning. Where all cells have
    the same coordinates, the status is `undetermined` whatever else there is to say: more training would not help.

    A fit has converged if the second half of the joint phase (by the length of its steps, not by epochs) has moved groups of
    cells, states of cells and predicted counts by less than half of their uncertainty, and the paths of groups by less than
    two standard errors of their means: more training would then change little that can be told from chance.
    :func:`dynapath.get.convergence` has the figures. After fewer or smaller steps than could have moved the weights at all,
    a fit is `not_converged`.

    Fitted in three phases: a static VAE; the mixture of dynamics on its latent space by annealed restarts; both together.
    Latent spaces are identified up to a smooth map: compare fits in gene space.

    With several members, states and their standard deviations are those of the first; responsibilities and velocities are
    means over the members, their groups matched by the cells they share and their velocities mapped by the affine map
    that leaves the least squared error between the states of the same cells.

    Examples
    --------
    >>> import dynapath as dp
    >>> adata = dp.datasets.simulate_snapshots("rotating", n_cells=60, n_genes=60)
    >>> quick = dp.models.Training(static_epochs=5, joint_epochs=5, n_restarts=4, prior_steps=50, progress=False)
    >>> dp.tl.fit_dynamic_vae(adata, time_key="time", n_groups=3, training=quick)  # doctest: +SKIP
    >>> adata.obs["dynvae_group"].cat.categories.tolist()  # doctest: +SKIP
    ['0', '1', '2']
    """
    if use_rep is not None and model is not None:
        msg = "use_rep fits without a VAE and model= brings one: give only one of them."
        raise ValueError(msg)
    if model is not None and not hasattr(model, "module"):
        msg = f"model= must be a trained scvi.model.SCVI or dp.models.DynamicVAE; it is a {type(model).__name__}."
        raise TypeError(msg)
    if not isinstance(n_latent, Integral) or n_latent < 1:
        msg = f"n_latent must be a positive whole number; it is {n_latent!r}."
        raise ValueError(msg)
    if not isinstance(n_members, Integral) or n_members < 1:
        msg = f"n_members must be a positive whole number; it is {n_members!r}."
        raise ValueError(msg)
    if use_rep is not None and n_members > 1:
        msg = f"n_members={n_members} needs networks that can differ; with use_rep there are none. Leave it at 1."
        raise ValueError(msg)
    if use_rep is not None and training is not None and training.keep_stages:
        msg = "Training(keep_stages=True) keeps stages of networks; with use_rep there are none. Leave it out."
        raise ValueError(msg)
    if use_rep is not None:
        _refuse_of_networks(
            use_rep,
            layer=layer,
            batch_key=batch_key,
            size_factor_key=size_factor_key,
            likelihood=None if likelihood == "nb" else likelihood,
            max_epochs=max_epochs,
            train_kwargs=train_kwargs or None,
        )
    check_n_bootstrap(n_bootstrap)
    write.check_key_is_free(adata, key_added)
    seed = concrete_seed(random_state)
    fit = _fit_on_representation if use_rep is not None else _fit_on_counts
    if copy:
        adata = adata.to_memory() if adata.isbacked else adata.copy()
    options = {
        "time_key": time_key,
        "n_groups": n_groups,
        "n_latent": n_latent,
        "layer": layer,
        "batch_key": batch_key,
        "labels_key": labels_key,
        "size_factor_key": size_factor_key,
        "use_rep": use_rep,
        "likelihood": likelihood,
        "growth": growth,
        "n_members": int(n_members),
        "random_state": seed,
    }
    prior, training = prior or Prior(), training or Training()
    # A fit of coordinates is one of small matrices, however many cells there are.
    with threads_for(training.batch_size * adata.n_vars if use_rep is None else 0):
        fit(adata, options, model, prior, training, max_epochs, key_added, dict(train_kwargs or {}))
    if n_bootstrap:
        bootstrap(adata, key=key_added, n_bootstrap=n_bootstrap, random_state=seed)
    return adata if copy else None


def _refuse_of_networks(use_rep: str, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            msg = (
                f"{name}={value!r} is about counts and networks; with use_rep={use_rep!r} there are none. Leave it out, or "
                "leave use_rep out."
            )
            raise ValueError(msg)


def _fit_on_counts(
    adata: AnnData,
    options: dict[str, Any],
    model: Any | None,
    prior: Prior,
    training: Training,
    max_epochs: int | None,
    key: str,
    train_kwargs: dict[str, Any],
) -> None:
    _check_literal("likelihood", options["likelihood"], ("nb", "zinb", "poisson"))
    _check_literal("growth", options["growth"], ("shrunk", "free", "off"))
    snapshots = read.read_snapshots(
        adata,
        time_key=options["time_key"],
        layer=options["layer"],
        batch_key=options["batch_key"],
        labels_key=options["labels_key"],
        size_factor_key=options["size_factor_key"],
    )
    candidates, noted = numbers_to_try(options["n_groups"], snapshots.times, snapshots.labels)
    n_latent = options["n_latent"] if model is None else model.module.n_latent
    noted += read.warn_about_design(len(snapshots.distinct_times), n_latent, stacklevel=4)
    noted += read.warn_about_genes(snapshots.counts, snapshots.genes, stacklevel=4)

    tried = {**options, "n_groups": candidates}
    trained = _train_members(snapshots, tried, model, prior, training, max_epochs, train_kwargs)
    reference = trained[0]
    responsibilities = np.mean([member.responsibilities for member in trained], axis=0)
    convergence = Convergence.worst([member.convergence for member in trained])
    advice = _advice(reference.history, convergence)
    status, said = _judge(reference.restarts, responsibilities, convergence, reference.dynamics, advice)
    if len(trained) > 1:
        status, said = _judge_members(trained, status, said)
    given = isinstance(options["n_groups"], Integral)
    said += [] if given else judge_choice(reference.choice)
    write.write_group_dynamics(
        adata,
        key,
        latent=reference.mean,
        std=reference.std,
        velocity=np.mean([member.to_reference.velocities(member.velocity) for member in trained], axis=0),
        responsibilities=responsibilities,
        groups=read.names_of_groups(snapshots.labels, reference.dynamics.n_groups),
        stages={stage.name: stage.z for stage in reference.stages},
        fit={
            "kind": "dynamic_vae",
            "params": {
                **options,
                **reference.settings,
                "n_groups": reference.dynamics.n_groups,
                "n_cells": snapshots.n_cells,
                "n_latent": n_latent,
                "genes": list(snapshots.genes),
            },
            "n_groups": None if given else reference.choice,
            "state": {
                **reference.state,
                "members": {str(m): member.state for m, member in enumerate(trained) if m} or None,
            },
            "history": pd.concat(
                [
                    member.history.assign(**({"member": m} if len(trained) > 1 else {}))
                    for m, member in enumerate(trained)
                ],
                ignore_index=True,
            ),
            "restarts": reference.restarts,
            "convergence": convergence.to_arrays(),
            "alternatives": reference.alternatives,
            "members": _member_table(trained) if len(trained) > 1 else None,
            "stages": {stage.name: stage.to_arrays() for stage in reference.stages} or None,
            "status": status,
            "messages": noted + said,
        },
    )


@dataclass(frozen=True)
class _Member:
    """One trained model, as arrays: it may come from another process."""

    state: dict[str, Any]
    settings: dict[str, Any]
    history: pd.DataFrame
    restarts: dict[str, NDArray[np.float64]]
    choice: dict[str, NDArray]  # `GroupChoice.table`
    convergence: Convergence
    stages: tuple[Stage, ...]
    mean: NDArray[np.float32]  # (cell, latent), as are the next two
    std: NDArray[np.float32]
    velocity: NDArray[np.float64]
    responsibilities: NDArray[np.float64]  # (cell, group)
    dynamics: GroupDynamics
    alternatives: dict[str, Any] | None
    to_reference: AffineMap


def _train_members(
    snapshots: read.Snapshots,
    options: dict[str, Any],
    model: Any | None,
    prior: Prior,
    training: Training,
    max_epochs: int | None,
    train_kwargs: dict[str, Any],
) -> list[_Member]:
    """The reference, then the others, each aligned with it."""
    from joblib import Parallel, delayed

    from dynapath.models.ensemble import member_seed

    n_members, n_jobs = options["n_members"], training.n_jobs
    first = _train_one(snapshots, options, model, prior, training, max_epochs, train_kwargs, options["random_state"])
    if n_members == 1:
        return [first]
    # The first has chosen for all.
    options = {**options, "n_groups": first.dynamics.n_groups}
    # The others need no progress bars of their own.
    others = tqdm(
        range(1, n_members), desc="members", disable=not training.progress, leave=False, initial=1, total=n_members
    )
    silent = replace(training, progress=training.progress and n_jobs == 1, keep_stages=False)
    given = (snapshots, options, model, prior, silent, max_epochs, train_kwargs)
    trained = Parallel(n_jobs=n_jobs)(
        delayed(_train_one)(*given, member_seed(options["random_state"], m)) for m in others
    )
    return [first, *(_aligned(member, first, relabel=options["labels_key"] is None) for member in trained)]


def _train_one(
    snapshots: read.Snapshots,
    options: dict[str, Any],
    model: Any | None,
    prior: Prior,
    training: Training,
    max_epochs: int | None,
    train_kwargs: dict[str, Any],
    seed: int,
) -> _Member:
    from dynapath.models._size_factor_field import unit_of
    from dynapath.models.dynamic_vae import DynamicVAE

    data, columns = snapshots.to_anndata()
    structure = {"n_groups": options["n_groups"], "growth": options["growth"], "prior": prior}
    # Registering, building and encoding draw random numbers too, not only training. Members may have processes of their own.
    with isolated_seed(seed), threads_for(training.batch_size * data.n_vars):
        # Networks that are taken over measure size factors by their own unit.
        DynamicVAE.setup_anndata(data, **columns, size_unit=None if model is None else unit_of(model.registry))
        if model is None:
            likelihood = options["likelihood"]
            vae = DynamicVAE(data, n_latent=options["n_latent"], likelihood=likelihood, training=training, **structure)
        else:
            vae = DynamicVAE.from_scvi(model, data, **structure)
        vae.train(max_epochs, training=training, skip_static=model is not None, random_state=seed, **train_kwargs)
        mean, variance = vae.get_latent_representation(return_dist=True)
    dynamics = vae.dynamics
    known = None if snapshots.labels is None else read.known_groups(snapshots.labels, dynamics.n_groups)
    responsibilities = dynamics.responsibilities(mean, snapshots.times, known)
    return _Member(
        state=vae.to_arrays(),
        settings=vae.settings(),
        history=vae.history_table(),
        restarts=vae.restarts_,
        choice=vae.group_choice_,
        convergence=vae.convergence_,
        stages=tuple(vae.stages_),
        mean=mean,
        std=np.sqrt(variance),
        velocity=dynamics.velocity(mean, responsibilities),
        responsibilities=responsibilities,
        dynamics=dynamics,
        alternatives=refitted(
            dynamics,
            vae.rivals_,
            mean,
            np.sqrt(variance),
            snapshots.times,
            known,
            prior,
            seed,
        ),
        to_reference=AffineMap(np.eye(mean.shape[1]), np.zeros(mean.shape[1])),
    )


def _aligned(member: _Member, reference: _Member, *, relabel: bool) -> _Member:
    """With the group names of the reference, and the map into its latent space."""
    from dynapath.models.ensemble import matching_order

    to_reference = affine_alignment(member.mean, reference.mean)
    dynamics, responsibilities = member.dynamics, member.responsibilities
    # Labels have named the groups already.
    if relabel:
        order = matching_order(reference.responsibilities, responsibilities)
        dynamics.mixture.reorder(order.tolist())
        responsibilities = responsibilities[:, order]
    state = {
        **member.state,
        "dynamics": dynamics.to_arrays(),
        "to_reference": {"matrix": to_reference.matrix, "offset": to_reference.offset},
    }
    return replace(member, state=state, dynamics=dynamics, responsibilities=responsibilities, to_reference=to_reference)


def _member_table(trained: list[_Member]) -> dict[str, NDArray[np.float64]]:
    """Final ELBO of each member, and the agreement of its groups with those of the reference."""
    groups = [member.responsibilities.argmax(1) for member in trained]
    return {
        "elbo": np.array([member.history["elbo"].iloc[-1] for member in trained]),
        "agreement": np.array([adjusted_rand_score(groups[0], other) for other in groups]),
    }


def _judge_members(trained: list[_Member], status: str, said: list[str]) -> tuple[str, list[str]]:
    agreement = _member_table(trained)["agreement"][1:]
    apart = agreement < SAME_GROUPS
    if not apart.any():
        return status, said
    message = (
        f"{int(apart.sum())} of {len(apart)} further members found other groups than the first (adjusted Rand index down to "
        f"{agreement.min():.2f}): the data allow more than one explanation. dp.get.members shows the agreement."
    )
    warnings.warn(message, UserWarning, stacklevel=4)
    return ("members_disagree" if status == "ok" else status), [*said, message]


def _fit_on_representation(
    adata: AnnData,
    options: dict[str, Any],
    model: None,
    prior: Prior,
    training: Training,
    max_epochs: int | None,
    key: str,
    train_kwargs: dict[str, Any],
) -> None:
    _check_literal("growth", options["growth"], ("shrunk", "free", "off"))
    points, times = read.read_points(adata, time_key=options["time_key"], use_rep=options["use_rep"])
    if options["n_latent"] not in (_N_LATENT, points.shape[1]):
        msg = (
            f"n_latent={options['n_latent']}, but obsm[{options['use_rep']!r}] has {points.shape[1]} columns, and all are used. "
            "Leave it out, or store the columns that you want under a name of their own."
        )
        raise ValueError(msg)
    labels = read.read_labels(adata, options["labels_key"])
    candidates, noted = numbers_to_try(options["n_groups"], times, labels)
    known = None if labels is None else read.known_groups(labels, candidates[0])
    noted += read.warn_about_design(len(np.unique(times)), points.shape[1], stacklevel=4)
    noted += read.warn_about_constant(points, options["use_rep"], stacklevel=4)

    from dynapath.dynamics.fit_representation import fit_representation

    dynamics, choice = fit_representation(
        points,
        times,
        n_groups=candidates,
        growth=options["growth"],
        labels=known,
        share=prior.share,
        tie_initial=prior.tie_initial,
        floor=prior.floor,
        relaxation=prior.relaxation,
        ridge=prior.ridge,
        growth_penalty=prior.growth_penalty,
        n_restarts=training.n_restarts,
        n_steps=training.prior_steps,
        random_state=options["random_state"],
        progress=training.progress,
    )
    responsibilities = dynamics.responsibilities(points, times, known)
    restarts = {"log_likelihood": choice.fit.log_likelihood, "agreement": choice.fit.agreement}
    convergence = choice.fit.convergence
    more = training.prior_steps * (convergence.factor or 1)
    advice = f"Raise Training(prior_steps=...), to {more} for instance (dp.get.convergence has the figures)."
    status, said = _judge(restarts, responsibilities, convergence, dynamics, advice)
    if labels is None and len(read.constant_columns(points)) == points.shape[1]:
        # Whatever groups were found, only rounding tells them apart.
        status = "undetermined"
    given = isinstance(options["n_groups"], Integral)
    said += [] if given else judge_choice(choice.table())
    write.write_group_dynamics(
        adata,
        key,
        latent=points,
        std=np.zeros_like(points),
        velocity=dynamics.velocity(points, responsibilities),
        responsibilities=responsibilities,
        groups=read.names_of_groups(labels, dynamics.n_groups),
        fit={
            "kind": "group_dynamics",
            "params": {
                **options,
                "n_groups": dynamics.n_groups,
                "n_cells": len(points),
                "n_latent": points.shape[1],
                "prior": asdict(prior),
                "observed_times": dynamics.observed_times,
            },
            "n_groups": None if given else choice.table(),
            "state": {"dynamics": dynamics.to_arrays()},
            "history": pd.DataFrame({"phase": "mixture", "loss": choice.fit.loss}),
            "restarts": restarts,
            "convergence": convergence.to_arrays(),
            "alternatives": refitted(
                dynamics,
                choice.fit.alternatives,
                points,
                np.zeros_like(points),
                times,
                known,
                prior,
                options["random_state"],
            ),
            "status": status,
            "messages": noted + said,
        },
    )


def _check_literal(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        msg = f"{name} must be one of {', '.join(map(repr, allowed))}; it is {value!r}."
        raise ValueError(msg)


def _advice(history: pd.DataFrame, convergence: Convergence) -> str:
    """What to do about a fit of counts that has not converged."""
    phases = history["phase"].value_counts()
    # With model= there was no static phase; the joint phase takes four fifths of its epochs.
    n_epochs = int(phases.get("static", round(phases["joint"] / 0.8)))
    return f"Raise max_epochs, to {n_epochs * (convergence.factor or 1)} for instance (dp.get.convergence has the figures)."


def _judge(
    restarts: Mapping[str, NDArray[np.float64]],
    responsibilities: NDArray[np.float64],
    convergence: Convergence,
    dynamics: GroupDynamics | None = None,
    advice: str = "",
) -> tuple[str, list[str]]:
    """The status of a fit and what has to be said about it, each also as a warning."""
    status, said = "ok", []
    reached, agreement = restarts["log_likelihood"], restarts["agreement"]
    close = reached > reached.max() - AS_GOOD
    rivals = close & (agreement < SAME_GROUPS)
    if rivals.any():
        status = "restarts_disagree"
        said.append(
            f"{int(rivals.sum())} of {len(reached)} restarts reach a likelihood within {AS_GOOD} nats per cell of the "
            f"best with other groups (adjusted Rand index down to {agreement[rivals].min():.2f}): the data allow more than "
            "one explanation. dp.get.alternatives has those that still stand when refitted to the final states; fewer groups, "
            "more times or known labels decide."
        )
    elif responsibilities.shape[1] > 1 and len(reached) > 1 and (gap := np.diff(np.sort(reached)[-2:])[0]) > _ALONE:
        status = "best_restart_alone"
        said.append(
            f"Only one of {len(reached)} restarts reached the best likelihood (the next is {gap:.2f} nats per cell below); a "
            "better one may exist. Raise Training(n_restarts=...) and see whether the groups stay."
        )
    mass = responsibilities.mean(0)
    small = np.flatnonzero(mass < _SMALL_GROUP)
    if len(small):
        named = ", ".join(f"{k} ({mass[k]:.1%})" for k in small)
        said.append(f"Groups with less than {_SMALL_GROUP:.0%} of the cells: {named}. Fewer groups may do.")
    if responsibilities.shape[1] > 1 and (responsibilities.max(1) < write.UNDETERMINED_BELOW).all():
        status = "undetermined"
        said.append(
            f"No cell has a group: none of the {responsibilities.shape[1]} reaches a probability of {write.UNDETERMINED_BELOW} for any. "
            "Nothing in these states tells groups apart. Fit n_groups=1, or other genes or coordinates."
        )
    # What has not converged may still change in everything else that is said here.
    if not convergence.converged:
        status = "not_converged"
        said.append(convergence.message(advice))
    if dynamics is not None and _takes_turns(dynamics):
        said.append(
            "The proportions of the groups change more than their positions: they may be static clusters that take turns "
            "instead of groups that move. Compare growth='off'."
        )
    for message in said:
        warnings.warn(message, UserWarning, stacklevel=4)
    return status, said


def _takes_turns(dynamics: GroupDynamics) -> bool:
    """Whether over half of the cells change groups between first and last snapshot while means move under half an sd."""
    path = dynamics.trajectories(dynamics.observed_times[[0, -1]])
    exchanged = np.abs(path.proportions[:, 1] - path.proportions[:, 0]).sum() / 2
    weight = path.proportions.mean(1)
    moved = np.linalg.norm(path.mean[:, 1] - path.mean[:, 0], axis=-1)
    spread = np.sqrt(np.trace(path.cov[:, 0], axis1=-2, axis2=-1))
    return bool(exchanged > 0.5 and (weight * moved / spread).sum() < 0.5)
