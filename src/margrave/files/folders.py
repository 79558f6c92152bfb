"""Search folders; downloaded data may be a few levels below the folder that the user names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def folders_within(folder: Path, levels: int, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield a folder and its subfolders down to a maximum depth, except hidden ones.

    Args:
        folder: the folder to start from.
        levels: maximum depth; 0 yields only the folder itself.
        skip: names of subfolders to skip, including everything below them.

    Raises:
        ValueError: a folder does not exist or cannot be listed.
    """
    yield folder
    if levels:
        for name in list_names(folder, folders=True):
            if name not in skip:
                yield from folders_within(folder / name, levels - 1, skip)


def list_names(folder: Path, folders: bool = False) -> list[str]:
    """Sorted names of a folder's non-hidden files, or of its subfolders if `folders` is True.

    Raises:
        ValueError: the folder does not exist or cannot be listed.
    """
    try:
        with os.scandir(folder) as listing:
            return sorted(
                entry.name
                for entry in listing
                if not entry.name.startswith(".")
                and (entry.is_dir() if folders else entry.is_file())
            )
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be listed ({error.strerror}); check the path and its permissions"
        ) from None


def unique_path(paths: list[Path], description: str, folder: Path) -> Path | None:
    """The single path in a list, or None if the list is empty.

    Args:
        paths: the paths that a search found.
        description: what was searched for, for messages.
        folder: the folder that was searched, for messages.

    Raises:
        ValueError: there are several paths; the message names them.
    """
    if len(paths) > 1:
        raise ValueError(
            f"{folder} contains {description} more than once: {', '.join(map(str, paths))}; "
            "give the folder that contains only one of them"
        )
    return paths[0] if paths else None
