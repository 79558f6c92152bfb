"""Bootstrap intervals of pair metrics.

**If identities are unknown, pairs are resampled** within each fold and class (genuine or impostor),
because the protocol fixes the number of pairs in each. Pairs that share an identity are not
independent, so these intervals are somewhat too narrow.

**If identities are known, identities are resampled.** If identity i is drawn m_i times, a genuine
pair of this identity gets the weight m_i. An impostor pair of identities i and j gets the weight
m_i · m_j (the two-way or pigeonhole bootstrap). The products preserve the dependence of pairs that
share an identity, but count the noise of a single impostor pair three times: each m has mean and
variance 1, so m_i · m_j has variance 3. This excess is removed by shrinking the replicates toward
their mean until their variance is

    v = max(v_identities − 2 · v_impostors, v_identities / 3)

where v_identities is the variance when identities are resampled, and v_impostors the variance when
only impostor pairs are resampled. Both arguments of max are equal if all variance is the noise of
single impostor pairs. For a mean over pairs, v is the dyadic cluster-robust variance.
Sources: Owen, "The pigeonhole bootstrap" (2007); Owen and Eckles (2012); Aronow, Samii and Assenova
(2015).

A resampled pair stays in its fold, so copies of a pair never occur on both sides of the
cross-validation. Every replicate selects its own thresholds and contains fewer distinct pairs,
which slightly lowers its accuracy. Intervals are therefore centered on the metric of the original
pairs. Weights are rescaled so that the total weights of genuine and impostor pairs do not change. A
fold gets a larger weight if its identities are drawn often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from margrave.evaluation.inputs import check_resamples
from margrave.evaluation.rate_intervals import (
    Interval,
    degrees_of_freedom,
    effective_identities,
    effective_sample_size,
    rate_interval,
    tar_degrees_of_freedom,
)
from margrave.evaluation.roc import (
    BIN_COUNT,
    accept_bins,
    area_under,
    check_pairs,
    cross_validate,
    equal_error_rate,
    fold_of_pair,
    loosest_point,
    rank_pairs,
    true_accept_rate,
    weighted_roc,
)

Resampled = Literal["identities", "pairs"]

RELIABLE_AUC_DEGREES = 30
"""The variance of an AUC with at least this many degrees of freedom is used without correction."""
# Columns of ``PairStatistics.metrics``; column 0 is the accuracy.
_AUC, _EER, _FIRST_TAR = 1, 2, 3
# Number of pair weights to hold in memory at a time.
_WEIGHTS_PER_CHUNK = 1 << 20


@dataclass(frozen=True)
class PairIntervals:
    """Bootstrap intervals (low, high) of a pair evaluation.

    Attributes:
        resampled: whether identities or pairs were resampled.
        resamples: number of replicates.
        level: target coverage.
        accuracy: interval of the mean accuracy over folds.
        area_under_roc: interval of the AUC.
        equal_error_rate: interval of the EER.
        true_accept_rates: interval of the TAR at each FAR target, in the targets' order.
    """

    resampled: Resampled
    resamples: int
    level: float
    accuracy: Interval
    area_under_roc: Interval
    equal_error_rate: Interval
    true_accept_rates: tuple[Interval, ...]


def bootstrap_pairs(
    distances: np.ndarray,
    same: np.ndarray,
    folds: int = 10,
    identities: np.ndarray | None = None,
    far_targets: Sequence[float] = (),
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> PairIntervals:
    """Intervals of the k-fold accuracy, AUC, EER and TAR at FAR targets.

    Args:
        distances: (P,) squared distances in [0, 4].
        same: (P,) bool, whether each pair is genuine.
        folds: number of contiguous folds of the pairs.
        identities: (P, 2) labels of both sides of each pair; None resamples pairs.
        far_targets: FAR targets of ``PairIntervals.true_accept_rates``.
        resamples: number of replicates, at least 2.
        seed: seed of the bootstrap.
        level: target coverage, in (0, 1).

    Raises:
        ValueError: a distance is not finite, genuine or impostor pairs are missing, the identities
            contradict ``same`` or do not have shape (P, 2), or ``resamples`` is below 2.
    """
    check_resamples(resamples)
    distances, same = check_pairs(distances, same)
    statistics = PairStatistics(distances, same, folds, far_targets)
    bootstrapped = replicates(statistics, same, folds, identities, resamples, seed)
    labels = None if identities is None else check_identities(identities, same)
    identity_count = effective_identity_count(same, labels)
    # The bootstrap's variance is too small by the factor (n − 1) / n for n identities.
    variances = (
        bootstrapped.corrected_samples().var(0) * identity_count / max(identity_count - 1, 1)
    )
    degrees = _degrees_of_freedom(statistics, same, labels, variances)
    genuine, impostors = int(same.sum()), int((~same).sum())
    # The order of the metrics is accuracy, AUC, EER, TARs. The AUC compares every genuine pair with
    # every impostor pair.
    observations = [len(same), genuine * impostors, len(same)] + [genuine] * len(far_targets)
    point = bootstrapped.point.clip(0, 1).tolist()
    sample_sizes = [
        effective_sample_size(value, variance, identity_count, observed, metric_degrees, level)
        for value, variance, observed, metric_degrees in zip(
            point, variances.tolist(), observations, degrees, strict=True
        )
    ]
    # The variance of the AUC comes from the few pairs that are ranked wrongly. With few identities,
    # the sample hardly contains such pairs, so the bootstrap underestimates the variance. Move the
    # AUC's effective sample size toward that of the EER.
    correction = max(0.0, 1 - degrees[_AUC] / RELIABLE_AUC_DEGREES)
    sample_sizes[_AUC] *= min(1.0, sample_sizes[_EER] / sample_sizes[_AUC]) ** correction
    accuracy, auc, eer, *tars = [
        # The EER is interpolated between error counts, so it gets the larger continuity correction.
        rate_interval(value, size, level, continuity=1.0 if column == _EER else 0.5)
        for column, (value, size) in enumerate(zip(point, sample_sizes, strict=True))
    ]
    resampled: Resampled = "pairs" if identities is None else "identities"
    return PairIntervals(resampled, resamples, level, accuracy, auc, eer, tuple(tars))


def effective_identity_count(same: np.ndarray, labels: np.ndarray | None) -> float:
    """The effective number of identities in the genuine or impostor pairs, whichever is smaller.

    Args:
        same: (P,) bool, whether each pair is genuine.
        labels: (P, 2) the identities of both sides, of any type; None treats every pair as
            a separate identity.
    """
    if labels is None:
        return float(min(same.sum(), (~same).sum()))
    labels = np.asarray(labels)
    labels_by_class = (labels[same, 0], labels[~same].ravel())
    return min(
        effective_identities(np.unique(class_labels, return_counts=True)[1])
        for class_labels in labels_by_class
    )


def _degrees_of_freedom(
    statistics: PairStatistics,
    same: np.ndarray,
    labels: np.ndarray | None,
    variances: np.ndarray,
) -> list[float]:
    """Degrees of freedom of each metric's variance, from the identities' contributions.

    Args:
        statistics: computes the metrics.
        same: (P,) bool, whether each pair is genuine.
        labels: (P, 2) identity indices of both sides, from 0 without gaps; None treats every pair
            as a separate identity.
        variances: (metrics,) each metric's corrected bootstrap variance.
    """
    if labels is None:
        labels = np.arange(len(same)).repeat(2).reshape(-1, 2)
    identity_count = int(labels.max()) + 1

    def sum_by_identity(values: np.ndarray, selected: np.ndarray) -> np.ndarray:
        """Sum values by identity; a pair of two identities counts for both.

        Args:
            values: one value for each selected pair.
            selected: (P,) bool, whether each pair is selected.
        """
        first, second = labels[selected].T
        differ = first != second
        return np.bincount(first, values, identity_count) + np.bincount(
            second[differ], values[differ], identity_count
        )

    all_pairs = np.ones(len(same), bool)
    accepted = statistics.accepted()
    degrees = []
    for values in (
        accepted["accuracy"] == same,
        statistics.placements(),
        accepted["equal_error_rate"] == same,
    ):
        # A pair contributes its deviation from the mean of its class, divided by the class's size.
        class_means = np.where(same, values[same].mean(), values[~same].mean())
        class_sizes = np.where(same, same.sum(), (~same).sum())
        centered = (values - class_means) / class_sizes
        degrees.append(degrees_of_freedom(sum_by_identity(centered, all_pairs)))
    genuine_labels = np.unique(labels[same])
    for far, variance in zip(statistics.far_targets, variances[_FIRST_TAR:], strict=True):
        hits = accepted[far][same].astype(float)
        contributions = sum_by_identity((hits - hits.mean()) / len(hits), same)[genuine_labels]
        false_accepts = accepted[far] & ~same
        if not false_accepts.any():
            # The threshold is then the highest impostor score; use the pairs with this score.
            false_accepts = ~same & (statistics.scores == statistics.scores[~same].max())
        degrees.append(
            tar_degrees_of_freedom(contributions, labels[false_accepts], float(variance))
        )
    return degrees


@dataclass(frozen=True, eq=False)
class Replicates:
    """The metrics of bootstrap replicates.

    With the same seed, replicate r has the same pair weights for every model, so the replicates of
    two models can be subtracted.

    Attributes:
        samples: (R, metrics) the metrics of each replicate.
        impostor_samples: (R, metrics) the metrics of replicates that resample only impostor pairs,
            to estimate the excess variance; None if pairs instead of identities are resampled.
        point: (metrics,) the metrics of the original pairs.
    """

    samples: np.ndarray
    impostor_samples: np.ndarray | None
    point: np.ndarray

    def __sub__(self, other: Replicates) -> Replicates:
        impostor_samples = None
        if self.impostor_samples is not None and other.impostor_samples is not None:
            impostor_samples = self.impostor_samples - other.impostor_samples
        return Replicates(self.samples - other.samples, impostor_samples, self.point - other.point)

    def metric(self, column: int) -> Replicates:
        """The replicates of one metric; the metrics axis remains, with length 1."""
        columns = slice(column, column + 1)
        impostor_samples = self.impostor_samples
        if impostor_samples is not None:
            impostor_samples = impostor_samples[:, columns]
        return Replicates(self.samples[:, columns], impostor_samples, self.point[columns])

    @staticmethod
    def mean(models: Sequence[Replicates]) -> Replicates:
        """The mean over models of their replicates, which must have the same pair weights."""
        impostor_samples = [
            model.impostor_samples for model in models if model.impostor_samples is not None
        ]
        return Replicates(
            np.mean([model.samples for model in models], axis=0),
            np.mean(impostor_samples, axis=0) if impostor_samples else None,
            np.mean([model.point for model in models], axis=0),
        )

    def corrected_samples(self) -> np.ndarray:
        """(R, metrics) the samples without the two-way bootstrap's excess variance."""
        if self.impostor_samples is None:
            return self.samples
        return _remove_excess_variance(self.samples, self.impostor_samples)


