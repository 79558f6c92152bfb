"""What the data loader costs beside bare JPEG decoding, per core; and what workers add.

The same JPEG files are (a) read and decoded by OpenCV alone, (b) read, checked, decoded, flipped
and batched as uint8 by the training loader, (c) the same with AdaFace's augmentations; from a
folder, from records and from shards; and batched by workers, in interleaved repetitions. Bare
decoding in one and in two processes bounds what two workers can reach. One process alone is timed
in CPU seconds, several in wall-clock seconds, which other programs disturb. Prints images per
second and ratios, and writes benchmarks/data.csv. Without a folder the files are made of synthetic
faces.

    python benchmarks/data.py
    python benchmarks/data.py ../shared/data/lfw_a
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from margrave.data import (
    Augmentation,
    EpochSampler,
    FaceImages,
    ImageFolder,
    RecordImages,
    ShardImages,
    TrainingImages,
    WindowSampler,
    pack_records,
    pack_shards,
    training_loader,
)
from margrave.synthetic import SyntheticFaces

FLIP = Augmentation(flip=0.5)
APART = ("one process", "two processes")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(given, Path(folder))
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = Table("what", "images / s", "ratio", "to")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def jpeg_folder(source: FaceImages, count: int, folder: Path) -> ImageFolder:
    """So many images as JPEG files, quality 95 as training sets have them."""
    for index in range(count):
        path = folder / f"{index % 16:02d}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.cvtColor(source.read(index), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return ImageFolder(folder)


def decode(paths: list[Path]) -> None:
    """What everything is compared with."""
    for path in paths:
        cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)


def _one_thread() -> None:
    cv2.setNumThreads(1)


def measure(given: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """All ways over the same JPEG files."""
    source = ImageFolder(given.folder) if given.folder else SyntheticFaces(
        num_identities=given.images, images_per_identity=1
    )  # fmt: skip
    files = jpeg_folder(source, given.images, folder / "files")
    pack_records(files, folder / "records")
    pack_shards(files, folder / "shards")
    shards = ShardImages(folder / "shards")
    paths = [Path(files.name(index)) for index in range(len(files))]

    spawn = multiprocessing.get_context("spawn")
    # One process by itself too: its clock may be another than this one's.
    pool = ProcessPoolExecutor(2, spawn, _one_thread)

    def decode_apart(processes: int) -> Callable[[], None]:
        share = 4 * len(paths) // processes

        def run() -> None:
            list(pool.map(decode, [(4 * paths)[:share]] * processes))

        return run

    def prepare(
        images: FaceImages, augmentation: Augmentation | None, workers: int = 0, epochs: int = 1
    ) -> Callable[[], None]:
        if isinstance(images, ShardImages):
            sampler = WindowSampler(images.pieces, images.window, given.batch, 0)
        else:
            sampler = EpochSampler(len(images), given.batch, 0)
        loader = training_loader(TrainingImages(images, 112, augmentation), sampler, workers)

        def run() -> None:
            for _ in range(epochs):
                sampler.start_at(0)
                for _ in loader:
                    pass

        return run

    # Workers get more to do, or their start would be what is measured.
    long = 4
    ways: dict[str, Callable[[], None]] = {
        "decoded alone": lambda: decode(paths),
        "decoded, flipped, batched as uint8": prepare(files, FLIP),
        "with AdaFace's augmentations": prepare(files, Augmentation.adaface()),
        "records": prepare(RecordImages(folder / "records"), FLIP),
        "shards": prepare(shards, FLIP),
        "one worker, AdaFace's": prepare(files, Augmentation.adaface(), 1, long),
        "two workers, AdaFace's": prepare(files, Augmentation.adaface(), 2, long),
        "decoded alone, one process": decode_apart(1),
        "decoded alone, two processes": decode_apart(2),
    }
    against = {
        "records": "decoded, flipped, batched as uint8",
        "shards": "decoded, flipped, batched as uint8",
        "one worker, AdaFace's": "decoded alone, one process",
        "two workers, AdaFace's": "one worker, AdaFace's",
        "decoded alone, two processes": "decoded alone, one process",
    }
    several = {name for name in ways if "worker" in name or "process" in name}
    times: dict[str, list[float]] = {name: [] for name in ways}
    with Progress(auto_refresh=False) as progress:
        task = progress.add_task("measuring", total=given.repetitions + 1)
        for repetition in range(given.repetitions + 1):
            for name, run in ways.items():
                clock = time.perf_counter if name in several else time.process_time
                started = clock()
                run()
                if repetition:  # the first is warm-up, and starts workers
                    times[name].append(clock() - started)
            progress.update(task, advance=1, refresh=True)
    full = given.images // given.batch * given.batch
    images = {name: full * (long if "worker" in name else 1) for name in ways}
    images["decoded alone"] = given.images
    images |= {f"decoded alone, {number}": 4 * given.images for number in APART}
    rates = {name: images[name] / statistics.median(times[name]) for name in ways}
    rows: list[dict[str, object]] = []
    for name, rate in rates.items():
        other = against.get(name, "decoded alone")
        rows.append(
            {
                "what": name,
                "images_per_second": round(rate),
                "ratio": round(rate / rates[other], 2),
                "to": other,
            }
        )
    return rows


if __name__ == "__main__":
    main()
