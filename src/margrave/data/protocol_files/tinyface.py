"""TinyFace: a gallery with distractors, and probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

import numpy as np

from margrave.data.image_folder import image_paths
from margrave.files.folders import entries, folders_within, only_one
from margrave.files.matlab import Value, read_matlab_lists
from margrave.files.text import some_of, whole_number

_GALLERY, _DISTRACTORS, _PROBES = _ROLES = ("Gallery_Match", "Gallery_Distractor", "Probe")
_LISTS = {
    _GALLERY: ("gallery_match_img_ID_pairs.mat", "gallery_set", "gallery_ids"),
    _PROBES: ("probe_img_ID_pairs.mat", "probe_set", "probe_ids"),
}
_LEVELS = 2


@dataclass(frozen=True, eq=False)
class TinyFaceFiles:
    """The images of the test, by their part in it.

    Attributes:
        gallery: G images of the people who are searched for.
        gallery_labels: (G,) int64 identity of each.
        distractors: images of other people in the gallery.
        probes: Q images to search for.
        probe_labels: (Q,) int64 identity of each.
    """

    gallery: tuple[str, ...]
    gallery_labels: np.ndarray
    distractors: tuple[str, ...]
    probes: tuple[str, ...]
    probe_labels: np.ndarray


def read_tinyface(folder: str | Path) -> TinyFaceFiles:
    """Find the images of TinyFace's test, and whom they show.

    The folders ``Gallery_Match``, ``Gallery_Distractor`` and ``Probe`` lie together in the folder
    given or at most two levels below, as in ``Testing_Set`` and in the aligned copies that others
    made. An image's identity is its file's name up to the first underscore. Where the files
    ``gallery_match_img_ID_pairs.mat`` and ``probe_img_ID_pairs.mat`` are found likewise, only the
    images that they list count, and their identities must be the same.

    Returns:
        Paths relative to the folder given, in natural order.

    Raises:
        ValueError: no such folders or several (named), a folder without images, a file whose name
            begins with no number, a list that cannot be read, lacks images or says otherwise.
    """
    folder = Path(folder)
    places = list(folders_within(folder, _LEVELS, frozenset(_ROLES)))
    complete = [place for place in places if set(_ROLES) <= set(entries(place, folders=True))]
    root = only_one(complete, f"the folders {', '.join(_ROLES)}", folder)
    if root is None:
        raise ValueError(
            f"{folder} and the folders below hold no {', '.join(_ROLES)} together; "
            "give the folder Testing_Set, or that of the aligned copies"
        )
    paths = {role: _images_of(folder, root / role) for role in _ROLES}
    labels = {}
    for role in (_GALLERY, _PROBES):
        listed = _read_list(folder, places, *_LISTS[role])
        if listed is not None:
            paths[role] = _keep_listed(root / role, paths[role], listed)
        labels[role] = [_identity(folder, path) for path in paths[role]]
        if listed is not None:
            _check_identities(root / role, paths[role], labels[role], listed)
    return TinyFaceFiles(
        tuple(paths[_GALLERY]),
        np.array(labels[_GALLERY], dtype=np.int64),
        tuple(paths[_DISTRACTORS]),
        tuple(paths[_PROBES]),
        np.array(labels[_PROBES], dtype=np.int64),
    )


def _images_of(folder: Path, below: Path) -> list[str]:
    paths = [PurePath(path).as_posix() for path in image_paths(folder, below)]
    if not paths:
        raise ValueError(f"{below} holds no images; unpack them again")
    return paths


def _identity(folder: Path, path: str) -> int:
    """The number that a file's name begins with."""
    identity = whole_number(PurePosixPath(path).name.split("_")[0])
    if identity is None:
        raise ValueError(
            f"{folder / path} does not begin with its identity's number; "
            "expected a name such as 12_3.jpg"
        )
    return identity


def _keep_listed(below: Path, paths: Sequence[str], listed: dict[str, int]) -> list[str]:
    """The paths whose files are listed; all that are listed must be there."""
    kept = [path for path in paths if PurePosixPath(path).name in listed]
    here = {PurePosixPath(path).name for path in kept}
    if missing := [name for name in listed if name not in here]:
        raise ValueError(
            f"{below} lacks {len(missing)} images that {_LISTS[below.name][0]} lists: "
            f"{some_of(missing)}; unpack them again"
        )
    return kept


def _check_identities(
    below: Path, paths: Sequence[str], labels: Sequence[int], listed: dict[str, int]
) -> None:
    for path, label in zip(paths, labels, strict=True):
        name = PurePosixPath(path).name
        if listed[name] != label:
            raise ValueError(
                f"{below}: {name} is of identity {label} by its name and of {listed[name]} by "
                f"{_LISTS[below.name][0]}; take both from one copy of TinyFace"
            )


def _read_list(
    folder: Path, places: Sequence[Path], file_name: str, set_key: str, identities_key: str
) -> dict[str, int] | None:
    """The identity of each file that a list names, or None where there is no list."""
    path = only_one([p / file_name for p in places if (p / file_name).is_file()], file_name, folder)
    if path is None:
        return None
    lists = read_matlab_lists(path, (set_key, identities_key))
    names, identities = lists[set_key], lists[identities_key]
    if len(names) != len(identities) or not names:
        raise ValueError(
            f"{path}: {len(names)} files in {set_key} and {len(identities)} in {identities_key}; "
            "expected as many of one as of the other"
        )
    listed: dict[str, int] = {}
    for row, (name, identity) in enumerate(zip(names, identities, strict=True), start=1):
        number = _whole(identity)
        if not isinstance(name, str) or not name or number is None:
            raise ValueError(
                f"{path}: row {row} is {name!r}, {identity!r}; expected a file's name and a whole "
                "number"
            )
        if listed.setdefault(name, number) != number:
            raise ValueError(
                f"{path}: row {row} gives {name} identity {number}, an earlier row {listed[name]}; "
                "correct one of them"
            )
    return listed


def _whole(value: Value) -> int | None:
    """A number without a fraction, however MATLAB stored it."""
    if isinstance(value, float):
        return whole_number(f"{value:.0f}") if value.is_integer() else None
    return whole_number(str(value)) if isinstance(value, int | str) else None
