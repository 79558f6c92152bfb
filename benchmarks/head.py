"""Heads, forward and backward, side by side in one process.

Every loss under the chunked head against (a) the three matrix products that no head can avoid
(x̂Wᵀ, GW and Gᵀx̂), run before and after each, and (b) the dense head, in interleaved repetitions.
Prints medians, ratios to the products, and the peak memory beyond the weight and its gradient, and
writes benchmarks/head.csv.

    python benchmarks/head.py --classes 100000 --batch 128 512 --budget 256 32
    python benchmarks/head.py --device cuda --classes 4000000 --dtype bfloat16 --losses arcface
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
from rich.progress import Progress
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from margrave.heads import ChunkedHead, DenseHead, Head
from margrave.losses import LOSSES

Run = Callable[[], None]


def three_products(embeddings: torch.Tensor, weight: torch.Tensor) -> Run:
    """The work that is left when everything else is free."""
    gradient = torch.randn(len(embeddings), len(weight)).to(weight)

    def run() -> None:
        _ = embeddings @ weight.T, gradient @ weight, gradient.T @ embeddings

    return run


def head_step(head: Head, embeddings: torch.Tensor, labels: torch.Tensor) -> Run:
    """Forward and backward of one head, all heads on one weight."""

    def run() -> None:
        head.zero_grad()
        head(embeddings.detach().requires_grad_(), labels).backward()

    return run


def peak_megabytes(run: Run, head: Head) -> float:
    """Most memory allocated at a time during a step, beyond the parameters' gradients."""
    gradients = sum(parameter.nbytes for parameter in head.parameters())
    head.zero_grad()
    if isinstance(head, ChunkedHead):
        # Or the cosines' room would count as having been there before.
        head.cosine_cache.release(None)
    if head.weight.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            run()
        level = peak = 0
        for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                level += event.nbytes()
                peak = max(peak, level)
    head.zero_grad()
    return (peak - gradients) / 2**20


def timed(run: Run, device: str) -> float:
    """Seconds of one run."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def machine(device: str) -> str:
    """What it was measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ] if Path("/proc/cpuinfo").exists() else []  # fmt: skip
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[100_000])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--budget", type=float, nargs="+", default=[256, 32])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    parser.add_argument("--dense", nargs="*", default=["arcface"], help="losses to run dense too")
    parser.add_argument("--block", type=int)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    given = parser.parse_args()
    rows = []
    for classes in given.classes:
        for batch in given.batch:
            rows += measure(given, classes, batch)
    with open(given.output, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    headings = ("head", "loss", "B", "C", "budget MB", "ms", "products ms", "ratio", "peak MB")
    table = Table(*headings)
    for row in rows:
        names = ("head", "loss", "batch", "classes", "budget", "milliseconds", "products", "ratio")
        table.add_row(*(str(row[name]) for name in (*names, "peak")))
    console = Console()
    console.print(table)
    console.print(f"{machine(given.device)}, {given.dtype}, D = {given.features}; "
                  "peak beyond parameters and their gradients")  # fmt: skip


def measure(given: argparse.Namespace, classes: int, batch: int) -> list[dict[str, object]]:
    """All heads at one size."""
    torch.manual_seed(0)
    dtype = getattr(torch, given.dtype)
    place = {"device": given.device, "dtype": dtype}
    embeddings = 10 * torch.randn(batch, given.features).to(**place)
    labels = torch.randint(classes, (batch,)).to(given.device)
    weight = torch.nn.Parameter(0.01 * torch.randn(classes, given.features).to(**place))

    def shared(head: Head) -> Head:
        # As many weights as heads would not fit.
        head.weight = weight
        return head.to(**place)

    products = three_products(embeddings, weight.detach())
    cases: dict[tuple[str, str, float | None], tuple[Head, Run]] = {}
    for loss in given.dense:
        head = shared(DenseHead(loss, classes, given.features))
        cases["dense", loss, None] = head, head_step(head, embeddings, labels)
    for budget in given.budget:
        for loss in given.losses:
            settings = {"memory_budget": budget, "block_size": given.block}
            head = shared(ChunkedHead(loss, classes, given.features, **settings))
            cases["chunked", loss, budget] = head, head_step(head, embeddings, labels)
    times: dict[object, list[float]] = {case: [] for case in cases}
    # The products are run before and after every case: a shared machine's speed drifts.
    beside: dict[object, list[float]] = {case: [] for case in cases}
    # Refreshed by hand: a thread of its own would disturb what is measured.
    with Progress(auto_refresh=False) as progress:
        task = progress.add_task(f"C {classes} B {batch}", total=given.repetitions + 1)
        for repetition in range(given.repetitions + 1):
            before = timed(products, given.device)
            for case, (head, run) in cases.items():
                seconds = timed(run, given.device)
                weight.grad = None
                head.zero_grad()
                after = timed(products, given.device)
                if repetition:  # the first is warm-up
                    beside[case].append((before + after) / 2)
                    times[case].append(seconds)
                before = after
            progress.update(task, advance=1, refresh=True)
    rows: list[dict[str, object]] = []
    for case, (head, run) in cases.items():
        median, floor = statistics.median(times[case]), statistics.median(beside[case])
        peak = round(peak_megabytes(run, head), 1)
        rows.append(
            dict(
                zip(("head", "loss", "budget"), case, strict=True),
                batch=batch, classes=classes, features=given.features, dtype=given.dtype,
                milliseconds=round(1000 * median, 2), products=round(1000 * floor, 2),
                ratio=round(median / floor, 3), peak=peak,
                machine=machine(given.device),
            )
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
