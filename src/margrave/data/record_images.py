"""InsightFace's training set format: ``train.rec``, ``train.idx`` and ``property``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from margrave.data.contract import SOURCES
from margrave.data.decode import MAXIMUM_PIXELS, decode_image
from margrave.files import file_kind
from margrave.files.recordio import (
    RecordFile,
    RecordWriter,
    join_record,
    read_index,
    split_record,
    write_index,
)
from margrave.images import FaceImages
from margrave.quantity import quantity

RECORDS, INDEX, PROPERTY = "train.rec", "train.idx", "property"
MAX_LABEL = 2**24
"""Maximum label and record key. The file stores both as float32, which cannot represent all larger
integers."""


def _detect(path: str) -> Mapping[str, Any] | None:
    if "://" in path:
        return None
    contains_records = os.path.isdir(path) and any(Path(path).glob("*.rec"))
    is_records = path.endswith(".rec") or file_kind(path) == "records"
    return {"root": path} if contains_records or is_records else None


@SOURCES.register("records", detect=_detect)
class RecordImages(FaceImages):
    """The images of an InsightFace directory, memory-mapped and read one at a time.

    Record 0 gives the key range of the identity records. Each identity record gives the key range
    of its images. Labels and counts are therefore known without reading images. If record 0 is
    missing or contains an image, the headers of all records are read instead. A missing index is
    rebuilt from the keys stored in the records.

    Args:
        root: the directory, or its ``.rec`` file.
        minimum_images: skip identities with fewer images.
        maximum_pixels: images with more pixels are rejected (see ``decode_image``).

    Attributes:
        labels: (N,) int64, class of each image; classes are in ascending order of the labels in the
            file.
        class_names: each class's label in the file, as text.
        left_out: identities skipped because of ``minimum_images`` -> number of images.
        rebuilt: True if the index file was missing and was rebuilt in memory.
        num_classes: number of identities according to ``property``; None without that file.
        image_size: height and width according to ``property``; None without that file.

    Raises:
        ValueError: no records, damaged records, or fewer than two identities.
    """

    def __init__(
        self,
        root: str | Path,
        minimum_images: int = 1,
        maximum_pixels: int = MAXIMUM_PIXELS,
    ) -> None:
        self.file = _records_path(Path(root))
        self.maximum_pixels = maximum_pixels
        self.records = RecordFile(self.file)
        index_path = self.file.with_suffix(".idx")
        self.rebuilt = not index_path.is_file()
        if self.rebuilt:
            keys, offsets = _rebuild_index(self.records)
        else:
            keys, offsets = read_index(index_path)
        if not len(keys):
            raise ValueError(
                f"{index_path} lists no records; remove it, and it is rebuilt from the records"
            )
        keys, offsets, file_labels = self._locate_images(keys, offsets)
        unique_labels, class_of_image, counts = np.unique(
            file_labels, return_inverse=True, return_counts=True
        )
        is_small = counts < minimum_images
        self.left_out = {str(int(unique_labels[n])): int(counts[n]) for n in is_small.nonzero()[0]}
        keep = ~is_small[class_of_image]
        self.class_names = [str(int(label)) for label in unique_labels[~is_small]]
        if len(self.class_names) < 2:
            raise ValueError(
                f"{self.file} contains {quantity(len(self.class_names), 'identity')} with at least "
                f"{quantity(max(1, minimum_images), 'image')}, but training needs two; "
                "lower minimum_images"
            )
        self._file_labels = file_labels[keep]
        new_class = np.cumsum(~is_small) - 1
        self.labels = new_class[class_of_image[keep]].astype(np.int64)
        self._keys, self._offsets = keys[keep], offsets[keep]
        declared = _read_property(self.file.with_name(PROPERTY))
        self.num_classes = declared[0] if declared else None
        self.image_size = declared[1:] if declared else None

    def _locate_images(
        self, keys: np.ndarray, offsets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys, offsets and labels of all images, read from the identity records if possible."""

        def offsets_of(requested_keys: np.ndarray) -> np.ndarray:
            positions = np.searchsorted(keys, requested_keys).clip(max=len(keys) - 1)
            is_missing = keys[positions] != requested_keys
            if is_missing.any():
                missing_key = requested_keys[is_missing][0]
                raise ValueError(
                    f"{self.file}: another record refers to record {missing_key}, which is not in "
                    "the index; download or copy the files again"
                )
            return offsets[positions]

        # Record 0 and identity records have two labels: the first key of their range, and the key
        # after its last one. Image records usually have one label; `headers` then gives NaN as the
        # second.
        record_0 = self.records.headers(offsets[:1])
        first, end = record_0.labels[0]
        if keys[0] != 0 or np.isnan(end) or record_0.image_bytes[0]:
            # Record 0 is missing or is an image, so it gives no key range: read all headers.
            headers = self.records.headers(offsets)
            # Leave out identity records, which have two labels (a key range) and no image.
            is_image = (headers.image_bytes > 0) | np.isnan(headers.labels[:, 1])
            keys, offsets = keys[is_image], offsets[is_image]
            return keys, offsets, _checked_labels(self.file, keys, headers.labels[is_image, 0])
        if not (np.isfinite([first, end]).all() and 0 < first <= end <= first + len(keys)):
            raise ValueError(
                f"{self.file}: record 0 gives keys from {first:g} to before {end:g} for the "
                f"identity records, which is no valid range among {len(keys)} records; download or "
                "copy the file again"
            )
        identity_keys = np.arange(int(first), int(end))
        bounds = self.records.headers(offsets_of(identity_keys)).labels
        invalid = ~np.isfinite(bounds).all(axis=1) | (bounds != np.floor(bounds)).any(axis=1)
        sizes = np.where(invalid, 0, bounds[:, 1] - bounds[:, 0])
        invalid |= (sizes < 0) | (np.where(invalid, 0, bounds[:, 0]) < 0)
        if invalid.any():
            identity_key = identity_keys[invalid][0]
            raise ValueError(
                f"{self.file}: identity record {identity_key} contains no valid key range; "
                "download or copy the file again"
            )
        if sizes.sum() > len(keys):
            raise ValueError(
                f"{self.file}: the identity records list {sizes.sum():.0f} images, more than the "
                f"{len(keys)} records; download or copy the file again"
            )
        nonempty = sizes > 0
        first_keys = bounds[nonempty, 0].astype(np.int64)
        counts = sizes[nonempty].astype(np.int64)
        # Each identity's images have consecutive keys, from its first key on. `first_positions` are
        # the positions of the first keys in `image_keys`.
        first_positions = np.cumsum(counts) - counts
        image_keys = np.repeat(first_keys - first_positions, counts) + np.arange(counts.sum())
        image_offsets = offsets_of(image_keys)
        # Assume that all images of an identity have the label of its first image; `read_bytes`
        # checks this.
        labels = _checked_labels(
            self.file, first_keys, self.records.headers(image_offsets[first_positions]).labels[:, 0]
        )
        return image_keys, image_offsets, np.repeat(labels, counts)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The file and the record, for messages."""
        return f"{self.file}, record {self._keys[index]} at byte {self._offsets[index]}"

    def read_bytes(self, index: int) -> bytes:
        """The image's encoded file.

        Raises:
            ValueError: the record is damaged, or its label differs from its identity's label.
        """
        name = self.name(index)
        try:
            label, image = split_record(self.records.read(int(self._offsets[index])))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        expected = self._file_labels[index]
        # If the record has several labels, the first one is the class.
        first_label = np.ravel(label)[0]
        if first_label != expected:
            raise ValueError(
                f"{name} has label {first_label:g}, expected {expected:g}; "
                "download or copy the file again"
            )
        return image

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB.

        Raises:
            ValueError: the record or its image cannot be read; the message gives file and record.
        """
        return decode_image(self.read_bytes(index), self.name(index), self.maximum_pixels)


