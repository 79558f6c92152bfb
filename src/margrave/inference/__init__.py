"""Trained models in use: photos aligned, images embedded, embeddings judged."""

from margrave.inference.aligned_photos import AlignedPhoto, AlignmentSettings, align_photos
from margrave.inference.embedder import Embedder, load_embedder
from margrave.inference.verification import Verification, embed_pairs, verify

__all__ = [
    "AlignedPhoto",
    "AlignmentSettings",
    "Embedder",
    "Verification",
    "align_photos",
    "embed_pairs",
    "load_embedder",
    "verify",
]
