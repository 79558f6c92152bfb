"""Exact search: compute every score between two sets of embeddings and keep a selection."""

from margrave.search.collectors import Genuine, Nearest, Tail
from margrave.search.file_keeper import FileKeeper, state_of_rank
from margrave.search.score_blocks import (
    DISTRACTOR,
    Block,
    Collector,
    Comparison,
    Rows,
    State,
    has_float64,
    sweep,
    unit_block,
)

__all__ = [
    "DISTRACTOR",
    "Block",
    "Collector",
    "Comparison",
    "FileKeeper",
    "Genuine",
    "Nearest",
    "Rows",
    "State",
    "Tail",
    "has_float64",
    "state_of_rank",
    "sweep",
    "unit_block",
]
