"""Running statistics: what losses remember between steps, as buffers equal on every rank."""

from margrave.statistics import class_concentration, feature_norm, iteration, target_cosine
from margrave.statistics.contract import STATISTICS, Observation, Statistic, Surroundings
from margrave.statistics.momentum_encoder import MomentumEncoder

__all__ = [
    "STATISTICS",
    "MomentumEncoder",
    "Observation",
    "Statistic",
    "Surroundings",
    "class_concentration",
    "feature_norm",
    "iteration",
    "target_cosine",
]
