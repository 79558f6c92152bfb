"""Pack images of any source into WebDataset shards."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from margrave.data.decode import Fit
from margrave.data.packing import QUALITY, packed_bytes, prepare_in_order
from margrave.data.shards import INDEX, PLAN, SAMPLE_DTYPE, SAMPLES, ShardEntry, ShardIndex
from margrave.data.sources import ImageSource, open_source
from margrave.files import atomic_write, read_json
from margrave.images import FaceImages
from margrave.progress import Progress

IMAGES_PER_SHARD = 16384


def pack_shards(
    images: ImageSource,
    folder: str | Path,
    size: int = 112,
    *,
    fit: Fit = "crop",
    quality: int = QUALITY,
    workers: int = 4,
    seed: int | None = 0,
    images_per_shard: int = IMAGES_PER_SHARD,
    progress: Progress = lambda done, total: None,
) -> dict[str, str]:
    """Write images as shards with an index; the same images and settings produce the same bytes.

    To resume an interrupted packing, repeat the call: complete shards are not written again.

    Args:
        images: labeled images.
        folder: the folder to write, created if necessary; the index is written last.
        size: side in pixels; JPEG and PNG files of this size are packed unchanged.
        fit: how to fit images of other sizes.
        quality: JPEG quality of re-encoded images.
        workers: number of threads.
        seed: seeds the shuffle of the images. None keeps their order; training then shuffles only
            pieces, and images within windows (see `ShardImages`).
        images_per_shard: number of images per shard, at least 1.
        progress: called with (images done, total images).

    Returns:
        Unreadable images: name -> reason.

    Raises:
        ValueError: the folder contains complete shards, or unfinished ones of another packing; an
            identity's name is unprintable; or none of the images can be read.
    """
    if images_per_shard < 1:
        raise ValueError(f"images_per_shard = {images_per_shard} must be at least 1")
    images = open_source(images, labeled=True)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _prepare_plan(folder, images, [size, fit, quality, seed, images_per_shard])
    order = np.arange(len(images))
    if seed is not None:
        order = np.random.default_rng([seed, 0]).permutation(order)
    prepare = partial(packed_bytes, images, size=size, fit=fit, quality=quality)
    result_paths = []
    for number, start in enumerate(range(0, len(order), images_per_shard)):
        indices = order[start : start + images_per_shard].tolist()
        # This file marks the shard as complete, until `_write_index` collects and removes it.
        result_path = folder / f".shard-{number:06d}.json"
        if not result_path.is_file():
            contents = prepare_in_order(prepare, indices, workers)
            path = folder / f"shard-{number:06d}.tar"
            contents = _with_progress(contents, progress, start, len(order))
            result = _write_shard(path, images, contents, start)
            with atomic_write(result_path) as unfinished:
                unfinished.write_text(json.dumps(result), encoding="utf-8")
        progress(start + len(indices), len(order))
        result_paths.append(result_path)
    return _write_index(folder, result_paths, list(images.class_names))


def _write_shard(
    path: Path, images: FaceImages, contents: Iterable[tuple[int, bytes | ValueError]], start: int
) -> dict[str, object]:
    """Write one tar file atomically.

    Args:
        path: the tar file.
        images: the images, for their names and labels.
        contents: (index, encoded image or error) of each image.
        start: key of the first sample; the following samples have consecutive keys.

    Returns:
        A dict: "entry" is the shard's entry in the index, "rows" lists each sample's offset, size,
        label and CRC-32, and "unreadable" maps the name of an unreadable image to the reason.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    rows: list[tuple[int, int, int, int]] = []
    unreadable: dict[str, str] = {}
    with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, content in contents:
            if isinstance(content, ValueError):
                unreadable[images.name(index)] = str(content)
                continue
            key, label = f"{start + len(rows):09d}", int(images.labels[index])
            # The image follows its tar header, which is one block.
            offset = tar.offset + tarfile.BLOCKSIZE
            rows.append((offset, len(content), label, zlib.crc32(content)))
            extension = "png" if content[:2] == b"\x89P" else "jpg"
            for name, data in ((f"{key}.{extension}", content), (f"{key}.cls", b"%d" % label)):
                # Do not set owner and time, so that the same images produce the same bytes.
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with unfinished.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    file_bytes = unfinished.stat().st_size
    os.replace(unfinished, path)
    entry = {"name": path.name, "samples": len(rows), "bytes": file_bytes, "sha256": digest}
    return {"entry": entry, "rows": rows, "unreadable": unreadable}


