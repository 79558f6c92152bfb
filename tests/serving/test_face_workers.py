"""Processes that find faces: limits, deaths, replacements."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from starlette.exceptions import HTTPException

from margrave.matching import Refused
from margrave.models import ModelCard
from margrave.serving import ServiceSettings
from margrave.serving import face_workers as module
from margrave.serving.face_workers import FaceWorkers

if os.environ.get("MARGRAVE_REQUIRE_SHARED"):
    assert find_spec("mtcnn"), "the extra align is required here"
pytestmark = pytest.mark.skipif(find_spec("mtcnn") is None, reason="MTCNN is not installed")

GRAY = cv2.imencode(".png", np.full((80, 80, 3), 90, np.uint8))[1].tobytes()


@pytest.fixture(scope="module")
def workers() -> Iterator[FaceWorkers]:
    settings = ServiceSettings(face_seconds=3, worker_memory=1_000_000_000)
    made = FaceWorkers(ModelCard(backbone={"kind": "mbf"}), None, False, settings)
    made.warm()
    yield made
    made.close()


def refusal(workers: FaceWorkers, content: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        asyncio.run(workers.find(content, "auto", "image 1"))
    return caught.value


def test_refusals_cross_over(workers: FaceWorkers) -> None:
    assert refusal(workers, GRAY).reason == "no_face"
    assert refusal(workers, b"junk").reason == "unreadable"
    bomb = (
        b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR" + (30_000).to_bytes(4, "big") * 2
    )
    assert refusal(workers, bomb + bytes(100)).reason == "unreadable"


@pytest.mark.parametrize("fault", ["dies", "hangs", "hoards"])
def test_a_process_that_fails_is_replaced(
    workers: FaceWorkers, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "find_in_worker", {"dies": die, "hangs": hang, "hoards": hoard}[fault]
    )
    started = time.monotonic()
    error = refusal(workers, GRAY)
    assert error.reason == "unreadable" and time.monotonic() - started < 20
    monkeypatch.undo()
    assert refusal(workers, GRAY).reason == "no_face"


def test_what_nobody_waits_for_is_not_gone_on_with(
    workers: FaceWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_in_worker", hang)
    monkeypatch.setattr(workers, "_face_seconds", 50)

    async def give_up() -> None:
        async with asyncio.timeout(1):
            await workers.find(GRAY, "auto", "image 1")

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    monkeypatch.undo()
    started = time.monotonic()
    assert refusal(workers, GRAY).reason == "no_face" and time.monotonic() - started < 40


def test_idle_processes_that_are_killed_are_replaced(workers: FaceWorkers) -> None:
    assert refusal(workers, GRAY).reason == "no_face"
    for _ in range(2):
        for process in pool_processes():
            os.kill(process, signal.SIGKILL)
        # At once, while nobody noticed yet, and later.
        assert refusal(workers, GRAY).reason == "no_face"
        time.sleep(0.5)
        assert refusal(workers, GRAY).reason == "no_face"


def test_a_pool_that_is_stuck_is_replaced(
    workers: FaceWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(workers, GRAY).reason == "no_face"
    monkeypatch.setattr(workers, "_face_seconds", 0.5)
    monkeypatch.setattr(module, "START_SECONDS", 0.5)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.1)
    stopped = pool_processes()
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    asked = threading.Thread(target=lambda: refusal(workers, GRAY))
    asked.start()
    time.sleep(1.5)
    monkeypatch.setattr(module, "START_SECONDS", 30.0)
    asked.join()
    monkeypatch.undo()
    assert refusal(workers, GRAY).reason == "no_face"
    for _ in range(200):
        if not set(stopped) & set(pool_processes()):
            return
        time.sleep(0.1)
    raise AssertionError("the stopped process is still there")


def test_a_pool_whose_processes_cannot_start_is_reported() -> None:
    settings = ServiceSettings(face_seconds=3)
    made = FaceWorkers(ModelCard(backbone={"kind": "mbf"}), "no such file", False, settings)
    with pytest.raises(ValueError, match="cannot be started"):
        made.warm()
    with pytest.raises(HTTPException) as caught:
        asyncio.run(made.find(GRAY, "auto", "image 1"))
    assert caught.value.status_code == 503
    made.close()


def test_processes_that_hang_while_they_start_are_not_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "start_worker", hang_at_start)
    monkeypatch.setattr(module, "WARM_SECONDS", 1.0, raising=False)
    card = ModelCard(backbone={"kind": "mbf"})
    made = FaceWorkers(card, None, False, ServiceSettings(face_seconds=3))
    with pytest.raises(ValueError, match="was ready within 1 s"):
        made.warm()
    made.close()


def pool_processes() -> list[int]:
    """The processes of pools."""
    return [
        each.pid
        for each in multiprocessing.active_children()
        if each.name == "pebble_pool_worker" and each.pid
    ]


def hang_at_start(*arguments: object) -> None:
    del arguments
    time.sleep(20)


def die(content: bytes, which: str, name: str) -> None:
    del content, which, name
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(content: bytes, which: str, name: str) -> None:
    del content, which, name
    time.sleep(60)


def hoard(content: bytes, which: str, name: str) -> None:
    del content, which, name
    np.ones(2**31, np.uint8).sum()
