"""Contact sheets of images and plots of training runs."""

from margrave.pictures.contact_sheet import contact_sheet
from margrave.pictures.curves import draw_curves

__all__ = ["contact_sheet", "draw_curves"]
