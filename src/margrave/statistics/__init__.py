"""Running statistics: buffers in which a head keeps what its loss needs from earlier steps."""

import importlib
import pkgutil

from margrave.statistics.adaptive_scale import AdaptiveScale
from margrave.statistics.class_concentration import ClassConcentration
from margrave.statistics.contract import (
    STATISTICS,
    Observation,
    Statistic,
    StatisticSpec,
    create_statistics,
)
from margrave.statistics.feature_norm import FeatureNorm
from margrave.statistics.iteration import Iteration
from margrave.statistics.margin_noise import MarginNoise
from margrave.statistics.target_cosine import TargetCosine

__all__ = [
    "STATISTICS",
    "AdaptiveScale",
    "ClassConcentration",
    "FeatureNorm",
    "Iteration",
    "MarginNoise",
    "Observation",
    "Statistic",
    "StatisticSpec",
    "TargetCosine",
    "create_statistics",
]

# Import every module of this package, so that each statistic registers itself.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
