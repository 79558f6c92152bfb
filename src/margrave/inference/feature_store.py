"""Features once: a folder of embeddings that every protocol reads.

    features.json    what made them: model, preprocessing, images; how many, how wide; its checksum
    embeddings.npy   (N, D) float32, raw
    flipped.npy      (N, D) float32, of the mirror images, where asked for
    norms.npy        (N,) float32, lengths of the raw embeddings
    labels.npy       (N,) int64, identities; −1 where unknown
    names.npy        (N,) bytes, where each image lies
    blocks.jsonl     a line for each block of rows: its checksum, and images that could not be read

The arrays are plain NumPy files of their full size from the beginning. A block counts once its line
is there, so an interrupted run goes on at the next block.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from margrave.checkpoints import ModelCard, read_card
from margrave.data import ReadableImages
from margrave.files import atomic_write, ordinary, read_bytes, read_json, read_rows
from margrave.inference.embedder import Embedder, Progress

FORMAT_VERSION = 1
BLOCK = 512
"""Images between two states of an interrupted run."""
READ_AT_ONCE = 2048
HEADER = "features.json"
NAMES_SHOWN = 5
LARGEST_NUMBER = 2**48
"""Of rows or columns that a file may claim; their bytes still fit 64 bits."""
_REMEDY = "delete the folder and embed again, or copy it again"


class FusedRows:
    """(N, D) sums of each image's and its mirror image's raw embedding, made as they are read."""

    def __init__(self, embeddings: np.ndarray, flipped: np.ndarray | None) -> None:
        self._sides = [side for side in (embeddings, flipped) if side is not None]
        self.shape: tuple[int, ...] = embeddings.shape

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """Some of the rows, in memory of their own."""
        start, stop, _ = part.indices(self.shape[0])
        total = read_rows(self._sides[0], start, stop)
        for side in self._sides[1:]:
            total = total + read_rows(side, start, stop)
        return total


class ChosenRows:
    """Some rows of others, in any order; they are read when they are asked for."""

    def __init__(self, rows: FusedRows | np.ndarray, chosen: np.ndarray) -> None:
        self._rows, self._chosen = rows, np.asarray(chosen)
        self.shape: tuple[int, ...] = (len(self._chosen), rows.shape[1])

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """Some of the rows."""
        wanted = self._chosen[part]
        if len(wanted) and (np.diff(wanted) == 1).all():
            return self._rows[int(wanted[0]) : int(wanted[-1]) + 1]
        found = np.empty((len(wanted), self.shape[1]), np.float32)
        # Neighbours are read together, at most a block at a time.
        order = np.argsort(wanted, kind="stable")
        for start in range(0, len(order), READ_AT_ONCE):
            places = order[start : start + READ_AT_ONCE]
            low, high = int(wanted[places[0]]), int(wanted[places[-1]])
            if high - low < 8 * READ_AT_ONCE:
                found[places] = self._rows[low : high + 1][wanted[places] - low]
            else:
                for place in places.tolist():
                    row = int(wanted[place])
                    found[place] = self._rows[row : row + 1][0]
        return found


class FeatureStore:
    """Features that ``embed_to_store`` wrote, whole and unharmed.

    Args:
        folder: of the store.
        verify: compare every block with its checksum: one reading of the files.
        progress: called with (blocks checked, blocks).

    Attributes:
        embeddings: (N, D) float32 raw, memory-mapped.
        flipped: (N, D) likewise of the mirror images, or None.
        norms: (N,) float32.
        labels: (N,) int64; −1 where the identity is not known.
        identities: the names that labels number.
        card: of the model.
        description: everything in ``features.json``.
        unreadable: images that could not be embedded, by row, and why; their rows are zero.
        digest: of the description and of all blocks' checksums: what these features are.
        content: the blocks' checksums.

    Raises:
        ValueError: no store, an unfinished one, files of other sizes, a block whose checksum
            differs, naming file and rows.
    """

    def __init__(
        self, folder: str | Path, verify: bool = True, progress: Progress | None = None
    ) -> None:
        self.folder = Path(folder)
        self.description = _read_header(self.folder)
        blocks = _read_blocks(self.folder)
        count, width = self.description["count"], self.description["width"]
        done = blocks[-1]["stop"] if blocks else 0
        if done > count:
            raise ValueError(
                f"{folder}: blocks.jsonl lists {done} images and {HEADER} {count}; {_REMEDY}"
            )
        if done < count:
            raise ValueError(
                f"{folder} holds features of {done} of {count} images: it was interrupted; run the "
                "same margrave embed again, it goes on where it stopped"
            )
        self.card: ModelCard = read_card(json.dumps(self.description["card"]), self.folder / HEADER)
        self.embeddings = _open(self.folder, "embeddings", (count, width), np.float32)
        self.flipped = None
        if self.description["flips"]:
            self.flipped = _open(self.folder, "flipped", (count, width), np.float32)
        self.norms = _open(self.folder, "norms", (count,), np.float32)
        self.labels: np.ndarray = np.array(_open(self.folder, "labels", (count,), np.int64))
        self._names = _open(self.folder, "names", (count,), None)
        self.identities: tuple[str, ...] = tuple(self.description["identities"])
        self.unreadable: dict[int, str] = {
            int(row): reason for block in blocks for row, reason in block["unreadable"].items()
        }
        self.digest = hashlib.sha256(
            json.dumps([{**self.description, "model": ""}, blocks]).encode()
        ).hexdigest()
        self.content: list[str] = [block["digest"] for block in blocks]
        if verify:
            self._verify(blocks, progress)

    def _verify(self, blocks: Sequence[dict[str, Any]], progress: Progress | None) -> None:
        sides = [side for side in (self.embeddings, self.flipped, self.norms) if side is not None]
        if _digest(self._names, self.labels) != self.description["images"]["digest"]:
            raise ValueError(
                f"{self.folder}: names.npy or labels.npy is not what was written; {_REMEDY}"
            )
        for number, block in enumerate(blocks):
            part = slice(block["start"], block["stop"])
            found = (read_rows(side, part.start, part.stop) for side in sides)
            if _digest(*found) != block["digest"]:
                raise ValueError(
                    f"{self.folder}: rows {part.start} to {part.stop - 1} are not what was written "
                    f"(embeddings.npy, flipped.npy or norms.npy is damaged); {_REMEDY}"
                )
            if progress is not None:
                progress(number + 1, len(blocks))

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    @property
    def preparation(self) -> dict[str, Any]:
        """What must be alike of features that are compared."""
        card = {
            name: getattr(self.card, name)
            for name in ("image_size", "mean", "deviation", "colour_order")
        }
        return {name: self.description.get(name) for name in ("weights", "fit", "flips")} | card

    def check_comparable(self, other: FeatureStore) -> None:
        """Refuse features that were made otherwise, or of the very same images.

        Raises:
            ValueError: naming what differs.
        """
        ours, theirs = self.preparation, other.preparation
        differing = [
            name if name == "weights" else f"{name} ({ours[name]} and {theirs[name]})"
            for name in ours
            if ours[name] != theirs[name]
        ]
        if differing:
            raise ValueError(
                f"{self.folder} and {other.folder} were made with different "
                f"{', '.join(differing)}, so their features cannot be compared; embed both alike"
            )
        if self.content == other.content:
            raise ValueError(
                f"{self.folder} and {other.folder} hold features of the same images; give "
                "strangers as distractors"
            )

    @property
    def rows(self) -> FusedRows:
        """(N, D) raw embeddings, fused with those of the mirror images where there are such."""
        return FusedRows(self.embeddings, self.flipped)

    def name(self, row: int) -> str:
        """Where the image lies."""
        return os.fsdecode(bytes(self._names[row]))

    @property
    def names(self) -> list[str]:
        """Where each image lies."""
        return [os.fsdecode(name) for name in self._names.tolist()]

    def rows_of(self, names: Sequence[str], source: str | Path = "the list") -> np.ndarray:
        """(M,) the row of each named image.

        Raises:
            ValueError: images that were not embedded, or not read, naming some of them.
        """
        place = {name: row for row, name in enumerate(self._names.tolist())}
        encoded = [os.fsencode(name) for name in names]
        missing = [name for name, key in zip(names, encoded, strict=True) if key not in place]
        if missing:
            more = f" and {len(missing) - NAMES_SHOWN} more" if len(missing) > NAMES_SHOWN else ""
            raise ValueError(
                f"{source} names {len(missing)} images of which {self.folder} has no features: "
                f"{', '.join(missing[:NAMES_SHOWN])}{more}; its names look like {self.name(0)!r}"
            )
        return self.readable(np.array([place[key] for key in encoded], np.int64))

    def readable(self, rows: np.ndarray) -> np.ndarray:
        """The rows themselves.

        Raises:
            ValueError: an image among them could not be read when it was to be embedded.
        """
        if self.unreadable:
            bad = rows[np.isin(rows, list(self.unreadable))]
            if len(bad):
                raise ValueError(
                    f"{len(bad)} of the images wanted could not be read: "
                    f"{self.unreadable[int(bad[0])]}"
                )
        return rows


def embed_to_store(
    embedder: Embedder,
    images: ReadableImages,
    folder: str | Path,
    *,
    model: str = "",
    source: str = "",
    flips: bool = True,
    maximum_unreadable: int = 0,
    progress: Progress | None = None,
    after_block: Callable[[int], None] | None = None,
) -> FeatureStore:
    """Embed images into a folder; go on where an earlier run with the same arguments stopped.

    Args:
        embedder: the model.
        images: what to embed; their ``labels``, where they have such, are kept.
        folder: the store, made if need be.
        model: what the model is called, for the record.
        source: what the images are called.
        flips: embed mirror images too.
        maximum_unreadable: images that may be unreadable; their rows stay zero.
        progress: called with (images done, images).
        after_block: called with the rows done after each block is safe.

    Raises:
        ValueError: no images, another run's folder, too many unreadable images.
    """
    folder = Path(folder)
    count = len(images)
    if not count:
        raise ValueError("there are no images to embed; check the folder or the list")
    spell = getattr(images, "path", images.name)
    names = np.array([os.fsencode(spell(index)) for index in range(count)], dtype=np.bytes_)
    labels = np.asarray(getattr(images, "labels", np.full(count, -1)), np.int64)
    description = {
        "format_version": FORMAT_VERSION,
        "model": model,
        "weights": fingerprint(embedder),
        "card": json.loads(embedder.card.to_json()) | {"operating_points": []},
        "fit": embedder.fit,
        "flips": flips,
        "count": count,
        "images": {
            "source": source,
            "digest": _digest(names, labels),
            "content_digest": getattr(images, "content_digest", None),
        },
        "identities": list(getattr(images, "class_names", ())),
    }
    done, unreadable = _resume_or_begin(folder, description, names, labels)
    sides = {}
    # Before the first block they may be there in part.
    if done:
        width = _read_header(folder)["width"]
        sides["embeddings"] = _open(folder, "embeddings", (count, width), np.float32, "r+")
        if flips:
            sides["flipped"] = _open(folder, "flipped", (count, width), np.float32, "r+")
        sides["norms"] = _open(folder, "norms", (count,), np.float32, "r+")
    if progress is not None:
        progress(done, count)
    for start in range(done, count, BLOCK):
        stop = min(start + BLOCK, count)

        def report(images_done: int, _: int, start: int = start) -> None:
            if progress is not None:
                progress(start + images_done, count)

        faults: dict[int, str] = {}
        plain, mirrored = embedder.embed_images(
            images, np.arange(start, stop), flips, report, faults
        )
        unreadable += len(faults)
        if unreadable > maximum_unreadable:
            raise ValueError(
                f"{unreadable} images cannot be read, more than maximum_unreadable = "
                f"{maximum_unreadable}; mend them, or raise the limit (--maximum-unreadable); "
                f"what was embedded is kept:\n  " + "\n  ".join(list(faults.values())[:10])
            )
        bad = np.flatnonzero(~np.isfinite(plain).all(1))
        if len(bad):
            raise ValueError(
                f"the embedding of {images.name(start + int(bad[0]))} is infinite or NaN; "
                "margrave doctor looks into the model"
            )
        if not sides:
            sides = _make_arrays(folder, description, plain.shape[1])
        parts = [plain, mirrored] if flips else [plain]
        parts.append(np.linalg.norm(plain, axis=1).astype(np.float32))
        for side, values in zip(sides.values(), parts, strict=True):
            side[start:stop] = values
        for name in sides:
            _flush(folder / f"{name}.npy")
        line = {
            "start": start,
            "stop": stop,
            "digest": _digest(*parts),
            "unreadable": {str(row): reason for row, reason in faults.items()},
        }
        with open(folder / "blocks.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if after_block is not None:
            after_block(stop)
    # What an earlier run wrote may have been damaged since.
    return FeatureStore(folder, verify=done > 0)


def _resume_or_begin(
    folder: Path, description: dict[str, Any], names: np.ndarray, labels: np.ndarray
) -> tuple[int, int]:
    """How many rows are there already, and how many images could not be read."""
    if (folder / HEADER).exists():
        found = _read_header(folder)
        # What model and images are called does not matter.
        found["images"]["source"] = description["images"]["source"]
        found["images"].setdefault("content_digest", None)
        differing = [
            f"{key} ({found.get(key)}, now {description[key]})"
            if isinstance(description[key], int | str) and key != "weights"
            else key
            for key in description
            if key != "model" and found.get(key) != description[key]
        ]
        if differing:
            raise ValueError(
                f"{folder} holds features of another {', '.join(differing)}; give another folder, "
                "or delete this one"
            )
        blocks = _read_blocks(folder, repair=True)
        return (
            blocks[-1]["stop"] if blocks else 0,
            sum(len(block["unreadable"]) for block in blocks),
        )
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files and no {HEADER}; give an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("names", names), ("labels", labels)):
        with atomic_write(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, array)
    (folder / "blocks.jsonl").touch()
    # The width is known with the first block.
    _write_header(folder, {**description, "width": 0})
    return 0, 0


def _make_arrays(folder: Path, description: dict[str, Any], width: int) -> dict[str, np.ndarray]:
    """The files at their full size."""
    _write_header(folder, {**description, "width": width})
    count = description["count"]
    shapes = {"embeddings": (count, width), "flipped": (count, width), "norms": (count,)}
    if not description["flips"]:
        del shapes["flipped"]
    arrays = {}
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        arrays[name] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        # Writing into a hole of a full disk would end the process without a word.
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return arrays


def _flush(path: Path) -> None:
    """Everything mapped or written of a file onto the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _write_header(folder: Path, description: dict[str, Any]) -> None:
    content = {**description, "checksum": _checksum(description)}
    with atomic_write(folder / HEADER) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _checksum(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description, however its text is indented and ordered."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _read_header(folder: Path) -> dict[str, Any]:
    """The description in features.json, without its checksum."""
    path = folder / HEADER
    if not path.is_file():
        raise ValueError(f"{folder} holds no {HEADER}; make features with margrave embed")
    try:
        header = read_json(path.read_text(encoding="utf-8"), HEADER)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    if not isinstance(header, dict) or any(
        not _is_a(header.get(key), kind) for key, kind in _HEADER_FIELDS.items()
    ):
        fields = ", ".join(_HEADER_FIELDS)
        raise ValueError(f"{path} is damaged: it lacks some of {fields}; {_REMEDY}")
    if header["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {header['format_version']}, this Margrave reads "
            f"{FORMAT_VERSION}; {_REMEDY}"
        )
    checksum = header.pop("checksum", None)
    if checksum is None:
        warnings.warn(
            f"{path} has no checksum, as Margrave 0.1 wrote it: what it says of model and "
            "preprocessing is not verified; embed again to have it covered",
            stacklevel=3,
        )
    elif checksum != _checksum(header):
        raise ValueError(f"{path} is not what was written: its checksum differs; {_REMEDY}")
    images, identities = header["images"], header["identities"]
    if not all(isinstance(images.get(key), str) for key in ("digest", "source")):
        raise ValueError(f"{path} is damaged: images lacks its digest or source; {_REMEDY}")
    if not all(isinstance(name, str) for name in identities):
        raise ValueError(f"{path} is damaged: an identity that is no text; {_REMEDY}")
    for field, least in (("count", 1), ("width", 0)):
        if not least <= header[field] < LARGEST_NUMBER:
            raise ValueError(f"{path}: {field} {str(header[field])[:30]} cannot be; {_REMEDY}")
    return header


_HEADER_FIELDS: dict[str, type] = {
    "card": dict, "count": int, "width": int, "flips": bool, "images": dict, "identities": list,
    "format_version": int,
}  # fmt: skip


def _is_a(value: Any, kind: type) -> bool:
    """Whether a value of JSON is of a type; true is no number there."""
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _read_blocks(folder: Path, *, repair: bool = False) -> list[dict[str, Any]]:
    """The lines of blocks.jsonl; a last one that was cut off does not count.

    Args:
        folder: of the store.
        repair: remove such a last line, to write on behind the others.
    """
    path = folder / "blocks.jsonl"
    try:
        content = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from error
    whole = content[: content.rfind(b"\n") + 1]
    if repair and len(whole) < len(content):
        os.truncate(path, len(whole))
    blocks: list[dict[str, Any]] = []
    stop = 0
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            block = read_json(line, "the line")
            fits = _fits(block, stop)
        except ValueError:
            block, fits = {}, False
        if not fits:
            raise ValueError(f"{path}:{number} is damaged: {line[:80]!r}; {_REMEDY}")
        blocks.append(block)
        stop = block["stop"]
    return blocks


def _fits(block: Any, start: int) -> bool:
    """Whether this describes a block of rows from a start on."""
    if not isinstance(block, dict) or not all(
        _is_a(block.get(key), kind)
        for key, kind in (("start", int), ("stop", int), ("digest", str), ("unreadable", dict))
    ):
        return False
    stop = block["stop"]
    return block["start"] == start < stop < LARGEST_NUMBER and all(
        row.isascii() and row.isdecimal() and len(row) < 19 and start <= int(row) < stop
        and isinstance(reason, str)
        for row, reason in block["unreadable"].items()
    )  # fmt: skip


def _open(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: type[np.generic] | None,
    mode: Literal["r", "r+"] = "r",
) -> np.ndarray:
    """A mapped array of exactly this shape and type, text where there is no type."""
    path = folder / f"{name}.npy"
    try:
        with open(path, "rb", opener=ordinary) as file:
            size = os.fstat(file.fileno()).st_size
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"its version is {version}")
            given, by_columns, kind = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from error
    # Damaged headers make numpy's parser fail in many ways.
    except Exception as error:
        reason = str(error)[:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}); {_REMEDY}") from error
    right = kind == dtype if dtype is not None else kind.kind == "S" and kind.itemsize > 0
    if given != shape or not right or (by_columns and len(shape) > 1):
        order = " by columns" * by_columns
        raise ValueError(
            f"{path} holds {str(kind)[:60]} {str(given)[:60]}{order}, expected {shape}; {_REMEDY}"
        )
    # Mapping more than there is would end the process, or lengthen a file that is written to.
    expected = start + math.prod(shape) * kind.itemsize
    if size != expected:
        raise ValueError(f"{path} has {size} bytes where {expected} belong; {_REMEDY}")
    try:
        return np.memmap(path, kind, mode, start, shape)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_REMEDY}") from error


def _digest(*arrays: np.ndarray) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def fingerprint(embedder: Embedder) -> str:
    """Which weights these are: of an ONNX file its own, of a network its tensors'."""
    content = getattr(embedder.backbone, "content_digest", None)
    return weights_digest(embedder.backbone.state_dict()) if content is None else str(content)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    total = hashlib.sha256()
    for key, value in sorted(state.items()):
        total.update(key.encode())
        total.update(np.ascontiguousarray(value.detach().float().cpu().numpy()).data)
    return total.hexdigest()
