"""Turns similarities into decisions: thresholds for a gallery's size, and probabilities."""

from __future__ import annotations

import math

from margrave.models import ModelCard


def threshold_for_fpir(card: ModelCard, fpir: float, people: int) -> tuple[float, float]:
    """Choose the threshold for an allowed FPIR in a gallery; return (threshold, its FAR).

    A stranger is compared with N people. If the comparisons are independent, the FPIR is
    1 − (1 − FAR)^N, so each comparison may have at most FAR = 1 − (1 − FPIR)^(1/N). The FPIR is
    lower if one stranger's false accepts tend to coincide.

    Args:
        card: the model's card, with reference scores.
        fpir: the allowed false positive identification rate (FPIR), in (0, 1).
        people: N, the number of people in the gallery.

    Raises:
        ValueError: the card has no reference scores, or too few impostor pairs for this FAR.
    """
    if not 0 < fpir < 1:
        raise ValueError(f"fpir = {fpir:g}, must be between 0 and 1")
    if card.reference is None or not card.reference.far_thresholds:
        raise ValueError(
            "a threshold for an FPIR needs reference scores, which this model does not have; "
            "measure them: margrave threshold MODEL FEATURES"
        )
    max_far = -math.expm1(math.log1p(-fpir) / max(people, 1))
    usable = [
        (far, threshold) for far, threshold in card.reference.far_thresholds if far <= max_far
    ]
    if not usable:
        smallest_far = card.reference.far_thresholds[-1][0]
        smallest_fpir = -math.expm1(max(people, 1) * math.log1p(-smallest_far))
        # A little more, so that rounding does not make it less.
        suggested_fpir = f"{1.001 * smallest_fpir:.4g}"
        raise ValueError(
            f"FPIR {fpir:g} with {people} people needs FAR {max_far:.2g} in each comparison, but "
            f"{card.reference.measured_on} supports only {smallest_far:.2g} or larger. Measure on "
            f"more people (margrave threshold), or allow FPIR {suggested_fpir}"
        )
    # far_thresholds is in decreasing order of FAR, so the first usable pair has the largest FAR
    # and accepts the most faces.
    far, threshold = usable[0]
    return threshold, far


def probability(log_likelihood_ratio: float) -> float:
    """The probability of the same person, given equal prior probabilities: 1 / (1 + exp(−LLR)).

    >>> probability(0.0)
    0.5
    """
    # Clip, because exp(x) overflows for x above 709.
    return 1 / (1 + math.exp(-min(max(log_likelihood_ratio, -700.0), 700.0)))
