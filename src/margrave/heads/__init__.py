"""Heads: embeddings and labels in, loss out."""

from margrave.heads.chunked import ChunkedHead
from margrave.heads.contract import HEADS, Head
from margrave.heads.dense import Analysis, DenseHead
from margrave.heads.rowwise_sgd import RowwiseSGD
from margrave.heads.sharded import ShardedHead

__all__ = ["HEADS", "Analysis", "ChunkedHead", "DenseHead", "Head", "RowwiseSGD", "ShardedHead"]
