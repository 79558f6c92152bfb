"""Lets a limited number of tasks run at a time; those who wait take turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class Turns:
    """Runs at most `limit` tasks at a time. While tasks wait, each API key gets one turn in a row.

    So a key with many waiting tasks delays a task of another key by one task only.

    Args:
        limit: maximum number of tasks that run at a time.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        # The waiting tasks by key; the first key is next.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def run(self, key_id: str, start: Callable[[], Awaitable[T]]) -> T:
        """Wait for a turn, then run a task, and return its result.

        If the caller is canceled, a waiting task does not start. A running task ends undisturbed,
        because canceling it would kill its worker process; until then, it keeps its turn.

        Args:
            key_id: id of the API key for which the task runs.
            start: starts the task.
        """
        await self._wait(key_id)
        task = asyncio.ensure_future(start())
        task.add_done_callback(self._finish)
        return await asyncio.shield(task)

    async def _wait(self, key_id: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key_id, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            # The turn may have come just before the cancellation: pass it on.
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    def _finish(self, task: asyncio.Future[T]) -> None:
        if not task.cancelled():
            # Mark the error as seen: nobody waits for the task if its caller was canceled.
            task.exception()
        self._release()

    def _release(self) -> None:
        """Give the turn to the first task of the next key."""
        self._free += 1
        while self._free and self._waiting:
            key_id = next(iter(self._waiting))
            turns = self._waiting.pop(key_id)
            turn = turns.popleft()
            if turns:
                # Put the key behind the others.
                self._waiting[key_id] = turns
            if not turn.done():
                self._free -= 1
                turn.set_result(None)
