"""Weights from files: other projects' in, our own in and out. Nothing in a file is executed."""

from margrave.checkpoints.contract import Checkpoint, Imported
from margrave.checkpoints.head_weights import head_weight, merge_head_shards
from margrave.checkpoints.layouts import adopt, check_pixel_statistics, convert, recognise
from margrave.checkpoints.model_file import (
    CARD_KEY,
    ModelCard,
    OperatingPoint,
    load_model,
    read_card,
    save_model,
)
from margrave.checkpoints.reading import read_checkpoint
from margrave.checkpoints.strict import load_strictly

__all__ = [
    "CARD_KEY",
    "Checkpoint",
    "Imported",
    "ModelCard",
    "OperatingPoint",
    "adopt",
    "check_pixel_statistics",
    "convert",
    "head_weight",
    "load_model",
    "load_strictly",
    "merge_head_shards",
    "read_card",
    "read_checkpoint",
    "recognise",
    "save_model",
]
