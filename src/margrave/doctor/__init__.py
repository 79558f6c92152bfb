"""The doctor finds faults in a data set, a model or a run, and suggests remedies."""

from margrave.doctor.alignment import available_detector
from margrave.doctor.data import examine_images, examine_pairs
from margrave.doctor.findings import Finding, ranked
from margrave.doctor.model import examine_model
from margrave.doctor.run import examine_run

__all__ = [
    "Finding",
    "available_detector",
    "examine_images",
    "examine_model",
    "examine_pairs",
    "examine_run",
    "ranked",
]