def _with_progress(
    contents: Iterable[tuple[int, bytes | ValueError]], progress: Progress, start: int, total: int
) -> Iterator[tuple[int, bytes | ValueError]]:
    """The same items; reports progress, where `start` is the number of images in earlier shards."""
    for done, item in enumerate(contents, start + 1):
        yield item
        progress(done, total)


def _prepare_plan(folder: Path, images: FaceImages, settings: list[object]) -> None:
    """Write the plan, or check that the folder's unfinished packing has the same plan.

    The plan identifies a packing by its settings and a digest of the images.

    Raises:
        ValueError: the folder contains shards of another packing, or an identity is unprintable.
    """
    for identity in images.class_names:
        if not identity.isprintable():
            raise ValueError(f"identity {identity!r} contains unprintable characters; rename it")
    digest = hashlib.sha256()
    for index in range(len(images)):
        digest.update(os.fsencode(images.name(index)) + b"\0")
    digest.update(np.asarray(images.labels, "<i8").tobytes())
    if images.content_digest is not None:
        digest.update(images.content_digest.encode())
    plan = json.dumps({"settings": settings, "images": digest.hexdigest()}).encode()
    path = folder / PLAN
    if path.is_file():
        if path.read_bytes() != plan:
            raise ValueError(
                f"{folder} contains unfinished shards of another packing; empty it or "
                "choose another folder"
            )
    elif (folder / INDEX).exists() or any(folder.glob("*.tar")):
        raise ValueError(f"{folder} already contains shards; choose another folder")
    else:
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(plan)


def _write_index(folder: Path, result_paths: list[Path], identities: list[str]) -> dict[str, str]:
    """Write the index once all shards are complete, and remove the plan and the result files.

    Returns:
        Unreadable images: name -> reason.

    Raises:
        ValueError: no image could be read.
    """
    unreadable: dict[str, str] = {}
    entries, rows = [], []
    for path in result_paths:
        result = read_json(path.read_bytes(), str(path))
        unreadable |= result["unreadable"]
        if result["rows"]:
            entries.append(ShardEntry(**result["entry"]))
            rows.append(np.array([tuple(row) for row in result["rows"]], SAMPLE_DTYPE))
        else:  # none of the shard's images could be read
            (folder / result["entry"]["name"]).unlink(missing_ok=True)
    if not rows:
        # Another call then tries to read the images again.
        for path in (*result_paths, folder / PLAN):
            path.unlink()
        first_reason = next(iter(unreadable.values()), "there are no images")
        raise ValueError(f"none of the images could be read; the first one: {first_reason}")
    samples = np.concatenate(rows).tobytes()
    with atomic_write(folder / SAMPLES) as unfinished:
        unfinished.write_bytes(samples)
    index = ShardIndex(
        version=1,
        identities=identities,
        samples_sha256=hashlib.sha256(samples).hexdigest(),
        shards=entries,
    )
    with atomic_write(folder / INDEX) as unfinished:
        unfinished.write_text(index.model_dump_json(indent=1), encoding="utf-8")
    for path in (*result_paths, folder / PLAN):
        path.unlink()
    return unreadable


def damaged_shards(
    folder: str | Path, progress: Progress = lambda done, total: None
) -> Iterator[str]:
    """Compare the shards on disk with the index; yields a message about each damaged shard.

    Args:
        folder: a folder of shards with an index.
        progress: called with (shards done, total shards).
    """
    folder = Path(folder)
    index = ShardIndex.model_validate_json((folder / INDEX).read_bytes())
    for number, entry in enumerate(index.shards, 1):
        path = folder / entry.name
        if not path.is_file():
            yield f"{path} is missing"
        elif path.stat().st_size != entry.bytes:
            yield f"{path} has {path.stat().st_size} bytes instead of {entry.bytes}"
        else:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    yield f"{path} differs from the packed file (SHA-256)"
        progress(number, len(index.shards))
