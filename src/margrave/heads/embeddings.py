"""Validate a head's embeddings and labels, and normalize embeddings safely."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

MIN_NORM = 1e-12
"""Vectors up to about this length count as zero: they have no direction and get no gradient."""


def unit_and_norm(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Split rows into unit vectors x̂ and norms ‖x‖, without overflow or infinite gradients.

    Args:
        vectors: (N, D), any floating-point dtype.

    Returns:
        (N, D) unit rows (zero for zero rows) and (N,) norms. The norms are at most max^¾, where max
        is the dtype's maximum, so that products with class centers stay finite.

    >>> unit, norm = unit_and_norm(torch.tensor([[3e30, 4e30], [0.0, 0.0]]))
    >>> unit
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    # Dividing a row by its largest entry keeps the squares finite. The divisor cancels out of x̂ and
    # ‖x‖, so detaching it does not change their gradients.
    largest = vectors.detach().abs().amax(dim=1, keepdim=True)
    has_direction = ~(largest <= MIN_NORM)  # True for NaN, so that NaN propagates and is noticed
    largest = torch.where(has_direction, largest, 1)
    scaled = torch.where(has_direction, vectors / largest, 0)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    unit = scaled / torch.where(has_direction, length, 1)
    norm = (length * largest).clamp_max(torch.finfo(vectors.dtype).max ** 0.75)
    return unit, norm.squeeze(1)


def inverse_length(rows: Tensor) -> Tensor:
    """(N,) 1/‖row‖; 0 for a row no longer than `MIN_NORM`.

    >>> inverse_length(torch.tensor([[3e30, 4e30], [0.0, 0.0]])) * 1e30
    tensor([0.2000, 0.0000])
    """
    if not rows.is_cpu:
        # Checking whether squares overflowed would make the host wait for the device.
        return overflow_safe_inverse_length(rows)
    lengths = torch.linalg.vector_norm(rows.float() if rows.dtype.itemsize < 4 else rows, dim=1)
    if not bool((lengths < float("inf")).all()):
        return overflow_safe_inverse_length(rows)
    return torch.where(lengths <= MIN_NORM, 0, 1 / lengths)


def overflow_safe_inverse_length(rows: Tensor) -> Tensor:
    """`inverse_length` that first divides each row by its largest entry, so no square overflows."""
    rows = rows.float() if rows.dtype.itemsize < 4 else rows
    largest = rows.abs().amax(dim=1, keepdim=True)
    largest = torch.where(largest == 0, 1, largest)
    lengths = torch.linalg.vector_norm(rows / largest, dim=1) * largest[:, 0]
    return torch.where(lengths <= MIN_NORM, 0, 1 / lengths)


def check_batch(embeddings: Tensor, labels: Tensor, num_classes: int, embedding_size: int) -> None:
    """Check that a batch fits the head.

    Raises:
        ValueError: wrong shapes or dtypes, an empty batch, or a label outside [0, num_classes).
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_size:
        raise ValueError(
            f"embeddings have shape {tuple(embeddings.shape)}; "
            f"this head needs (batch, {embedding_size}): set its embedding_size to the backbone's"
        )
    if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; "
            f"{len(embeddings)} embeddings need integer labels of shape ({len(embeddings)},)"
        )
    if not len(labels):
        raise ValueError("the batch is empty: skip it, or lower the batch size")
    classes = labels.long()  # torch cannot compare some unsigned types
    outside = (classes < 0) | (classes >= num_classes)
    if not labels.is_cpu and _can_assert_async(labels.device.type):
        # Reading the values would make the host wait for the device at every step.
        torch._assert_async(~outside.any(), f"a label is outside [0, {num_classes})")
    elif outside.any():
        position = int(outside.int().argmax())
        raise ValueError(
            f"label {int(labels[position])} at position {position} is outside [0, {num_classes}): "
            "number the identities from 0 without gaps, or raise num_classes"
        )


@cache
def _can_assert_async(device_type: str) -> bool:
    """Whether a device can assert a condition asynchronously, without the host waiting."""
    key = torch._C._dispatch_key_for_device(device_type)
    return torch._C._dispatch_has_computed_kernel_for_dispatch_key("aten::_assert_async.msg", key)
