"""What a GPU does with Margrave: heads, a whole step, everybody against everybody, the loader.

    heads       forward and backward, as called and as a captured graph replays them, beside the
                three products that no head avoids, in the same precision, and beside a dense head
                under autocast where that fits; memory beyond weight and gradient
    step        IResNet-50 on 112 x 112, AdaFace, 100 000 classes: images a second, and the share
                of the step that goes when the head does
    all-to-all  every face with every other, exact at FAR 1e-9, beside the bare products
    loader      images a second from JPEG files, augmented as AdaFace does, into the device's memory

Each section prints a table; all of them are written as CSV and as one page of Markdown. `make
bench-gpu` runs the GPU's tests before. Without a GPU, or with --small, the same lines run in
miniature: their figures mean nothing.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --sections heads --output /tmp/results
"""

from __future__ import annotations

import argparse
import csv
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from margrave.data import Augmentation, ImageFolder, TrainingImages, normalize
from margrave.data.loading import EpochSampler, training_loader
from margrave.evaluation import evaluate_all_to_all
from margrave.hardware import usable_cores
from margrave.heads import ChunkedHead, RowwiseSGD
from margrave.heads.products import tf32
from margrave.losses import LOSSES, create
from margrave.training import TrainingSettings, TrainingState, fit, set_up
from margrave.training.gradients import clip_gradients
from margrave.training.transfer import PrefetchedBatches, Readback

Row = dict[str, object]
Rows = Iterator[Row]
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        classes: of the heads.
        batch: of the heads.
        features: D.
        losses: at each number of classes but the first, at which all of them are.
        image: side of the step's images.
        backbone: of the step.
        step_batch: of the step.
        steps: of the training.
        faces: against each other.
        files: for the loader.
        repetitions: of each timing.
    """

    classes: tuple[int, ...] = (100_000, 1_000_000, 4_000_000)
    batch: int = 1024
    features: int = 512
    losses: tuple[str, ...] = ("arcface", "adaface", "curricularface")
    image: int = 112
    backbone: str = "iresnet50"
    step_batch: int = 128
    steps: int = 60
    faces: int = 200_000
    files: int = 2048
    repetitions: int = 10


SMALL = Size(
    classes=(2000, 3000),
    batch=64,
    features=32,
    losses=("arcface",),
    image=32,
    backbone="iresnet18",
    step_batch=4,
    steps=3,
    faces=500,
    files=32,
    repetitions=1,
)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    sections: dict[str, Callable[[Size, torch.device], Rows]] = {
        "heads": heads,
        "step": step,
        "all-to-all": all_to_all,
        "loader": loader,
    }
    parser.add_argument("--small", action="store_true", help="in miniature")
    parser.add_argument("--sections", nargs="+", choices=list(sections), default=list(sections))
    parser.add_argument("--output", type=Path, help="a folder; by default beside this file")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = SMALL if given.small or device.type == "cpu" else Size()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU, in miniature"
    output = given.output or (Path(__file__).parent if size is not SMALL else None)
    # Figures of a miniature are worth nothing beside the real ones.
    output = output or Path(tempfile.mkdtemp(prefix="margrave-gpu-"))
    title = f"{name}, torch {torch.__version__}, {usable_cores()} cores"
    console, pages = Console(width=140), [f"# {title}\n"]
    for section in given.sections:
        rows: list[Row] = []
        pages.append("")
        for row in sections[section](size, device):
            rows.append(row)
            # Whatever comes after, this much is there.
            pages[-1] = f"## {section}\n\n{markdown(rows)}\n"
            (output / "gpu.md").write_text("\n".join(pages))
            with open(output / f"gpu_{section}.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
                writer.writerows(rows)
        table = Table(*rows[0], title=f"{section}: {title}")
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)
    console.print(f"written to {output}")


def markdown(rows: Sequence[Row]) -> str:
    """A table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def milliseconds(run: Callable[[], object], size: Size, device: torch.device) -> float:
    """The median time of a run that the device is not waited for in between."""
    for _ in range(min(3, size.repetitions)):
        run()
    times = []
    for _ in range(size.repetitions):
        if device.type == "cuda":
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            run()
            after.record()
            after.synchronize()
            times.append(before.elapsed_time(after))
        else:
            started = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def peak_megabytes(run: Callable[[], object], device: torch.device) -> float | None:
    """The most that is allocated at a time during a run, beyond what was before."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def heads(size: Size, device: torch.device) -> Rows:
    """Chunked heads beside products and a dense head, at each number of classes."""
    for number, classes in enumerate(size.classes):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(0.01 * torch.randn(classes, size.features, device=device))
        embeddings = 10 * torch.randn(size.batch, size.features, device=device)
        labels = torch.randint(classes, (size.batch,), device=device)

        def measure(
            name: str, precision: str, run: Callable[[], object], floor: float,
            head: ChunkedHead | None = None, weight: torch.nn.Parameter = weight,
        ) -> Row:  # fmt: skip
            taken = milliseconds(run, size, device)
            weight.grad = None
            if head is not None:
                # Or the buffer for cosines would count as having been there before.
                head.cosine_cache.release(None)
            peak = peak_megabytes(run, device)
            weight.grad = None
            replayed = taken
            if head is not None:
                replayed = milliseconds(captured(run, device), size, device)
            weight.grad = None
            return {
                "head": name,
                "products": precision,
                "classes": len(weight),
                "batch": size.batch,
                "ms": round(taken, 2),
                "replayed ms": round(replayed, 2),
                "three products ms": round(floor, 2),
                "ratio": round(replayed / floor, 2),
                "MB beyond gradient": None if peak is None else round(peak - weight.nbytes / 2**20),
            }

        floors: dict[str, float] = {}
        for precision in DTYPES:
            floors[precision] = milliseconds(
                three_products(embeddings, weight, precision), size, device
            )
            # Every loss at the fewest classes, the first at the most and in other precisions.
            chosen = (list(LOSSES), size.losses, size.losses[:1])[min(number, 2)]
            for loss in chosen if precision == "bfloat16" else size.losses[:1]:
                head = head_on(weight, loss, precision).to(device)
                run = training_step(head, embeddings, labels)
                yield measure(loss, precision, run, floors[precision], head)
                del head, run
                free()
        if fits(size.batch * classes * 16 + 3 * weight.nbytes, device):
            dense = dense_under_autocast(weight, embeddings, labels)
            yield measure("dense arcface, autocast", "bfloat16", dense, floors["bfloat16"])
            del dense
        del weight, measure
        free()


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A run's kernels without the host's calls, which a network's own kernels hide in training."""
    if device.type != "cuda":
        return run
    graph = torch.cuda.CUDAGraph()
    run()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def three_products(
    embeddings: torch.Tensor, weight: torch.Tensor, precision: str
) -> Callable[[], None]:
    """The work that is left when everything else is free."""
    x, w = embeddings.to(DTYPES[precision]), weight.detach().to(DTYPES[precision])
    gradient = torch.randn(len(x), len(w), device=x.device, dtype=x.dtype)

    def run() -> None:
        with tf32(precision == "tf32"):
            _ = x @ w.T, gradient @ w, gradient.T @ x

    return run


