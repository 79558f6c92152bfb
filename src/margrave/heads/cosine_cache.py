"""Memory for what the backward pass finds kept, without asking the system for it at every step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from margrave.memory import keep_freed_memory


class CosineCache:
    """Room for cosines that outlives a step: fresh pages from the system cost as much as a pass.

    Args:
        budget: bytes at most.
    """

    def __init__(self, budget: int) -> None:
        keep_freed_memory()
        self.budget = budget
        self._spare: Tensor | None = None

    def take(self, count: int, like: Tensor) -> Tensor:
        """Room for up to `count` values, less if the budget has not as many; its owner's alone."""
        count = min(count, self.budget // like.itemsize)
        spare, self._spare = self._spare, None
        fits = spare is not None and spare.dtype == like.dtype and spare.device == like.device
        if spare is not None and fits and len(spare) >= count:
            return spare
        return like.new_empty(count)

    def give_back(self, room: Tensor | None) -> None:
        """For the next step."""
        self._spare = room

    def __deepcopy__(self, memo: object) -> CosineCache:
        return CosineCache(self.budget)

    def __reduce__(self) -> tuple[Any, ...]:
        return CosineCache, (self.budget,)
