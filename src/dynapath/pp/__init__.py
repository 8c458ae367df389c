"""Tables <-> AnnData."""

from ._ehrdata import from_ehrdata, to_ehrdata
from ._panel_from_long import panel_from_long
from ._visits_from_long import visits_from_long

__all__ = ["from_ehrdata", "panel_from_long", "to_ehrdata", "visits_from_long"]
