"""Batches: as large as the budget allows, never waiting, one face's fault its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from margrave.faces import AlignedFace, Detection
from margrave.serving.batching import Batcher


def face(value: int) -> AlignedFace:
    crop = np.full((2, 2, 3), value, np.uint8)
    return AlignedFace(crop, Detection(np.zeros(4), np.zeros((5, 2)), 1.0))


class Slow:
    """Takes 10 ms a face; the face 13 is bad."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.gate = threading.Event()

    def __call__(self, faces: Sequence[AlignedFace], names: Sequence[str]) -> list[Any]:
        self.gate.wait()
        self.sizes.append(len(faces))
        values = [int(each.crop[0, 0, 0]) for each in faces]
        if 13 in values:
            raise ValueError("bad face")
        time.sleep(0.01 * len(faces))
        return list(zip(values, names, strict=True))


def test_what_waits_is_embedded_together_within_the_budget() -> None:
    embed = Slow()
    batcher = Batcher(embed, batch_seconds=0.05, max_batch_size=64)
    batcher.seconds_per_face = 0.01
    futures = [batcher.submit(face(number), f"{number}") for number in range(20, 44)]
    embed.gate.set()
    answers: list[Any] = [future.result(5) for future in futures]
    assert answers == [(number, f"{number}") for number in range(20, 44)]
    batcher.close()
    assert 3 <= max(embed.sizes) <= 6 and sum(embed.sizes) == 24


def test_one_bad_face_fails_alone() -> None:
    embed = Slow()
    embed.gate.set()
    sizes: list[int] = []
    batcher = Batcher(embed, batch_seconds=1.0, max_batch_size=64, observe=sizes.append)
    batcher.seconds_per_face = 0.01
    embed.gate.clear()
    futures = [batcher.submit(face(number), "") for number in (1, 13, 2)]
    embed.gate.set()
    assert [futures[0].result(5)[0], futures[2].result(5)[0]] == [1, 2]  # pyright: ignore[reportIndexIssue]
    with pytest.raises(ValueError, match="bad face"):
        futures[1].result(5)
    batcher.close()
    # Each face counts once, also if its batch failed.
    assert sum(sizes) == 3


def test_closing_finishes_what_waits() -> None:
    embed = Slow()
    batcher = Batcher(embed, batch_seconds=0.02, max_batch_size=2)
    futures = [batcher.submit(face(number), "") for number in range(5)]
    threading.Timer(0.05, embed.gate.set).start()
    batcher.close()
    assert all(future.done() for future in futures)
