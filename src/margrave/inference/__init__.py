"""Trained models in use: photos aligned, images embedded, embeddings judged."""

from margrave.inference.aligned_photos import AlignedPhoto, AlignmentSettings, align_photos
from margrave.inference.embedder import Embedder, load_embedder
from margrave.inference.feature_store import (
    ChosenRows,
    FeatureStore,
    FusedRows,
    embed_to_store,
)
from margrave.inference.onnx_model import OnnxBackbone, import_onnx
from margrave.inference.verification import Verification, embed_pairs, verify

__all__ = [
    "AlignedPhoto",
    "AlignmentSettings",
    "ChosenRows",
    "Embedder",
    "FeatureStore",
    "FusedRows",
    "OnnxBackbone",
    "Verification",
    "align_photos",
    "embed_pairs",
    "embed_to_store",
    "import_onnx",
    "load_embedder",
    "verify",
]
