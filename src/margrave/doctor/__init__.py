"""The doctor: what is wrong with a data set, a model or a run, and what to do about it."""

from margrave.doctor.alignment import available_detector
from margrave.doctor.data import examine_images, examine_pairs
from margrave.doctor.findings import Finding, ranked
from margrave.doctor.model import ImportOptions, examine_model
from margrave.doctor.run import examine_run

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
