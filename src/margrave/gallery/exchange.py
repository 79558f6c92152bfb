"""Exports a gallery as plain files, for backups or for another store, and reads such exports."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from margrave.files import read_bytes, read_json
from margrave.gallery.card import GalleryCard
from margrave.gallery.contract import Gallery
from margrave.gallery.records import Person, PersonRecord
from margrave.progress import Progress

CARD, PEOPLE, VECTORS, CROPS = "gallery.json", "people.jsonl", "vectors.npy", "crops.bin"
"""Names of the files in an exported gallery."""
MAX_LINE_BYTES = 2**20
"""Maximum length of a line of ``people.jsonl`` in bytes; enough for a person with 100 000 crops."""
MAX_CROP_BYTES = 2**26
"""Maximum size of one crop in bytes."""


def export_gallery(gallery: Gallery, folder: str | Path, progress: Progress | None = None) -> int:
    """Write all people into a new folder, which appears once it is complete.

    The folder contains ``gallery.json`` (the card and the other files' checksums), ``people.jsonl``
    (one line per person, with the sizes of the crops), ``vectors.npy`` ((N, D) float32, one sum of
    embeddings per person) and ``crops.bin`` (all crops, concatenated). No file is encrypted.

    Args:
        gallery: the gallery to export.
        folder: the folder to create; it must not exist.
        progress: called with (people done, total).

    Returns:
        The number of exported people.

    Raises:
        ValueError: the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists; choose another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    people = list(gallery.people())
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        unfinished = Path(temporary) / "gallery"
        unfinished.mkdir()
        vectors = np.lib.format.open_memmap(
            unfinished / VECTORS, "w+", np.float32, (len(people), gallery.card.dimension)
        )
        with (
            open(unfinished / PEOPLE, "w", encoding="utf-8") as people_file,
            open(unfinished / CROPS, "wb") as crop_file,
        ):
            for row, person in enumerate(people):
                vectors[row] = gallery.vector(person.name)
                crops = gallery.crops(person.name)
                crop_file.writelines(crops)
                record = {**asdict(person), "crops": [len(crop) for crop in crops]}
                people_file.write(json.dumps(record, ensure_ascii=False) + "\n")
                if progress is not None:
                    progress(row + 1, len(people))
        vectors.flush()
        del vectors
        checksums = {name: _sha256(unfinished / name) for name in (PEOPLE, VECTORS, CROPS)}
        content = {"card": json.loads(gallery.card.to_json()), "sha256": checksums}
        (unfinished / CARD).write_text(json.dumps(content, indent=1) + "\n")
        os.rename(unfinished, folder)
    return len(people)


def read_exported_card(folder: str | Path) -> GalleryCard:
    """Read the card of an exported gallery.

    Raises:
        ValueError: the folder is not an exported gallery, or is damaged.
    """
    return GalleryCard.from_json(json.dumps(_read_card_file(Path(folder))["card"]), str(folder))


def read_exported_people(folder: str | Path) -> Iterator[PersonRecord]:
    """Iterate over the people of an exported gallery, after verifying its checksums.

    Raises:
        ValueError: a file is missing or damaged; the message names the file, and the line if a
            person's record is damaged.
    """
    folder = Path(folder)
    card = read_exported_card(folder)
    checksums = _read_card_file(folder)["sha256"]
    for name in (PEOPLE, VECTORS, CROPS):
        path = folder / name
        if not path.is_file() or _sha256(path) != checksums.get(name):
            raise ValueError(f"{path} is missing or damaged; export the gallery again")
    try:
        vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{folder / VECTORS} is damaged ({error}); export the gallery again"
        ) from error
    if vectors.ndim != 2 or vectors.shape[1] != card.dimension or vectors.dtype != np.float32:
        raise ValueError(
            f"{folder / VECTORS} is damaged: it holds {vectors.dtype} {vectors.shape}, expected "
            f"float32 (N, {card.dimension}); export the gallery again"
        )
    with open(folder / PEOPLE, "rb") as people_file, open(folder / CROPS, "rb") as crop_file:
        for row in range(len(vectors)):
            place = f"{folder / PEOPLE}, line {row + 1}"
            record = read_json(people_file.readline(MAX_LINE_BYTES).decode(errors="replace"), place)
            try:
                sizes = record.pop("crops")
                person = Person(**record)
                crops = [_read_crop(crop_file, size) for size in sizes]
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{place} is damaged ({error}); export the gallery again"
                ) from None
            yield PersonRecord(person=person, vector=np.asarray(vectors[row]), crops=crops)


def _read_crop(file: BinaryIO, size: int) -> bytes:
    if type(size) is not int or not 0 <= size <= MAX_CROP_BYTES:
        raise ValueError(f"invalid crop size {size!r:.30}")
    content = file.read(size)
    if len(content) != size:
        raise ValueError("a crop is truncated")
    return content


def _read_card_file(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    try:
        content = read_json(read_bytes(path), str(path))
    except OSError as error:
        raise ValueError(f"{folder} is not an exported gallery ({error.strerror})") from error
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), dict) for name in ("card", "sha256")
    ):
        raise ValueError(f"{path} is damaged; export the gallery again")
    return content


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
