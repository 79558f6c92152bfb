"""Checks the weights of a network of any architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from margrave.doctor.findings import Finding
from margrave.doctor.image_checks import MAX_EXAMPLES
from margrave.doctor.untrained import check_training


def check_weights(state: Mapping[str, torch.Tensor]) -> Iterator[Finding]:
    """Check for non-finite values, negative variances, all-zero weights and untrained weights."""
    all_finite = True
    for fault, is_faulty, message_end, remedy in _WEIGHT_FAULTS:
        keys = [key for key, value in state.items() if is_faulty(key, value)]
        if keys:
            all_finite &= fault != "non_finite_weights"
            yield Finding(
                fault=fault,
                severity="serious",
                message=f"{len(keys)} of {len(state)} tensors {message_end}",
                remedy=remedy,
                share=len(keys) / len(state),
                examples=tuple(keys[:MAX_EXAMPLES]),
            )
    if all_finite:
        yield from check_training(state)


def _is_non_finite(key: str, value: torch.Tensor) -> bool:
    return value.is_floating_point() and not bool(torch.isfinite(value).all())


def _has_negative_variance(key: str, value: torch.Tensor) -> bool:
    return key.endswith("running_var") and value.numel() > 0 and bool((value < 0).any())


def _is_all_zeros(key: str, value: torch.Tensor) -> bool:
    return value.ndim >= 2 and value.is_floating_point() and not bool(value.any())


# For each fault: its identifier, a predicate of a tensor's key and values, the end of the message
# "2 of 9 tensors …", and the remedy.
_WEIGHT_FAULTS: tuple[tuple[str, Callable[[str, torch.Tensor], bool], str, str], ...] = (
    (
        "non_finite_weights",
        _is_non_finite,
        "contain infinite values or NaN",
        "use an earlier checkpoint: training had diverged before this checkpoint was saved",
    ),
    (
        "negative_variances",
        _has_negative_variance,
        "contain negative variances of batch norms",
        "the file is damaged, or its weights were averaged wrongly: export it again",
    ),
    (
        "empty_weights",
        _is_all_zeros,
        "are all zeros",
        "these weights were never set: export the trained model, not a newly created one",
    ),
)
