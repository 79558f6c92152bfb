"""Exported models beside the originals: how exact, and how fast without torch.

Every registered backbone at its default size, freshly initialized, is exported to ONNX. On
synthetic faces its embeddings are compared with torch's (smallest cosine, largest relative
difference of lengths; OpenVINO's on a hundred of them), and batches of 32 are timed in four ways in
interleaved repetitions in one process: torch eager, eager in channels-last layout, onnxruntime and
OpenVINO. Prints how many times as fast as eager each is (medians), and writes benchmarks/export.csv
after each backbone, from the smallest on; backbones whose row is in that file already are left out,
so that it can be run in parts.

    python benchmarks/export.py
    python benchmarks/export.py --backbone mbf --faces 100
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from margrave import backbones
from margrave.backbones import BACKBONES
from margrave.export import compare_embedders, write_graph
from margrave.inference import Embedder
from margrave.models import ModelCard, open_model
from margrave.synthetic import SyntheticFaces

BATCH = 32
WAYS = ("eager", "channels_last", "onnxruntime", "openvino")
OUTPUT = Path(__file__).with_suffix(".csv")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", nargs="*", default=list(BACKBONES))
    parser.add_argument("--faces", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    rows = list(csv.DictReader(given.output.open())) if given.output.exists() else []
    done = {row["backbone"] for row in rows}
    left = sorted((name for name in given.backbone if name not in done), key=parameters)
    faces = SyntheticFaces(num_identities=-(-given.faces // 4), images_per_identity=4)
    for name in track(left, "exporting"):
        rows.append(measure(name, faces, given.faces, given.repetitions))
        with open(given.output, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=200).print(table)


def parameters(name: str) -> int:
    """How many numbers a backbone has."""
    with torch.device("meta"):
        network = backbones.create({"kind": name})
    return sum(value.numel() for value in network.parameters())


def measure(name: str, faces: SyntheticFaces, number: int, repetitions: int) -> dict[str, object]:
    """One backbone's row."""
    torch.manual_seed(0)
    network = backbones.create({"kind": name}).eval()
    card = ModelCard(backbone={"kind": "onnx"}, image_size=112)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_graph(network, card, path)
        runs = {runtime: open_model(path, device="cpu", runtime=runtime) for runtime in WAYS[2:]}
    exported = {runtime: model.backbone for runtime, model in runs.items()}
    original = Embedder(network, card)
    counts = {"onnxruntime": number, "openvino": min(number, 100)}
    exact = {
        runtime: compare_embedders(original, Embedder(exported[runtime], card), faces, number=count)
        for runtime, count in counts.items()
    }
    (plain, _), (other, _) = exact["onnxruntime"], exact["openvino"]
    images = torch.rand(BATCH, 3, 112, 112) * 2 - 1
    layout = torch.channels_last
    last = backbones.create({"kind": name}).eval()
    last.load_state_dict(network.state_dict())
    last = last.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    ways: dict[str, Callable[[], object]] = {
        "eager": lambda: network(images),
        "channels_last": lambda: last(images.to(memory_format=layout)),
        **{runtime: lambda other=other: other(images) for runtime, other in exported.items()},
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with torch.inference_mode():
        for repetition in range(repetitions + 1):
            for way in WAYS:
                start = time.perf_counter()
                ways[way]()
                if repetition:  # the first is warm-up
                    seconds[way].append(time.perf_counter() - start)
    median = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        "backbone": name,
        "parameters": parameters(name),
        "faces": plain.count,
        "1 - cosine, onnxruntime": f"{1 - plain.cosine:.1e}",
        "norm error, onnxruntime": f"{plain.norm_error:.1e}",
        "1 - cosine, openvino": f"{1 - other.cosine:.1e}",
        "norm error, openvino": f"{other.norm_error:.1e}",
        "eager ms an image": round(1000 * median["eager"] / BATCH, 2),
        **{f"speed, {way}": round(median["eager"] / median[way], 2) for way in WAYS[1:]},
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
