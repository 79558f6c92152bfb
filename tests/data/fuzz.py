"""Reads mutated files; run in a process of its own, whose memory is limited.

python tests/data/fuzz.py 10000
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import resource
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch

from margrave import backbones
from margrave.cli.tables import results_tables
from margrave.config import read_config, to_yaml
from margrave.data import RecordImages, ShardImages, decode_image, pack_shards, read_pairs_bin
from margrave.distributed import World
from margrave.distributed.tensor_store import load_tensors, save_tensors, stored_tensors
from margrave.evaluation import Figure, PairScores, Result, read_results, write_results
from margrave.inference import Embedder, FeatureStore, embed_to_store, store_files
from margrave.inference.store_files import HEADER
from margrave.models import ModelCard, load_model, read_checkpoint, save_model
from margrave.runs import RunFolder
from margrave.synthetic import SyntheticFaces

GOLDEN = Path(__file__).parents[1] / "golden" / "recordio"
EXTRA_BYTES = 512 * 2**20


def mutate(content: bytes, generator: np.random.Generator) -> bytes:
    """Some bytes changed, cut out, doubled, or the end lost."""
    changed = bytearray(content)
    for _ in range(int(generator.integers(1, 5))):
        place = int(generator.integers(max(len(changed), 1)))
        length = int(generator.integers(1, 17))
        how = generator.integers(6)
        if how == 0:
            changed[place : place + 1] = generator.bytes(1)
        elif how == 1:
            changed[place : place + length] = generator.bytes(length)
        elif how == 2:
            del changed[place : place + length]
        elif how == 3:
            changed[place:place] = changed[place : place + length]
        elif how == 4:
            # Lengths and counts are what this finds.
            changed[place : place + 4] = bytes([255, 255, 255, int(generator.integers(256))])
        else:
            del changed[place:]
    return bytes(changed)


def read_records(folder: Path) -> None:
    images = RecordImages(folder)
    for index in range(0, len(images), 7):
        images.read(index)


def read_set(folder: Path) -> None:
    pairs, images = read_pairs_bin(folder / "set.bin")
    for index in range(0, 2 * len(pairs), 9):
        images.read(index)


def read_shards(folder: Path) -> None:
    images = ShardImages(folder)
    for index in range(0, len(images), 7):
        images.read(index)


def read_image(folder: Path) -> None:
    decode_image((folder / "one.jpg").read_bytes(), "one.jpg")


def read_weights(folder: Path) -> None:
    for path in folder.iterdir():
        read_checkpoint(path)


def read_model(folder: Path) -> None:
    load_model(folder / "model.safetensors")


def read_tensors(folder: Path) -> None:
    stored_tensors(folder)
    load_tensors(folder, {"weight": torch.zeros(4, 3), "count": torch.tensor(0)}, {}, World())


def read_settings(folder: Path) -> None:
    RunFolder(folder).read_config()


def read_figures(folder: Path) -> None:
    for result in read_results(folder / "results.json"):
        list(results_tables([result]))


def figures() -> list[bytes]:
    """Files of results: today's, and one of version 0.1."""
    old = Path(__file__).parents[1] / "fixtures" / "version_0_1" / "results"
    scores = PairScores(distances=(0.5, 1.5), same=(True, False), folds=2)
    figure = Figure(metric="TAR", value=0.5, at={"FAR": 0.1}, interval=(0.1, 0.9), threshold=0.3)
    result = Result(protocol="pairs", figures=(figure,), counts={"pairs": 2}, scores=scores)
    with tempfile.TemporaryDirectory() as folder:
        write_results(Path(folder) / "results.json", [result])
        today = (Path(folder) / "results.json").read_bytes()
    return [today, *(path.read_bytes() for path in sorted(old.glob("*.json")))]


def read_picture(folder: Path) -> None:
    decode_image((folder / "one.png").read_bytes(), "one.png")


def weights() -> dict[str, bytes]:
    """Checkpoints of both of PyTorch's formats, and a model of our own."""
    state = {"state_dict": {"conv.weight": torch.arange(24.0).reshape(2, 3, 4)}, "epoch": 3}
    files: dict[str, bytes] = {}
    for name, new in (("new.pth", True), ("old.pth", False)):
        content = io.BytesIO()
        torch.save(state, content, _use_new_zipfile_serialization=new)
        files[name] = content.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(path, {"weight": torch.ones(3)}, ModelCard(backbone={"kind": "iresnet18"}))
        files[path.name] = path.read_bytes()
    return files


