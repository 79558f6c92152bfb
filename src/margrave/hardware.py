"""Which computations are fast on this machine, how many cores it has, how it reuses memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

WORTHWHILE_SPEEDUP = 1.2
"""Minimum speedup that counts as faster, for example of native bfloat16 over float32."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""File with the container's quota: CPU time per period, and the period, both in microseconds. The
CPU time is ``max`` if there is no limit."""
AMPERE = (8, 0)
"""The first CUDA compute capability with bfloat16 tensor cores."""


@cache
def has_native_bfloat16(device_type: str) -> bool:
    """Whether bfloat16 matrix products are faster than float32 on this device.

    On a GPU, the compute capability decides. A CPU is timed once, in a few milliseconds, because
    its feature flags are not enough: the math library may ignore its bfloat16 instructions
    (``ONEDNN_MAX_CPU_ISA``), and emulation without them is up to 80 times slower than float32.

    Args:
        device_type: ``cpu``, ``cuda``, …; for other accelerators, the result is False.
    """
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= AMPERE
    if device_type != "cpu":
        return False
    embeddings, centers = torch.ones(64, 512), torch.ones(2048, 512)
    bf16_embeddings, bf16_centers = embeddings.bfloat16(), centers.bfloat16()
    return is_faster(
        lambda: torch.mm(bf16_embeddings, bf16_centers.T),
        lambda: torch.mm(embeddings, centers.T),
        rounds=5,
    )


@cache
def numpy_multiplies_faster() -> bool:
    """Whether NumPy multiplies a matrix by a vector faster than torch on this CPU.

    NumPy and torch ship different BLAS libraries. It depends on the CPU which of them uses all
    cores and the full memory bandwidth for such a thin product. Both are timed once, in a few
    milliseconds.
    """
    # Larger than the CPU caches, as a gallery is.
    matrix, vector = torch.ones(16384, 512), torch.ones(1, 512)
    fastest = []
    for run in (lambda: torch.mm(vector, matrix.T), lambda: matrix.numpy() @ vector[0].numpy()):
        times = []
        # One library is timed after the other, not in turns: the threads of a library spin for a
        # while after each product, which would slow the other library.
        for _ in range(5):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        fastest.append(min(times))
    torch_seconds, numpy_seconds = fastest
    return numpy_seconds < torch_seconds


def is_faster(
    candidate: Callable[[], object], baseline: Callable[[], object], rounds: int = 3
) -> bool:
    """Whether `candidate` is at least `WORTHWHILE_SPEEDUP` times faster than `baseline` on the CPU.

    Calls of the two alternate. Their minimum times are compared, because other processes can only
    add time.

    Args:
        candidate: called `rounds` times after one warm-up call.
        baseline: called the same way.
        rounds: number of timed calls, at least 1.

    >>> is_faster(lambda: None, lambda: time.sleep(0.001))
    True
    """
    fastest = [float("inf"), float("inf")]
    for round_number in range(rounds + 1):
        for index, run in enumerate((candidate, baseline)):
            start = time.perf_counter()
            run()
            # Round 0 is the warm-up.
            if round_number:
                fastest[index] = min(fastest[index], time.perf_counter() - start)
    candidate_seconds, baseline_seconds = fastest
    return candidate_seconds * WORTHWHILE_SPEEDUP < baseline_seconds


def usable_cores() -> int:
    """Number of cores that this process may use, limited by CPU affinity and container quota.

    >>> usable_cores() >= 1
    True
    """
    return _within_quota(_bound_cores(), 1)


def core_share(processes: int) -> int:
    """Number of cores for each of several processes on this machine.

    A process that is already bound to a share of the cores uses all of its share. A container's
    quota is divided among the processes.
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

    glibc returns freed blocks above a threshold to the system. The next allocation then gets fresh
    zeroed pages, which cost more time than the arithmetic on them. The threshold rises to the size
    of the largest block freed so far, up to 32 MB. One block of 31 MB is therefore allocated and
    freed here; nothing is written to it, so it costs almost no time.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