def head_on(weight: torch.nn.Parameter, loss: str, products: Any) -> ChunkedHead:
    """A head on a weight that several share: as many as there are heads would not fit."""
    settings = {"kind": loss} | ({"estimator": "online"} if loss == "kappaface" else {})
    with patch(
        "margrave.heads.contract.initial_centers",
        lambda rows, size: torch.empty(len(rows), size, device="meta"),
    ):
        head = ChunkedHead(settings, *weight.shape, products=products)
    head.weight = weight
    return head


def training_step(
    head: ChunkedHead, embeddings: torch.Tensor, labels: torch.Tensor
) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        head.zero_grad()
        head(embeddings.detach().requires_grad_(), labels).backward()

    return run


def dense_under_autocast(
    weight: torch.nn.Parameter, embeddings: torch.Tensor, labels: torch.Tensor
) -> Callable[[], None]:
    """ArcFace as most code writes it: every cosine at once, their product in bfloat16."""

    def run() -> None:
        weight.grad = None
        features = embeddings.detach().requires_grad_()
        with torch.autocast(features.device.type, torch.bfloat16):
            cosines = functional.linear(
                functional.normalize(features), functional.normalize(weight)
            )
        cosines = cosines.float().clamp(-1, 1)
        target = cosines.gather(1, labels[:, None])
        target = (target.clamp(-0.9999, 0.9999).arccos() + 0.5).cos()
        functional.cross_entropy(
            64 * cosines.scatter(1, labels[:, None], target), labels
        ).backward()

    return run


def fits(bytes_needed: int, device: torch.device) -> bool:
    """Whether a device has as much memory left."""
    return device.type != "cuda" or torch.cuda.mem_get_info()[0] > bytes_needed


