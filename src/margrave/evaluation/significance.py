"""How far pair metrics would move with other people: bootstrap intervals.

**Identities unknown: pairs are resampled**, within each fold and class, which the protocol fixes.
Pairs that share a person are not independent, so such intervals are somewhat narrow.

**Identities known: identities are resampled.** A person drawn m times gives its genuine pairs the
weight m, and a pair of two people the product of both weights (the two-way or pigeonhole
bootstrap). Products keep what pairs share through either person, but also count the noise of a
single impostor pair three times: with m of mean and variance 1, var(m_i · m_j) = 3. That excess is
measured, by resampling impostor pairs alone, and taken out: replicates are drawn towards their mean
until their variance is

    v = max(v_identities − 2 · v_impostors, v_identities / 3)

which for a mean over pairs is the dyadic cluster-robust variance. Sources: Owen, "The pigeonhole
bootstrap" (2007); Owen and Eckles (2012); Aronow, Samii and Assenova (2015).

A resampled pair stays in its fold, so copies of one pair never stand on both sides of the
cross-validation, and thresholds are chosen anew in every replicate, which costs a replicate a
little accuracy; the replicates' mean is therefore moved to the figure itself. Weights are rescaled
so that genuine and impostor pairs keep their shares; a fold whose people were drawn often counts
for more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from margrave.evaluation.rate_intervals import (
    Interval,
    degrees_of_freedom,
    effective_people,
    freedom_with_threshold,
    independent_trials,
    rate_interval,
)
from margrave.evaluation.verification import (
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

MANY_PEOPLE = 30
"""With as many degrees of freedom, the variance of an AUC is believed as it is."""
_VALUES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class PairIntervals:
    """Bootstrap intervals (low, high) of a pair evaluation.

    Attributes:
        resampled: what was drawn with replacement.
        resamples: how often.
        level: the coverage aimed at.
        accuracy: of the mean accuracy over folds.
        area_under_roc: of the AUC.
        equal_error_rate: of the EER.
        true_accept_rates: of the TAR at each FAR target, in the order given.
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
    """Percentile intervals of the k-fold accuracy, AUC, EER and TAR at FAR targets.

    Args:
        distances: (P,) squared distances in [0, 4].
        same: (P,) bool.
        folds: contiguous folds of the pairs.
        identities: (P, 2) integers, who is on either side of each pair; None resamples pairs.
        far_targets: see ``PairIntervals.true_accept_rates``.
        resamples: number of replicates, at least 2.
        seed: of the replicates.
        level: coverage in (0, 1).

    Raises:
        ValueError: distances that are not finite, one class only, identities of another shape or at
            odds with ``same``, fewer than 2 resamples.
    """
    if resamples < 2:
        raise ValueError(f"resamples = {resamples}; give at least 2, or 0 for no intervals")
    distances, same = check_pairs(distances, same)
    statistics = PairStatistics(distances, same, folds, far_targets)
    drawn = replicates(statistics, same, folds, identities, resamples, seed)
    people = None if identities is None else check_identities(identities, same)
    number = number_of_people(same, people)
    variances = drawn.without_excess().var(0) * number / max(number - 1, 1)
    freedom = _freedom(statistics, same, people, variances)
    genuine, impostors = int(same.sum()), int((~same).sum())
    # The AUC compares every genuine pair with every impostor pair.
    observations = [len(same), genuine * impostors, len(same)] + [genuine] * len(far_targets)
    point = drawn.point.clip(0, 1).tolist()
    trials = [
        independent_trials(figure, variance, number, observed, degrees, level)
        for figure, variance, observed, degrees in zip(
            point, variances.tolist(), observations, freedom, strict=True
        )
    ]
    # The AUC hardly feels the errors of a few people, and is no more certain than the EER for that.
    few = max(0.0, 1 - freedom[1] / MANY_PEOPLE)
    trials[1] *= min(1.0, trials[2] / trials[1]) ** few
    accuracy, area, equal, *rates = [
        # The EER is read from a straight line between errors, not counted.
        rate_interval(figure, each, level, continuity=1.0 if which == 2 else 0.5)
        for which, (figure, each) in enumerate(zip(point, trials, strict=True))
    ]
    kind: Resampled = "pairs" if identities is None else "identities"
    return PairIntervals(kind, resamples, level, accuracy, area, equal, tuple(rates))


def number_of_people(same: np.ndarray, people: np.ndarray | None) -> float:
    """As how many equal people the genuine, or the impostor pairs count; of the two, the fewer.

    Args:
        same: (P,) bool.
        people: (P, 2) numbers from 0; None where every pair stands for itself.
    """
    if people is None:
        return float(min(same.sum(), (~same).sum()))
    sides = (people[same, 0], people[~same].ravel())
    return min(effective_people(np.unique(side, return_counts=True)[1]) for side in sides)


