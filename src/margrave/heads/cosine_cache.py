"""Memory for what the backward pass reads back, without asking the system for it at every step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from margrave.hardware import keep_freed_memory


class CosineCache:
    """A buffer that outlives a step: fresh pages from the system cost as much as a pass.

    Args:
        budget: bytes at most.
    """

    def __init__(self, budget: int) -> None:
        keep_freed_memory()
        self.budget = budget
        self._spare: Tensor | None = None

    def acquire(self, count: int, like: Tensor) -> Tensor:
        """Up to `count` values like those given, fewer if the budget ends; its owner's alone."""
        count = min(count, self.budget // like.itemsize)
        spare, self._spare = self._spare, None
        fits = spare is not None and spare.dtype == like.dtype and spare.device == like.device
        if spare is not None and fits and len(spare) >= count:
            return spare
        return like.new_empty(count)

    def release(self, buffer: Tensor | None) -> None:
        """For the next step."""
        self._spare = buffer

    def __deepcopy__(self, memo: object) -> CosineCache:
        return CosineCache(self.budget)

    def __reduce__(self) -> tuple[Any, ...]:
        return CosineCache, (self.budget,)
