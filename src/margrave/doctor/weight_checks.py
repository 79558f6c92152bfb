"""Checks the weights of a network of any architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from margrave.doctor.findings import Finding
from margrave.doctor.image_checks import MAX_EXAMPLES
from margrave.doctor.untrained import check_training


def check_weights(state: Mapping[str, torch.Tensor]) -> Iterator[Finding]:
    """Check for values that are not finite, impossible statistics, and untrained weights."""
    finite = True
    for fault, wrong, message, remedy in _WEIGHT_FAULTS:
        keys = [key for key, value in state.items() if wrong(key, value)]
        if keys:
            finite &= fault != "non_finite_weights"
            yield Finding(
                fault=fault,
                severity="serious",
                message=f"{len(keys)} of {len(state)} tensors {message}",
                remedy=remedy,
                share=len(keys) / len(state),
                examples=tuple(keys[:MAX_EXAMPLES]),
            )
    if finite:
        yield from check_training(state)


def _non_finite(key: str, value: torch.Tensor) -> bool:
    return value.is_floating_point() and not bool(torch.isfinite(value).all())


def _negative_variance(key: str, value: torch.Tensor) -> bool:
    return key.endswith("running_var") and value.numel() > 0 and bool((value < 0).any())


def _empty(key: str, value: torch.Tensor) -> bool:
    return value.ndim >= 2 and value.is_floating_point() and not bool(value.any())


# Fault, test of a tensor's name and values, end of the message "2 of 9 tensors …", remedy.
_WEIGHT_FAULTS: tuple[tuple[str, Callable[[str, torch.Tensor], bool], str, str], ...] = (
    (
        "non_finite_weights",
        _non_finite,
        "contain infinite values or NaN",
        "use an earlier checkpoint: training had diverged before this one was saved",
    ),
    (
        "negative_variances",
        _negative_variance,
        "are negative variances of batch norms",
        "the file is damaged, or its weights were averaged wrongly: export it again",
    ),
    (
        "empty_weights",
        _empty,
        "are all zeros",
        "these weights were never set: export the trained model, not a newly created one",
    ),
)
