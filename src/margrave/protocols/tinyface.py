"""Reader of TinyFace's test set: a gallery with distractors, and probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

import numpy as np

from margrave.data.image_folder import image_paths
from margrave.files import listed
from margrave.files.folders import folders_within, list_names, unique_path
from margrave.files.matlab import Value, read_matlab_lists
from margrave.files.text import parse_whole_number
from margrave.quantity import quantity

# The roles, and the names of their folders.
_GALLERY, _DISTRACTORS, _PROBES = "Gallery_Match", "Gallery_Distractor", "Probe"
_ROLES = (_GALLERY, _DISTRACTORS, _PROBES)
# Role -> the list's file name, and its MATLAB variables of image names and of identities.
_LISTS = {
    _GALLERY: ("gallery_match_img_ID_pairs.mat", "gallery_set", "gallery_ids"),
    _PROBES: ("probe_img_ID_pairs.mat", "probe_set", "probe_ids"),
}
_MAX_LEVELS = 2
"""How far below the given folder the folder with the role folders, or with a list, may lie."""


@dataclass(frozen=True, eq=False)
class TinyFaceFiles:
    """The images of TinyFace's test set, by role.

    Attributes:
        gallery: paths of the G gallery images of the probes' identities.
        gallery_labels: (G,) int64 identity of each gallery image.
        distractors: paths of the gallery images of other identities.
        probes: paths of the Q probe images.
        probe_labels: (Q,) int64 identity of each probe.
    """

    gallery: tuple[str, ...]
    gallery_labels: np.ndarray
    distractors: tuple[str, ...]
    probes: tuple[str, ...]
    probe_labels: np.ndarray


def read_tinyface(folder: str | Path) -> TinyFaceFiles:
    """Find the images of TinyFace's test set and their identities.

    The given folder, or one at most two levels below it, must contain the subfolders
    ``Gallery_Match``, ``Gallery_Distractor`` and ``Probe``, as ``Testing_Set`` and third-party
    aligned copies do. An image's identity is the number before the first underscore of its file
    name. The given folder, or one at most two levels below it, may also contain the lists
    ``gallery_match_img_ID_pairs.mat`` (for ``Gallery_Match``) and ``probe_img_ID_pairs.mat`` (for
    ``Probe``). If a list exists, only the images that it names are used, and its identities must
    agree with the file names.

    Returns:
        The images, as paths relative to the given folder in natural order.

    Raises:
        ValueError: no folder or several folders have these subfolders; a subfolder has no images; a
            file name does not begin with a number; a list exists twice, cannot be read, or
            contradicts the images.
    """
    folder = Path(folder)
    folders = list(folders_within(folder, _MAX_LEVELS, frozenset(_ROLES)))
    roots = [path for path in folders if set(_ROLES) <= set(list_names(path, folders=True))]
    root = unique_path(roots, f"the folders {', '.join(_ROLES)}", folder)
    if root is None:
        raise ValueError(
            f"neither {folder} nor a folder below it contains {', '.join(_ROLES)}; "
            "give the folder Testing_Set, or the folder of the aligned copies"
        )
    paths = {role: _images_of(folder, root / role) for role in _ROLES}
    labels = {}
    for role in (_GALLERY, _PROBES):
        identity_of = _read_list(folder, folders, *_LISTS[role])
        if identity_of is not None:
            paths[role] = _listed_paths(root / role, paths[role], identity_of)
        labels[role] = [_identity(folder, path) for path in paths[role]]
        if identity_of is not None:
            _check_identities(root / role, paths[role], labels[role], identity_of)
    return TinyFaceFiles(
        tuple(paths[_GALLERY]),
        np.array(labels[_GALLERY], dtype=np.int64),
        tuple(paths[_DISTRACTORS]),
        tuple(paths[_PROBES]),
        np.array(labels[_PROBES], dtype=np.int64),
    )


def _images_of(folder: Path, role_folder: Path) -> list[str]:
    paths = [PurePath(path).as_posix() for path in image_paths(folder, role_folder)]
    if not paths:
        raise ValueError(f"{role_folder} holds no images; unpack the data set again")
    return paths


def _identity(folder: Path, path: str) -> int:
    """The identity of an image: the number at the beginning of its file name."""
    identity = parse_whole_number(PurePosixPath(path).name.split("_")[0])
    if identity is None:
        raise ValueError(
            f"{folder / path}: the file name does not begin with its identity's number; "
            "expected a name such as 12_3.jpg"
        )
    return identity


def _listed_paths(
    role_folder: Path, paths: Sequence[str], identity_of: dict[str, int]
) -> list[str]:
    """The paths of the images in a list (`identity_of`); each listed image must exist."""
    selected = [path for path in paths if PurePosixPath(path).name in identity_of]
    existing = {PurePosixPath(path).name for path in selected}
    if missing := [name for name in identity_of if name not in existing]:
        raise ValueError(
            f"{role_folder} lacks {quantity(len(missing), 'image')} that "
            f"{_LISTS[role_folder.name][0]} lists: "
            f"{listed(missing, 5)}; unpack the data set again"
        )
    return selected


def _check_identities(
    role_folder: Path, paths: Sequence[str], labels: Sequence[int], identity_of: dict[str, int]
) -> None:
    """Check that each image's list entry and file name have the same identity."""
    for path, label in zip(paths, labels, strict=True):
        name = PurePosixPath(path).name
        if identity_of[name] != label:
            raise ValueError(
                f"{role_folder}: {name} has identity {label} according to its name, but "
                f"{identity_of[name]} according to {_LISTS[role_folder.name][0]}; use both from "
                "the same copy of TinyFace"
            )


def _read_list(
    folder: Path, folders: Sequence[Path], file_name: str, names_key: str, identities_key: str
) -> dict[str, int] | None:
    """Read a list: file name -> identity. None if there is no list."""
    files = [path / file_name for path in folders if (path / file_name).is_file()]
    path = unique_path(files, file_name, folder)
    if path is None:
        return None
    lists = read_matlab_lists(path, (names_key, identities_key))
    names, identities = lists[names_key], lists[identities_key]
    if len(names) != len(identities) or not names:
        raise ValueError(
            f"{path}: {names_key} has {len(names)} entries and {identities_key} {len(identities)}; "
            "both must have the same number of entries, at least 1"
        )
    identity_of: dict[str, int] = {}
    for row, (name, identity) in enumerate(zip(names, identities, strict=True), start=1):
        label = _as_whole_number(identity)
        if not isinstance(name, str) or not name or label is None:
            raise ValueError(
                f"{path}: row {row} is {name!r}, {identity!r}; expected a file name and a "
                "non-negative integer"
            )
        if identity_of.setdefault(name, label) != label:
            raise ValueError(
                f"{path}: row {row} gives {name} identity {label}, but an earlier row "
                f"gives {identity_of[name]}; correct one of the two rows"
            )
    return identity_of


def _as_whole_number(value: Value) -> int | None:
    """Convert a number or a text of digits to a non-negative integer; None for other values."""
    if isinstance(value, float):
        return parse_whole_number(f"{value:.0f}") if value.is_integer() else None
    return parse_whole_number(str(value)) if isinstance(value, int | str) else None
