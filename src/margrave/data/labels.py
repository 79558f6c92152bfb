"""Convert labels of any hashable type to class indices."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def number_labels(
    labels: Sequence[Hashable] | np.ndarray, count: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number labels in order of first appearance; returns (N,) int64 classes and their names.

    Args:
        labels: one label per image: strings, numbers, or any hashable type.
        count: number of images.

    Raises:
        ValueError: there is not one label per image, or a label is None.

    >>> number_labels(["Bo", "Ann", "Bo"], 3)
    (array([0, 1, 0]), ('Bo', 'Ann'))
    """
    # The elements of a tensor would be hashed by identity, not by value.
    to_list = getattr(labels, "tolist", None)
    values = list(labels) if to_list is None else to_list()
    if len(values) != count:
        raise ValueError(f"{len(values)} labels for {count} images; give one label per image")
    if None in values:
        raise ValueError(
            f"labels[{values.index(None)}] is None; give a label, leave that image out, "
            "or give no labels at all"
        )
    class_of: dict[Hashable, int] = {}
    classes = [class_of.setdefault(value, len(class_of)) for value in values]
    return np.array(classes, np.int64), tuple(str(value) for value in class_of)
