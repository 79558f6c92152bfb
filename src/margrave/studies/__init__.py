"""Studies: compare losses on the same images, with significance over seeds and identities."""

from margrave.studies.comparison import compare_cells, judge_claim, verdict
from margrave.studies.folder import StudyFolder
from margrave.studies.settings import Cell, Claim, StudyConfig, Tuning, cells_of, read_study
from margrave.studies.study import StudyEvents, StudyOutcome, run_study
from margrave.studies.worker import GridProgress

__all__ = [
    "Cell",
    "Claim",
    "GridProgress",
    "StudyConfig",
    "StudyEvents",
    "StudyFolder",
    "StudyOutcome",
    "Tuning",
    "cells_of",
    "compare_cells",
    "judge_claim",
    "read_study",
    "run_study",
    "verdict",
]
