"""What this machine computes fast, how many cores it has, and how it keeps freed memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

WORTHWHILE_SPEEDUP = 1.2
"""Minimum speedup of bfloat16 over float32 for bfloat16 to count as native."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""The container's quota and its period in microseconds; the quota may be ``max``."""
AMPERE = (8, 0)
"""The first CUDA compute capability with bfloat16 tensor cores."""


@cache
def has_native_bfloat16(device_type: str) -> bool:
    """Whether bfloat16 matrix products are faster than float32 on this device.

    On a GPU the compute capability decides. A CPU is measured once, in a few milliseconds: its
    feature flags show neither whether the library uses the instructions (``ONEDNN_MAX_CPU_ISA``)
    nor whether it emulates bfloat16 without them, which is up to 80 times slower than float32.

    Args:
        device_type: ``cpu``, ``cuda``, …; False for other accelerators.
    """
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= AMPERE
    if device_type != "cpu":
        return False
    samples, rows = torch.randn(64, 512), torch.randn(2048, 512)
    bf16_samples, bf16_rows = samples.bfloat16(), rows.bfloat16()
    return is_faster(
        lambda: torch.mm(bf16_samples, bf16_rows.T),
        lambda: torch.mm(samples, rows.T),
        rounds=5,
    )


@cache
def numpy_multiplies_faster() -> bool:
    """Whether NumPy multiplies a matrix by a vector faster than torch on this CPU.

    NumPy and torch ship different BLAS libraries. Which one uses all cores and the full memory
    bandwidth for such a thin product depends on the CPU. Measured once, in a few milliseconds.
    """
    # Larger than the CPU caches, as a gallery is.
    matrix, vector = torch.randn(16384, 512), torch.randn(1, 512)
    best = []
    for run in (lambda: torch.mm(vector, matrix.T), lambda: matrix.numpy() @ vector[0].numpy()):
        times = []
        # Not alternating: a library's threads spin for a while after a product and slow the other.
        for _ in range(5):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        best.append(min(times))
    return best[1] < best[0]


def is_faster(
    candidate: Callable[[], object], baseline: Callable[[], object], rounds: int = 3
) -> bool:
    """Whether `candidate` is at least `WORTHWHILE_SPEEDUP` times faster than `baseline` on the CPU.

    The two alternate and the minimum times are compared, since other processes only add time.

    Args:
        candidate: called `rounds` times after one warm-up call.
        baseline: called the same way.
        rounds: number of timed calls, at least 1.

    >>> is_faster(lambda: None, lambda: time.sleep(0.001))
    True
    """
    best = [float("inf"), float("inf")]
    for round_ in range(rounds + 1):
        for which, run in enumerate((candidate, baseline)):
            start = time.perf_counter()
            run()
            if round_:
                best[which] = min(best[which], time.perf_counter() - start)
    return best[0] * WORTHWHILE_SPEEDUP < best[1]


def usable_cores() -> int:
    """Number of cores this process may use, limited by its affinity and its container's quota.

    >>> usable_cores() >= 1
    True
    """
    return _within_quota(_bound_cores(), 1)


def core_share(processes: int) -> int:
    """Number of cores for each of several processes on this machine.

    A process already bound to its own cores keeps all of them; a container's quota is shared.
    """
    cores = _bound_cores()
    if cores > (os.cpu_count() or 1) // processes:
        cores = max(cores // processes, 1)
    return _within_quota(cores, processes)


def _bound_cores() -> int:
    """Number of cores that this process is bound to; all cores if it is not bound."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _within_quota(cores: int, processes: int) -> int:
    """Limit a process's cores to its share of the container's quota; at least 1."""
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(min(cores, int(quota) // int(period) // processes), 1)
    except (OSError, ValueError):  # no such file, or no quota
        return cores


@cache
def keep_freed_memory() -> None:
    """Make the C library reuse freed blocks of up to 31 MB instead of returning them to the system.

    By default glibc returns blocks of a megabyte and requests zeroed pages again, which costs more
    than the arithmetic on them. But its limit rises to the largest block ever freed, up to 32 MB.
    Freeing one untouched block therefore raises the limit at no cost.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
