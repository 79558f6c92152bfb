"""Worker processes that decode images and detect faces, with limited time and memory."""

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

from margrave.faces import AlignedFace
from margrave.matching import Cropper, Refused, cropper_for
from margrave.models import ModelCard
from margrave.serving.settings import ServiceSettings

MAX_OPEN_FILES = 64
"""Maximum number of files that a worker process may have open."""
TRIES = 3
"""Maximum number of pools that try an image: the current one, then those that replace it."""
CHECK_SECONDS = 1.0
"""Time between two checks that the pool still works, in seconds."""
START_SECONDS = 30.0
"""Time that a worker process may take to start, in seconds. A pool that gives no result for this
time plus `face_seconds` counts as broken."""
WARM_SECONDS = 120.0
"""Time that the first worker process may take until it is ready, in seconds."""
CROPPERS: list[Cropper] = []
"""In a worker process, a list of one cropper, which `start_worker` loads; in the parent process,
empty."""


@dataclass(frozen=True)
class Refusal:
    """The content of a `Refused` error, which a worker process returns instead of raising it."""

    message: str
    reason: str


class FaceWorkers:
    """Detects faces in a pool of worker processes, and replaces the pool if it breaks.

    The pool is pebble's `ProcessPool`, which replaces a process that dies while it runs a task. But
    if a process dies while it is idle or holds a lock of the pool, pebble stops the whole pool
    or waits forever.

    Args:
        card: the model's card.
        detector: path of a YuNet file; None uses MTCNN. Ignored if the model uses dlib's alignment.
        aligned: whether images are already aligned crops.
        settings: the service's settings.
        check_alignment: if `aligned`, whether to reject crops without an aligned face.
    """

    def __init__(
        self,
        card: ModelCard,
        detector: str | None,
        aligned: bool,
        settings: ServiceSettings,
        check_alignment: bool = True,
    ) -> None:
        self._face_seconds = settings.face_seconds
        self._process_count = settings.workers
        self._arguments = (card, detector, aligned, check_alignment, settings.worker_memory)
        self._lock = threading.Lock()
        self._last_result_time = 0.0
        self._pool = self._new_pool()

    async def find(self, content: bytes, which: str, name: str) -> list[AlignedFace]:
        """Detect the faces that ``which`` selects in an image, and cut them out.

        Args:
            content: the image file's bytes.
            which: which faces to return: ``auto``, ``largest`` or ``all``, see ``Matcher.find``.
            name: identifies the image in error messages.

        Raises:
            Refused: the image cannot be used, or takes too much time or memory.
            HTTPException: 503 if no process can be started.
        """
        for _ in range(TRIES):
            pool = self._pool
            try:
                result = await self._run_in_pool(pool, (content, which, name))
            except FutureTimeout:
                raise Refused(
                    f"{name} took longer than {self._face_seconds:g} s; send a smaller image",
                    "unreadable",
                ) from None
            except (ProcessExpired, MemoryError):
                raise Refused(
                    f"{name} could not be processed within the service's limits; send a smaller or "
                    "simpler image",
                    "unreadable",
                ) from None
            except (BrokenProcessPool, _PoolBrokenError):
                await asyncio.to_thread(self._replace_pool, pool)
                continue
            if isinstance(result, Refusal):
                raise Refused(result.message, result.reason)
            return result
        message = "the processes that detect faces cannot be started; try again later"
        raise HTTPException(503, message, {"retry-after": "5"})

    def warm(self) -> None:
        """Wait until one worker process is ready.

        Raises:
            ValueError: no process can be started, for example because the detector is unusable; or
                none is ready in time.
        """
        try:
            # Limit the wait, not the task: a task's own time limit would begin only when a process
            # has loaded its cropper.
            self._pool.schedule(has_cropper).result(WARM_SECONDS)
        except FutureTimeout:
            raise ValueError(
                "no process that detects faces was ready within "
                f"{WARM_SECONDS:g} s; check that the detector's file can be read"
            ) from None
        except BrokenProcessPool:
            raise ValueError(
                "the processes that detect faces cannot be started; the log above has the reason"
            ) from None

    def close(self) -> None:
        """End the worker processes."""
        with self._lock:
            _stop_pool(self._pool)

    async def _run_in_pool(self, pool: ProcessPool, arguments: Any) -> list[AlignedFace] | Refusal:
        """Run `find_in_worker` in a worker process, and return its result.

        A broken pool may never finish a task, so check the pool regularly while waiting.

        Raises:
            _PoolBrokenError: the pool is broken, or has been replaced.
        """
        try:
            future = pool.schedule(find_in_worker, args=arguments, timeout=self._face_seconds)
        except RuntimeError as error:
            raise _PoolBrokenError from error
        task = asyncio.wrap_future(future)
        scheduled = time.monotonic()
        try:
            while not task.done():
                await asyncio.wait([task], timeout=CHECK_SECONDS)
                # A working pool takes at most START_SECONDS to start a process, which then finishes
                # its task, or is killed, within `_face_seconds`.
                last_progress = max(scheduled, self._last_result_time)
                seconds_without_result = time.monotonic() - last_progress
                is_stuck = seconds_without_result > START_SECONDS + self._face_seconds
                if not task.done() and (is_stuck or pool is not self._pool or not pool.active):
                    raise _PoolBrokenError
        finally:
            # This has an effect only if the request was canceled or the pool broke.
            task.cancel()
        self._last_result_time = time.monotonic()
        return task.result()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._process_count,
            initializer=start_worker,
            initargs=self._arguments,
            context=get_context("spawn"),
        )

    def _replace_pool(self, broken: ProcessPool) -> None:
        with self._lock:
            if self._pool is broken:
                self._pool = self._new_pool()
                # Stopping a broken pool may hang, so do it in another thread.
                threading.Thread(target=_stop_pool, args=(broken,), daemon=True).start()


class _PoolBrokenError(Exception):
    """The pool is broken; a new pool can run the task."""


def _stop_pool(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def start_worker(
    card: ModelCard, detector: str | None, aligned: bool, check_alignment: bool, memory: int
) -> None:
    """Prepare this worker process: load the cropper, then limit memory and files.

    Args:
        card: the model's card.
        detector: see `FaceWorkers`.
        aligned: see `FaceWorkers`.
        check_alignment: see `FaceWorkers`.
        memory: additional address space that the process may use from now on, in bytes.
    """
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    CROPPERS[:] = [cropper_for(card, detector, aligned=aligned, check_alignment=check_alignment)]
    with open("/proc/self/statm") as file:
        # The first number is the size of the address space, in pages.
        address_space = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (address_space + memory, address_space + memory))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    # A worker writes no files.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def has_cropper() -> bool:
    """Whether this worker process has loaded its cropper."""
    return bool(CROPPERS)


def find_in_worker(content: bytes, which: str, name: str) -> list[AlignedFace] | Refusal:
    """The part of `FaceWorkers.find` that runs in a worker process."""
    try:
        return CROPPERS[0].find(content, which=which, name=name)  # pyright: ignore[reportArgumentType]
    except Refused as error:
        return Refusal(str(error), error.reason)
