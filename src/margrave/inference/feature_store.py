"""The feature store: a folder of embeddings, computed once and read by every protocol.

    features.json    header: model, preprocessing, images, N (``count``), D (``width``), checksum
    embeddings.npy   (N, D) float32, raw embeddings
    flipped.npy      (N, D) float32, raw embeddings of the flipped images (optional)
    norms.npy        (N,) float32, norms of the raw embeddings
    labels.npy       (N,) int64, identity indices; −1 if unknown
    names.npy        (N,) bytes, each image's path
    blocks.jsonl     one line per block of rows: the block's checksum and unreadable images

The arrays are plain NumPy files that have their full size from the start. A block of rows is valid
once its line in ``blocks.jsonl`` is written, so an interrupted run resumes at the first block
without a line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from margrave.data import ImageSource, open_source
from margrave.files import atomic_write, read_rows
from margrave.inference.embedder import Embedder
from margrave.inference.features import (
    Features,
    card_of_features,
    check_finite,
    check_unreadable,
    describe,
    digest_of,
    digest_of_description,
)
from margrave.inference.store_files import (
    FORMAT_VERSION,
    HEADER,
    REMEDY,
    flush,
    open_array,
    read_blocks,
    read_header,
    write_header,
)
from margrave.models import read_card
from margrave.progress import Progress

IMAGES_PER_BLOCK = 512
"""An interruption loses the embeddings of at most one block."""


class FeatureStore(Features):
    """Features in a folder that ``embed_to_store`` wrote; the arrays are memory-mapped.

    Args:
        folder: the store's folder.
        verify: compare every block with its checksum; this reads all files once.
        progress: called with (blocks verified, total blocks).

    Attributes:
        folder: the store's folder.
        norms: (N,) float32 norms of the raw embeddings.
        description: the content of ``features.json``.

    Raises:
        ValueError: the folder is not a store, the store is incomplete, a file's size is wrong, or
            a block's checksum differs.
    """

    def __init__(
        self, folder: str | Path, verify: bool = True, progress: Progress | None = None
    ) -> None:
        self.folder = Path(folder)
        description = read_header(self.folder)
        blocks = read_blocks(self.folder)
        count, width = description["count"], description["width"]
        done = blocks[-1]["stop"] if blocks else 0
        if done > count:
            raise ValueError(
                f"{folder}: blocks.jsonl lists {done} images, but {HEADER} declares {count}; "
                f"{REMEDY}"
            )
        if done < count:
            raise ValueError(
                f"{folder} contains features of {done} of {count} images, because embedding was "
                "interrupted; to continue, run the same margrave embed command again, or "
                "embed_to_store in Python"
            )
        card = read_card(json.dumps(description["card"]), self.folder / HEADER)
        embeddings = open_array(self.folder, "embeddings", (count, width), np.float32)
        flipped = None
        if description["flips"]:
            flipped = open_array(self.folder, "flipped", (count, width), np.float32)
        self.norms = open_array(self.folder, "norms", (count,), np.float32)
        super().__init__(
            embeddings,
            open_array(self.folder, "names", (count,), None),
            description,
            card,
            flipped=flipped,
            labels=np.array(open_array(self.folder, "labels", (count,), np.int64)),
            unreadable={
                int(row): reason for block in blocks for row, reason in block["unreadable"].items()
            },
            display_name=str(self.folder),
            checksums=[block["digest"] for block in blocks],
            digest=digest_of_description(description, blocks),
        )
        if verify:
            self._verify(blocks, progress)

    def _verify(self, blocks: Sequence[dict[str, Any]], progress: Progress | None) -> None:
        arrays = [
            array for array in (self.embeddings, self.flipped, self.norms) if array is not None
        ]
        if digest_of(self._names, self.labels) != self.description["images"]["digest"]:
            raise ValueError(
                f"{self.folder}: the checksum of names.npy and labels.npy differs; {REMEDY}"
            )
        for number, block in enumerate(blocks):
            start, stop = block["start"], block["stop"]
            rows = (read_rows(array, start, stop) for array in arrays)
            if digest_of(*rows) != block["digest"]:
                raise ValueError(
                    f"{self.folder}: the checksum of rows {start} to {stop - 1} differs "
                    f"(embeddings.npy, flipped.npy or norms.npy is damaged); {REMEDY}"
                )
            if progress is not None:
                progress(number + 1, len(blocks))


def is_feature_store(path: str | Path) -> bool:
    """Whether the path is a feature store's folder."""
    return (Path(path) / HEADER).is_file()


