"""What has to hold before the networks of a trained scvi-tools model become those of a dynamic VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scvi import REGISTRY_KEYS
from scvi.module import VAE

from ._dynamic_module import DynamicVAEModule


def check_can_be_taken_over(model: Any) -> None:
    """Raise for models that are not trained, or whose likelihood or latent space the dynamic VAE does not have."""
    module = model.module
    problems = []
    if not getattr(model, "is_trained_", False):
        problems.append("it is not trained")
    # LinearSCVI's module derives from VAE too, but decodes in another way.
    if type(module) not in (VAE, DynamicVAEModule):
        problems.append(f"its module is {type(module).__name__}, not SCVI's")
    elif not module.use_observed_lib_size:
        problems.append("it encodes the library size (use_observed_lib_size=False)")
    elif module.latent_distribution != "normal":
        problems.append(f"its latent distribution is {module.latent_distribution!r}")
    elif module.dispersion == "gene-cell" or module.gene_likelihood == "normal":
        problems.append(f"dispersion {module.dispersion!r} with likelihood {module.gene_likelihood!r} is not offered")
    if problems:
        msg = f"model= cannot be taken over: {'; '.join(problems)}. Train scvi.model.SCVI with observed library size."
        raise ValueError(msg)


def module_kwargs_of(model: Any) -> dict[str, Any]:
    """Arguments of the model's module that are not arguments of the dynamic VAE.

    Raises
    ------
    ValueError : for one that cannot be stored with a fit.
    """
    given = model.init_params_
    settings = {**given["non_kwargs"], **{k: v for kw in given["kwargs"].values() for k, v in kw.items()}}
    if "module_kwargs" in settings:
        return dict(settings["module_kwargs"] or {})
    ours = {"n_hidden", "n_latent", "n_layers", "gene_likelihood", "registry", "adata", "latent_distribution"}
    kwargs = {k: v for k, v in settings.items() if k not in ours and v is not None}
    odd = [name for name, value in kwargs.items() if not isinstance(value, bool | int | float | str)]
    if odd:
        msg = f"model= was built with {odd[0]}=..., which cannot be stored with the fit. Train it without."
        raise ValueError(msg)
    # SCVI's defaults, where ours differ.
    return {"use_batch_norm": "both", "use_layer_norm": "none", **kwargs}


def check_same_data(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise when a model's data differ from ours so that its weights would mean something else."""

    def remembered(registry: Mapping[str, Any], key: str, name: str) -> list[str]:
        return [str(value) for value in registry["field_registries"][key]["state_registry"][name]]

    problems = []
    genes, our_genes = (remembered(registry, REGISTRY_KEYS.X_KEY, "column_names") for registry in (theirs, ours))
    if len(genes) != len(our_genes):
        problems.append(f"it was trained on {len(genes)} genes, not {len(our_genes)}")
    elif genes != our_genes:
        one, other = next((a, b) for a, b in zip(genes, our_genes, strict=True) if a != b)
        problems.append(f"its genes differ, first {one!r} where there is {other!r} now")
    batches, our_batches = (
        remembered(registry, REGISTRY_KEYS.BATCH_KEY, "categorical_mapping") for registry in (theirs, ours)
    )
    if (len(batches) > 1 or len(our_batches) > 1) and batches != our_batches:
        problems.append(f"its batches are {', '.join(batches)}, not {', '.join(our_batches)} in this order")
    given = theirs["setup_args"]
    covariates = [*(given.get("categorical_covariate_keys") or ()), *(given.get("continuous_covariate_keys") or ())]
    if covariates:
        problems.append(f"it was trained with covariates ({', '.join(covariates)})")
    sized, ours_sized = (registry["setup_args"].get("size_factor_key") is not None for registry in (theirs, ours))
    if sized != ours_sized:
        problems.append(f"it was trained {'with' if sized else 'without'} a size factor")
    if problems:
        msg = (
            f"model= does not fit these data: {'; '.join(problems)}. Train it on the same genes, in the same order, with the "
            "same batch and size factor columns."
        )
        raise ValueError(msg)
