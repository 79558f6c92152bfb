"""Evaluation protocols, one file each; importing this package registers all of them."""

import importlib
import pkgutil

from margrave.protocols.all_to_all import AllToAll, compare_all
from margrave.protocols.comparison import compare_results
from margrave.protocols.contract import PROTOCOLS, EvaluationOptions, Protocol, evaluate
from margrave.protocols.groups import Groups
from margrave.protocols.identification import Identification
from margrave.protocols.ijb import Ijb
from margrave.protocols.megaface import MegaFace
from margrave.protocols.pairs import (
    Pairs,
    digest_of_pairs,
    evaluate_embedder,
    open_pairs,
    pair_result,
)
from margrave.protocols.score_reference import measure_reference
from margrave.protocols.templates import Templates
from margrave.protocols.thresholds import (
    check_features_match_model,
    choose_operating_points,
    operating_point,
    points_of_result,
    save_operating_points,
)
from margrave.protocols.youtube import YouTube

__all__ = [
    "PROTOCOLS",
    "AllToAll",
    "EvaluationOptions",
    "Groups",
    "Identification",
    "Ijb",
    "MegaFace",
    "Pairs",
    "Protocol",
    "Templates",
    "YouTube",
    "check_features_match_model",
    "choose_operating_points",
    "compare_all",
    "compare_results",
    "digest_of_pairs",
    "evaluate",
    "evaluate_embedder",
    "measure_reference",
    "open_pairs",
    "operating_point",
    "pair_result",
    "points_of_result",
    "save_operating_points",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
