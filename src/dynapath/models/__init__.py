"""How data arise from latent states. The models are scvi-tools models; scvi-tools is imported when one is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .options import Prior, Training

if TYPE_CHECKING:
    from .dynamic_vae import DynamicVAE
    from .ensemble import Ensemble
    from .stage import Stage

__all__ = ["DynamicVAE", "Ensemble", "Prior", "Stage", "Training"]


def __getattr__(name: str) -> Any:
    if name == "DynamicVAE":
        from .dynamic_vae import DynamicVAE

        return DynamicVAE
    if name == "Ensemble":
        from .ensemble import Ensemble

        return Ensemble
    if name == "Stage":
        from .stage import Stage

        return Stage
    msg = f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
