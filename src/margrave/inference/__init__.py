"""Trained models in use: embedding images and judging the embeddings."""

from margrave.inference.embedder import Embedder, load_embedder
from margrave.inference.verification import embed_pairs, verify

__all__ = ["Embedder", "embed_pairs", "load_embedder", "verify"]
