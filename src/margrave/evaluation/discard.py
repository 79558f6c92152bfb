"""Error-versus-discard curves: how the FNMR changes as low-quality images are discarded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STARTING_FNMR = 0.05
"""Default FNMR at the threshold before any pair is discarded."""
MAX_DISCARDED = 0.2
"""The fraction of discarded pairs at which the curve ends."""


@dataclass(frozen=True)
class DiscardCurve:
    """The false non-match rate (FNMR) after discarding the genuine pairs of lowest quality.

    Attributes:
        threshold: the similarity above which pairs are accepted, the same for the whole curve.
        discarded: (K,) fractions of discarded pairs, from 0 to at most 0.2.
        fnmr: (K,) share of the remaining genuine pairs that are rejected.
        ideal: (K,) the FNMR if the rejected pairs were discarded first:
            max(0, (F − r) / (1 − r)) for F = `fnmr[0]` and a discarded fraction r.
        area: mean of `fnmr` over the discarded fractions from 0 to 0.2.
        ideal_area: mean of `ideal` over the same fractions.
        random_area: the expected `area` if pairs were discarded at random; it equals `fnmr[0]`.
    """

    threshold: float
    discarded: tuple[float, ...]
    fnmr: tuple[float, ...]
    ideal: tuple[float, ...]
    area: float
    ideal_area: float
    random_area: float


def discard_curve(
    genuine: np.ndarray, quality: np.ndarray, starting_fnmr: float = STARTING_FNMR
) -> DiscardCurve:
    """The error-versus-discard curve of genuine pairs.

    The threshold is fixed so that about `starting_fnmr` of all genuine pairs are rejected. Pairs of
    equal quality are discarded in the order of the arrays.

    Args:
        genuine: (G,) similarities of genuine pairs; higher means more similar.
        quality: (G,) quality of each pair: the smaller of its images' qualities.
        starting_fnmr: the target FNMR without discarding, in (0, 1).

    Raises:
        ValueError: the arrays differ in length, a value is not finite, `starting_fnmr` is not in
            (0, 1), or there are fewer than 1 / `starting_fnmr` pairs.

    Source: Schlett et al., "Considerations on the evaluation of biometric quality assessment
    algorithms", arXiv 2303.13294; Grother and Tabassi (2007).

    >>> scores, quality = np.linspace(0, 1, 100), np.linspace(0, 1, 100)
    >>> curve = discard_curve(scores, quality)
    >>> curve.fnmr[0], curve.fnmr == curve.ideal
    (0.05, True)
    """
    genuine, quality = np.asarray(genuine, np.float64), np.asarray(quality, np.float64)
    if genuine.shape != quality.shape or genuine.ndim != 1:
        raise ValueError(
            f"genuine has shape {genuine.shape} and quality {quality.shape}; both must be "
            "one-dimensional and of equal length"
        )
    if not (np.isfinite(genuine).all() and np.isfinite(quality).all()):
        raise ValueError("a similarity or a quality is not finite")
    if not 0 < starting_fnmr < 1 or len(genuine) * starting_fnmr < 1:
        raise ValueError(
            f"starting_fnmr must be in (0, 1) and reject at least one of the {len(genuine)} "
            f"genuine pairs, got {starting_fnmr:g}"
        )
    # Scores at or below the threshold are rejected.
    threshold = float(np.sort(genuine)[int(len(genuine) * starting_fnmr) - 1])
    rejected = genuine <= threshold
    order = np.argsort(quality, kind="stable")
    pair_count, rejected_count = len(genuine), int(rejected.sum())
    discarded_counts = np.arange(int(pair_count * MAX_DISCARDED) + 1)
    remaining_counts = pair_count - discarded_counts
    rejected_among_discarded = np.concatenate([[0], np.cumsum(rejected[order])])[discarded_counts]
    fnmr = (rejected_count - rejected_among_discarded) / remaining_counts
    ideal = np.maximum(0, rejected_count - discarded_counts) / remaining_counts
    return DiscardCurve(
        threshold=threshold,
        discarded=tuple((discarded_counts / pair_count).tolist()),
        fnmr=tuple(fnmr.tolist()),
        ideal=tuple(ideal.tolist()),
        area=float(fnmr.mean()),
        ideal_area=float(ideal.mean()),
        random_area=float(fnmr[0]),
    )