def free() -> None:
    """Give unused memory back, so that peaks are the next case's own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class NoiseFaces:
    """Labelled images of noise, a few of them again and again: the step does not look at them."""

    def __init__(self, count: int, classes: int, image_size: int) -> None:
        generator = np.random.default_rng(0)
        self.labels = generator.integers(0, classes, count)
        self.class_names = [str(number) for number in range(classes)]
        self._pool = generator.integers(0, 256, (16, image_size, image_size, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> np.ndarray:
        return self._pool[index % len(self._pool)]


def step(size: Size, device: torch.device) -> Rows:
    """A training as `margrave train` runs it, and its head by itself."""
    classes, batch = size.classes[0], size.step_batch
    count = size.steps * batch
    for precision in ("auto",) if device.type == "cpu" else ("auto", "float16", "float32"):
        training = set_up(
            TrainingSettings(epochs=1, batch_size=batch, precision=precision, clip_norm=5),
            TrainingImages(NoiseFaces(count, classes, size.image), size.image, cached=True),
            classes,
            {"kind": size.backbone, "image_size": size.image},
            create({"kind": "adaface"}),
            {"kind": "chunked", "products": "auto"},
        )
        speeds: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            fit(
                training,
                Path(folder),
                report=lambda step, speeds=speeds: speeds.append(step.images_per_second),
            )
        # The first steps choose and compile kernels.
        full = 1000 * batch / statistics.median(speeds[len(speeds) // 2 :])
        backbone = milliseconds(backbone_step(training, size, device), size, device)
        embeddings = torch.randn(batch, training.head.embedding_size, device=device)
        labels = torch.randint(classes, (batch,), device=device)
        assert isinstance(training.head, ChunkedHead)
        head = captured(training_step(training.head, embeddings, labels), device)
        yield {
            "backbone": size.backbone,
            "precision": training.precision.precision,
            "products": training.head.products_for(batch),
            "batch": batch,
            "classes": classes,
            "ms": round(full, 1),
            "images/s": round(1000 * batch / full),
            "backbone ms": round(backbone, 1),
            "head's share": round(1 - backbone / full, 3),
            "head replayed ms": round(milliseconds(head, size, device), 2),
        }
        del training, head
        free()


def backbone_step(training: TrainingState, size: Size, device: torch.device) -> Callable[[], None]:
    """The same step without a head: what is left of it when the loss costs nothing."""
    shape = (size.step_batch, 3, size.image, size.image)
    pixels = torch.randint(256, shape, device=device, dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    optimizer = RowwiseSGD(training.network.parameters(), lr=1e-6, momentum=0.9)

    def run() -> None:
        with training.precision.autocast(device.type):
            embeddings = training.backbone(normalize(pixels))
        embeddings.float().square().mean().backward()
        norm = clip_gradients(training.network.parameters(), 5.0)
        Readback(norm[None]).wait()
        optimizer.step()
        optimizer.zero_grad()

    return run


def all_to_all(size: Size, device: torch.device) -> Rows:
    """Every face with every other, exactly, beside the products that this takes."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((size.faces, size.features), dtype=np.float32)
    labels = np.arange(size.faces) // 5
    targets = [1e-3] if size.faces < 10_000 else [1e-9]

    def evaluate() -> None:
        evaluate_all_to_all(features, labels, far_targets=targets, resamples=0, device=device.type)

    block = 16_384

    def products() -> None:
        rows = torch.from_numpy(features).to(device)
        for start in range(0, len(rows), block):
            for other in range(start, len(rows), block):
                _ = rows[start : start + block] @ rows[other : other + block].T

    times: dict[str, list[float]] = {"evaluate": [], "products": []}
    for _ in range(min(2, size.repetitions)):
        for name, run in (("products", products), ("evaluate", evaluate)):
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    taken, floor = min(times["evaluate"]), min(times["products"])
    yield {
        "faces": size.faces,
        "features": size.features,
        "s": round(taken, 2),
        "products s": round(floor, 2),
        "ratio": round(taken / floor, 2),
        "comparisons/s": f"{size.faces * (size.faces - 1) / 2 / taken:.3g}",
    }


def loader(size: Size, device: torch.device) -> Rows:
    """JPEG files into batches on the device, with AdaFace's augmentations."""
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        write_faces(Path(folder), size)
        images = TrainingImages(
            ImageFolder(folder),
            size.image,
            Augmentation(flip=0.5, crop=0.2, low_resolution=0.2, photometric=0.2),
        )
        for workers in sorted({0, 1, min(cores // 2, 8), min(cores - 1, 8)}):
            sampler = EpochSampler(len(images), min(128, len(images)), seed=0)
            batches = training_loader(images, sampler, workers, pin_memory=device.type == "cuda")
            speeds = []
            for epoch in range(3 if size.repetitions > 1 else 1):
                sampler.start_at(epoch)
                started, count = time.perf_counter(), 0
                ahead = PrefetchedBatches(batches, device)
                while (batch := ahead.next()) is not None:
                    count += len(batch)
                    ahead.fetch()
                speeds.append(count / (time.perf_counter() - started))
            yield {"workers": workers, "cores": cores, "images/s": round(max(speeds))}
            del batches


def write_faces(folder: Path, size: Size) -> None:
    """JPEG files of smooth noise, which compress about as faces do."""
    generator = np.random.default_rng(0)
    for number in range(size.files):
        coarse = generator.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)
        path = folder / f"{number // 8}" / f"{number % 8}.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])


if __name__ == "__main__":
    main()
