"""Verification within several demographic groups, with a list of pairs for each (RFW)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import ClassVar

import numpy as np

from margrave.data import read_pairs_by_path
from margrave.data.image_folder import natural_sort
from margrave.evaluation import Figure, Result
from margrave.files.folders import folders_within, list_names
from margrave.inference import Features
from margrave.protocols.contract import PROTOCOLS, EvaluationOptions, Protocol
from margrave.protocols.pairs import pair_result

_PAIRS_SUFFIX = "_pairs.txt"
_PACKED_SUFFIX = ".bin"
"""InsightFace's pair files, which also contain the images."""


@PROTOCOLS.register("groups")
class Groups(Protocol):
    """Evaluate pairs of several demographic groups: mean, std and skewed error ratio (RFW).

    The skewed error ratio is the largest error divided by the smallest.

    Source: Wang et al., "Racial Faces in the Wild" (2019).
    """

    positional: ClassVar[tuple[str, ...]] = ("folder",)

    folder: Path
    """The folder with one list of pairs per group (RFW's folder txts)."""

    def evaluate(self, features: Features, options: EvaluationOptions) -> Sequence[Result]:
        """Return one result per group, followed by a summary."""
        files = find_group_files(self.folder)
        if packed := [path for path in files.values() if path.suffix == _PACKED_SUFFIX]:
            raise ValueError(
                f"{packed[0]} contains its own images, but the groups protocol needs lists of "
                "pairs; embed each .bin file and run margrave evaluate pairs on it"
            )
        groups = [
            pair_result(features, read_pairs_by_path(path, features.names), options.resamples, name)
            for name, path in files.items()
        ]
        accuracies = np.array([group.figure("accuracy").value for group in groups])
        errors = 1 - accuracies
        # Without any error in one group, the ratio would be infinite.
        ratio = float(errors.max() / errors.min()) if errors.min() > 0 else None
        summary = Result(
            protocol="groups",
            name="all groups",
            rules=f"{groups[0].rules}, in each group",
            figures=(
                Figure(metric="mean accuracy", value=float(accuracies.mean())),
                Figure(metric="std of the groups' accuracies", value=float(accuracies.std())),
                Figure(metric="skewed error ratio", value=ratio, percent=False),
            ),
            counts={"groups": len(groups)},
        )
        return [*groups, summary]


def find_group_files(folder: str | Path) -> dict[str, Path]:
    """Find the file with each group's pairs, as in RFW.

    A group such as ``Asian`` has a file ``Asian_pairs.txt`` in the folder or at most two levels
    below, as in ``txts/Asian/Asian_pairs.txt``, or a file ``Asian.bin`` in the folder.

    Returns:
        Group name -> path of its file, in natural order of the names.

    Raises:
        ValueError: the folder does not exist, a group has two files, or there are fewer than two
            groups.
    """
    folder = Path(folder)
    files: dict[str, Path] = {}
    for directory in folders_within(folder, levels=2):
        for name in list_names(directory):
            is_packed = directory == folder and name.endswith(_PACKED_SUFFIX)
            group = PurePath(name).stem.removesuffix("_pairs")
            if not group or not (is_packed or name.endswith(_PAIRS_SUFFIX)):
                continue
            if files.setdefault(group, directory / name) != directory / name:
                raise ValueError(
                    f"{folder} holds two files of the group {group}: {files[group]} and "
                    f"{directory / name}; remove one of them"
                )
    if len(files) < 2:
        raise ValueError(
            f"{folder} holds pairs of {len(files)} groups, but at least two are required; expected "
            f"a file such as Asian{_PAIRS_SUFFIX} or Asian{_PACKED_SUFFIX} for each group"
        )
    return {group: files[group] for group in natural_sort(files)}
