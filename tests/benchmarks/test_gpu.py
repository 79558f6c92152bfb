"""Every line of the GPU's benchmarks, in miniature, on the CPU and on a pretended device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from pretended_device import PretendedDevice

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu


@pytest.mark.slow
def test_all_of_it_runs_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--output", str(tmp_path)])
    gpu.main()
    page = (tmp_path / "gpu.md").read_text()
    for section in ("heads", "step", "all-to-all", "loader"):
        assert f"## {section}" in page
        assert len((tmp_path / f"gpu_{section}.csv").read_text().splitlines()) > 1


def test_its_sections_run_on_a_device(
    pretended: PretendedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("margrave.training.setup._launch_fabric", lambda *_: pretended.fabric())
    if not pretended.float64:
        pytest.skip("once is enough")
    monkeypatch.setattr(gpu, "LOSSES", ("arcface", "adaface", "kappaface"))
    for section in (gpu.heads, gpu.step, gpu.loader):
        assert list(section(gpu.SMALL, torch.device(pretended.device)))
