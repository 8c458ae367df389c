"""Tables <-> AnnData."""

from ._panel_from_long import panel_from_long

__all__ = ["panel_from_long"]
