"""Heads compute the loss from embeddings and labels; each is registered in its own file."""

import importlib
import pkgutil

from margrave.heads.chunked import ChunkedHead
from margrave.heads.contract import HEADS, Head
from margrave.heads.cost import HeadCost, Workload
from margrave.heads.dense import Analysis, DenseHead
from margrave.heads.rowwise_sgd import RowwiseSGD
from margrave.heads.sharded import ShardedHead

__all__ = [
    "HEADS",
    "Analysis",
    "ChunkedHead",
    "DenseHead",
    "Head",
    "HeadCost",
    "RowwiseSGD",
    "ShardedHead",
    "Workload",
]

# Import every module of this package, so that each head registers itself.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
