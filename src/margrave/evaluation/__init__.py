"""Judging embeddings: arrays in, frozen results out."""

from .pairs import (
    FAR_TARGETS,
    AcceptRate,
    PairResult,
    Stratum,
    evaluate_pairs,
    evaluate_strata,
    fuse_flips,
    tar_at_far,
    unit_rows,
)
from .significance import PairIntervals, bootstrap_pairs
from .verification import (
    THRESHOLDS,
    Roc,
    area_under,
    equal_error_rate,
    roc_curve,
    true_accept_rate,
)

__all__ = [
    "FAR_TARGETS",
    "THRESHOLDS",
    "AcceptRate",
    "PairIntervals",
    "PairResult",
    "Roc",
    "Stratum",
    "area_under",
    "bootstrap_pairs",
    "equal_error_rate",
    "evaluate_pairs",
    "evaluate_strata",
    "fuse_flips",
    "roc_curve",
    "tar_at_far",
    "true_accept_rate",
    "unit_rows",
]
