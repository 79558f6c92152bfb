"""Inference: models with their preprocessing, and the features of images, in memory or on disk."""

from margrave.inference.embedder import Embedder, load_embedder, look_like_photos
from margrave.inference.feature_store import FeatureStore, embed_to_store, is_feature_store
from margrave.inference.features import (
    ChosenRows,
    Features,
    FusedRows,
    embed_features,
)
from margrave.progress import Progress

__all__ = [
    "ChosenRows",
    "Embedder",
    "FeatureStore",
    "Features",
    "FusedRows",
    "Progress",
    "embed_features",
    "embed_to_store",
    "is_feature_store",
    "load_embedder",
    "look_like_photos",
]
