"""Every kind of gallery does what the one in memory does."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gallery_conformance import CHECKS, Check, Harness

from margrave.gallery import GALLERIES


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.service if name == "milvus" else ())
        for name in GALLERIES
    ]
)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    yield HARNESSES[request.param](request, tmp_path)


def _memory(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    return Harness(address=lambda: "memory://", lasting=False)


def _file(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    if importlib.util.find_spec(GALLERIES["file"].partition(":")[0]) is None:
        pytest.skip("this version of Margrave has no galleries in files")
    return Harness(address=lambda: str(tmp_path / f"{uuid.uuid4().hex}.gallery"))


def _milvus(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    server = request.getfixturevalue("milvus_server")
    return Harness(address=lambda: f"milvus://{server}/test_{uuid.uuid4().hex}", steps=30)


HARNESSES: dict[str, Callable[[pytest.FixtureRequest, Path], Harness]] = {
    "memory": _memory,
    "file": _file,
    "milvus": _milvus,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_conformance(check: Check, harness: Harness) -> None:
    check(harness)
