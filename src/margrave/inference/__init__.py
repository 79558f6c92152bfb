"""Trained models in use: embedding images and judging the embeddings."""

from margrave.inference.embedder import Embedder, load_embedder
from margrave.inference.verification import Verification, embed_pairs, verify

__all__ = ["Embedder", "Verification", "embed_pairs", "load_embedder", "verify"]
