"""Shards: packed, streamed, resumed, damaged."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
import webdataset

from margrave.data import (
    ArrayImages,
    EpochSampler,
    ImageFolder,
    ImageSubset,
    ShardImages,
    TrainingImages,
    WindowSampler,
    damaged_shards,
    detect_source,
    pack_shards,
    training_loader,
)
from margrave.data.shards import SAMPLE_DTYPE
from margrave.synthetic import SyntheticFaces

FACES = SyntheticFaces(num_identities=10, images_per_identity=10, image_size=32)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "faces"
    assert pack_shards(FACES, folder, 32, images_per_shard=30) == {}
    return folder


def copied(packed: Path, folder: Path) -> Path:
    for name, content in contents(packed).items():
        (folder / name).write_bytes(content)
    return folder


def test_what_is_packed_is_read_back(packed: Path) -> None:
    assert detect_source(packed) == {"kind": "shards", "root": str(packed)}
    assert sorted(contents(packed)) == [
        "samples.bin", *(f"shard-{n:06d}.tar" for n in range(4)), "shards.json",
    ]  # fmt: skip
    images = ShardImages(packed, piece_images=8)
    assert len(images) == 100 and list(images.class_names) == list(FACES.class_names)
    order = np.random.default_rng([0, 0]).permutation(100)
    assert images.labels.tolist() == FACES.labels[order].tolist()
    for index in (0, 29, 30, 99):
        mean = np.abs(images.read(index).astype(int) - FACES.read(order[index])).mean()
        assert mean < 6  # JPEG
    assert images.pieces.tolist() == [*range(0, 30, 8), *range(30, 60, 8), *range(60, 90, 8),
                                      90, 98, 100]  # fmt: skip
    assert "shard-000003.tar, " in images.name(99)
    assert pickle.loads(pickle.dumps(images)).read_bytes(99) == images.read_bytes(99)
    assert list(damaged_shards(packed)) == []


def test_packing_does_not_resume_with_other_pixels(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    pixels = np.zeros((4, 32, 32, 3), np.uint8)
    with pytest.raises(KeyboardInterrupt):
        pack_shards(ArrayImages(pixels, "abab"), tmp_path, 32, images_per_shard=2, progress=stop)
    with pytest.raises(ValueError, match="unfinished shards of another packing"):
        pack_shards(ArrayImages(pixels + 1, "abab"), tmp_path, 32, images_per_shard=2)
    assert not pack_shards(ArrayImages(pixels, "abab"), tmp_path, 32, images_per_shard=2)


def test_images_that_were_repaired_are_packed(tmp_path: Path) -> None:
    photos = [tmp_path / "photos" / name / "1.png" for name in ("Ann", "Bo")]
    for photo in photos:
        photo.parent.mkdir(parents=True)
        photo.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"could be read; the first one: .*1\.png"):
        pack_shards(tmp_path / "photos", tmp_path / "packed", 32)
    for photo in photos:
        cv2.imwrite(str(photo), np.zeros((32, 32, 3), np.uint8))
    assert not pack_shards(tmp_path / "photos", tmp_path / "packed", 32)
    assert len(ShardImages(tmp_path / "packed")) == 2


def test_the_same_bytes_again_and_after_an_interruption(packed: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 75:
            raise Stop

    with pytest.raises(Stop):
        pack_shards(FACES, tmp_path, 32, images_per_shard=30, progress=stop)
    assert (tmp_path / "shard-000001.tar").is_file() and not (tmp_path / "shards.json").exists()
    with pytest.raises(ValueError, match="only partly packed; run the same margrave pack"):
        ShardImages(tmp_path)
    with pytest.raises(ValueError, match="unfinished shards of another packing"):
        pack_shards(FACES, tmp_path, 32, images_per_shard=31)
    before = (tmp_path / "shard-000000.tar").stat().st_mtime_ns
    reads = []
    pack_shards(FACES, tmp_path, 32, images_per_shard=30, workers=1,
                progress=lambda done, total: reads.append(done))  # fmt: skip
    assert (tmp_path / "shard-000000.tar").stat().st_mtime_ns == before
    assert reads[0] == 30 and reads[-1] == 100
    assert contents(tmp_path) == contents(packed)
    with pytest.raises(ValueError, match="already contains shards"):
        pack_shards(FACES, tmp_path, 32, images_per_shard=30)


def test_many_threads_read_one_set(packed: Path) -> None:
    expected = [ShardImages(packed).read_bytes(index) for index in range(100)]
    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ShardImages(packed).read_bytes, range(100))) == expected


def test_files_are_packed_as_they_are_and_unreadable_ones_named(tmp_path: Path) -> None:
    import cv2

    for label in range(3):
        (tmp_path / "photos" / f"p{label}").mkdir(parents=True)
        for number in range(4):
            path = tmp_path / "photos" / f"p{label}" / f"{number}.png"
            cv2.imwrite(str(path), FACES.read(10 * label + number))
    (tmp_path / "photos" / "p1" / "2.png").write_bytes(b"nothing")
    source = ImageFolder(tmp_path / "photos")
    faults = pack_shards(source, tmp_path / "out", 32, seed=None, images_per_shard=5)
    assert len(faults) == 1 and "p1/2.png is not an image" in next(iter(faults.values()))
    images = ShardImages(tmp_path / "out")
    assert images.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    readable = [n for n in range(12) if n != 6]
    assert [images.read_bytes(n) for n in range(11)] == [source.read_bytes(n) for n in readable]
    few = ShardImages(tmp_path / "out", minimum_images=4)
    assert few.left_out == {"p1": 3} and list(few.class_names) == ["p0", "p2"]
    assert few.labels.tolist() == [0] * 4 + [1] * 4
    assert few.read_bytes(4) == source.read_bytes(8)


def test_webdataset_reads_ours(packed: Path) -> None:
    shards = sorted(str(path) for path in packed.glob("*.tar"))
    theirs = list(webdataset.WebDataset(shards, shardshuffle=False))
    ours = ShardImages(packed)
    assert [sample["jpg"] for sample in theirs] == [ours.read_bytes(n) for n in range(100)]
    assert [int(sample["cls"]) for sample in theirs] == ours.labels.tolist()


def test_theirs_are_read_without_an_index(packed: Path, tmp_path: Path) -> None:
    ours = ShardImages(packed)
    for shard, label in enumerate(("cls", "json")):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as writer:
            for number in range(6):
                content = number % 3 if label == "cls" else {"label": number % 3, "more": [1]}
                key = f"{'folder/' * 40}{number}"  # longer than a header holds
                writer.write({"__key__": key, "jpg": ours.read_bytes(number), label: content})
    images = ShardImages(tmp_path)
    assert images.labels.tolist() == [0, 1, 2] * 4 and list(images.class_names) == ["0", "1", "2"]
    assert [images.read_bytes(n) for n in range(6)] == [ours.read_bytes(n) for n in range(6)]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_kind_of_tar(kind: int, packed: Path, tmp_path: Path) -> None:
    image = ShardImages(packed).read_bytes(0)
    with tarfile.open(tmp_path / "one.tar", "w", format=kind) as tar:
        tar.addfile(tarfile.TarInfo("folder"))
        for number in range(4):
            for extension, data in (("jpg", image), ("cls", b"%d" % (number % 2))):
                info = tarfile.TarInfo(f"{'ü' if kind else 'u'}{'ab/' * 30}{number}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert ShardImages(tmp_path).read_bytes(3) == image


@pytest.mark.parametrize(("extension", "label"), [("CLS", b"%d"), ("Json", b'{"label": %d}')])
def test_extensions_may_be_capitals(
    extension: str, label: bytes, packed: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for number in range(2):
            for name, data in (
                (f"{number}.JPG", ShardImages(packed).read_bytes(0)),
                (f"{number}.{extension}", label % number),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert ShardImages(tmp_path).labels.tolist() == [0, 1]


class Ranges(SimpleHTTPRequestHandler):
    """A file server that serves ranges, and fails on request."""

    failures = 0
    failure_status = 503
    ignores_ranges = False
    asked: list[tuple[str, str | None]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        path, span = Path(self.translate_path(self.path)), self.headers.get("Range")
        Ranges.asked.append((path.name, span))
        if Ranges.failures:
            Ranges.failures -= 1
            self.send_error(Ranges.failure_status)
            return
        if not path.is_file():
            self.send_error(404)
            return
        content, status = path.read_bytes(), 200
        if span and not Ranges.ignores_ranges:
            first, last = span.removeprefix("bytes=").split("-")
            content, status = content[int(first) : int(last) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(packed: Path) -> Iterator[str]:
    Ranges.failures, Ranges.failure_status, Ranges.ignores_ranges = 0, 503, False
    Ranges.asked.clear()

    def handler(*args: Any) -> Ranges:
        return Ranges(*args, directory=str(packed))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_streamed_over_http(packed: Path, server: str) -> None:
    there, here = ShardImages(server, piece_images=8), ShardImages(packed, piece_images=8)
    assert there.labels.tolist() == here.labels.tolist()
    assert there.read_bytes(37) == here.read_bytes(37)
    batches = []
    for images, workers in ((here, 0), (there, 0), (there, 2)):
        sampler = WindowSampler(images.pieces, images.window, 10, 0, workers=2)
        batches.append(list(training_loader(TrainingImages(images, 32), sampler, workers)))
    for first, second, third in zip(*batches, strict=True):
        assert first.indices.tolist() == second.indices.tolist() == third.indices.tolist()
        assert first.images.equal(second.images) and first.images.equal(third.images)
    # Once for the index, one for image 37; then each piece once, and the seams twice.
    spans = [asked for asked in Ranges.asked if asked[0].endswith(".tar")]
    pieces = len(here.pieces) - 1
    assert len(set(spans)) <= pieces + 1 and len(spans) <= 1 + pieces + (pieces + 2)


def test_a_part_of_streamed_shards_is_fetched_in_pieces(server: str) -> None:
    there = ShardImages(server, piece_images=8, window_pieces=2)
    part = ImageSubset(there, np.flatnonzero(there.labels % 2))
    assert part.pieces is not None and part.pieces[-1] == len(part)
    Ranges.asked.clear()
    sampler = WindowSampler(part.pieces, part.window, 4, 0, workers=1)
    batches = list(training_loader(TrainingImages(part, 32), sampler, 0))
    assert sum(len(batch.indices) for batch in batches) > len(part) - 4
    assert len(Ranges.asked) < len(there.pieces) + 3 < len(part)


def test_a_server_that_denies_access_is_not_asked_again(server: str) -> None:
    images = ShardImages(server)
    asked = len(Ranges.asked)
    Ranges.failures, Ranges.failure_status = 100, 403
    with pytest.raises(ValueError, match=r"denies access .*403.*check the address and your cred"):
        images.read_bytes(50)
    assert len(Ranges.asked) == asked + 1
    with pytest.raises(ValueError, match="denies access"):
        ShardImages(server)


def test_a_server_that_fails_is_asked_again(
    server: str, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    Ranges.failures = 2
    images = ShardImages(server)
    Ranges.failures = 2
    assert images.read_bytes(5) == ShardImages(packed).read_bytes(5)
    Ranges.failures = 100
    with pytest.raises(ConnectionError, match=r"does not respond after 4 attempts .*--resume"):
        images.read_bytes(50)
    Ranges.failures, Ranges.ignores_ranges = 0, True
    with pytest.raises(ValueError, match="or the server does not support ranges"):
        images.read_bytes(50)
    with pytest.raises(ValueError, match="does not exist; give the URL of a folder"):
        ShardImages(server + "/elsewhere")
    with pytest.raises(ValueError, match="nosuch://bucket/shards"):
        ShardImages("nosuch://bucket")


def test_from_object_storage(packed: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name, content in contents(packed).items():
        memory.pipe_file(f"/bucket/{name}", content)
    images = ShardImages("memory://bucket")
    assert images.read_bytes(64) == ShardImages(packed).read_bytes(64)


def deliver(shards: Path, out: Path, layout: tuple[int, int], start: int, state: Any) -> list[Any]:
    """Start a reading process for each rank."""
    command = [sys.executable, str(Path(__file__).with_name("deliver.py")), str(shards)]
    return [
        subprocess.Popen(
            [*command, *map(str, (rank, *layout, start)), json.dumps(state), str(out / f"{rank}")]
        )
        for rank in range(layout[0])
    ]


def lines(out: Path, rank: int) -> list[list[int]]:
    path = out / f"{rank}"
    # What a killed process wrote last may be half a line.
    return [json.loads(line) for line in path.read_text().splitlines(True) if line[-1] == "\n"] \
        if path.exists() else []  # fmt: skip


def test_three_ranks_with_two_workers_each_get_everything_once(
    packed: Path, tmp_path: Path
) -> None:
    for name in ("whole", "killed", "resumed"):
        (tmp_path / name).mkdir()
    full = deliver(packed, tmp_path / "whole", (3, 2), 0, {})
    killed = deliver(packed, tmp_path / "killed", (3, 2), 0, {})
    while any(len(lines(tmp_path / "killed", rank)) < 4 for rank in range(3)):
        assert all(process.poll() is None for process in killed)
        time.sleep(0.05)
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.wait()
    # Where the checkpoint stands that all ranks wrote together.
    done = min(len(lines(tmp_path / "killed", rank)) for rank in range(3))
    assert 4 <= done < 9
    before = [lines(tmp_path / "killed", rank)[:done] for rank in range(3)]
    resumed = deliver(packed, tmp_path / "resumed", (2, 1), done, {"segments": [[3, 2, done]]})
    for process in (*resumed, *full):
        assert process.wait(300) == 0
    after = [lines(tmp_path / "resumed", rank) for rank in range(2)]
    delivered = [index for rank in before + after for batch in rank for index in batch]
    assert sorted(delivered) == list(range(100))
    alone = [lines(tmp_path / "whole", rank) for rank in range(3)]
    assert sorted(index for rank in alone for batch in rank for index in batch) == [*range(100)]
    assert [rank[:done] for rank in alone] == before


def spoilt(packed: Path, folder: Path, name: str, place: int) -> Path:
    copied(packed, folder)
    content = bytearray((folder / name).read_bytes())
    content[place] ^= 1
    (folder / name).write_bytes(content)
    return folder


def test_a_flipped_bit_is_noticed(packed: Path, tmp_path: Path) -> None:
    images = ShardImages(spoilt(packed, tmp_path, "shard-000001.tar", 600))
    with pytest.raises(ValueError, match=r"shard-000001.tar, .* differs from the packed image"):
        for index in range(len(images)):
            images.read(index)
    assert [fault.split("/")[-1] for fault in damaged_shards(tmp_path)] == [
        "shard-000001.tar differs from the packed file (SHA-256)"
    ]
    (tmp_path / "shard-000002.tar").write_bytes(b"")
    (tmp_path / "shard-000003.tar").unlink()
    faults = list(damaged_shards(tmp_path))
    assert "has 0 bytes instead of" in faults[1] and "is missing" in faults[2]
    with pytest.raises(ValueError, match=r"shard-000003.tar cannot be read"):
        ShardImages(tmp_path).read(99)


def test_a_wrong_index_is_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"samples.bin does not match shards.json"):
        ShardImages(spoilt(packed, tmp_path, "samples.bin", 5))
    index = json.loads((packed / "shards.json").read_text())

    def refused(changes: dict[str, Any], rows: np.ndarray | None, message: str) -> None:
        changed = json.loads(json.dumps(index)) | changes
        if rows is not None:
            (tmp_path / "samples.bin").write_bytes(rows.tobytes())
            changed["samples_sha256"] = hashlib.sha256(rows.tobytes()).hexdigest()
        (tmp_path / "shards.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            ShardImages(tmp_path)

    rows = np.frombuffer((packed / "samples.bin").read_bytes(), SAMPLE_DTYPE)
    outside, unknown, over = rows.copy(), rows.copy(), rows.copy()
    outside["offset"][3] = 2**63
    unknown["label"][3] = 10
    over["offset"][3] = 0
    for wrong in (outside, unknown, over):
        refused({}, wrong, r"samples.bin: image 3 lies outside")
    refused({}, rows[:-1], "for 100 images")
    for name in ("../shard-000000.tar", "/etc/passwd", "..", "a\\b.tar"):
        refused({"shards": [index["shards"][0] | {"name": name}]}, rows, r"shards\.0\.name")
    refused({"shards": [index["shards"][0] | {"samples": "30"}]}, rows, r"shards\.0\.samples")
    refused({"version": 2}, rows, "version")
    (tmp_path / "shards.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not an index written by margrave pack"):
        ShardImages(tmp_path)


def test_mistakes(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"contains neither shards.json nor"):
        ShardImages(tmp_path)
    with pytest.raises(ValueError, match="piece_images = 0"):
        ShardImages(packed, piece_images=0)
    with pytest.raises(ValueError, match="identities with at least 11 images"):
        ShardImages(packed, minimum_images=11)
    with pytest.raises(ValueError, match="images_per_shard = 0"):
        pack_shards(FACES, tmp_path, images_per_shard=0)
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(ValueError, match=r"a.jpg has no label; add a.cls next to it"):
        ShardImages(tmp_path)
    (tmp_path / "one.tar").write_bytes((tmp_path / "one.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match="byte 512: the archive has no end mark"):
        ShardImages(tmp_path)


def test_the_order_of_folders_stays_free(packed: Path) -> None:
    # Any sampler may read shards on disk.
    sampler = EpochSampler(100, 10, 0)
    batches = list(training_loader(TrainingImages(ShardImages(packed), 32), sampler))
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == [*range(100)]


@pytest.mark.parametrize(
    "root",
    [
        "reference://::file://{folder}",
        "simplecache::file://{folder}",
        "file://{folder}::reference://",
        "zip://shards.json::file://{folder}",
        "github://owner:name@main/folder",
        "dir://{folder}",
    ],
)
def test_addresses_that_interpret_files_are_refused(root: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has an unsupported protocol; supported are"):
        ShardImages(root.format(folder=tmp_path))
