"""Evaluation of embeddings: functions take arrays and return frozen dataclasses."""

from margrave.evaluation.accept_rates import AcceptRate, accept_rates, false_accepts_allowed
from margrave.evaluation.all_to_all import AllToAllResult, StateStore, evaluate_all_to_all
from margrave.evaluation.calibration import cllr, cllr_min, fit_calibration
from margrave.evaluation.detection import DetectionRate, detection_rates
from margrave.evaluation.discard import DiscardCurve, discard_curve
from margrave.evaluation.group_errors import (
    GroupErrors,
    Inequality,
    group_errors,
    inequality,
)
from margrave.evaluation.identification import (
    IdentificationResult,
    RankRate,
    evaluate_identification,
)
from margrave.evaluation.open_set import (
    OpenSetRate,
    OpenSetResult,
    evaluate_open_set,
    mean_of_galleries,
    merged_gallery_rates,
)
from margrave.evaluation.pair_bootstrap import PairIntervals, bootstrap_pairs
from margrave.evaluation.pair_comparison import Difference, compare_pairs
from margrave.evaluation.pairs import (
    FAR_TARGETS,
    PairResult,
    evaluate_pairs,
    fuse_flips,
    tar_at_far,
    unit_rows,
)
from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.results import (
    Figure,
    Origin,
    PairScores,
    Result,
    is_results,
    read_results,
    write_results,
)
from margrave.evaluation.roc import (
    THRESHOLDS,
    Roc,
    area_under,
    equal_error_rate,
    roc_curve,
    true_accept_rate,
)
from margrave.evaluation.seed_comparison import (
    PairMetric,
    SeedComparison,
    SeedDifference,
    SeedMean,
    compare_seeds,
)
from margrave.evaluation.similarity import similarity
from margrave.evaluation.strata import Stratum, evaluate_strata
from margrave.evaluation.streamed_scores import streamed_accept_rates
from margrave.evaluation.tail_bootstrap import TailIdentities, bootstrap_rates
from margrave.evaluation.templates import (
    IJB_FAR_TARGETS,
    Pooling,
    TemplateResult,
    evaluate_templates,
    pool_templates,
    subjects_of_pairs,
    template_scores,
)
from margrave.search.score_blocks import DISTRACTOR, Rows, State

__all__ = [
    "DISTRACTOR",
    "FAR_TARGETS",
    "IJB_FAR_TARGETS",
    "THRESHOLDS",
    "AcceptRate",
    "AllToAllResult",
    "DetectionRate",
    "Difference",
    "DiscardCurve",
    "Figure",
    "GroupErrors",
    "IdentificationResult",
    "Inequality",
    "Interval",
    "OpenSetRate",
    "OpenSetResult",
    "Origin",
    "PairIntervals",
    "PairMetric",
    "PairResult",
    "PairScores",
    "Pooling",
    "RankRate",
    "Result",
    "Roc",
    "Rows",
    "SeedComparison",
    "SeedDifference",
    "SeedMean",
    "State",
    "StateStore",
    "Stratum",
    "TailIdentities",
    "TemplateResult",
    "accept_rates",
    "area_under",
    "bootstrap_pairs",
    "bootstrap_rates",
    "cllr",
    "cllr_min",
    "compare_pairs",
    "compare_seeds",
    "detection_rates",
    "discard_curve",
    "equal_error_rate",
    "evaluate_all_to_all",
    "evaluate_identification",
    "evaluate_open_set",
    "evaluate_pairs",
    "evaluate_strata",
    "evaluate_templates",
    "false_accepts_allowed",
    "fit_calibration",
    "fuse_flips",
    "group_errors",
    "inequality",
    "is_results",
    "mean_of_galleries",
    "merged_gallery_rates",
    "pool_templates",
    "read_results",
    "roc_curve",
    "similarity",
    "streamed_accept_rates",
    "subjects_of_pairs",
    "tar_at_far",
    "template_scores",
    "true_accept_rate",
    "unit_rows",
    "write_results",
]
