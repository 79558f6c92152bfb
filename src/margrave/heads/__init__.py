"""Heads: embeddings and labels in, loss out."""

from margrave.heads.chunked import ChunkedHead
from margrave.heads.contract import HEADS, Head
from margrave.heads.dense import Analysis, DenseHead

__all__ = ["HEADS", "Analysis", "ChunkedHead", "DenseHead", "Head"]
