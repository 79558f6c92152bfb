"""Cores are shared by processes, and never exceed a container's quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from margrave import hardware


@pytest.mark.parametrize(
    ("bound", "quota", "processes", "share"),
    [
        (16, "max 100000", 4, 4),
        (4, "max 100000", 4, 4),  # bound to its own cores
        (16, "400000 100000", 4, 1),  # the quota is the container's, not the process's
        (16, "50000 100000", 1, 1),
        (4, "800000 100000", 2, 4),
        (16, "damaged", 2, 8),
    ],
)
def test_cores_of_a_process(
    bound: int,
    quota: str,
    processes: int,
    share: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(hardware, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda process: range(bound))
    assert hardware.core_share(processes) == share
