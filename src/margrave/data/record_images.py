"""InsightFace's training sets: ``train.rec``, ``train.idx`` and ``property``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from margrave.data.decode import MAXIMUM_PIXELS, decode_image
from margrave.files.recordio import (
    RecordFile,
    RecordWriter,
    join_record,
    read_index,
    split_record,
    write_index,
)

RECORDS, INDEX, PROPERTY = "train.rec", "train.idx", "property"
LARGEST_LABEL = 2**24
"""Labels are float32 in the file, in which larger whole numbers are not exact."""


class RecordImages:
    """The images of an InsightFace directory, memory-mapped and read one at a time.

    Record 0 says where the identities' range records are, and each of these which images are its
    identity's, so that labels and counts are known without reading images. Where there is no
    record 0 of that form (one that holds an image is an image), every record's head is read. A
    missing index is rebuilt from the keys that the records give themselves.

    Args:
        root: the directory, or its ``.rec`` file.
        minimum_images: leave out identities with fewer images.
        maximum_pixels: larger images are refused unread, see ``decode_image``.

    Attributes:
        labels: (N,) int64, identities in the order of their labels in the file.
        class_names: the label in the file of each class.
        left_out: identities below ``minimum_images`` and how many images each has.
        num_classes: how many identities ``property`` says there are, or None.
        image_size: height and width by ``property``, or None.

    Raises:
        ValueError: no records, damaged ones, or fewer than two identities.
    """

    def __init__(
        self,
        root: str | Path,
        minimum_images: int = 1,
        maximum_pixels: int = MAXIMUM_PIXELS,
    ) -> None:
        self.path = _records_of(Path(root))
        self.maximum_pixels = maximum_pixels
        self.records = RecordFile(self.path)
        index = self.path.with_suffix(".idx")
        self.rebuilt = not index.is_file()
        if self.rebuilt:
            keys, offsets = _rebuild_index(self.records)
        else:
            keys, offsets = read_index(index)
        if not len(keys):
            raise ValueError(f"{index} lists no records; remove it to have it rebuilt")
        keys, offsets, given = self._images(keys, offsets)
        known, labels, counts = np.unique(given, return_inverse=True, return_counts=True)
        few = counts < minimum_images
        self.left_out = {str(int(known[n])): int(counts[n]) for n in few.nonzero()[0]}
        stays = ~few[labels]
        self.class_names: Sequence[str] = [str(int(label)) for label in known[~few]]
        if len(self.class_names) < 2:
            raise ValueError(
                f"{self.path} holds {len(self.class_names)} identities with at least "
                f"{max(1, minimum_images)} images where two are the least; lower minimum_images"
            )
        self._labels_in_file = given[stays]
        self.labels = (np.cumsum(~few) - 1)[labels[stays]].astype(np.int64)
        self._keys, self._offsets = keys[stays], offsets[stays]
        said = _property(self.path.with_name(PROPERTY))
        self.num_classes = said[0] if said else None
        self.image_size = said[1:] if said else None

    def _images(
        self, keys: np.ndarray, offsets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys, offsets and labels of all images, by range records if there are any."""

        def offsets_of(wanted: np.ndarray) -> np.ndarray:
            place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
            absent = keys[place] != wanted
            if absent.any():
                missing = wanted[absent][0]
                raise ValueError(f"{self.path}: the index has no record {missing} of an identity")
            return offsets[place]

        record_0 = self.records.heads(offsets[:1])
        first, end = record_0.labels[0]
        if keys[0] != 0 or np.isnan(end) or record_0.image_bytes[0]:
            heads = self.records.heads(offsets)
            # Identities' records without a record 0 that lists them are no images either.
            images = (heads.image_bytes > 0) | np.isnan(heads.labels[:, 1])
            keys, offsets = keys[images], offsets[images]
            return keys, offsets, _whole(self.path, keys, heads.labels[images, 0])
        if not (np.isfinite([first, end]).all() and 0 < first <= end <= first + len(keys)):
            raise ValueError(
                f"{self.path}: record 0 says that identities are records {first:g} to {end:g}, of "
                f"{len(keys)}; fetch or copy the file again"
            )
        identities = np.arange(int(first), int(end))
        bounds = self.records.heads(offsets_of(identities)).labels
        wrong = ~np.isfinite(bounds).all(axis=1) | (bounds != np.floor(bounds)).any(axis=1)
        sizes = np.where(wrong, 0, bounds[:, 1] - bounds[:, 0])
        wrong |= (sizes < 0) | (np.where(wrong, 0, bounds[:, 0]) < 0)
        if wrong.any():
            number = identities[wrong][0]
            raise ValueError(f"{self.path}: record {number} is not an identity's range of images")
        if sizes.sum() > len(keys):
            raise ValueError(
                f"{self.path}: the identities' records list {sizes.sum():.0f} images, more than "
                f"there are records ({len(keys)})"
            )
        present = sizes > 0
        begins = bounds[present, 0].astype(np.int64)
        counts = sizes[present].astype(np.int64)
        starts = np.cumsum(counts) - counts
        own = np.repeat(begins - starts, counts) + np.arange(counts.sum())
        found = offsets_of(own)
        # All images of a range are one identity's, which each read checks.
        labels = _whole(self.path, begins, self.records.heads(found[starts]).labels[:, 0])
        return own, found, np.repeat(labels, counts)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """File and record, for messages."""
        return f"{self.path}, record {self._keys[index]} at byte {self._offsets[index]}"

    def read_bytes(self, index: int) -> bytes:
        """The image's file as it lies in the record.

        Raises:
            ValueError: the record is damaged, or of another identity than its range says.
        """
        name = self.name(index)
        try:
            label, image = split_record(self.records.read(int(self._offsets[index])))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        expected = self._labels_in_file[index]
        if np.ravel(label)[0] != expected:
            raise ValueError(f"{name} is of identity {np.ravel(label)[0]:g}, not {expected:g}")
        return image

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB.

        Raises:
            ValueError: the record or the image in it cannot be read, naming file and record.
        """
        return decode_image(self.read_bytes(index), self.name(index), self.maximum_pixels)


def _rebuild_index(records: RecordFile) -> tuple[np.ndarray, np.ndarray]:
    """Keys, ascending, and offsets, from the keys that the records give themselves.

    Writers may append record 0 after the images, so a place in the file says nothing. Where every
    record has the same key, none was ever given and the order of the file stands for it.
    """
    offsets = np.fromiter(records.offsets(), np.int64)
    own = records.heads(offsets).keys
    if len(own) > 1 and (own == own[0]).all():
        return np.arange(len(own)), offsets
    order = np.argsort(own, kind="stable")
    own, offsets = own[order], offsets[order]
    twice = np.flatnonzero(own[1:] == own[:-1])
    wrong = own[twice[0]] if len(twice) else own[-1]
    if len(twice) or wrong >= 2**63:
        reason = "is there twice" if len(twice) else "is no number of a record"
        raise ValueError(
            f"{records.path}: the index {records.path.with_suffix('.idx').name} is missing and "
            f"cannot be rebuilt, as key {wrong} {reason}; fetch or copy the index"
        )
    return own.astype(np.int64), offsets


def _whole(path: Path, keys: np.ndarray, labels: Iterable[float] | np.ndarray) -> np.ndarray:
    """Labels that are classes, or an error that names the first which is not."""
    values = np.asarray(labels, np.float32)
    wrong = ~np.isfinite(values) | (values < 0) | (values != np.floor(values))
    wrong |= values > LARGEST_LABEL
    if wrong.any():
        first = int(wrong.nonzero()[0][0])
        raise ValueError(
            f"{path}, record {keys[first]}: {values[first]!r} is no label; labels are whole "
            f"numbers from 0 to {LARGEST_LABEL}"
        )
    return values


def _records_of(root: Path) -> Path:
    if root.is_file():
        return root
    if not root.is_dir():
        raise ValueError(f"{root} does not exist; give the folder that holds {RECORDS}")
    if (root / RECORDS).is_file():
        return root / RECORDS
    others = sorted(root.glob("*.rec"))
    if len(others) != 1:
        raise ValueError(f"{root} holds {len(others)} files *.rec; give the one to read")
    return others[0]


def _property(path: Path) -> tuple[int, int, int] | None:
    """``property``: ``classes,height,width``."""
    if not path.is_file():
        return None
    parts = path.read_bytes()[:100].strip().split(b",")
    if len(parts) != 3 or not all(part.isdigit() and len(part) < 9 for part in parts):
        raise ValueError(f"{path}: {path.read_bytes()[:60]!r} is not classes,height,width")
    return int(parts[0]), int(parts[1]), int(parts[2])


def write_record_images(
    folder: str | Path,
    images: Iterable[tuple[int, bytes]],
    image_size: int,
    *,
    arrays: Callable[[int], bool] = lambda key: False,
) -> None:
    """Write an InsightFace directory, which appears only when it is whole.

    Args:
        folder: made if need be; files of these names are replaced.
        images: label and image file, all of a label together and labels ascending from 0.
        image_size: of a side, for ``property``.
        arrays: of which keys the label is written as an array of two, as some tools do.

    Raises:
        ValueError: labels that do not come in order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = {name: folder / f".{name}.unfinished" for name in (RECORDS, INDEX, PROPERTY)}
    placeholder = join_record(0, np.zeros(2, np.float32))
    places: list[int] = []
    ranges: list[list[int]] = []
    with RecordWriter(unfinished[RECORDS]) as writer:
        places.append(writer.write(placeholder))
        key = 0
        for key, (label, image) in enumerate(images, 1):
            if label == len(ranges):
                ranges.append([key, key])
            elif label != len(ranges) - 1:
                raise ValueError(f"image {key} has label {label} after {len(ranges) - 1}")
            ranges[-1][1] = key + 1
            if key >= LARGEST_LABEL:
                raise ValueError(
                    f"more than {LARGEST_LABEL} images: the format keeps their numbers in float32; "
                    "pack them as shards"
                )
            value = np.array([label, 0], np.float32) if arrays(key) else float(label)
            places.append(writer.write(join_record(key, value, image)))
        for identity, bounds in enumerate(ranges, key + 1):
            places.append(writer.write(join_record(identity, np.array(bounds, np.float32))))
    header = join_record(0, np.array([key + 1, key + 1 + len(ranges)], np.float32))
    with open(unfinished[RECORDS], "r+b") as file:
        # It is known only now, and as long as what held its place.
        file.seek(8)
        file.write(header)
    write_index(unfinished[INDEX], range(len(places)), places)
    unfinished[PROPERTY].write_text(f"{len(ranges)},{image_size},{image_size}\n")
    for name, path in unfinished.items():
        os.replace(path, folder / name)
