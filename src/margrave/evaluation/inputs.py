"""Conversion of callers' arguments: arrays, tensors, and labels of any hashable type."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from margrave.search.score_blocks import DISTRACTOR


def as_array(values: Any) -> np.ndarray:
    """Convert an array, a tensor on any device, or a sequence to a NumPy array.

    >>> import torch
    >>> as_array(torch.ones(2, requires_grad=True)).tolist()
    [1.0, 1.0]
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return values.numpy()
    return np.asarray(values)


def as_rows(rows: Any) -> Any:
    """Convert a tensor or list of embeddings to an array; return anything else unchanged.

    Memory-mapped and lazily computed rows thus stay out of memory.
    """
    return as_array(rows) if hasattr(rows, "detach") or isinstance(rows, list | tuple) else rows


def checked_targets(targets: Sequence[float], rate_name: str) -> tuple[float, ...]:
    """Check that all targets of an error rate are strictly between 0 and 1; return them as floats.

    Args:
        targets: the targets.
        rate_name: the error rate's name, for the message.

    >>> checked_targets([0.1, 2], "FAR")
    Traceback (most recent call last):
        ...
    ValueError: each FAR target must be between 0 and 1, got 2
    """
    for target in targets:
        # NaN is rejected too, because all its comparisons are false.
        if not 0 < target < 1:
            raise ValueError(f"each {rate_name} target must be between 0 and 1, got {target!r}")
    return tuple(float(target) for target in targets)


def check_resamples(resamples: int) -> None:
    """Check that there are enough bootstrap replicates for an interval.

    Callers for which 0 means "no intervals" skip this check for 0.

    >>> check_resamples(1)
    Traceback (most recent call last):
        ...
    ValueError: resamples must be at least 2, or 0 for no intervals, got 1
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, or 0 for no intervals, got {resamples}")


def as_labels(*labels: Any) -> list[np.ndarray]:
    """Convert labels of any hashable type to integers, consistently across all sequences.

    If all labels are integers that int64 can hold, they stay unchanged. Otherwise labels are
    numbered from 0 in order of first appearance. None and negative numbers mark distractors.

    Returns:
        For each sequence, an integer array of the sequence's shape.

    Raises:
        ValueError: a label is not hashable.

    >>> [labels.tolist() for labels in as_labels(["Ann", "Bo"], ["Bo", None])]
    [[0, 1], [1, -1]]
    """
    arrays = [_label_array(sequence) for sequence in labels]
    # Unsigned 64-bit integers, such as hashes, would lose digits when compared with int64.
    if all(array.dtype != bool and np.can_cast(array.dtype, np.int64) for array in arrays):
        return arrays
    indices: dict[Hashable, int] = {}

    def index_of(label: Any) -> int:
        if label is None or (isinstance(label, Real) and label < 0):
            return DISTRACTOR
        try:
            return indices.setdefault(label, len(indices))  # pyright: ignore[reportArgumentType]
        except TypeError:
            raise ValueError(
                f"label {label!r} is not hashable; pass one string, number or tuple per embedding"
            ) from None

    def convert(array: np.ndarray) -> np.ndarray:
        flat = [index_of(label) for label in array.ravel().tolist()]
        return np.array(flat, np.int64).reshape(array.shape)

    return [convert(array) for array in arrays]


def as_label_pairs(pairs: Any) -> np.ndarray:
    """Convert (P, 2) labels of any hashable type to integers; see ``as_labels``.

    Raises:
        ValueError: a label is not hashable, or there are not two labels per pair.

    >>> as_label_pairs([("Ann", 7), ("Ann", "7")]).tolist()
    [[0, 1], [0, 2]]
    """
    if not isinstance(pairs, Sequence):
        return as_labels(pairs)[0]
    for index, pair in enumerate(pairs):
        if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
            raise ValueError(
                f"identities must have shape ({len(pairs)}, 2), two per pair, but pair {index} has "
                f"{pair!r}"
            )
    return as_labels([label for pair in pairs for label in pair])[0].reshape(-1, 2)


def _label_array(labels: Any) -> np.ndarray:
    """Convert (N,) labels to an array that keeps each element of a sequence as it is.

    NumPy alone would turn numbers among strings into strings, and tuples into rows.
    """
    if not isinstance(labels, Sequence):
        return as_array(labels)
    # Scalars of NumPy and torch become Python's, because torch hashes tensors by identity.
    values = [label.item() if getattr(label, "shape", None) == () else label for label in labels]
    if all(type(value) is int for value in values):
        return np.asarray(values)
    return np.fromiter(values, dtype=object, count=len(values))
