"""TAR at FAR, computed from all genuine scores but only the largest impostor scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from margrave.evaluation.inputs import checked_targets
from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.results import Figure
from margrave.evaluation.tail_bootstrap import TailIdentities, bootstrap_tail


@dataclass(frozen=True)
class AcceptRate:
    """TAR at the lowest threshold whose FAR is at most a target.

    Attributes:
        far_target: the FAR target.
        far: the FAR at the threshold.
        tar: the TAR at the threshold.
        threshold: pairs that score strictly above it are accepted.
        too_few_impostors: True if the target allows no false accept. The single highest impostor
            score is then the threshold, and the TAR is unreliable.
        interval: the TAR's confidence interval; None without a bootstrap.
        threshold_interval: the threshold's confidence interval; None without a bootstrap.
    """

    far_target: float
    far: float
    tar: float
    threshold: float
    too_few_impostors: bool
    interval: Interval | None = None
    threshold_interval: Interval | None = None

    def figure(self, metric: str = "TAR", **at: float | str) -> Figure:
        """Convert to the common result format.

        Args:
            metric: the metric's name.
            at: further conditions under which the TAR was measured, such as ``rank=1``.
        """
        return Figure(
            metric=metric,
            value=self.tar,
            at={"FAR": self.far_target, **at},
            interval=self.interval,
            threshold=self.threshold,
            threshold_interval=self.threshold_interval,
            realized=self.far,
            too_few=self.too_few_impostors,
        )


def false_accepts_allowed(far_target: float, impostor_count: int) -> int:
    """The largest number of false accepts that keeps the FAR at or below a target.

    Args:
        far_target: the FAR target, in (0, 1).
        impostor_count: total number of impostor pairs.

    Raises:
        ValueError: the target is not in (0, 1).

    >>> false_accepts_allowed(0.1, 30)
    3
    """
    checked_targets([far_target], "FAR")
    allowed = int(far_target * impostor_count)
    # Floating-point rounding may leave the product just below an integer, and int() then drops one.
    return allowed + 1 if (allowed + 1) / impostor_count <= far_target else allowed


def accept_rates(
    genuine: np.ndarray,
    tail: np.ndarray,
    impostor_count: int,
    far_targets: Sequence[float],
    *,
    identities: TailIdentities | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> tuple[AcceptRate, ...]:
    """For each FAR target, the TAR at the lowest threshold whose FAR does not exceed the target.

    Args:
        genuine: (G,) scores of genuine pairs.
        tail: (T,) the largest impostor scores, descending; T must exceed the number of false
            accepts that any target allows.
        impostor_count: total number of impostor pairs, including those outside the tail.
        far_targets: FAR targets, each in (0, 1).
        identities: the pairs' identities, which the bootstrap resamples; None to resample pairs.
        resamples: number of bootstrap replicates; 0 for no intervals.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there are no genuine or no impostor pairs; the tail is not descending, too
            short for a target or longer than ``impostor_count``; a target is not in (0, 1); or
            ``resamples`` is 1.

    >>> rate = accept_rates(np.array([0.9, 0.3]), np.array([0.8, 0.1]), 2, [0.5])[0]
    >>> rate.tar, rate.threshold, rate.far
    (1.0, 0.1, 0.5)
    """
    genuine, tail = np.asarray(genuine), np.asarray(tail)
    if not len(genuine) or impostor_count < 1:
        raise ValueError(
            f"got {len(genuine)} genuine and {impostor_count} impostor pairs; TAR at FAR needs both"
        )
    if (np.diff(tail) > 0).any():
        raise ValueError("the tail must descend; sort the impostor scores from largest to smallest")
    if len(tail) > impostor_count:
        raise ValueError(
            f"the tail has {len(tail)} scores, more than impostor_count = {impostor_count}"
        )
    allowed = [false_accepts_allowed(far, impostor_count) for far in far_targets]
    if allowed and max(allowed) >= len(tail):
        raise ValueError(
            f"FAR {max(far_targets)} allows {max(allowed)} false accepts, but only the {len(tail)} "
            "largest impostor scores were passed; pass a longer tail"
        )
    # At most ``allowed`` impostor scores are strictly above the (allowed + 1)-th largest one.
    thresholds = [float(tail[false_accepts]) for false_accepts in allowed]
    rates = [
        AcceptRate(
            far_target=float(far),
            # The index is the number of impostor scores strictly above the threshold.
            far=int(np.searchsorted(-tail, -threshold, side="left")) / impostor_count,
            tar=int((genuine > threshold).sum()) / len(genuine),
            threshold=threshold,
            too_few_impostors=false_accepts_allowed(far, impostor_count) < 1,
        )
        for far, threshold in zip(far_targets, thresholds, strict=True)
    ]
    if not resamples:
        return tuple(rates)
    intervals = bootstrap_tail(genuine, tail, impostor_count, allowed, identities, resamples, seed)
    return tuple(
        replace(rate, interval=tar_interval, threshold_interval=threshold_interval)
        for rate, (tar_interval, threshold_interval) in zip(rates, intervals, strict=True)
    )
