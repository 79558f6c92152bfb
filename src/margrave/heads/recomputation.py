"""A head under activation checkpointing: what its first call drew and read, for the second.

The backward pass then calls the head again with the same labels. Statistics must not move twice,
and the loss must read what it read before, whatever was called in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass
class Call:
    """One training call of a head.

    Attributes:
        provided: what the statistics gave it.
        draw: the number of its draw of classes, if it drew any.
    """

    provided: Mapping[str, Tensor] = field(default_factory=dict)
    draw: int | None = None


class CallMemory:
    """The calls whose labels are still alive, by where the labels lie.

    Checkpointing hands the same labels over again, as the same tensor or as one on its memory.
    """

    def __init__(self) -> None:
        self._calls: dict[tuple[int, ...], tuple[StorageWeakRef, Call]] = {}

    def remember(self, labels: Tensor, call: Call) -> None:
        """Note a call, until its labels are gone."""
        gone = [key for key, (memory, _) in self._calls.items() if memory.expired()]
        for key in gone:
            del self._calls[key]
        memory = StorageWeakRef(labels.untyped_storage())
        self._calls[_key(memory, labels)] = memory, call

    def repeated(self, labels: Tensor) -> Call | None:
        """The first call where this one repeats it within a backward pass, else None.

        Raises:
            ValueError: a repetition with labels of its own.
        """
        if torch._C._current_graph_task_id() == -1:
            return None
        memory = StorageWeakRef(labels.untyped_storage())
        # A reference keeps the address of what is gone from being used again.
        known, call = self._calls.get(_key(memory, labels), (memory, None))
        if call is None or known.expired():
            raise ValueError(
                "the head is called again in a backward pass (activation checkpointing) with "
                "labels that it was not called with before, so its classes and statistics cannot "
                "be those of the first call; make the labels outside of what is checkpointed"
            )
        return call

    def __deepcopy__(self, memo: object) -> CallMemory:
        return CallMemory()

    def __reduce__(self) -> tuple[Any, ...]:
        return CallMemory, ()


def _key(memory: StorageWeakRef, labels: Tensor) -> tuple[int, ...]:
    return memory.cdata, int(labels.storage_offset()), len(labels)
