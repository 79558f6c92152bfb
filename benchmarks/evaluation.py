"""Large evaluations against the arithmetic that nobody can avoid, and against plain code.

    megaface    3 530 probes x 1 000 000 distractors x 512, from a memory-mapped file: rank 10 of
                each probe and the impostor tail at FAR 1e-6, beside the bare blockwise products
    all-to-all  200 000 faces x 128 with each other, exact at FAR 1e-9, beside the products of
                every two
    scores      TAR at FAR of 1e8 scores from a file, beside sorting them
    pooling     469 375 images x 512 into 23 124 templates, beside one reading of the file; and
                half as many images

Each case is a process of its own, whose repetitions alternate; prints seconds, ratios and the
process's peak memory, and writes benchmarks/evaluation.csv.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --case all-to-all
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from margrave.evaluation import (
    Pooling,
    evaluate_all_to_all,
    pool_templates,
    streamed_accept_rates,
)
from margrave.files import read_rows

BLOCK = (2048, 4096)
CASES = ("megaface", "all-to-all", "scores", "pooling")
Ways = dict[str, Callable[[], object]]


def main() -> None:
    """Run the cases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the large files lie (5 GB)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.case, given.folder, given.repetitions)))
        return
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for case in [given.case] if given.case else CASES:
            prepare(case, Path(folder))
            command = [sys.executable, __file__, "--child", "--case", case, "--folder", folder]
            command += ["--repetitions", str(given.repetitions)]
            result = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows += json.loads(result.splitlines()[-1])
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    if not given.case:
        with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def prepare(case: str, folder: Path) -> None:
    """The case's large file."""
    generator = np.random.default_rng(0)
    shapes = {
        "megaface": (1_000_000, 512),
        "all-to-all": (200_000, 128),
        "scores": (100_000_000,),
        "pooling": (469_375, 512),
    }
    shape = shapes[case]
    path = folder / f"{case}.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for start in range(0, shape[0], 1 << 16):
        part = array[start : start + (1 << 16)]
        part[:] = generator.standard_normal(part.shape, dtype=np.float32)
    array.flush()


def measure(case: str, folder: Path, repetitions: int) -> list[dict[str, object]]:
    """Seconds of each way, its ratio to the first, and the process's peak memory."""
    rows = np.load(folder / f"{case}.npy", mmap_mode="r")
    ways = WAYS[case](rows)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    floor = next(iter(seconds.values()))
    # Not the resource module's figure, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1e6
    return [
        {
            "case": case,
            "way": name,
            "seconds": round(value, 2),
            "ratio": round(value / floor, 2),
            "peak GB": round(peak, 2),
        }
        for name, value in seconds.items()
    ]


def products(first: torch.Tensor, second: np.ndarray | None) -> None:
    """Bare blockwise products: each of a set with each of another, or each two of it once."""
    height, width = BLOCK
    count = len(first) if second is None else len(second)
    for column in range(0, count, width):
        if second is None:
            columns = first[column : column + width]
        else:
            columns = torch.from_numpy(read_rows(second, column, column + width))
        room = torch.empty(height, len(columns))
        last = min(len(first), column + len(columns)) if second is None else len(first)
        for row in range(0, last, height):
            part = first[row : row + height]
            torch.mm(part, columns.T, out=room[: len(part)])


def megaface(distractors: np.ndarray) -> Ways:
    """Each probe among all distractors."""
    probes = np.random.default_rng(1).standard_normal((3530, 512), dtype=np.float32)
    labels = np.arange(3530) % 80

    def ours() -> object:
        return evaluate_all_to_all(
            probes,
            labels,
            distractors,
            impostors_within=False,
            far_targets=(1e-6,),
            ranks=(1, 10),
            resamples=0,
        )

    return {"products": lambda: products(torch.from_numpy(probes), distractors), "margrave": ours}


def all_to_all(faces: np.ndarray) -> Ways:
    """Everybody with everybody."""
    labels = np.random.default_rng(1).permutation(len(faces)) // 10
    held = torch.from_numpy(np.array(faces))

    def ours() -> object:
        return evaluate_all_to_all(faces, labels, far_targets=(1e-9,), resamples=0)

    return {"products": lambda: products(held, None), "margrave": ours}


def scores(values: np.ndarray) -> Ways:
    """TAR at FAR of scores in a file."""
    same = np.zeros(len(values), bool)
    same[::1000] = True
    targets = (1e-2, 1e-4, 1e-6)
    return {
        "sorting": lambda: np.sort(values),
        "margrave": lambda: streamed_accept_rates(values, same, targets),
    }


def pooling(images: np.ndarray) -> Ways:
    """Images into templates."""
    templates = np.sort(np.random.default_rng(1).integers(0, 23_124, len(images)))
    media = np.arange(len(images)) // 3
    half = len(images) // 2

    def read() -> float:
        total = 0.0
        for start in range(0, len(images), 4096):
            total += float(read_rows(images, start, start + 4096).sum())
        return total

    def pool(count: int) -> object:
        return pool_templates(
            images[:count], templates[:count], media[:count], pooling=Pooling(flip=False)
        )

    return {
        "one reading": read,
        "margrave": lambda: pool(len(images)),
        "margrave, half the images": lambda: pool(half),
    }


WAYS: dict[str, Callable[[np.ndarray], Ways]] = {
    "megaface": megaface,
    "all-to-all": all_to_all,
    "scores": scores,
    "pooling": pooling,
}


if __name__ == "__main__":
    main()
