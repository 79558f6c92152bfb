"""Embeddings in batches: as many faces at a time as a latency budget allows."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from margrave.faces import FoundFace
from margrave.matching import Face

Embed = Callable[[Sequence[FoundFace], Sequence[str]], list[Face]]
MEMORY = 0.8
"""Of the former estimate of a face's time, in the next."""


class Batcher:
    """A thread that embeds what has gathered while it was embedding.

    A batch takes what waits, but at most as many faces as fit into the budget by the time that
    faces took so far; nothing ever waits for a batch to fill.

    Args:
        embed: ``Matcher.embed``.
        seconds: that a batch may take.
        most: faces in a batch.
        observe: called with the size of every batch.
    """

    def __init__(
        self,
        embed: Embed,
        seconds: float,
        most: int,
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._embed, self._seconds, self._most, self._observe = embed, seconds, most, observe
        self._waiting: queue.Queue[tuple[FoundFace, str, Future[Face]] | None] = queue.Queue()
        self.seconds_per_face = seconds
        self._thread = threading.Thread(target=self._run, name="embedding", daemon=True)
        self._thread.start()

    def submit(self, face: FoundFace, name: str) -> Future[Face]:
        """Embed a face soon."""
        future: Future[Face] = Future()
        self._waiting.put((face, name, future))
        return future

    def close(self) -> None:
        """Embed what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    @property
    def largest(self) -> int:
        """How many faces fit into the budget."""
        return max(1, min(self._most, int(self._seconds / self.seconds_per_face)))

    def _run(self) -> None:
        while True:
            first = self._waiting.get()
            if first is None:
                return
            batch = [first]
            ended = False
            while len(batch) < self.largest and not ended:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    ended = True
                else:
                    batch.append(following)
            # One who gave up waiting is left out.
            batch = [each for each in batch if each[2].set_running_or_notify_cancel()]
            if batch:
                self._embed_batch(batch)
            if ended:
                return

    def _embed_batch(self, batch: list[tuple[FoundFace, str, Future[Face]]]) -> None:
        self._observe(len(batch))
        started = time.perf_counter()
        try:
            faces = self._embed([face for face, _, _ in batch], [name for _, name, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                # The others need not suffer from one face.
                for each in batch:
                    self._embed_batch([each])
            else:
                batch[0][2].set_exception(error)
            return
        taken = (time.perf_counter() - started) / len(batch)
        self.seconds_per_face = MEMORY * self.seconds_per_face + (1 - MEMORY) * taken
        for (_, _, future), face in zip(batch, faces, strict=True):
            future.set_result(face)
