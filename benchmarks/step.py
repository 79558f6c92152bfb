"""A whole training step of a head with millions of classes: time, and memory of the process.

Each way runs in a process of its own, because memory once used is never given back entirely:
SGD with momentum after the backward pass; the same applied block by block inside it; and a sample
of the classes. Prints a table and writes benchmarks/step.csv.

    python benchmarks/step.py --classes 2000000 --batch 256
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from margrave.heads import ChunkedHead, RowwiseSGD

WAYS = ("after the backward pass", "inside the backward pass", "sampled")


def measure(way: str, given: argparse.Namespace) -> dict[str, object]:
    """Run some steps one way; called in a process of its own."""
    torch.manual_seed(0)
    rate = given.rate if way == "sampled" else None
    head = ChunkedHead(given.loss, given.classes, given.features, sample_rate=rate)
    optimizer = None
    if way == "inside the backward pass":
        head.update_in_backward(momentum=0.9, weight_decay=5e-4)
        head.learning_rate = 0.1
    else:
        optimizer = RowwiseSGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    seconds = []
    for _ in range(given.steps + 1):
        embeddings = (10 * torch.randn(given.batch, given.features)).requires_grad_()
        labels = torch.randint(given.classes, (given.batch,))
        start = time.perf_counter()
        head(embeddings, labels).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {
        "way": way if rate is None else f"sampled at {rate}",
        "loss": given.loss,
        "batch": given.batch,
        "classes": given.classes,
        "features": given.features,
        "seconds": round(statistics.median(seconds[1:]), 2),  # the first is warm-up
        "resident_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure every way, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=2_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--loss", default="curricularface")
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="only this one, as JSON")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.way, given)))
        return
    rows = []
    for way in track(WAYS, "measuring"):
        command = [sys.executable, *sys.argv, "--way", way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = Table("head's update", "seconds a step", "resident GB")
    for row in rows:
        table.add_row(row["way"], str(row["seconds"]), str(row["resident_gigabytes"]))
    Console().print(table)


if __name__ == "__main__":
    main()
