"""The doctor: what is wrong with a data set, a model or a run, and what to do about it."""

from .alignment import available_detector
from .data import examine_images, examine_pairs
from .findings import Finding, ranked
from .model import ImportOptions, examine_model
from .run import examine_run

__all__ = [
    "Finding",
    "ImportOptions",
    "available_detector",
    "examine_images",
    "examine_model",
    "examine_pairs",
    "examine_run",
    "ranked",
]
