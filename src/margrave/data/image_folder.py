"""Image files: one folder per identity, or any list of files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from margrave.data.contract import SOURCES
from margrave.data.decode import MAXIMUM_PIXELS, decode_image
from margrave.data.labels import number_labels
from margrave.files import open_regular, read_bytes
from margrave.images import FaceImages, ReadableImages
from margrave.quantity import quantity

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".pgm")
OTHER_EXTENSIONS = (".tif", ".tiff", ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl")
"""Extensions of unsupported image formats; these files are counted, but not read."""


def _detect_file(path: str) -> Mapping[str, Any] | None:
    folder, name = os.path.split(path)
    is_file = _is_image(name) and os.path.isfile(path)
    return {"root": folder or ".", "paths": [name]} if is_file else None


@SOURCES.register("files", detect=_detect_file)
class ImageFiles(ReadableImages):
    """Image files below a folder.

    Args:
        root: the folder.
        paths: each image's path, relative to ``root``; by default every image in the folder and
            its subfolders, in natural order.
        maximum_pixels: images with more pixels are rejected (see ``decode_image``).
        labels: one label per image, of any hashable type. Classes are numbered in order of first
            appearance.

    Raises:
        ValueError: the folder has no images, or there is not one label per image.
    """

    def __init__(
        self,
        root: str | Path,
        paths: Sequence[str] | None = None,
        maximum_pixels: int = MAXIMUM_PIXELS,
        labels: Sequence[Hashable] | np.ndarray | None = None,
    ) -> None:
        if isinstance(paths, str):
            raise ValueError(f"paths = {paths!r} is one path; give a list of paths")
        if paths is None and not (paths := image_paths(root)):
            raise ValueError(
                f"{root} and its subfolders contain no images; check the folder (links to folders "
                "are not followed)"
            )
        if labels is not None:
            self.labels, self.class_names = number_labels(labels, len(paths))
        self.root = Path(root)
        self._prefix = str(self.root)
        self.maximum_pixels = maximum_pixels
        # One array instead of Python strings: millions of strings would be copied into
        # every worker as soon as their reference counts changed.
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        """The image's path relative to ``root``."""
        return os.fsdecode(bytes(self._paths[index]))

    def name(self, index: int) -> str:
        """The image's path including ``root``, for opening the file and for messages."""
        return os.path.join(self._prefix, self.path(index))

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB.

        Raises:
            ValueError: the file cannot be read or decoded; the message gives file and reason.
        """
        name = self.name(index)
        return decode_image(_read_file(name), name, self.maximum_pixels)

    def read_bytes(self, index: int) -> bytes:
        """The image's encoded file.

        Raises:
            ValueError: the file cannot be read; the message names it.
        """
        return _read_file(self.name(index))


def _read_file(path: str) -> bytes:
    """Read a file's bytes with fewer system calls than `open` needs."""
    try:
        descriptor = open_regular(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            size = os.fstat(descriptor).st_size
            content = os.read(descriptor, size)
        finally:
            os.close(descriptor)
        # A network file system may return fewer bytes than requested; if so, read the file again.
        return content if len(content) == size else read_bytes(path)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); check the path and its permissions"
        ) from None


def image_paths(
    root: str | Path, below: str | Path | None = None, others: list[str] | None = None
) -> list[str]:
    """List the paths of all images in a folder and its subfolders, in natural order.

    Hidden files and folders are skipped.

    Args:
        root: the folder to which the returned paths are relative.
        below: the folder to search; by default `root`.
        others: a list to which the names of images in unsupported formats are appended.
    """
    paths: list[str] = []
    for folder, subfolders, files in os.walk(root if below is None else below):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = os.path.relpath(folder, root)
        paths += [
            os.path.normpath(os.path.join(relative, name)) for name in files if _is_image(name)
        ]
        if others is not None:
            others += [
                name
                for name in files
                if name.lower().endswith(OTHER_EXTENSIONS) and not name.startswith(".")
            ]
    return natural_sort(paths)


