"""What several folders of tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from headless_browser import open_browser
from pretended_device import PretendedDevice, pretended_device, why_not


@pytest.fixture(
    params=[
        pytest.param(True, id="float64"),
        pytest.param(False, id="no float64", marks=pytest.mark.slow),
    ]
)
def pretended(request: pytest.FixtureRequest) -> Iterator[PretendedDevice]:
    """A pretended accelerator, with float64 and without."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with pretended_device(float64=request.param) as device:
        yield device


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless browser."""
    yield from open_browser()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of these lines below the test's folder."""

    def write_lines(name: str, *lines: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write_lines


@pytest.fixture
def touch(tmp_path: Path) -> Callable[..., None]:
    """Makes empty files below the test's folder."""

    def make(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return make
