"""Error versus discard: what rejecting the images of lowest quality does to false non-matches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STARTING_FNMR = 0.05
MAX_DISCARDED = 0.2


@dataclass(frozen=True)
class DiscardCurve:
    """The false non-match rate after discarding the genuine pairs of lowest quality.

    Attributes:
        threshold: the similarity above which pairs are accepted, the same for the whole curve.
        discarded: (K,) fractions of discarded pairs, from 0.
        fnmr: (K,) share of the remaining genuine pairs that are rejected.
        ideal: (K,) the same if every rejected pair were discarded first, max(0, (F − r)/(1 − r)).
        area: mean of `fnmr` over [0, 0.2].
        ideal_area: mean of `ideal` over [0, 0.2].
        random_area: mean over [0, 0.2] if pairs were discarded at random: the starting rate.
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
    equal quality are discarded in the order given.

    Args:
        genuine: (G,) similarities of genuine pairs; higher means more similar.
        quality: (G,) quality of each pair: the smaller of its images' qualities.
        starting_fnmr: the false non-match rate without discarding, in (0, 1).

    Raises:
        ValueError: the arrays differ in length, a value is not finite, or there are fewer pairs
            than 1 / `starting_fnmr`.

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
            f"got {genuine.shape} similarities and {quality.shape} qualities; each pair needs one"
        )
    if not (np.isfinite(genuine).all() and np.isfinite(quality).all()):
        raise ValueError("a similarity or a quality is not finite")
    if not 0 < starting_fnmr < 1 or len(genuine) * starting_fnmr < 1:
        raise ValueError(
            f"{len(genuine)} genuine pairs are too few for a starting FNMR of {starting_fnmr:g}"
        )
    # Scores at or below the threshold are rejected.
    threshold = float(np.sort(genuine)[int(len(genuine) * starting_fnmr) - 1])
    rejected = genuine <= threshold
    order = np.argsort(quality, kind="stable")
    count, total = len(genuine), int(rejected.sum())
    number = np.arange(int(count * MAX_DISCARDED) + 1)
    left = count - number
    removed = np.concatenate([[0], np.cumsum(rejected[order])])[number]
    fnmr, ideal = (total - removed) / left, np.maximum(0, total - number) / left
    return DiscardCurve(
        threshold=threshold,
        discarded=tuple((number / count).tolist()),
        fnmr=tuple(fnmr.tolist()),
        ideal=tuple(ideal.tolist()),
        area=float(fnmr.mean()),
        ideal_area=float(ideal.mean()),
        random_area=float(fnmr[0]),
    )