def replicates(
    statistics: PairStatistics,
    same: np.ndarray,
    folds: int,
    identities: np.ndarray | None,
    resamples: int,
    seed: int,
) -> Replicates:
    """Resample the pairs or their identities, and compute the metrics of each replicate.

    Args:
        statistics: computes the metrics.
        same: (P,) bool, whether each pair is genuine.
        folds: number of contiguous folds of the pairs.
        identities: (P, 2) labels of both sides of each pair; None resamples pairs.
        resamples: number of replicates R.
        seed: seed of the bootstrap.
    """
    generator = np.random.default_rng(seed)
    strata = fold_of_pair(len(same), folds) * 2 + same
    # Not the mean of the replicates, which is biased: resampled pairs select worse thresholds.
    point = statistics.metrics(iter([np.ones((1, len(same)))]))[0]
    if identities is None:
        weights = _resample_within_strata(strata, resamples, generator)
        return Replicates(statistics.metrics(weights), None, point)
    labels = check_identities(identities, same)
    samples = statistics.metrics(_resample_identities(labels, same, resamples, generator))
    # Genuine pairs keep a weight of 1, because only impostor pairs' weights have excess variance.
    impostor_samples = statistics.metrics(
        _resample_within_strata(strata, resamples, generator, fixed=same)
    )
    return Replicates(samples, impostor_samples, point)


