"""Comparison of two models' results on the same pairs, with significance tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from margrave.evaluation import Figure, PairScores, Result, compare_pairs

_METRIC_NAMES = {"area_under_roc": "AUC", "equal_error_rate": "EER", "true_accept_rate": "TAR"}


def compare_results(
    first: Result,
    second: Result,
    far_targets: Sequence[float] = (1e-2, 1e-3),
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Compare two models' results on the same pairs, with intervals and p values.

    Args:
        first: the first model's result, with the scores of its pairs.
        second: the second model's result on the same pairs.
        far_targets: FAR targets of the true accept rates to compare.
        resamples: number of bootstrap replicates, at least 2.
        seed: seed of the bootstrap.

    Returns:
        One figure per metric: the second model's value minus the first's. The figure's ``details``
        have both models' values, ``p_value`` and ``more_pairs`` (see ``Difference``).

    Raises:
        ValueError: a result has no scores, or the pairs differ.
    """
    first_scores, second_scores = _scores(first), _scores(second)
    if not _same_pairs(first_scores, second_scores):
        counts = len(first_scores.same), len(second_scores.same)
        raise ValueError(
            f"the results are of different pairs: {counts[0]} in the first ({first.name!r}) and "
            f"{counts[1]} in the second ({second.name!r})"
            + (", which are of different images" if counts[0] == counts[1] else "")
            + "; evaluate both models on the same list of pairs, or draw pairs with the same seed"
        )
    identities = first_scores.identities
    if identities is None:
        identities = second_scores.identities
    differences = compare_pairs(
        np.array(first_scores.distances),
        np.array(second_scores.distances),
        np.array(first_scores.same),
        first_scores.folds,
        None if identities is None else np.array(identities),
        far_targets,
        resamples,
        seed,
    )
    figures = [
        Figure(
            metric=f"difference in {_METRIC_NAMES.get(difference.metric, difference.metric)}",
            value=difference.difference,
            at={} if difference.far_target is None else {"FAR": difference.far_target},
            interval=difference.interval,
            too_few=difference.too_few_impostors,
            # The AUC is not a rate.
            percent=difference.metric != "area_under_roc",
            details={
                "first": difference.first,
                "second": difference.second,
                "p_value": difference.p_value,
                "more_pairs": difference.more_pairs,
            },
        )
        for difference in differences
    ]
    return Result(
        protocol="comparison",
        name=first.name,
        rules=f"{first.rules}; paired bootstrap",
        figures=tuple(figures),
        counts=first.counts,
        settings={
            "first": first.origin.model,
            "second": second.origin.model,
            "resamples": resamples,
            "seed": seed,
        },
        origin=second.origin,
    )


def _same_pairs(first: PairScores, second: PairScores) -> bool:
    """Whether two results are of the same pairs, as far as both results record the images."""
    if (first.same, first.folds) != (second.same, second.folds):
        return False
    # Results of earlier versions have no digest; compare their identities instead.
    if first.images_digest and second.images_digest:
        return first.images_digest == second.images_digest
    return None in (first.identities, second.identities) or first.identities == second.identities


def _scores(result: Result) -> PairScores:
    if result.scores is None:
        raise ValueError(
            f"the result {result.name or result.protocol!r} has no pair scores; write results with "
            "margrave evaluate pairs --output, or give features and a list of pairs"
        )
    return result.scores
