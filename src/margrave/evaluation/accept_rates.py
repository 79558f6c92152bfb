"""TAR at FAR from genuine scores and the largest impostor scores alone, however many there were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.tail_bootstrap import TailIdentities, bootstrap_tail


@dataclass(frozen=True)
class AcceptRate:
    """TAR at the loosest threshold whose realised FAR is at most a target.

    Attributes:
        far_target: what was asked for.
        far: what the threshold realises.
        tar: share of genuine pairs accepted there.
        threshold: pairs scoring strictly above it are accepted.
        too_few_impostors: fewer than one false accept was allowed, so the threshold is set by the
            single most alike impostor pair and the number means little.
        interval: of the TAR, None without a bootstrap.
        threshold_interval: of the threshold, likewise.
    """

    far_target: float
    far: float
    tar: float
    threshold: float
    too_few_impostors: bool
    interval: Interval | None = None
    threshold_interval: Interval | None = None


def false_accepts_allowed(far_target: float, impostors: int) -> int:
    """The most impostor pairs whose share of all is at most the target.

    Raises:
        ValueError: a target outside (0, 1).

    >>> false_accepts_allowed(0.1, 30)
    3
    """
    if not 0 < far_target < 1:
        raise ValueError(f"FAR target {far_target!r}; give a share between 0 and 1")
    allowed = int(far_target * impostors)
    # The product may round to either side of a whole number.
    return allowed + 1 if (allowed + 1) / impostors <= far_target else allowed


def accept_rates(
    genuine: np.ndarray,
    tail: np.ndarray,
    impostors: int,
    far_targets: Sequence[float],
    *,
    identities: TailIdentities | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> tuple[AcceptRate, ...]:
    """TAR at the loosest threshold whose FAR does not exceed each target.

    Args:
        genuine: (G,) scores of genuine pairs.
        tail: (T,) the largest impostor scores, descending.
        impostors: how many impostor pairs there are in all.
        far_targets: each in (0, 1).
        identities: who the pairs are of, for intervals over identities; None resamples pairs.
        resamples: bootstrap replicates; 0 for no intervals.
        seed: of the replicates.

    Raises:
        ValueError: no genuine or no impostor pairs, a tail that is too short for a target or does
            not descend, a target outside (0, 1).

    >>> rate = accept_rates(np.array([0.9, 0.3]), np.array([0.8, 0.1]), 2, [0.5])[0]
    >>> rate.tar, rate.threshold, rate.far
    (1.0, 0.1, 0.5)
    """
    genuine, tail = np.asarray(genuine), np.asarray(tail)
    if not len(genuine) or impostors < 1:
        raise ValueError(
            f"{len(genuine)} genuine and {impostors} impostor pairs; TAR at FAR needs both"
        )
    if (np.diff(tail) > 0).any() or len(tail) > impostors:
        raise ValueError(f"the {len(tail)} largest of {impostors} impostor scores must descend")
    allowed = [false_accepts_allowed(far, impostors) for far in far_targets]
    if max(allowed, default=0) >= len(tail):
        raise ValueError(
            f"FAR {max(far_targets)} allows {max(allowed)} false accepts, but only the {len(tail)} "
            "largest impostor scores were kept; keep more"
        )
    thresholds = [float(tail[most]) for most in allowed]
    found = [
        AcceptRate(
            far_target=float(far),
            far=int(np.searchsorted(-tail, -threshold, side="left")) / impostors,
            tar=int((genuine > threshold).sum()) / len(genuine),
            threshold=threshold,
            too_few_impostors=far * impostors < 1,
        )
        for far, threshold in zip(far_targets, thresholds, strict=True)
    ]
    if not resamples:
        return tuple(found)
    intervals = bootstrap_tail(genuine, tail, impostors, allowed, identities, resamples, seed)
    return tuple(
        AcceptRate(**{**vars(rate), "interval": of_tar, "threshold_interval": of_threshold})
        for rate, (of_tar, of_threshold) in zip(found, intervals, strict=True)
    )
