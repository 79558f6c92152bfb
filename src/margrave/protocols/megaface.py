"""MegaFace challenge 1: FaceScrub probes against a million distractors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import ClassVar

import numpy as np

from margrave.evaluation import Result, evaluate_all_to_all, unit_rows
from margrave.files.text import is_relative_path, malformed, read_lines, read_text
from margrave.inference import ChosenRows, Features, FeatureStore
from margrave.protocols.all_to_all import open_state_file
from margrave.protocols.contract import PROTOCOLS, EvaluationOptions, Protocol

FAR_TARGETS = (1e-4, 1e-5, 1e-6)
MAX_OFFSET = 1e-3
"""Largest random offset per dimension, as in InsightFace's evaluation.

A noisy probe is replaced by its identity's center plus such an offset.
"""


@PROTOCOLS.register("megaface")
class MegaFace(Protocol):
    """MegaFace challenge 1: rank 1 and 10, and TAR down to FAR 1e-6, against distractors.

    The features are those of FaceScrub's probes. As in InsightFace's evaluation with cleaned lists,
    noisy probes are replaced by points near their identity's center, and noisy distractors are left
    out.

    Source: Kemelmacher-Shlizerman et al., "The MegaFace Benchmark" (2016); InsightFace.
    """

    positional: ClassVar[tuple[str, ...]] = ("distractors",)
    distributed: ClassVar[bool] = True

    distractors: Path
    """The distractors' feature store."""
    distractor_list: Path | None = None
    """MegaFace's list of distractors to use (megaface_features_list.json_1000000_1)."""
    probe_noise: Path | None = None
    """The list of noisy probes (facescrub_noises.txt)."""
    distractor_noise: Path | None = None
    """The list of noisy distractors (megaface_noises.txt)."""

    def evaluate(self, features: Features, options: EvaluationOptions) -> Sequence[Result]:
        """Evaluate the features and return one result."""
        distractors = FeatureStore(self.distractors)
        features.check_comparable(distractors)
        labels = features.labels
        # If any image has no label, the images' names give the identities.
        if (labels < 0).any():
            identities = [facescrub_identity(name) for name in features.names]
            labels = np.unique(identities, return_inverse=True)[1]
        is_readable = np.zeros(len(features), bool)
        is_readable[features.readable_rows] = True
        is_compared = is_readable
        rows = features.rows[0 : len(features)]
        units = np.zeros(rows.shape)
        units[is_readable] = unit_rows(rows[is_readable])
        # The names in the list files. A saved state is only resumed if they are the same.
        lists: list[list[str]] = []
        if self.probe_noise is not None:
            noisy_names = read_noise_list(self.probe_noise)
            lists.append(sorted(noisy_names))
            is_noisy = np.array(
                [
                    PurePath(name).name in noisy_names or name in noisy_names
                    for name in features.names
                ]
            )
            _check_noise(self.probe_noise, noisy_names, is_noisy, features)
            units = _move_to_centers(
                units,
                labels,
                is_noisy,
                is_readable,
                np.random.default_rng(options.seed),
                features.names,
            )
            # A noisy probe now has an embedding, even if its image is unreadable.
            is_compared = is_readable | is_noisy
        is_used = np.zeros(len(distractors), bool)
        is_used[distractors.readable_rows] = True
        if self.distractor_list is not None:
            names = read_megaface_list(self.distractor_list)
            listed_rows = distractors.rows_of(names, self.distractor_list)
            is_used &= np.isin(np.arange(len(distractors)), listed_rows)
            lists.append(sorted(names))
        if self.distractor_noise is not None:
            noisy_names = read_noise_list(self.distractor_noise)
            lists.append(sorted(noisy_names))
            is_noisy_distractor = np.array([name in noisy_names for name in distractors.names])
            _check_noise(self.distractor_noise, noisy_names, is_noisy_distractor, distractors)
            is_used &= ~is_noisy_distractor
        result = evaluate_all_to_all(
            units[is_compared].astype(np.float32),
            labels[is_compared],
            ChosenRows(distractors.rows, np.flatnonzero(is_used)),
            rules="MegaFace challenge 1",
            impostors_within=False,
            far_targets=FAR_TARGETS,
            ranks=(1, 10),
            world=options.world,
            state_store=open_state_file(
                options, ["megaface", options.seed, lists], features, distractors
            ),
            **options.search,
        )
        return [result.result()]


