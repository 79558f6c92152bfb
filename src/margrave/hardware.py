"""What this machine computes fast: asked of GPUs, measured on processors; how it keeps memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

WORTHWHILE_SPEEDUP = 1.2
"""How much faster bfloat16 must be to be called native."""
AMPERE = (8, 0)
"""The first CUDA capability with bfloat16 in its matrix units."""


@cache
def has_native_bfloat16(device_type: str) -> bool:
    """Whether bfloat16 products are faster here than float32's.

    A GPU answers by its capability. A processor is measured, a few milliseconds once: what it
    reports of itself says neither whether the library uses it (``ONEDNN_MAX_CPU_ISA``) nor whether
    bfloat16 without it is emulated, which takes up to 80 times as long as float32.

    Args:
        device_type: ``cpu``, ``cuda``, …; other accelerators are taken for having none.
    """
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= AMPERE
    if device_type != "cpu":
        return False
    samples, rows = torch.randn(64, 512), torch.randn(2048, 512)
    low_samples, low_rows = samples.bfloat16(), rows.bfloat16()
    return is_faster(
        lambda: torch.mm(low_samples, low_rows.T),
        lambda: torch.mm(samples, rows.T),
        rounds=5,
    )


def is_faster(
    candidate: Callable[[], object], present: Callable[[], object], rounds: int = 3
) -> bool:
    """Whether one computation beats another by enough to matter; both run on the processor.

    The two alternate, and the best times count: other processes only ever slow a run down.

    Args:
        candidate: called `rounds` times after a first that does not count.
        present: likewise.
        rounds: at least 1.

    >>> is_faster(lambda: None, lambda: time.sleep(0.001))
    True
    """
    best = [float("inf"), float("inf")]
    for turn in range(rounds + 1):
        for which, run in enumerate((candidate, present)):
            start = time.perf_counter()
            run()
            if turn:
                best[which] = min(best[which], time.perf_counter() - start)
    return best[0] * WORTHWHILE_SPEEDUP < best[1]


def usable_cores() -> int:
    """How many cores this process may keep busy: by its affinity, and by its container's quota.

    >>> usable_cores() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(min(cores, int(quota) // int(period)), 1)
    except (OSError, ValueError):  # no such file, or no quota
        return cores


def core_share(processes: int) -> int:
    """The cores that each of several processes on this machine may keep busy.

    Where each was bound to cores of its own, those are its share already.
    """
    cores = usable_cores()
    return cores if cores <= (os.cpu_count() or 1) // processes else max(cores // processes, 1)


@cache
def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 31 MB for the next ones of a step.

    By default glibc hands blocks of a megabyte back to the system and asks for zeroed pages anew,
    which costs more than the arithmetic on them. It takes the size of the largest block ever freed
    for the limit, up to 32 MB; an untouched one costs nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
