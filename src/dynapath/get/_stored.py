"""What was stored with a fit, as it was before it was written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynapath._names import as_text

if TYPE_CHECKING:
    from anndata import AnnData


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as Python's own, whichever scalar type the file format gave back."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in settings.items()}


def check_genes(adata: AnnData, genes: list[str], key: str) -> None:
    wanted, present = as_text(genes), as_text(adata.var_names)
    if present.equals(wanted):
        return
    missing = wanted.difference(present)
    if len(missing):
        what = f"{len(missing)} of them are missing, such as {missing[0]!r}"
    else:
        what = "their order or number differs"
    msg = f"The fit {key!r} used {len(wanted)} genes; {what}. Use adata[:, adata.uns[{key!r}]['params']['genes']]."
    raise ValueError(msg)