def check_identities(identities: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Validate the identities of pairs; return their (P, 2) indices, numbered from 0.

    Raises:
        ValueError: the shape is not (P, 2), or the identities contradict ``same``.
    """
    identities = np.asarray(identities)
    if identities.shape != (len(same), 2):
        raise ValueError(
            f"identities must have shape ({len(same)}, 2), two per pair, got {identities.shape}"
        )
    if len(wrong := np.flatnonzero((identities[:, 0] == identities[:, 1]) != same)):
        raise ValueError(
            f"identities contradict same in {len(wrong)} pairs: pair {wrong[0]} has identities "
            f"{identities[wrong[0]].tolist()} but same = {bool(same[wrong[0]])}"
        )
    return np.unique(identities, return_inverse=True)[1].reshape(-1, 2)


class PairStatistics:
    """Computes the metrics of the pairs for any pair weights, such as those of a replicate.

    The metrics are accuracy, AUC, EER, and TAR at each FAR target, in this order.

    Args:
        distances: (P,) squared distances in [0, 4].
        same: (P,) bool, whether each pair is genuine.
        folds: number of contiguous folds.
        far_targets: FAR targets.

    Attributes:
        scores: (P,) negative distances.
        far_targets: the FAR targets.
    """

    def __init__(
        self, distances: np.ndarray, same: np.ndarray, folds: int, far_targets: Sequence[float]
    ) -> None:
        self._distances, self._folds = distances, folds
        self.scores, self._same = -distances, same
        self._order, self._ends = rank_pairs(self.scores)
        self.far_targets = far_targets
        self._shape = (folds, 2, BIN_COUNT)
        strata = fold_of_pair(len(same), folds) * 2 + same
        self._bins = strata * BIN_COUNT + accept_bins(distances)
        # Impostor pairs, then genuine pairs.
        self._class_sizes = np.bincount(same.astype(np.int64), minlength=2).reshape(2, 1)

    def metrics(self, weights: Iterator[np.ndarray]) -> np.ndarray:
        """(R, 3 + targets) the metrics of R replicates, from chunks of (r, P) pair weights."""
        return np.concatenate([self._chunk_metrics(chunk) for chunk in weights])

    def _chunk_metrics(self, weights: np.ndarray) -> np.ndarray:
        """(r, 3 + targets) the metrics for (r, P) pair weights."""
        counts = self._histogram(weights)
        # Rescale each class by the same factor in all folds: a factor for each fold would hide the
        # variance between identities.
        counts *= self._class_sizes / counts.sum((1, 3), keepdims=True)
        accuracy = cross_validate(counts).fold_accuracy
        fold_weight = counts.sum((-1, -2))
        roc = weighted_roc(self.scores, self._same, self._order, self._ends, weights)
        return np.stack(
            [
                (accuracy * fold_weight).sum(-1) / fold_weight.sum(-1),
                area_under(roc),
                equal_error_rate(roc),
                *(true_accept_rate(roc, far) for far in self.far_targets),
            ],
            axis=1,
        )

    def accepted(self) -> dict[str | float, np.ndarray]:
        """Which of the original pairs each metric's threshold accepts.

        Returns:
            Key -> (P,) bool. The keys are "accuracy", "equal_error_rate" and each FAR target.
        """
        ones = np.ones(len(self._same))
        fold_threshold = cross_validate(self._histogram(ones[None])).fold_threshold_index[0]
        # The threshold with index i accepts the pairs in bins 0 to i.
        pair_threshold = fold_threshold[fold_of_pair(len(self._same), self._folds)]
        roc = weighted_roc(self.scores, self._same, self._order, self._ends, ones)
        # The first point of the ROC with FAR ≥ 1 − TAR.
        eer_point = int((roc.far < 1 - roc.tar).sum())
        decisions: dict[str | float, np.ndarray] = {
            "accuracy": accept_bins(self._distances) <= pair_threshold,
            "equal_error_rate": self.scores > roc.thresholds[eer_point],
        }
        for far in self.far_targets:
            decisions[far] = self.scores > roc.thresholds[loosest_point(roc, far)]
        return decisions

    def placements(self) -> np.ndarray:
        """(P,) the share of the opposite class's pairs with which each pair is in the right order.

        Ties count half. The mean over the pairs of either class is the AUC.
        """
        shares = np.empty(len(self._same))
        for in_class, sign in ((self._same, 1), (~self._same, -1)):
            # Genuine pairs should score above the opposite class, impostor pairs below it.
            opposite_scores = np.sort(sign * self.scores[~in_class])
            class_scores = sign * self.scores[in_class]
            # Lower scores are counted twice, and equal scores once.
            twice_below = np.searchsorted(opposite_scores, class_scores) + np.searchsorted(
                opposite_scores, class_scores, side="right"
            )
            shares[in_class] = twice_below / (2 * len(opposite_scores))
        return shares

    def _histogram(self, weights: np.ndarray) -> np.ndarray:
        """(r, folds, 2, 401) total weight in each fold, class and bin of ``accept_bins``."""
        bins_per_row = int(np.prod(self._shape))
        index = self._bins + np.arange(len(weights))[:, None] * bins_per_row
        counts = np.bincount(index.ravel(), weights.ravel(), len(weights) * bins_per_row)
        return counts.reshape(len(weights), *self._shape)


def _chunk_sizes(resamples: int, pairs: int) -> Iterator[int]:
    """Divide ``resamples`` replicates of the pairs into chunks whose weights fit into memory."""
    chunk = max(1, _WEIGHTS_PER_CHUNK // pairs)
    for start in range(0, resamples, chunk):
        yield min(chunk, resamples - start)


def _resample_within_strata(
    strata: np.ndarray,
    resamples: int,
    generator: np.random.Generator,
    fixed: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yield (r, P) weights: how often each pair is drawn; 1 where ``fixed``.

    Pairs are drawn within their stratum: one class (genuine or impostor) of one fold.
    """
    pairs_by_stratum = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    if fixed is not None:
        # Either all pairs of a stratum are fixed or none.
        pairs_by_stratum = [pairs for pairs in pairs_by_stratum if not fixed[pairs[0]]]
    for chunk in _chunk_sizes(resamples, len(strata)):
        weights = np.ones((chunk, len(strata)))
        for pairs in pairs_by_stratum:
            draws = generator.integers(len(pairs), size=(chunk, len(pairs)))
            weights[:, pairs] = _multiplicities(draws, len(pairs))
        yield weights


def _resample_identities(
    labels: np.ndarray, same: np.ndarray, resamples: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield (r, P) weights, computed from how often the identities of each pair are drawn."""
    count = int(labels.max()) + 1
    for chunk in _chunk_sizes(resamples, len(same)):
        multiplicities = _multiplicities(generator.integers(count, size=(chunk, count)), count)
        first, second = multiplicities[:, labels[:, 0]], multiplicities[:, labels[:, 1]]
        weights = np.where(same, first, first * second)
        # With few identities, a replicate may contain no genuine or no impostor pair. Such a
        # replicate uses every pair once.
        lacks_class = ~(weights @ same > 0) | ~(weights @ ~same > 0)
        yield np.where(lacks_class[:, None], 1.0, weights)


def _multiplicities(draws: np.ndarray, count: int) -> np.ndarray:
    """(rows, count) how often each index from 0 to count − 1 occurs in each row of ``draws``."""
    rows = len(draws)
    index = draws + np.arange(rows)[:, None] * count
    return np.bincount(index.ravel(), minlength=rows * count).reshape(rows, count)


def _remove_excess_variance(samples: np.ndarray, impostor_samples: np.ndarray) -> np.ndarray:
    """Shrink replicates of the two-way bootstrap toward their mean; see the module's docstring."""
    mean, variance = samples.mean(0), samples.var(0)
    corrected = np.maximum(variance - 2 * impostor_samples.var(0), variance / 3)
    shrink = np.sqrt(corrected / np.where(variance > 0, variance, 1))
    return mean + shrink * (samples - mean)
