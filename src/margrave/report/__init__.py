"""Pictures of data and runs."""

from margrave.report.contact_sheet import contact_sheet
from margrave.report.curves import draw_curves

__all__ = ["contact_sheet", "draw_curves"]
