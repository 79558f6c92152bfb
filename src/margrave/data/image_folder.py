"""Images that lie in folders, one folder per identity."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from margrave.data.decode import MAXIMUM_PIXELS, decode_image
from margrave.files import ordinary, read_bytes

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".pgm")
OTHER_EXTENSIONS = (".tif", ".tiff", ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl")
"""Images too, but of formats that are not read."""


class ImageFiles:
    """Image files below a folder, read by position.

    Args:
        root: the folder.
        paths: where each image lies, relative to ``root``.
        maximum_pixels: larger images are refused unread, see ``decode_image``.
    """

    def __init__(
        self, root: str | Path, paths: Sequence[str], maximum_pixels: int = MAXIMUM_PIXELS
    ) -> None:
        if isinstance(paths, str):
            raise ValueError(f"paths = {paths!r} is one path; give a list of them")
        self.root = Path(root)
        self._prefix = str(self.root)
        self.maximum_pixels = maximum_pixels
        # One array instead of a Python string each: millions of strings would be copied into
        # every worker as soon as their reference counts are touched.
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        """Where the image lies, relative to ``root``."""
        return os.fsdecode(bytes(self._paths[index]))

    def name(self, index: int) -> str:
        """Where the image lies, for messages."""
        return os.path.join(self._prefix, self.path(index))

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB.

        Raises:
            ValueError: the file cannot be read or decoded, naming it and the reason.
        """
        name = self.name(index)
        return decode_image(_content(name), name, self.maximum_pixels)

    def read_bytes(self, index: int) -> bytes:
        """The image's file.

        Raises:
            ValueError: it cannot be read, naming it.
        """
        return _content(self.name(index))


def _content(path: str) -> bytes:
    """A file's bytes, in three calls to the system where Python's own files take eight."""
    try:
        file = ordinary(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            size = os.fstat(file).st_size
            content = os.read(file, size)
        finally:
            os.close(file)
        # What does not come at once, of networks, is read the patient way.
        return content if len(content) == size else read_bytes(path)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); check that it exists and its rights"
        ) from None


def image_paths(
    root: str | Path, below: str | Path | None = None, others: list[str] | None = None
) -> list[str]:
    """Images in a folder and those below it, in natural order; hidden ones are passed over.

    Args:
        root: what the paths are relative to.
        below: the folder to look in, by default the root.
        others: where given, images of formats that are not read are added.
    """
    paths: list[str] = []
    for where, folders, files in os.walk(root if below is None else below):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(where, root)
        paths += [
            os.path.normpath(os.path.join(relative, name)) for name in files if _is_image(name)
        ]
        if others is not None:
            others += [name for name in files if name.lower().endswith(OTHER_EXTENSIONS)]
    return natural_sort(paths)


class ImageFolder(ImageFiles):
    """Labelled images: each folder directly below ``root`` is one identity.

    An identity's images may lie in folders further down (a video each, say). Identities and files
    are in natural order (``s2`` before ``s10``); hidden files and other extensions are ignored.

    Args:
        root: the folder of the identities' folders.
        minimum_images: leave out identities with fewer images.
        maximum_pixels: larger images are refused unread, see ``decode_image``.

    Attributes:
        labels: (N,) int64.
        class_names: the identities' folder names.
        left_out: identities below ``minimum_images`` and how many images each has.
        loose_images: how many images lie directly in ``root`` and therefore belong to nobody.
        other_formats: how many images are of formats that are not read, by extension.

    Raises:
        ValueError: no such folder, no images, no identities' folders, or fewer than two identities.
    """

    def __init__(
        self,
        root: str | Path,
        minimum_images: int = 1,
        maximum_pixels: int = MAXIMUM_PIXELS,
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder; give the folder of the identities' folders")
        visible = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
        self.loose_images = sum(_is_image(entry.name) for entry in visible)
        self.other_formats: Counter[str] = Counter()
        found: dict[str, list[str]] = {}
        self.left_out: dict[str, int] = {}
        for folder in sorted((entry for entry in visible if entry.is_dir()), key=_natural_order):
            paths = self._images_below(root, folder)
            if len(paths) >= max(1, minimum_images):
                found[folder.name] = paths
            else:
                self.left_out[folder.name] = len(paths)
        self._check(root, len(found), minimum_images)
        self.class_names: tuple[str, ...] = tuple(found)
        self.labels: np.ndarray = np.repeat(
            np.arange(len(found), dtype=np.int64), [len(paths) for paths in found.values()]
        )
        super().__init__(root, [path for paths in found.values() for path in paths], maximum_pixels)

    def _images_below(self, root: Path, folder: Path) -> list[str]:
        others: list[str] = []
        paths = image_paths(root, folder, others)
        self.other_formats.update(os.path.splitext(name)[1].lower() for name in others)
        return paths

    def _check(self, root: Path, identities: int, minimum_images: int) -> None:
        left_out_images = sum(self.left_out.values())
        if identities == 0 and left_out_images == 0 and self.loose_images:
            raise ValueError(
                f"{root} holds {self.loose_images} images but no folder of images; "
                "move each person's images into a folder of their own"
            )
        if identities == 0 and left_out_images == 0:
            others = self.other_formats.total()
            raise ValueError(
                f"{root} and the folders below hold no images ({', '.join(EXTENSIONS)}); "
                + (f"convert the {others} of other formats" if others else "give")
                + (" to JPEG or PNG" if others else " the folder of the identities' folders")
            )
        if identities < 2:
            raise ValueError(
                f"{root} holds {identities} identities with at least {max(1, minimum_images)} "
                f"images ({len(self.left_out)} have fewer) where two are the least; "
                "add identities, lower minimum_images, or give the folder above or below"
            )


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def natural_sort(names: Iterable[str]) -> list[str]:
    """Names sorted with their digits read as numbers.

    >>> natural_sort(["s10", "s2", "s1"])
    ['s1', 's2', 's10']
    """
    return sorted(names, key=_natural_order)


def _natural_order(name: str | Path) -> tuple[list[tuple[int, str]], str]:
    # Splitting on digits alternates text and number, so equal places always compare alike.
    parts = re.split(r"([0-9]+)", str(name))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], str(name)
