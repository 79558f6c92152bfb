"""Closed-set identification on TinyFace or on the images of your own table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from margrave.evaluation import DISTRACTOR, Result, evaluate_identification
from margrave.files.text import ConsistencyCheck, is_relative_path, malformed, read_table
from margrave.inference import ChosenRows, Features
from margrave.protocols.contract import PROTOCOLS, EvaluationOptions, Protocol
from margrave.protocols.tinyface import read_tinyface

_ROLES = ("gallery", "probe", "distractor")


@PROTOCOLS.register("identification")
class Identification(Protocol):
    """Closed-set identification with several mates and distractors (TinyFace).

    Source: Cheng, Zhu, Gong, "Low-Resolution Face Recognition" (2018).
    """

    positional: ClassVar[tuple[str, ...]] = ("files",)

    files: Path
    """TinyFace's Testing_Set, or a CSV file with the columns path, identity and role."""
    ranks: tuple[int, ...] = (1, 5, 20)
    """The ranks to report."""

    def evaluate(self, features: Features, options: EvaluationOptions) -> Sequence[Result]:
        """Evaluate the features and return one result."""
        if self.files.is_dir():
            tinyface = read_tinyface(self.files)
            probes, probe_labels = tinyface.probes, tinyface.probe_labels
            gallery = (*tinyface.gallery, *tinyface.distractors)
            distractor_labels = np.full(len(tinyface.distractors), DISTRACTOR)
            gallery_labels = np.concatenate([tinyface.gallery_labels, distractor_labels])
        else:
            table = read_identification_table(self.files)
            names = np.array(table.names, dtype=object)
            is_probe, is_distractor = table.roles == "probe", table.roles == "distractor"
            probes, probe_labels = names[is_probe].tolist(), table.identities[is_probe]
            gallery = names[~is_probe].tolist()
            gallery_labels = np.where(is_distractor, DISTRACTOR, table.identities)[~is_probe]
        result = evaluate_identification(
            ChosenRows(features.rows, features.rows_of(probes, self.files)),
            probe_labels,
            ChosenRows(features.rows, features.rows_of(gallery, self.files)),
            gallery_labels,
            ranks=self.ranks,
            **options.search,
        )
        return [result.result(self.files.name)]


@dataclass(frozen=True, eq=False)
class IdentificationTable:
    """N images of a closed-set identification.

    Attributes:
        names: the images' paths.
        identities: (N,) int64 identity of each image, numbered in order of appearance; −1 for a
            distractor without an identity.
        identity_names: the identities' names, indexed by identity number.
        roles: (N,) str: ``gallery``, ``probe`` or ``distractor``.
    """

    names: tuple[str, ...]
    identities: np.ndarray
    identity_names: tuple[str, ...]
    roles: np.ndarray


def read_identification_table(path: str | Path) -> IdentificationTable:
    """Read a CSV table with the columns path, identity and role.

    ``role`` is gallery, probe or distractor. A distractor may have no identity; an identity that it
    has must not occur in the gallery or among the probes. Other columns are ignored.

    Raises:
        ValueError: a column is missing, a line is malformed, an image is on two lines, an identity
            is both a distractor and in the gallery or probes, or gallery or probes are missing; the
            message names the file and lines.
    """
    line_of: dict[str, int] = {}
    identity_index: dict[str, int] = {}
    identities, roles = [], []
    role_check = ConsistencyCheck(path, "identity", "role (distractor or not)")
    for line_number, line, (name, identity, role) in read_table(path, ("path", "identity", "role")):
        if not is_relative_path(name) or role not in _ROLES:
            expected = f"a relative path, an identity and one of {', '.join(_ROLES)}"
            raise malformed(path, line_number, line, expected)
        if not identity and role != "distractor":
            raise malformed(path, line_number, line, f"an identity, which a {role} must have")
        if line_of.setdefault(name, line_number) != line_number:
            raise malformed(
                path, line_number, line, f"each image once, but it is also on line {line_of[name]}"
            )
        if identity:
            role_check.add(identity, role == "distractor", line_number, line)
            identity_index.setdefault(identity, len(identity_index))
        identities.append(identity_index[identity] if identity else DISTRACTOR)
        roles.append(role)
    if missing := [role for role in ("gallery", "probe") if role not in roles]:
        raise ValueError(f"{path} has no image of role {' or '.join(missing)}; add some")
    return IdentificationTable(
        names=tuple(line_of),
        identities=np.array(identities, dtype=np.int64),
        identity_names=tuple(identity_index),
        roles=np.array(roles),
    )
