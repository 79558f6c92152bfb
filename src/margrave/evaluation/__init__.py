"""Judging embeddings: arrays in, frozen results out."""

from margrave.evaluation.accept_rates import AcceptRate, accept_rates, false_accepts_allowed
from margrave.evaluation.all_to_all import AllToAllResult, Keeper, evaluate_all_to_all
from margrave.evaluation.identification import (
    DetectionRate,
    IdentificationResult,
    OpenSetRate,
    OpenSetResult,
    RankRate,
    detection_rates,
    evaluate_identification,
    evaluate_open_set,
    mean_of_galleries,
    merged_gallery_rates,
)
from margrave.evaluation.pair_comparison import Difference, compare_pairs
from margrave.evaluation.pairs import (
    FAR_TARGETS,
    PairResult,
    Stratum,
    evaluate_pairs,
    evaluate_strata,
    fuse_flips,
    tar_at_far,
    unit_rows,
)
from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.score_blocks import NOBODY, Rows, State
from margrave.evaluation.significance import PairIntervals, bootstrap_pairs
from margrave.evaluation.streamed_scores import streamed_accept_rates
from margrave.evaluation.tail_bootstrap import TailIdentities, bootstrap_shares
from margrave.evaluation.templates import (
    IJB_FAR_TARGETS,
    Pooling,
    TemplateResult,
    evaluate_templates,
    pool_templates,
    subjects_of_pairs,
    template_scores,
)
from margrave.evaluation.verification import (
    THRESHOLDS,
    Roc,
    area_under,
    equal_error_rate,
    roc_curve,
    true_accept_rate,
)

__all__ = [
    "FAR_TARGETS",
    "IJB_FAR_TARGETS",
    "NOBODY",
    "THRESHOLDS",
    "AcceptRate",
    "AllToAllResult",
    "DetectionRate",
    "Difference",
    "IdentificationResult",
    "Interval",
    "Keeper",
    "OpenSetRate",
    "OpenSetResult",
    "PairIntervals",
    "PairResult",
    "Pooling",
    "RankRate",
    "Roc",
    "Rows",
    "State",
    "Stratum",
    "TailIdentities",
    "TemplateResult",
    "accept_rates",
    "area_under",
    "bootstrap_pairs",
    "bootstrap_shares",
    "compare_pairs",
    "detection_rates",
    "equal_error_rate",
    "evaluate_all_to_all",
    "evaluate_identification",
    "evaluate_open_set",
    "evaluate_pairs",
    "evaluate_strata",
    "evaluate_templates",
    "false_accepts_allowed",
    "fuse_flips",
    "mean_of_galleries",
    "merged_gallery_rates",
    "pool_templates",
    "roc_curve",
    "streamed_accept_rates",
    "subjects_of_pairs",
    "tar_at_far",
    "template_scores",
    "true_accept_rate",
    "unit_rows",
]
