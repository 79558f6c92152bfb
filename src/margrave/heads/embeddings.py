"""Embeddings and labels as every head takes them: checked, and normalised safely."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

SMALLEST_LENGTH = 1e-12
"""Vectors shorter than this have no direction: they count as zero and get no gradient."""


def unit_and_norm(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """x̂ and ‖x‖ of the rows, with neither overflow nor an infinite gradient.

    Args:
        vectors: (N, D).

    Returns:
        (N, D) unit rows (zero where the row is) and (N,) norms, which stop at the dtype's largest
        number to the power of ¾, so that products with class centres stay finite.

    >>> unit, norm = unit_and_norm(torch.tensor([[3e30, 4e30], [0.0, 0.0]]))
    >>> unit
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    # The quotient by a constant leaves the direction's gradient exact and keeps squares finite.
    largest = vectors.detach().abs().amax(dim=1, keepdim=True)
    alive = ~(largest <= SMALLEST_LENGTH)  # so that NaN stays NaN and is noticed
    largest = torch.where(alive, largest, 1)
    scaled = torch.where(alive, vectors / largest, 0)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    unit = scaled / torch.where(alive, length, 1)
    norm = (length * largest).clamp_max(torch.finfo(vectors.dtype).max ** 0.75)
    return unit, norm.squeeze(1)


def inverse_length(rows: Tensor) -> Tensor:
    """(N,) 1/‖row‖ as `unit_and_norm` divides: 0 for a row without direction.

    >>> inverse_length(torch.tensor([[3e30, 4e30], [0.0, 0.0]])) * 1e30
    tensor([0.2000, 0.0000])
    """
    if not rows.is_cpu:
        # To look whether squares overflowed would make the host wait for the device.
        return scaled_inverse_length(rows)
    lengths = torch.linalg.vector_norm(rows.float() if rows.dtype.itemsize < 4 else rows, dim=1)
    if not bool((lengths < float("inf")).all()):
        return scaled_inverse_length(rows)
    return torch.where(lengths <= SMALLEST_LENGTH, 0, 1 / lengths)


def scaled_inverse_length(rows: Tensor) -> Tensor:
    """`inverse_length` by way of each row's largest entry, so that no square overflows."""
    rows = rows.float() if rows.dtype.itemsize < 4 else rows
    largest = rows.abs().amax(dim=1, keepdim=True)
    largest = torch.where(largest == 0, 1, largest)
    lengths = torch.linalg.vector_norm(rows / largest, dim=1) * largest[:, 0]
    return torch.where(lengths <= SMALLEST_LENGTH, 0, 1 / lengths)


def check_batch(embeddings: Tensor, labels: Tensor, num_classes: int, embedding_size: int) -> None:
    """Refuse a batch that does not fit the head.

    Raises:
        ValueError: wrong shapes or dtypes, an empty batch, a label outside [0, num_classes).
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_size:
        raise ValueError(
            f"embeddings have shape {tuple(embeddings.shape)}; "
            f"this head takes (batch, {embedding_size}): set its embedding_size to the backbone's"
        )
    if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; "
            f"{len(embeddings)} embeddings need as many integers in one dimension"
        )
    if not len(labels):
        raise ValueError("the batch is empty: skip it, or lower the batch size")
    numbers = labels.long()  # unsigned ones cannot be compared
    outside = (numbers < 0) | (numbers >= num_classes)
    if not labels.is_cpu and _can_assert_later(labels.device.type):
        # To look at the values would make the host wait for the device at every step.
        torch._assert_async(~outside.any(), f"a label is outside [0, {num_classes})")
    elif outside.any():
        position = int(outside.int().argmax())
        raise ValueError(
            f"label {int(labels[position])} at position {position} is outside [0, {num_classes}): "
            "number the identities from 0 without gaps, or raise num_classes"
        )


@cache
def _can_assert_later(device_type: str) -> bool:
    """Whether a device checks a condition by itself, without the host's waiting for it."""
    key = torch._C._dispatch_key_for_device(device_type)
    return torch._C._dispatch_has_computed_kernel_for_dispatch_key("aten::_assert_async.msg", key)