def tensors() -> dict[str, bytes]:
    """A training's checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        content = {"weight": torch.ones(4, 3), "count": torch.tensor(5)}
        save_tensors(Path(folder), content, {}, World())
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def tars(image: bytes) -> list[bytes]:
    """Archives of every kind, with names too long for a header."""
    archives = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
            for number in range(8):
                for extension, data in (("jpg", image), ("cls", b"%d" % (number % 2))):
                    info = tarfile.TarInfo(f"{'folder/' * (18 if kind else 9)}{number}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        archives.append(file.getvalue())
    return archives


def read_store(folder: Path) -> None:
    # With the right checksum, as an attacker would write it.
    header = folder / HEADER
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        description = json.loads(header.read_bytes())
        description.pop("checksum", None)
        checksum = store_files.checksum(description)
        header.write_text(json.dumps({**description, "checksum": checksum}))
    for verify in (True, False):
        store = FeatureStore(folder, verify=verify)
        assert store.rows[:3].shape == (min(3, len(store)), store.embeddings.shape[1])
        assert len(store.names) == len(store.labels) == len(store)
        store.check_readable(np.arange(len(store)))


@cache
def features() -> dict[str, bytes]:
    """A folder of features."""
    backbone = {
        "kind": "iresnet", "block_counts": [1, 1, 1, 1], "channels": [8, 8, 8, 8],
        "embedding_size": 8, "image_size": 32,
    }  # fmt: skip
    card = ModelCard(backbone=backbone, image_size=32)
    embedder = Embedder(backbones.create(backbone).eval(), card)
    faces = SyntheticFaces(num_identities=2, images_per_identity=3, image_size=32)
    with tempfile.TemporaryDirectory() as folder:
        embed_to_store(embedder, faces, folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@cache
def packed(images: RecordImages) -> dict[str, bytes]:
    """A folder of shards with its index."""
    with tempfile.TemporaryDirectory() as folder:
        pack_shards(images, folder, 112)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def main(count: int) -> None:
    """Mutate and read; anything but success or a ValueError ends the process."""
    golden = RecordImages(GOLDEN)
    small = ([golden.read_bytes(n) for n in range(20)], [True, False] * 5)
    records = {name: (GOLDEN / name).read_bytes() for name in ("train.rec", "train.idx")}
    alone = {"train.rec": records["train.rec"]}
    sets = [pickle.dumps(small, protocol=protocol) for protocol in (0, 2, 4, 5)]
    sets.append((GOLDEN / "pairs_numpy_bytes.bin").read_bytes())
    png = cv2.imencode(".png", decode_image(golden.read_bytes(5), "one"))[1].tobytes()
    saved, checkpoint = weights(), tensors()
    targets: list[tuple[str, Callable[[Path], None], dict[str, bytes]]] = [
        ("train.rec", read_records, records),
        ("train.rec", read_records, alone),
        ("train.idx", read_records, records),
        *(("set.bin", read_set, {"set.bin": content}) for content in sets),
        *(("one.tar", read_shards, {"one.tar": content}) for content in tars(golden.read_bytes(5))),
        ("shards.json", read_shards, packed(golden)),
        ("samples.bin", read_shards, packed(golden)),
        ("shard-000000.tar", read_shards, packed(golden)),
        *((name, read_store, features()) for name in features()),
        ("one.jpg", read_image, {"one.jpg": golden.read_bytes(5)}),
        ("one.png", read_picture, {"one.png": png}),
        *((name, read_weights, {name: saved[name]}) for name in ("new.pth", "old.pth")),
        ("model.safetensors", read_model, {"model.safetensors": saved["model.safetensors"]}),
        *((name, read_tensors, checkpoint) for name in sorted(checkpoint)),
        *(("results.json", read_figures, {"results.json": content}) for content in figures()),
        (
            "config.yaml",
            read_settings,
            {"config.yaml": to_yaml(read_config(["demo"], {})).encode()},
        ),
    ]
    generator = np.random.default_rng(0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, used + EXTRA_BYTES))
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(count):
            target, read, files = targets[number % len(targets)]
            for path in folder.iterdir():
                path.unlink()
            for file, content in files.items():
                (folder / file).write_bytes(content)
            # Most damage to a pickle or a record is in its structure, not in its pictures.
            (folder / target).write_bytes(mutate(files[target], generator))
            try:
                read(folder)
                outcomes[f"{target} read"] += 1
            except ValueError:
                outcomes[f"{target} refused"] += 1
    print(dict(outcomes))


if __name__ == "__main__":
    main(int(sys.argv[1]))
