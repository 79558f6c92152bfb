"""Every loss under the dense head, forward and backward, side by side in one process.

Measured against the three matrix products that no head can avoid (x̂Wᵀ, GW and Gᵀx̂) in
interleaved repetitions; prints medians, ratios and the peak memory beyond the weight and its
gradient, and writes benchmarks/losses.csv.

    python benchmarks/losses.py --classes 10000 --batch 128
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

# Before torch: its profiler announces every start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from margrave.heads import DenseHead
from margrave.losses import LOSSES


def three_products(unit: torch.Tensor, weight: torch.Tensor) -> Callable[[], None]:
    """The work that is left when everything else is free."""
    gradient = torch.randn(len(unit), len(weight))

    def run() -> None:
        _ = unit @ weight.T, gradient @ weight, gradient.T @ unit

    return run


def head_step(kind: str, embeddings: torch.Tensor, labels: torch.Tensor, classes: int):
    """Forward and backward of one head."""
    head = DenseHead(kind, classes, embeddings.shape[1])

    def run() -> None:
        head.zero_grad()
        head(embeddings.detach().requires_grad_(), labels).backward()

    return run


def peak_megabytes(run: Callable[[], None], classes: int, features: int) -> float:
    """Most memory allocated at a time during a step, beyond the weight's gradient."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    level = peak = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak / 2**20 - classes * features * 4 / 2**20


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=7)
    given = parser.parse_args()
    torch.manual_seed(0)
    embeddings = 10 * torch.randn(given.batch, given.features)
    labels = torch.randint(given.classes, (given.batch,))
    products = three_products(embeddings, torch.randn(given.classes, given.features))
    steps = {kind: head_step(kind, embeddings, labels, given.classes) for kind in LOSSES}
    steps = {"three products": products, **steps}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in track(range(given.repetitions + 1), "measuring"):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            if repetition:  # the first is warm-up
                times[name].append(time.perf_counter() - start)
    floor = statistics.median(times["three products"])
    rows = []
    for name, run in steps.items():
        median = statistics.median(times[name])
        peak = peak_megabytes(run, given.classes, given.features)
        rows.append(
            {
                "loss": name,
                "batch": given.batch,
                "classes": given.classes,
                "features": given.features,
                "milliseconds": round(1000 * median, 2),
                "ratio": round(median / floor, 2),
                "peak_megabytes": round(max(peak, 0.0), 1),
                "threads": torch.get_num_threads(),
                "machine": platform.processor() or platform.machine(),
            }
        )
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = Table("loss", "ms", "ratio to the products", "peak MB beyond weight and gradient")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("loss", "milliseconds", "ratio")),
                      str(row["peak_megabytes"]))  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
