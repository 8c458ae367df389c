"""Differentiable programming with small, longitudinal data.

`import dynapath as dp` loads nothing else: a namespace such as `dp.tl` is imported when it is first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from . import datasets, dynamics, get, metrics, models, pl, pp, stats, tl

__all__ = ["datasets", "dynamics", "get", "metrics", "models", "pl", "pp", "stats", "tl"]
__version__ = version("dynapath")


def __getattr__(name: str) -> "ModuleType":
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Its namespaces are {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