def _freedom(
    statistics: PairStatistics,
    same: np.ndarray,
    people: np.ndarray | None,
    variances: np.ndarray,
) -> list[float]:
    """Degrees of freedom of each metric's variance, from what every person contributes to it."""
    if people is None:
        people = np.arange(len(same)).repeat(2).reshape(-1, 2)
    number = int(people.max()) + 1

    def of_people(values: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        sums = np.bincount(people[pairs, 0], values, number)
        other = pairs & (people[:, 0] != people[:, 1])
        return sums + np.bincount(people[other, 1], values[other[pairs]], number)

    every = np.ones(len(same), bool)
    taking_part = np.unique(people)
    accepted = statistics.accepted()
    freedom = []
    for values in (
        accepted["accuracy"] == same,
        statistics.placements(),
        accepted["equal_error_rate"] == same,
    ):
        means = [values[~same].mean(), values[same].mean()]
        centred = (values - np.where(same, means[1], means[0])) / np.where(
            same, same.sum(), (~same).sum()
        )
        freedom.append(degrees_of_freedom(of_people(centred, every)[taking_part]))
    genuine_people = np.unique(people[same])
    for far, variance in zip(statistics.far_targets, variances[3:], strict=True):
        hits = accepted[far][same].astype(float)
        contributions = of_people((hits - hits.mean()) / len(hits), same)[genuine_people]
        false = accepted[far] & ~same
        if not false.any():
            false = ~same & (statistics.scores == statistics.scores[~same].max())
        freedom.append(freedom_with_threshold(contributions, people[false], float(variance)))
    return freedom


@dataclass(frozen=True, eq=False)
class _Replicates:
    """(R, metrics) of resampled pairs, of resampled impostors alone, and (metrics,) of the pairs.

    Replicates of one seed weigh the pairs alike whatever their distances, so those of two models
    can be subtracted.
    """

    samples: np.ndarray
    impostors: np.ndarray | None
    point: np.ndarray

    def __sub__(self, other: _Replicates) -> _Replicates:
        impostors = None
        if self.impostors is not None and other.impostors is not None:
            impostors = self.impostors - other.impostors
        return _Replicates(self.samples - other.samples, impostors, self.point - other.point)

    def without_excess(self) -> np.ndarray:
        """The samples with the spread that they should have."""
        if self.impostors is None:
            return self.samples
        return _without_excess(self.samples, self.impostors)


def replicates(
    statistics: PairStatistics,
    same: np.ndarray,
    folds: int,
    identities: np.ndarray | None,
    resamples: int,
    seed: int,
) -> _Replicates:
    generator = np.random.default_rng(seed)
    strata = fold_of_pair(len(same), folds) * 2 + same
    # Thresholds re-chosen on repeated pairs judge a little worse than on all of them.
    point = statistics.replicate(iter([np.ones((1, len(same)))]))[0]
    if identities is None:
        drawn = _resample_within(strata, resamples, generator)
        return _Replicates(statistics.replicate(drawn), None, point)
    people = check_identities(identities, same)
    samples = statistics.replicate(_resample_identities(people, same, resamples, generator))
    # Strata of genuine pairs are left whole: their weights already vary as they should.
    impostors = statistics.replicate(_resample_within(strata, resamples, generator, kept=same))
    return _Replicates(samples, impostors, point)


def check_identities(identities: np.ndarray, same: np.ndarray) -> np.ndarray:
    """(P, 2) identities numbered from 0; ValueError if they contradict ``same``."""
    identities = np.asarray(identities)
    if identities.shape != (len(same), 2):
        raise ValueError(
            f"identities {identities.shape}; give a row of two per pair, ({len(same)}, 2)"
        )
    if len(odd := np.flatnonzero((identities[:, 0] == identities[:, 1]) != same)):
        raise ValueError(
            f"pair {odd[0]} ({len(odd)} in all) has identities {identities[odd[0]].tolist()} but "
            f"same = {bool(same[odd[0]])}; correct one of them"
        )
    return np.unique(identities, return_inverse=True)[1].reshape(-1, 2)


class PairStatistics:
    """(R, 3 + targets) metrics of weighted copies of the pairs."""

    def __init__(
        self, distances: np.ndarray, same: np.ndarray, folds: int, far_targets: Sequence[float]
    ) -> None:
        self._distances, self._folds = distances, folds
        self.scores, self._same = -distances, same
        self._order, self._ends = rank_pairs(self.scores)
        self.far_targets = far_targets
        self._shape = (folds, 2, 401)
        stratum = fold_of_pair(len(same), folds) * 2 + same
        self._cell = stratum * 401 + accept_bins(distances)
        self._size = np.bincount(same.astype(np.int64), minlength=2).reshape(2, 1)

    def replicate(self, weights: Iterator[np.ndarray]) -> np.ndarray:
        return np.concatenate([self._judge(chunk) for chunk in weights])

    def _judge(self, weights: np.ndarray) -> np.ndarray:
        counts = self._histogram(weights)
        # Rescaled over all folds together: rescaling each would hide how folds differ by person.
        counts *= self._size / counts.sum((1, 3), keepdims=True)
        accuracy = cross_validate(counts).fold_accuracy
        weight = counts.sum((-1, -2))
        roc = weighted_roc(self.scores, self._same, self._order, self._ends, weights)
        return np.stack(
            [
                (accuracy * weight).sum(-1) / weight.sum(-1),
                area_under(roc),
                equal_error_rate(roc),
                *(true_accept_rate(roc, far) for far in self.far_targets),
            ],
            axis=1,
        )

    def accepted(self) -> dict[str | float, np.ndarray]:
        """(P,) which pairs are accepted where accuracy and EER are read, and at each FAR target."""
        ones = np.ones(len(self._same))
        chosen = cross_validate(self._histogram(ones[None])).fold_threshold[0]
        roc = weighted_roc(self.scores, self._same, self._order, self._ends, ones)
        equal = int((roc.far < 1 - roc.tar).sum())
        of_fold = chosen[fold_of_pair(len(self._same), self._folds)]
        found: dict[str | float, np.ndarray] = {
            "accuracy": accept_bins(self._distances) <= of_fold,
            "equal_error_rate": self.scores > roc.scores[equal],
        }
        for far in self.far_targets:
            found[far] = self.scores > roc.scores[loosest_point(roc, far)]
        return found

    def placements(self) -> np.ndarray:
        """(P,) share of the other class's pairs on the right side of each, ties counting half."""
        shares = np.empty(len(self._same))
        for side, sign in ((self._same, 1), (~self._same, -1)):
            others = np.sort(sign * self.scores[~self._same if sign == 1 else self._same])
            own = sign * self.scores[side]
            below = np.searchsorted(others, own) + np.searchsorted(others, own, side="right")
            shares[side] = below / (2 * len(others))
        return shares

    def _histogram(self, weights: np.ndarray) -> np.ndarray:
        cells = int(np.prod(self._shape))
        place = self._cell + np.arange(len(weights))[:, None] * cells
        counts = np.bincount(place.ravel(), weights.ravel(), len(weights) * cells)
        return counts.reshape(len(weights), *self._shape)


def _chunks(resamples: int, width: int) -> Iterator[int]:
    """Numbers of replicates that sum to ``resamples``, each few enough for memory."""
    most = max(1, _VALUES_AT_ONCE // width)
    for start in range(0, resamples, most):
        yield min(most, resamples - start)


def _resample_within(
    strata: np.ndarray,
    resamples: int,
    generator: np.random.Generator,
    kept: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """(rows, P) how often each pair is drawn from its stratum; 1 where ``kept``."""
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    if kept is not None:
        members = [pairs for pairs in members if not kept[pairs[0]]]
    for rows in _chunks(resamples, len(strata)):
        weights = np.ones((rows, len(strata)))
        for pairs in members:
            draws = generator.integers(len(pairs), size=(rows, len(pairs)))
            weights[:, pairs] = _multiplicities(draws, len(pairs))
        yield weights


def _resample_identities(
    people: np.ndarray, same: np.ndarray, resamples: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """(rows, P) multiplicity of a genuine pair's person, product of both of an impostor pair's."""
    number = int(people.max()) + 1
    for rows in _chunks(resamples, len(same)):
        drawn = _multiplicities(generator.integers(number, size=(rows, number)), number)
        first, second = drawn[:, people[:, 0]], drawn[:, people[:, 1]]
        weights = np.where(same, first, first * second)
        # With a handful of people a replicate may miss one class altogether: it says nothing.
        blank = ~(weights @ same > 0) | ~(weights @ ~same > 0)
        yield np.where(blank[:, None], 1.0, weights)


def _multiplicities(draws: np.ndarray, number: int) -> np.ndarray:
    """(rows, number) how often each of 0..number−1 occurs in each row."""
    rows = len(draws)
    place = draws + np.arange(rows)[:, None] * number
    return np.bincount(place.ravel(), minlength=rows * number).reshape(rows, number)


def _without_excess(samples: np.ndarray, impostors: np.ndarray) -> np.ndarray:
    """Replicates of the two-way bootstrap, drawn towards their mean (see the module's text)."""
    mean, variance = samples.mean(0), samples.var(0)
    wanted = np.maximum(variance - 2 * impostors.var(0), variance / 3)
    shrink = np.sqrt(wanted / np.where(variance > 0, variance, 1))
    return mean + shrink * (samples - mean)
