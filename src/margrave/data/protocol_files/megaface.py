"""MegaFace's challenge 1: its lists of images, and the lists of its noise."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from margrave.files.text import is_relative_path, malformed, read_lines, read_text


def read_megaface_list(path: str | Path) -> tuple[str, ...]:
    """Read a list of images, as ``facescrub_features_list.json``.

    The file is JSON with a key ``path``, a list such as
    ``["Adam_Brody/Adam_Brody_259.png", "363/36395475@N00/2663229765_1.jpg"]``.

    Raises:
        ValueError: no JSON (with file and line number), no such list or an empty one, an entry
            that is no relative path.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1].rstrip("\r")
        raise malformed(path, error.lineno, line, f"JSON ({error.msg})") from None
    # Brackets nested too deep, and numbers of too many digits.
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); check the file") from None
    entries = content.get("path") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{path} holds no list of images with the key 'path'; give a file of MegaFace's "
            "templatelists"
        )
    for index, entry in enumerate(entries):
        if not isinstance(entry, str) or not is_relative_path(entry):
            shown = f"{entry!r:.120}" if isinstance(entry, str) else f"a {type(entry).__name__}"
            raise ValueError(
                f"{path}: entry {index} of its 'path' is {shown}; expected an image's relative path"
            )
    return tuple(entries)


def read_noise_list(path: str | Path) -> frozenset[str]:
    """Read which images show another person, as ``facescrub_noises.txt``.

    One name a line: a file's name of FaceScrub, a path of MegaFace. Lines that begin with ``#`` are
    comments; where a line has a tab, the name stands behind it. A list may be empty.

    Raises:
        ValueError: a line that is no relative path, with file and line number.
    """
    names = set()
    for number, line in read_lines(path):
        if line.startswith("#"):
            continue
        fields = line.strip().split("\t")
        name = fields[1 if len(fields) > 1 else 0].strip()
        if not is_relative_path(name):
            raise malformed(path, number, line, "an image's name, such as Adam_Brody_259.png")
        names.add(name)
    return frozenset(names)


def facescrub_identity(name: str) -> str:
    """Whom an image of FaceScrub shows: its folder's name, or its own up to the last underscore.

    Raises:
        ValueError: a name without folder and underscore.

    >>> facescrub_identity("Adam_Brody/Adam_Brody_259.png")
    'Adam_Brody'
    >>> facescrub_identity("Adam_Brody_259.png")
    'Adam_Brody'
    """
    path = PurePosixPath(name)
    identity = path.parent.name or path.name.rpartition("_")[0]
    if not identity:
        raise ValueError(f"{name!r} does not say whom it shows; expected Adam_Brody_259.png")
    return identity
