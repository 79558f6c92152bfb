"""What several folders of tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

sys.path.insert(0, str(Path(__file__).parent))

from pretended_device import PretendedDevice, pretended_device


@pytest.fixture(params=[True, False], ids=["float64", "no float64"])
def pretended(request: pytest.FixtureRequest) -> Iterator[PretendedDevice]:
    """A pretended accelerator, with float64 and without."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch has no backends in Python")
    if torch.accelerator.is_available():
        pytest.skip("a pretended accelerator would take the place of this machine's own")
    with pretended_device(float64=request.param) as device:
        yield device