def _check_noise(
    path: str | Path, noisy_names: frozenset[str], is_noisy: np.ndarray, features: Features
) -> None:
    """Check that a noise list, unless it is empty, names at least one of the features' images."""
    if noisy_names and not is_noisy.any():
        raise ValueError(
            f"{path} names none of the images of {features.display_name}: the list has "
            f"{min(noisy_names)!r}, the images are named like {features.name(0)!r}; embed the "
            "folder that the list's names are relative to"
        )


def _move_to_centers(
    units: np.ndarray,
    labels: np.ndarray,
    is_noisy: np.ndarray,
    is_readable: np.ndarray,
    generator: np.random.Generator,
    names: Sequence[str],
) -> np.ndarray:
    """Replace noisy unit embeddings by unit vectors near the mean of the identity's clean ones."""
    units = units.copy()
    for label in np.unique(labels[is_noisy]):
        clean = units[(labels == label) & ~is_noisy & is_readable]
        if not len(clean):
            raise ValueError(
                f"all images of the identity of {names[np.flatnonzero(labels == label)[0]]} are "
                "noisy or unreadable, so it has no center; check the list of noisy probes"
            )
        indices = np.flatnonzero((labels == label) & is_noisy)
        moved = clean.mean(0) + generator.uniform(
            -MAX_OFFSET, MAX_OFFSET, (len(indices), units.shape[1])
        )
        units[indices] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return units


def read_megaface_list(path: str | Path) -> tuple[str, ...]:
    """Read a list of images, such as ``facescrub_features_list.json``.

    The file is JSON with a key ``path``, a list such as
    ``["Adam_Brody/Adam_Brody_259.png", "363/36395475@N00/2663229765_1.jpg"]``.

    Raises:
        ValueError: the file is not JSON, the list is missing or empty, or an entry is not a
            relative path.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1].rstrip("\r")
        raise malformed(path, error.lineno, line, f"JSON ({error.msg})") from None
    # Brackets are nested too deep, or a number has too many digits.
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); check the file") from None
    entries = content.get("path") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{path} holds no list of images with the key 'path'; give a file from "
            "MegaFace's folder templatelists"
        )
    for index, entry in enumerate(entries):
        if not isinstance(entry, str) or not is_relative_path(entry):
            shown = f"{entry!r:.120}" if isinstance(entry, str) else f"a {type(entry).__name__}"
            raise ValueError(f"{path}: path[{index}] is {shown}; expected an image's relative path")
    return tuple(entries)


def read_noise_list(path: str | Path) -> frozenset[str]:
    """Read the names of noisy images from a list such as ``facescrub_noises.txt``.

    Noisy images are mislabeled probes, or distractors that show a probe's identity. Each line holds
    a file name (FaceScrub) or a path (MegaFace). If a line has a tab, the name follows the tab.
    Lines that begin with ``#`` are comments. The list may be empty.

    Raises:
        ValueError: a line is not a relative path; the message names file and line.
    """
    names = set()
    for line_number, line in read_lines(path):
        if line.startswith("#"):
            continue
        fields = line.strip().split("\t")
        name = fields[1 if len(fields) > 1 else 0].strip()
        if not is_relative_path(name):
            raise malformed(path, line_number, line, "an image's name, such as Adam_Brody_259.png")
        names.add(name)
    return frozenset(names)


def facescrub_identity(name: str) -> str:
    """A FaceScrub image's identity: the folder's name, else the file name before the last ``_``.

    Raises:
        ValueError: the name has neither a folder nor an underscore.

    >>> facescrub_identity("Adam_Brody/Adam_Brody_259.png")
    'Adam_Brody'
    >>> facescrub_identity("Adam_Brody_259.png")
    'Adam_Brody'
    """
    path = PurePosixPath(name)
    identity = path.parent.name or path.name.rpartition("_")[0]
    if not identity:
        raise ValueError(
            f"{name!r} does not name its identity; expected a name such as Adam_Brody_259.png"
        )
    return identity