def embed_to_store(
    embedder: Embedder,
    images: ImageSource,
    folder: str | Path,
    *,
    model: str = "",
    source: str = "",
    flips: bool = True,
    maximum_unreadable: int = 0,
    progress: Progress | None = None,
    after_block: Callable[[int], None] | None = None,
) -> FeatureStore:
    """Embed images into a feature store; repeating an interrupted call resumes it.

    Args:
        embedder: the model.
        images: the images to embed; their labels, if known, are stored too.
        folder: the store's folder, created if necessary.
        model: the model's name in the store's header.
        source: the images' name in the store's header.
        flips: embed flipped images too.
        maximum_unreadable: maximum number of unreadable images; their rows are zero.
        progress: called with (images done, total images).
        after_block: called with the number of images done, each time a block is on disk.

    Raises:
        ValueError: there are no images, the folder contains other features or files, or too many
            images are unreadable.
    """
    folder, images = Path(folder), open_source(images)
    description, names, labels = describe(embedder, images, model, source, flips)
    description = {"format_version": FORMAT_VERSION, **description}
    count = len(images)
    done, num_unreadable = _resume_or_start(folder, description, names, labels)
    arrays = {}
    # Until the first block is done, the array files may be missing or incomplete; they are then
    # created below, by _make_arrays.
    if done:
        width = read_header(folder)["width"]
        arrays["embeddings"] = open_array(folder, "embeddings", (count, width), np.float32, "r+")
        if flips:
            arrays["flipped"] = open_array(folder, "flipped", (count, width), np.float32, "r+")
        arrays["norms"] = open_array(folder, "norms", (count,), np.float32, "r+")
    if progress is not None:
        progress(done, count)
    for start in range(done, count, IMAGES_PER_BLOCK):
        stop = min(start + IMAGES_PER_BLOCK, count)

        def report(images_done: int, _: int, start: int = start) -> None:
            if progress is not None:
                progress(start + images_done, count)

        reasons: dict[int, str] = {}
        plain, flipped = embedder.embed_images(
            images, np.arange(start, stop), flips, report, reasons
        )
        num_unreadable += len(reasons)
        note = " (the embeddings of earlier blocks are kept)"
        check_unreadable(list(reasons.values()), num_unreadable, maximum_unreadable, note)
        check_finite(plain, flipped, images, start)
        if not arrays:
            arrays = _make_arrays(folder, description, plain.shape[1])
        block_values = [plain, flipped] if flips else [plain]
        block_values.append(np.linalg.norm(plain, axis=1).astype(np.float32))
        for array, values in zip(arrays.values(), block_values, strict=True):
            array[start:stop] = values
        for name in arrays:
            flush(folder / f"{name}.npy")
        block = {
            "start": start,
            "stop": stop,
            "digest": digest_of(*block_values),
            "unreadable": {str(row): reason for row, reason in reasons.items()},
        }
        with open(folder / "blocks.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(block) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if after_block is not None:
            after_block(stop)
    # Verify the store only if an earlier run wrote blocks, which may have been damaged since then.
    return FeatureStore(folder, verify=done > 0)


def _resume_or_start(
    folder: Path, description: dict[str, Any], names: np.ndarray, labels: np.ndarray
) -> tuple[int, int]:
    """Open or create the store; returns the numbers of processed and of unreadable images."""
    if (folder / HEADER).exists():
        header = read_header(folder)
        # The names of the model and of the images' source may change between runs.
        header["images"]["source"] = description["images"]["source"]
        # Headers of earlier versions may lack this key and newer fields of the card.
        header["images"].setdefault("content_digest", None)
        header["card"] = card_of_features(read_card(json.dumps(header["card"]), folder / HEADER))
        differing = [
            f"{key} ({header.get(key)}, now {description[key]})"
            if isinstance(description[key], int | str) and key != "weights"
            else key
            for key in description
            if key != "model" and header.get(key) != description[key]
        ]
        if differing:
            raise ValueError(
                f"{folder} contains other features, which differ in {', '.join(differing)}; choose "
                "another folder, or delete this one"
            )
        blocks = read_blocks(folder, repair=True)
        return (
            blocks[-1]["stop"] if blocks else 0,
            sum(len(block["unreadable"]) for block in blocks),
        )
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} contains other files but no {HEADER}; choose an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("names", names), ("labels", labels)):
        with atomic_write(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, array)
    (folder / "blocks.jsonl").touch()
    # The width is unknown until the first block is embedded.
    write_header(folder, {**description, "width": 0})
    return 0, 0


def _make_arrays(folder: Path, description: dict[str, Any], width: int) -> dict[str, np.ndarray]:
    """Create the array files at their full size; returns name -> memory-mapped array."""
    write_header(folder, {**description, "width": width})
    count = description["count"]
    shapes = {"embeddings": (count, width), "flipped": (count, width), "norms": (count,)}
    if not description["flips"]:
        del shapes["flipped"]
    arrays = {}
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        arrays[name] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        # Reserve the disk space now: if the disk is full, writing to an unreserved part of a mapped
        # file would kill the process.
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return arrays
