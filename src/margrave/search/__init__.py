"""Exact search: compute every score between two sets of embeddings and keep the scores needed."""

from margrave.search.collectors import Genuine, Nearest, Tail
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
from margrave.search.state_file import StateFile, rank_state_path

__all__ = [
    "DISTRACTOR",
    "Block",
    "Collector",
    "Comparison",
    "Genuine",
    "Nearest",
    "Rows",
    "State",
    "StateFile",
    "Tail",
    "has_float64",
    "rank_state_path",
    "sweep",
    "unit_block",
]