# This source is the fallback for paths that no other source recognizes. Its error messages explain
# what is wrong with the path.
@SOURCES.register("folder", detect=lambda path: {"root": path}, priority=-1)
class ImageFolder(ImageFiles, FaceImages):
    """Labeled images: each folder directly below ``root`` is one identity.

    An identity's images may be in subfolders, for example one per video. Identities and files are
    in natural order (``s2`` before ``s10``); hidden files and other extensions are ignored.

    Args:
        root: the folder that contains the identity folders.
        minimum_images: skip identities with fewer images.
        maximum_pixels: images with more pixels are rejected (see ``decode_image``).

    Attributes:
        labels: (N,) int64, class of each image.
        class_names: name of each identity's folder.
        left_out: name of each skipped identity -> number of its images. Skipped are identities
            with no images or fewer than ``minimum_images``.
        loose_images: number of images directly in ``root``, which belong to no identity.
        other_formats: file extension of each unsupported format -> number of images.

    Raises:
        ValueError: no such folder, no images, no identity folders, or fewer than two identities.
    """

    def __init__(
        self,
        root: str | Path,
        minimum_images: int = 1,
        maximum_pixels: int = MAXIMUM_PIXELS,
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            raise ValueError(
                f"{root} is not a folder; give the folder that contains the identity folders"
                if root.exists()
                else f"{root}: no such file or folder"
            )
        visible = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
        self.loose_images = sum(_is_image(entry.name) and entry.is_file() for entry in visible)
        identities: dict[str, list[str]] = {}
        left_out: dict[str, int] = {}
        others: list[str] = []
        for folder in sorted((entry for entry in visible if entry.is_dir()), key=_natural_order):
            paths = image_paths(root, folder, others)
            if len(paths) >= max(1, minimum_images):
                identities[folder.name] = paths
            else:
                left_out[folder.name] = len(paths)
        self.left_out = left_out
        self.other_formats = Counter(os.path.splitext(name)[1].lower() for name in others)
        self._check_identities(root, len(identities), minimum_images)
        self.class_names = tuple(identities)
        self.labels: np.ndarray = np.repeat(
            np.arange(len(identities), dtype=np.int64),
            [len(paths) for paths in identities.values()],
        )
        super().__init__(
            root, [path for paths in identities.values() for path in paths], maximum_pixels
        )

    def _check_identities(self, root: Path, num_identities: int, minimum_images: int) -> None:
        left_out_images = sum(self.left_out.values())
        if num_identities == 0 and left_out_images == 0 and self.loose_images:
            raise ValueError(
                f"{root} contains {quantity(self.loose_images, 'image')} but no folders of images; "
                "move each identity's images into its own folder"
            )
        if num_identities == 0 and left_out_images == 0:
            unsupported = sum(self.other_formats.values())
            remedy = (
                f"convert the {quantity(unsupported, 'image')} in other formats to JPEG or PNG"
                if unsupported
                else "give the folder that contains the identity folders"
            )
            raise ValueError(
                f"{root} and its subfolders contain no images ({', '.join(EXTENSIONS)}); {remedy}"
            )
        if num_identities < 2:
            skipped = quantity(len(self.left_out), "identity")
            raise ValueError(
                f"{root} contains {quantity(num_identities, 'identity')} with at least "
                f"{quantity(max(1, minimum_images), 'image')} ({skipped} with fewer), but "
                "training needs two; add identities, lower minimum_images, or, if the "
                "identity folders are on another level, give the folder that contains them"
            )


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def natural_sort(names: Iterable[str]) -> list[str]:
    """Sort names, comparing runs of digits as numbers.

    >>> natural_sort(["s10", "s2", "s1"])
    ['s1', 's2', 's10']
    """
    return sorted(names, key=_natural_order)


def _natural_order(name: str | Path) -> tuple[list[tuple[int, str]], str]:
    # A run of digits becomes (its value, "") and other text becomes (-1, text), so numbers compare
    # by value and are never compared with text.
    parts = re.split(r"([0-9]+)", str(name))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], str(name)
