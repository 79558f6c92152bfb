"""Warm processes that decode images and find faces, under limits; dead ones are replaced."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from pebble import ProcessExpired, ProcessPool
from starlette.exceptions import HTTPException

from margrave.faces import FoundFace
from margrave.matching import Cropper, Refused, cropper_for
from margrave.models import ModelCard
from margrave.serving.settings import ServiceSettings

OPEN_FILES = 64
TRIES = 3
CHECK_SECONDS = 1.0
START_SECONDS = 30.0
"""That processes may take to start."""
CROPPERS: list[Cropper] = []
"""Of this process, once it is warm."""


@dataclass(frozen=True)
class Refusal:
    """A `Refused`, as it comes from another process."""

    message: str
    reason: str


class FaceWorkers:
    """A pool of such processes, which is made anew where it breaks.

    Pebble replaces a process that dies at work. Where an idle one dies, or one that holds the locks
    of the pool, it gives up the whole pool or waits forever.

    Args:
        card: of the model.
        detector: ``None`` or YuNet's file.
        aligned: images are aligned crops.
        settings: of the service.
        check_alignment: refuse crops that are not.
    """

    def __init__(
        self,
        card: ModelCard,
        detector: str | None,
        aligned: bool,
        settings: ServiceSettings,
        check_alignment: bool = True,
    ) -> None:
        self._seconds = settings.face_seconds
        self._processes = settings.workers
        self._arguments = (card, detector, aligned, check_alignment, settings.worker_memory)
        self._lock = threading.Lock()
        self._answered = 0.0
        self._pool = self._new_pool()

    async def find(self, content: bytes, which: str, name: str) -> list[FoundFace]:
        """The faces of an image file.

        Raises:
            Refused: the image cannot be read or judged; it took too long, or too much memory.
            HTTPException: 503, no process can be started.
        """
        for _ in range(TRIES):
            pool = self._pool
            try:
                answer = await self._answer(pool, (content, which, name))
            except FutureTimeout:
                raise Refused(
                    f"{name} takes longer than {self._seconds:g} s; give a smaller image",
                    "unreadable",
                ) from None
            except (ProcessExpired, MemoryError):
                raise Refused(
                    f"{name} could not be decoded within the limits of the service; give a smaller "
                    "or a simpler image",
                    "unreadable",
                ) from None
            except (BrokenProcessPool, _NotScheduled):
                await asyncio.to_thread(self._replace, pool)
                continue
            if isinstance(answer, Refusal):
                raise Refused(answer.message, answer.reason)
            return answer
        message = "the processes that find faces cannot be started; try again later"
        raise HTTPException(503, message, {"retry-after": "5"})

    def warm(self) -> None:
        """Wait until a process is ready.

        Raises:
            ValueError: no process can be started, as where the detector cannot be used.
        """
        try:
            self._pool.schedule(ready, timeout=120).result()
        except (BrokenProcessPool, FutureTimeout):
            raise ValueError(
                "the processes that find faces cannot be started; the reason is above"
            ) from None

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            _end(self._pool)

    async def _answer(self, pool: ProcessPool, arguments: Any) -> list[FoundFace] | Refusal:
        """What a process answers; pebble leaves some tasks of a broken pool without an answer."""
        try:
            future = pool.schedule(find, args=arguments, timeout=self._seconds)
        except RuntimeError as error:
            raise _NotScheduled from error
        answer = asyncio.wrap_future(future)
        scheduled = time.monotonic()
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=CHECK_SECONDS)
                # Some process answers, or is killed for its slowness, within this time.
                idle = time.monotonic() - max(scheduled, self._answered)
                is_stuck = idle > self._seconds + START_SECONDS
                if not answer.done() and (is_stuck or pool is not self._pool or not pool.active):
                    raise _NotScheduled
        finally:
            # Where the request has ended meanwhile, nobody needs it.
            answer.cancel()
        self._answered = time.monotonic()
        return answer.result()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._processes,
            initializer=start,
            initargs=self._arguments,
            context=get_context("spawn"),
        )

    def _replace(self, broken: ProcessPool) -> None:
        with self._lock:
            if self._pool is broken:
                self._pool = self._new_pool()
                # It may hang with the process that broke it.
                threading.Thread(target=_end, args=(broken,), daemon=True).start()


class _NotScheduled(Exception):
    """The pool is broken."""


def _end(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def start(
    card: ModelCard, detector: str | None, aligned: bool, check_alignment: bool, memory: int
) -> None:
    """Prepare this process."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    CROPPERS[:] = [cropper_for(card, detector, aligned=aligned, check_alignment=check_alignment)]
    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + memory, present + memory))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    # Nothing here writes files.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def ready() -> bool:
    """Whether this process is warm."""
    return bool(CROPPERS)


def find(content: bytes, which: str, name: str) -> list[FoundFace] | Refusal:
    """The faces of an image file, in this process."""
    try:
        return CROPPERS[0].find(content, which=which, name=name)  # pyright: ignore[reportArgumentType]
    except Refused as error:
        return Refusal(str(error), error.reason)
