"""Similarity of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from margrave.evaluation.inputs import as_array
from margrave.evaluation.pairs import unit_rows


def similarity(first: Any, second: Any) -> Any:
    """Cosine similarity of embeddings: aᵀb / (‖a‖ ‖b‖), in [−1, 1].

    Args:
        first: (D,) or (N, D) embeddings of any norm, as an array or a tensor.
        second: (D,) or (M, D) embeddings of any norm.

    Returns:
        A float for two vectors, (N,) or (M,) for a vector and a matrix, (N, M) for two matrices.

    Raises:
        ValueError: the dimensions D differ, or an embedding is zero, infinite or NaN.

    >>> similarity([1.0, 0.0], [1.0, 1.0])
    0.7071067811865475
    >>> similarity(np.eye(2), np.eye(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    first, second = as_array(first), as_array(second)
    rows, columns = np.atleast_2d(first), np.atleast_2d(second)
    if rows.shape[1:] != columns.shape[1:]:
        raise ValueError(
            f"the embeddings have {rows.shape[-1]} and {columns.shape[-1]} dimensions; both must "
            "come from one model"
        )
    cosines = (unit_rows(rows, "first") @ unit_rows(columns, "second").T).clip(-1.0, 1.0)
    if first.ndim == second.ndim == 1:
        return float(cosines[0, 0])
    if first.ndim == 1:
        return cosines[0]
    return cosines[:, 0] if second.ndim == 1 else cosines
