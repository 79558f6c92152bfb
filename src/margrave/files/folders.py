"""Folders as they were unpacked: a level or two above or below what is looked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def folders_within(
    folder: Path, levels: int, leave: frozenset[str] = frozenset()
) -> Iterator[Path]:
    """A folder and those below it down to so many levels, hidden ones passed over.

    Args:
        folder: where to begin.
        levels: how far down; 0 gives the folder alone.
        leave: names of folders that are not gone into.

    Raises:
        ValueError: no such folder, or one that cannot be listed.
    """
    yield folder
    if levels:
        for name in entries(folder, folders=True):
            if name not in leave:
                yield from folders_within(folder / name, levels - 1, leave)


def entries(folder: Path, folders: bool = False) -> list[str]:
    """Sorted names of a folder's files, or of its folders; hidden ones are passed over.

    Raises:
        ValueError: no such folder, or one that cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(
                entry.name
                for entry in found
                if not entry.name.startswith(".")
                and (entry.is_dir() if folders else entry.is_file())
            )
    except OSError as error:
        raise ValueError(
            f"{folder} is not a folder that can be listed ({error.strerror}); "
            "check that it exists and its rights"
        ) from None


def only_one(found: list[Path], what: str, folder: Path) -> Path | None:
    """The one path found, or None.

    Raises:
        ValueError: several, naming them.
    """
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds {what} more than once: {', '.join(map(str, found))}; "
            "give the folder of one of them"
        )
    return found[0] if found else None
