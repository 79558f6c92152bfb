"""Exported models beside the originals: how exact, and how fast without torch.

Every registered backbone at its default size is exported to ONNX, freshly initialized, with its
batch norms' statistics measured on synthetic faces. Without them, a deep network's activations grow
to 1e6, and those with squeeze and excitation then amplify rounding a thousand times.

``exactness``: on synthetic faces its embeddings are compared with torch's (smallest cosine, largest
relative difference of norms; OpenVINO's on a hundred of them).
``speed``: batches of 32 are timed in four ways in interleaved repetitions in one process: torch
eager, eager in channels-last layout, onnxruntime and OpenVINO. Prints how many times as fast as
eager each is (medians). Needs a machine that does nothing else.

Each writes benchmarks/export_WHAT.csv after each backbone, from the smallest on; backbones whose
row is in that file already are left out, so that it can be run in parts.

    python benchmarks/export.py exactness
    python benchmarks/export.py speed --backbone mbf
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from margrave import backbones
from margrave.backbones import BACKBONES
from margrave.data import normalize
from margrave.export import compare_embedders, write_graph
from margrave.inference import Embedder
from margrave.models import ModelCard, open_model
from margrave.models.onnx_network import OnnxNetwork
from margrave.synthetic import SyntheticFaces

BATCH = 32
RUNTIMES = ("onnxruntime", "openvino")
CARD = ModelCard(backbone={"kind": "onnx"}, image_size=112)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--backbone", nargs="*", default=list(BACKBONES))
    parser.add_argument("--faces", type=int, default=1000, help="exactness: number of faces")
    parser.add_argument("--repetitions", type=int, default=5, help="speed: repetitions")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    output = given.output or Path(__file__).with_name(f"export_{given.what}.csv")
    rows = list(csv.DictReader(output.open())) if output.exists() else []
    done = {row["backbone"] for row in rows}
    left = sorted((name for name in given.backbone if name not in done), key=parameters)
    for name in track(left, given.what):
        torch.manual_seed(0)
        network = measure_batch_norms(backbones.create({"kind": name}))
        row = {"backbone": name, "parameters": parameters(name)}
        rows.append(row | MEASURES[given.what](network, given))
        with open(output, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=200).print(table)


def measure_batch_norms(network: nn.Module) -> nn.Module:
    """The network for inference, its batch norms' statistics measured on one batch of faces."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the average of all batches, here of one
            module.reset_running_stats()
    faces = SyntheticFaces(num_identities=16, images_per_identity=4)
    embedder = Embedder(network, CARD)
    pixels = torch.stack([embedder.prepare(faces.read(n), faces.name(n)) for n in range(64)])
    with torch.no_grad():
        network.train()(normalize(pixels, CARD.mean, CARD.std))
    return network.eval()


def parameters(name: str) -> int:
    """How many numbers a backbone has."""
    with torch.device("meta"):
        network = backbones.create({"kind": name})
    return sum(value.numel() for value in network.parameters())


def exported(network: nn.Module) -> dict[str, OnnxNetwork]:
    """The network as an ONNX file, opened by each runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_graph(network, CARD, path)
        models = {runtime: open_model(path, device="cpu", runtime=runtime) for runtime in RUNTIMES}
    return {runtime: model.backbone for runtime, model in models.items()}


def exactness(network: nn.Module, given: argparse.Namespace) -> dict[str, object]:
    """How far the runtimes' embeddings of faces are from torch's."""
    faces = SyntheticFaces(num_identities=-(-given.faces // 4), images_per_identity=4)
    counts = {"onnxruntime": given.faces, "openvino": min(given.faces, 100)}
    row: dict[str, object] = {"faces": given.faces, "batch norms": "measured"}
    for runtime, other in exported(network).items():
        error, _ = compare_embedders(
            Embedder(network, CARD), Embedder(other, CARD), faces, num_faces=counts[runtime]
        )
        row[f"1 - cosine, {runtime}"] = f"{1 - error.cosine:.1e}"
        row[f"norm error, {runtime}"] = f"{error.norm_error:.1e}"
    return row


def speed(network: nn.Module, given: argparse.Namespace) -> dict[str, object]:
    """How many times as fast as eager torch the other ways are."""
    images = torch.rand(BATCH, 3, 112, 112) * 2 - 1
    layout = torch.channels_last
    last = deepcopy(network).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    ways: dict[str, Callable[[], object]] = {
        "eager": lambda: network(images),
        "channels_last": lambda: last(images.to(memory_format=layout)),
        **{way: lambda other=other: other(images) for way, other in exported(network).items()},
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        for repetition in range(given.repetitions + 1):
            for way, run in ways.items():
                start = time.perf_counter()
                run()
                if repetition:  # the first is warm-up
                    seconds[way].append(time.perf_counter() - start)
    median = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        "eager ms an image": round(1000 * median["eager"] / BATCH, 2),
        **{way: round(median["eager"] / median[way], 2) for way in list(ways)[1:]},
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
    }


MEASURES = {"exactness": exactness, "speed": speed}


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
