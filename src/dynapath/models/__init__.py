"""How data arise from latent states. The models are scvi-tools models; scvi-tools is imported when one is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .options import Prior, Training
from .vae_options import LatentPenalty, Network, Supervision

if TYPE_CHECKING:
    from .count_vae import CountVAE, LinearCountVAE
    from .dynamic_vae import DynamicVAE
    from .ensemble import Ensemble
    from .stage import Stage

__all__ = [
    "CountVAE",
    "DynamicVAE",
    "Ensemble",
    "LatentPenalty",
    "LinearCountVAE",
    "Network",
    "Prior",
    "Stage",
    "Supervision",
    "Training",
]


def __getattr__(name: str) -> Any:
    if name in ("CountVAE", "LinearCountVAE"):
        from . import count_vae

        return getattr(count_vae, name)
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