def _rebuild_index(records: RecordFile) -> tuple[np.ndarray, np.ndarray]:
    """Build the index from the keys stored in the records; returns (ascending keys, offsets).

    Writers may append record 0 after the images, so a record's position in the file may differ from
    its key. If all records have the same key, the writer did not set keys; the positions are used
    instead.
    """
    offsets = np.fromiter(records.offsets(), np.int64)
    stored_keys = records.headers(offsets).keys
    if len(stored_keys) > 1 and (stored_keys == stored_keys[0]).all():
        return np.arange(len(stored_keys)), offsets
    order = np.argsort(stored_keys, kind="stable")
    stored_keys, offsets = stored_keys[order], offsets[order]
    repeats = np.flatnonzero(stored_keys[1:] == stored_keys[:-1])
    # Without repeats, only the last key, which is the largest, can show that keys exceed int64.
    suspect_key = stored_keys[repeats[0]] if len(repeats) else stored_keys[-1]
    if len(repeats) or suspect_key >= 2**63:
        reason = "occurs twice" if len(repeats) else "is not a valid record number"
        raise ValueError(
            f"{records.path}: the index {records.path.with_suffix('.idx').name} is missing and "
            f"cannot be rebuilt, since key {suspect_key} {reason}; download or copy the index"
        )
    return stored_keys.astype(np.int64), offsets


