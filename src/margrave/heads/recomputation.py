"""Support for activation checkpointing, in which the backward pass repeats a head's call.

The repeated call has the same labels. It must not update the statistics again, and must use the
same statistics and sampled classes as the first call, even if other calls happened in between.
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
        statistic_values: the values that the statistics supplied, by name.
        draw: index of the class sampling that the call used; None before or without sampling.
    """

    statistic_values: Mapping[str, Tensor] = field(default_factory=dict)
    draw: int | None = None


class CallMemory:
    """Remembers a head's training calls until their labels are freed.

    The key is the memory address of the labels, because checkpointing passes the same labels again,
    as the same tensor or as a view of its memory.
    """

    def __init__(self) -> None:
        self._calls: dict[tuple[int, ...], tuple[StorageWeakRef, Call]] = {}

    def remember(self, labels: Tensor, call: Call) -> None:
        """Store a call until its labels are freed."""
        expired = [key for key, (storage, _) in self._calls.items() if storage.expired()]
        for key in expired:
            del self._calls[key]
        storage = StorageWeakRef(labels.untyped_storage())
        self._calls[_key(storage, labels)] = storage, call

    def find_original(self, labels: Tensor) -> Call | None:
        """The earlier call that a call in a backward pass repeats; None outside backward passes.

        Raises:
            ValueError: the call is repeated with a new labels tensor.
        """
        is_backward = torch._C._current_graph_task_id() != -1
        if not is_backward:
            return None
        storage = StorageWeakRef(labels.untyped_storage())
        # A weak reference keeps the address of a freed storage from being reused.
        original_storage, call = self._calls.get(_key(storage, labels), (storage, None))
        if call is None or original_storage.expired():
            raise ValueError(
                "activation checkpointing repeats a call of the head with a new labels tensor, so "
                "the classes and statistics of the first call cannot be reused; create the labels "
                "outside the checkpointed function"
            )
        return call

    # Copies and pickles start without calls.
    def __deepcopy__(self, memo: object) -> CallMemory:
        return CallMemory()

    def __reduce__(self) -> tuple[Any, ...]:
        return CallMemory, ()


def _key(storage: StorageWeakRef, labels: Tensor) -> tuple[int, ...]:
    """The labels' memory: address of the storage, offset and length."""
    return storage.cdata, int(labels.storage_offset()), len(labels)
