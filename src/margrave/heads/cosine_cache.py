"""A reusable buffer for the cosines that the forward pass caches for the backward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from margrave.hardware import keep_freed_memory


class CosineCache:
    """A buffer that is reused between steps.

    The first write to newly allocated memory takes twice as long as later writes.

    Args:
        budget: maximum size in bytes.
    """

    def __init__(self, budget: int) -> None:
        keep_freed_memory()  # the other tensors of a step then reuse memory, too
        self.budget = budget
        self._spare: Tensor | None = None

    def acquire(self, count: int, like: Tensor) -> Tensor:
        """A buffer of at least `count` values, or as many as the budget allows.

        It has the dtype and device of `like`.
        """
        count = min(count, self.budget // like.itemsize)
        spare, self._spare = self._spare, None
        matches = spare is not None and spare.dtype == like.dtype and spare.device == like.device
        if spare is not None and matches and len(spare) >= count:
            return spare
        return like.new_empty(count)

    def release(self, buffer: Tensor | None) -> None:
        """Keep the buffer for the next step; None frees the kept buffer."""
        self._spare = buffer

    # Copies and pickles start without a buffer.
    def __deepcopy__(self, memo: object) -> CosineCache:
        return CosineCache(self.budget)

    def __reduce__(self) -> tuple[Any, ...]:
        return CosineCache, (self.budget,)