def _checked_labels(
    path: Path, keys: np.ndarray, labels: Iterable[float] | np.ndarray
) -> np.ndarray:
    """The labels as float32; raises an error that names the first invalid label."""
    values = np.asarray(labels, np.float32)
    invalid = ~np.isfinite(values) | (values < 0) | (values != np.floor(values))
    invalid |= values > MAX_LABEL
    if invalid.any():
        first = int(invalid.nonzero()[0][0])
        raise ValueError(
            f"{path}, record {keys[first]}: {values[first]:g} is not a label; labels are "
            f"integers from 0 to {MAX_LABEL}"
        )
    return values


def _records_path(root: Path) -> Path:
    if root.is_file():
        return root
    if not root.is_dir():
        raise ValueError(f"{root} does not exist; give the folder that contains {RECORDS}")
    if (root / RECORDS).is_file():
        return root / RECORDS
    others = sorted(root.glob("*.rec"))
    if len(others) != 1:
        raise ValueError(
            f"{root} contains {len(others)} *.rec files, none named {RECORDS}; give the path of "
            "the *.rec file to read"
        )
    return others[0]


def _read_property(path: Path) -> tuple[int, int, int] | None:
    """Read (classes, height, width) from the ``property`` file; None if there is no such file."""
    if not path.is_file():
        return None
    # The limits on lengths are for damaged files, which may contain anything.
    parts = path.read_bytes()[:100].strip().split(b",")
    if len(parts) != 3 or not all(part.isdigit() and len(part) < 9 for part in parts):
        raise ValueError(f"{path}: {path.read_bytes()[:60]!r} is not 'classes,height,width'")
    return int(parts[0]), int(parts[1]), int(parts[2])


def write_record_images(
    folder: str | Path,
    images: Iterable[tuple[int, bytes]],
    image_size: int,
    *,
    has_array_label: Callable[[int], bool] = lambda key: False,
) -> None:
    """Write an InsightFace directory; its files appear only once they are complete.

    Args:
        folder: the folder to write, created if necessary; existing files are replaced.
        images: (label, encoded image) of each image, in order of labels; the labels are 0, 1, 2, …
            without gaps.
        image_size: side in pixels, for ``property``.
        has_array_label: called with an image's record key; if it returns True, the label is written
            as an array of two numbers (the second is 0), as some tools do.

    Raises:
        ValueError: the labels are not in order, or there are too many images and identities for
            the format.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = {name: folder / f".{name}.unfinished" for name in (RECORDS, INDEX, PROPERTY)}
    placeholder = join_record(0, np.zeros(2, np.float32))
    offsets: list[int] = []
    key_ranges: list[list[int]] = []  # [first key, last key + 1] of each identity's images
    with RecordWriter(unfinished[RECORDS]) as writer:
        offsets.append(writer.write(placeholder))
        key = 0
        for key, (label, image) in enumerate(images, 1):
            if label == len(key_ranges):
                key_ranges.append([key, key])
            elif label != len(key_ranges) - 1:
                raise ValueError(
                    f"image {key} has label {label} after label {len(key_ranges) - 1}; "
                    "sort by label"
                )
            key_ranges[-1][1] = key + 1
            # The largest number to store as float32 is the end of the identity records' key range.
            if key + 1 + len(key_ranges) > MAX_LABEL:
                raise ValueError(
                    f"{key} images of {quantity(len(key_ranges), 'identity')} need record keys "
                    f"above {MAX_LABEL}: the format stores keys as float32, which cannot represent "
                    "them; pack the images as shards"
                )
            stored_label = (
                np.array([label, 0], np.float32) if has_array_label(key) else float(label)
            )
            offsets.append(writer.write(join_record(key, stored_label, image)))
        for identity_key, bounds in enumerate(key_ranges, key + 1):
            offsets.append(writer.write(join_record(identity_key, np.array(bounds, np.float32))))
    record_0 = join_record(0, np.array([key + 1, key + 1 + len(key_ranges)], np.float32))
    with open(unfinished[RECORDS], "r+b") as file:
        # The content of record 0 is known only now. It replaces the placeholder, which has the same
        # length and begins after RecordIO's 8-byte header.
        file.seek(8)
        file.write(record_0)
    write_index(unfinished[INDEX], range(len(offsets)), offsets)
    unfinished[PROPERTY].write_text(f"{len(key_ranges)},{image_size},{image_size}\n")
    for name, path in unfinished.items():
        os.replace(path, folder / name)
