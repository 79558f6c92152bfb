"""Errors of demographic groups at one global threshold, and indices of how unequal they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from margrave.evaluation.pairs import rates_at_far
from margrave.evaluation.rate_intervals import Interval, rate_interval
from margrave.evaluation.results import PairScores
from margrave.evaluation.roc import roc_curve

FALSE_MATCH_WEIGHT = 0.5
"""α, the weight of false matches in FDR and GARBE; false non-matches have the weight 1 − α."""


@dataclass(frozen=True)
class GroupErrors:
    """One group's errors at the global threshold.

    Attributes:
        group: the group's name.
        genuine: number of genuine pairs.
        impostors: number of impostor pairs.
        fmr: share of impostor pairs accepted.
        fnmr: share of genuine pairs rejected.
        fmr_interval: 95 % interval of the FMR, as if pairs were independent.
        fnmr_interval: 95 % interval of the FNMR, as if pairs were independent.
    """

    group: str
    genuine: int
    impostors: int
    fmr: float
    fnmr: float
    fmr_interval: Interval
    fnmr_interval: Interval


@dataclass(frozen=True)
class Inequality:
    """Indices of how unequal groups' errors are; read them only together with each group's errors.

    Attributes:
        fdr: fairness discrepancy rate, 1 − [α·max |ΔFMR| + (1 − α)·max |ΔFNMR|], where Δ is the
            difference between two groups; 1 if all groups are equal.
        garbe: α·Gini(FMR) + (1 − α)·Gini(FNMR); 0 if all groups are equal.
        fmr_ratio: the largest FMR divided by the geometric mean of all FMRs; None if an FMR is 0.
        fnmr_ratio: the largest FNMR divided by the geometric mean of all FNMRs; None if an FNMR is
            0.
    """

    fdr: float
    garbe: float
    fmr_ratio: float | None
    fnmr_ratio: float | None


def group_errors(
    scores: Mapping[str, PairScores], far: float
) -> tuple[float, tuple[GroupErrors, ...]]:
    """Each group's errors at one threshold, chosen for a FAR over the pairs of all groups.

    Args:
        scores: group name -> the scores of its pairs.
        far: the FAR target over the impostor pairs of all groups, in (0, 1).

    Returns:
        The threshold, a cosine above which pairs are accepted, and each group's errors, in the
        order of ``scores``.

    Raises:
        ValueError: there are fewer than two groups, a group lacks genuine or impostor pairs, or
            the FAR target is not in (0, 1).
    """
    if len(scores) < 2:
        raise ValueError(f"got {len(scores)} groups; comparing groups needs at least two")
    # For unit embeddings, the squared distance is 2 − 2·cosine.
    cosines = {name: 1 - np.array(pairs.distances) / 2 for name, pairs in scores.items()}
    same = {name: np.array(pairs.same, bool) for name, pairs in scores.items()}
    for name, is_genuine in same.items():
        if is_genuine.all() or not is_genuine.any():
            raise ValueError(
                f"the group {name!r} lacks genuine or impostor pairs; both are required"
            )
    all_cosines = np.concatenate(list(cosines.values()))
    all_same = np.concatenate(list(same.values()))
    (global_rate,) = rates_at_far(roc_curve(all_cosines, all_same), int((~all_same).sum()), [far])
    groups = []
    for name in scores:
        accepted, is_genuine = cosines[name] > global_rate.threshold, same[name]
        false_matches, impostors = int((accepted & ~is_genuine).sum()), int((~is_genuine).sum())
        false_non_matches, genuine = int((~accepted & is_genuine).sum()), int(is_genuine.sum())
        groups.append(
            GroupErrors(
                group=name,
                genuine=genuine,
                impostors=impostors,
                fmr=false_matches / impostors,
                fnmr=false_non_matches / genuine,
                fmr_interval=_clopper_pearson(false_matches, impostors),
                fnmr_interval=_clopper_pearson(false_non_matches, genuine),
            )
        )
    return global_rate.threshold, tuple(groups)


def _clopper_pearson(errors: int, pairs: int) -> Interval:
    """Clopper and Pearson's 95 % interval of an error rate."""
    return rate_interval(errors / pairs, pairs, continuity=1)


def inequality(groups: Sequence[GroupErrors]) -> Inequality:
    """Indices of how unequal the errors of at least two groups are; see ``Inequality``.

    Sources: FDR, de Freitas Pereira and Marcel, arXiv 2011.02395; GARBE, Howard et al. (2022); the
    ratio to the geometric mean, NIST IR 8429 (2022). ISO/IEC 19795-10:2024 defines the terms.

    >>> rows = [GroupErrors(name, 9, 9, fmr, 0.1, (0, 1), (0, 1))
    ...         for name, fmr in (("a", 0.01), ("b", 0.04))]
    >>> index = inequality(rows)
    >>> round(index.fdr, 3), round(index.garbe, 3), round(index.fmr_ratio, 3)
    (0.985, 0.3, 2.0)
    """
    fmr, fnmr = [group.fmr for group in groups], [group.fnmr for group in groups]

    def max_difference(rates: Sequence[float]) -> float:
        return max(abs(a - b) for a, b in combinations(rates, 2))

    def gini(rates: Sequence[float]) -> float:
        count, mean = len(rates), float(np.mean(rates))
        differences = sum(abs(a - b) for a in rates for b in rates)
        # With the factor count / (count − 1), the index can reach 1 even for few groups.
        return 0.0 if mean == 0 else count / (count - 1) * differences / (2 * count**2 * mean)

    def ratio_to_geometric_mean(rates: Sequence[float]) -> float | None:
        return max(rates) / float(np.exp(np.mean(np.log(rates)))) if min(rates) > 0 else None

    alpha = FALSE_MATCH_WEIGHT
    return Inequality(
        fdr=1 - (alpha * max_difference(fmr) + (1 - alpha) * max_difference(fnmr)),
        garbe=alpha * gini(fmr) + (1 - alpha) * gini(fnmr),
        fmr_ratio=ratio_to_geometric_mean(fmr),
        fnmr_ratio=ratio_to_geometric_mean(fnmr),
    )
