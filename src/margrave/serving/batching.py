"""Computes embeddings in batches; a latency budget limits the number of faces per batch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from margrave.faces import AlignedFace
from margrave.matching import Face

Embed = Callable[[Sequence[AlignedFace], Sequence[str]], list[Face]]
_QueuedFace = tuple[AlignedFace, str, Future[Face]]
"""(face, name of its image, future of the result)."""
OLD_ESTIMATE_WEIGHT = 0.8
"""Weight of the previous average in the moving average of the seconds per face."""


class Batcher:
    """A thread that embeds submitted faces in batches.

    A batch contains the faces that arrived while the previous batch was computed. It has at most as
    many faces as can be embedded in `batch_seconds`, estimated from earlier batches. The thread
    never waits to fill a batch.

    Args:
        embed: ``Matcher.embed``.
        batch_seconds: latency budget of a batch in seconds.
        max_batch_size: maximum number of faces in a batch.
        observe: called with the number of faces in each batch.

    Attributes:
        seconds_per_face: moving average of the time per face, over batches.
    """

    def __init__(
        self,
        embed: Embed,
        batch_seconds: float,
        max_batch_size: int,
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._embed, self._observe = embed, observe
        self._batch_seconds, self._max_batch_size = batch_seconds, max_batch_size
        # None ends the thread.
        self._queue: queue.Queue[_QueuedFace | None] = queue.Queue()
        # With this estimate, the first batch has one face.
        self.seconds_per_face = batch_seconds
        self._thread = threading.Thread(target=self._run, name="embedding", daemon=True)
        self._thread.start()

    def submit(self, face: AlignedFace, name: str) -> Future[Face]:
        """Queue a face for embedding; return the future of the embedded face.

        Args:
            face: the face.
            name: identifies the face's image in error messages.
        """
        future: Future[Face] = Future()
        self._queue.put((face, name, future))
        return future

    def close(self) -> None:
        """Embed the faces that are still queued, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    @property
    def next_batch_size(self) -> int:
        """Maximum number of faces in the next batch."""
        return max(1, min(self._max_batch_size, int(self._batch_seconds / self.seconds_per_face)))

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch = [first]
            is_closing = False
            while len(batch) < self.next_batch_size and not is_closing:
                try:
                    queued = self._queue.get_nowait()
                except queue.Empty:
                    break
                if queued is None:
                    is_closing = True
                else:
                    batch.append(queued)
            # Drop the faces of requests that were canceled while they waited.
            batch = [
                (face, name, future)
                for face, name, future in batch
                if future.set_running_or_notify_cancel()
            ]
            if batch:
                self._observe(len(batch))
                self._embed_batch(batch)
            if is_closing:
                return

    def _embed_batch(self, batch: list[_QueuedFace]) -> None:
        """Embed a batch, and set the result or the exception of each face's future."""
        started = time.perf_counter()
        try:
            faces = self._embed([face for face, _, _ in batch], [name for _, name, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                # Embed the faces one by one, so that only the faulty one fails.
                for queued in batch:
                    self._embed_batch([queued])
            else:
                _, _, future = batch[0]
                future.set_exception(error)
            return
        measured_seconds_per_face = (time.perf_counter() - started) / len(batch)
        self.seconds_per_face = (
            OLD_ESTIMATE_WEIGHT * self.seconds_per_face
            + (1 - OLD_ESTIMATE_WEIGHT) * measured_seconds_per_face
        )
        for (_, _, future), face in zip(batch, faces, strict=True):
            future.set_result(face)
