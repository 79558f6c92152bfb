"""How many synthetic faces one core draws per second, degradations included.

CPU seconds are counted, not wall-clock ones, so that other work on the machine matters little.

    python benchmarks/synthetic.py --image-size 112
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import track
from rich.table import Table

from margrave.synthetic import SyntheticFaces


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--chunks", type=int, default=15)
    given = parser.parse_args()
    cv2.setNumThreads(0)
    faces = SyntheticFaces(num_identities=1000, image_size=given.image_size)
    size, speeds = 100, []
    for chunk in track(range(given.chunks + 1), "drawing"):
        start = time.process_time()
        for index in range(chunk * size, (chunk + 1) * size):
            faces.read(index)
        if chunk:  # the first is warm-up
            speeds.append(size / (time.process_time() - start))
    row = {
        "image_size": given.image_size,
        "median_images_per_cpu_second": round(statistics.median(speeds), 1),
        "best": round(max(speeds), 1),
        "worst": round(min(speeds), 1),
        "machine": platform.processor() or platform.machine(),
    }
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    table = Table(*row)
    table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
