"""What several folders of tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pretended_device import PretendedDevice, pretended_device, why_not


@pytest.fixture(params=[True, False], ids=["float64", "no float64"])
def pretended(request: pytest.FixtureRequest) -> Iterator[PretendedDevice]:
    """A pretended accelerator, with float64 and without."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with pretended_device(float64=request.param) as device:
        yield device
