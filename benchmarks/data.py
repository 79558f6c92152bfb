"""What preparing images costs beside bare JPEG decoding, per core; and what workers add.

The same files are (a) decoded by OpenCV alone, (b) read, checked, decoded, flipped, batched and
normalised as in training, (c) the same with AdaFace's augmentations, in interleaved repetitions.
Prints images per second and ratios, and writes benchmarks/data.csv.

    python benchmarks/data.py ../shared/data/lfw_a
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from margrave.data import (
    Augmentation,
    EpochSampler,
    ImageFolder,
    RecordImages,
    TrainingImages,
    normalise,
    pack_records,
    training_loader,
)

PUBLISHED = {"crop": 0.2, "photometric": 0.2, "low_resolution": 0.2}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(given, Path(folder))
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = Table("what", "images / s", "ratio to decoding")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def measure(given: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """All ways over the same JPEG files."""
    source = ImageFolder(given.folder)
    pack_records(source, folder / "records")
    records = RecordImages(folder / "records")
    chosen = np.random.default_rng(0).permutation(len(records))[: given.images]
    jpegs = [folder / f"{index}.jpg" for index in chosen]
    for index, path in zip(chosen.tolist(), jpegs, strict=True):
        path.write_bytes(records.read_bytes(index))

    def decode() -> None:
        for path in jpegs:
            cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)

    def prepare(augmentation: Augmentation | None, workers: int = 0) -> Callable[[], None]:
        images = TrainingImages(records, 112, augmentation)
        sampler = EpochSampler(len(records), given.batch, 0)
        loader = training_loader(images, sampler, workers)

        def run() -> None:
            sampler.start_at(0, sampler.batches_per_epoch - given.images // given.batch)
            for batch in loader:
                normalise(batch.images)

        return run

    flip = Augmentation(flip=0.5)
    ways: dict[str, Callable[[], None]] = {
        "decoding alone": decode,
        "decoded, flipped, normalised": prepare(flip),
        "with AdaFace's augmentations": prepare(Augmentation(flip=0.5, **PUBLISHED)),
        "flipped, one worker": prepare(flip, 1),
        "flipped, two workers": prepare(flip, 2),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with Progress(auto_refresh=False) as progress:
        task = progress.add_task("measuring", total=given.repetitions + 1)
        for repetition in range(given.repetitions + 1):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                if repetition:  # the first is warm-up, and starts workers
                    times[name].append(time.perf_counter() - started)
            progress.update(task, advance=1, refresh=True)
    images = given.images // given.batch * given.batch
    rates = {
        name: (given.images if run is decode else images) / statistics.median(times[name])
        for name, run in ways.items()
    }
    return [
        {
            "what": name,
            "images_per_second": round(rate),
            "ratio": round(rate / rates["decoding alone"], 2),
        }
        for name, rate in rates.items()
    ]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
