"""What a card stores about a model's scores: thresholds, a calibration and reference scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A threshold chosen for a model, and its measured rates.

    Attributes:
        far: the requested false accept rate.
        threshold: two faces are accepted as the same person if their cosine is above this value.
        threshold_interval: 95 % confidence interval of the threshold, or None.
        true_accept_rate: the true accept rate measured at the threshold, or None.
        true_accept_interval: 95 % confidence interval of the true accept rate, or None.
        impostors: number of impostor pairs used to estimate the threshold.
        measured_on: description of the images, for the user.
        flips: True if embeddings were computed with flip fusion, which adds the embedding of the
            flipped image.

    Raises:
        ValueError: a field has an invalid value.
    """

    far: float
    threshold: float
    threshold_interval: tuple[float, float] | None = None
    true_accept_rate: float | None = None
    true_accept_interval: tuple[float, float] | None = None
    impostors: int = 0
    measured_on: str = ""
    flips: bool = True

    def __post_init__(self) -> None:
        if not (_is_finite(self.far) and 0 < self.far < 1):
            raise ValueError(f"operating point: far = {self.far!r}, must be between 0 and 1")
        # Rounding can put a cosine slightly beyond ±1.
        if not (_is_finite(self.threshold) and -1.001 <= self.threshold <= 1.001):
            raise ValueError(f"operating point: threshold = {self.threshold!r}, must be a cosine")
        for name in ("threshold_interval", "true_accept_interval"):
            if (interval := getattr(self, name)) is not None:
                if not _is_number_pair(interval) or not interval[0] <= interval[1]:
                    raise ValueError(
                        f"operating point: {name} = {interval!r:.60}, must be a lower and an upper "
                        "bound"
                    )
                object.__setattr__(self, name, tuple(interval))
        if not _is_count(self.impostors):
            raise ValueError(
                f"operating point: impostors = {self.impostors!r:.60}, must be a non-negative "
                "integer"
            )
        _check_description("operating point", self.measured_on, self.flips)
        rate = self.true_accept_rate
        if rate is not None and not (_is_finite(rate) and 0 <= rate <= 1):
            raise ValueError(
                f"operating point: true_accept_rate = {rate!r:.60}, must be between 0 and 1"
            )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration of scores: ln(p(cosine | same) / p(cosine | different)) = slope·cosine + offset.

    Attributes:
        slope: slope of the log-likelihood ratio, above 0.
        offset: offset of the log-likelihood ratio (natural logarithm).
        cllr: cost of the log-likelihood ratios (Cllr) in bits, on identities held out from the fit;
            1 means no information.
        cllr_min: the lowest cost that a monotonic calibration can reach on the held-out identities.
        people: number of identities in the fit. The same number of other identities, or one more,
            was held out.

    Raises:
        ValueError: a value is not finite, the slope is not above 0, or `people` is not a count.

    Source: Brümmer and du Preez, Application-independent evaluation of speaker detection (2006).
    """

    slope: float
    offset: float
    cllr: float
    cllr_min: float
    people: int

    def __post_init__(self) -> None:
        values = (self.slope, self.offset, self.cllr, self.cllr_min, self.people)
        if not all(_is_finite(value) for value in values) or self.slope <= 0:
            raise ValueError(
                f"calibration: (slope, offset, cllr, cllr_min, people) = {values!r:.120}, must be "
                "finite numbers with slope above 0"
            )
        if not _is_count(self.people):
            raise ValueError(
                f"calibration: people = {self.people!r:.60}, must be a non-negative integer"
            )

    def log_likelihood_ratio(self, cosine: float) -> float:
        """The log-likelihood ratio ln(p(cosine | same) / p(cosine | different)).

        >>> Calibration(slope=2, offset=-1, cllr=0, cllr_min=0, people=9).log_likelihood_ratio(0.5)
        0.0
        """
        return self.slope * cosine + self.offset


@dataclass(frozen=True, kw_only=True)
class ScoreReference:
    """Scores and norms measured on faces like those in the model's application.

    Attributes:
        measured_on: description of the images, for the user.
        flips: True if embeddings were computed with flip fusion.
        calibration: the calibration, or None if there were too few identities for it.
        genuine, impostors: histograms of genuine and impostor cosines, as the fraction of pairs in
            each bin; the bins divide [-1, 1] equally. Empty if there are no such pairs.
        far_thresholds: (false accept rate, threshold) in decreasing order of the rate, down to the
            smallest rate that allows at least three false accepts.
        norm_percentiles: the 0th, 1st, … 100th percentile of the norms of unnormalized embeddings;
            empty if all norms are equal.

    Raises:
        ValueError: a field has an invalid value.
    """

    measured_on: str
    flips: bool = True
    calibration: Calibration | None = None
    genuine: Sequence[float] = ()
    impostors: Sequence[float] = ()
    far_thresholds: Sequence[tuple[float, float]] = ()
    norm_percentiles: Sequence[float] = ()

    def __post_init__(self) -> None:
        if isinstance(self.calibration, dict):
            object.__setattr__(self, "calibration", Calibration(**self.calibration))
        if not isinstance(self.calibration, Calibration | None):
            raise ValueError(
                f"reference: calibration = {self.calibration!r:.60}, must be a calibration or null"
            )
        for name in ("genuine", "impostors", "norm_percentiles"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(map(_is_finite, values)):
                raise ValueError(f"reference: {name} = {values!r:.60}, must be finite numbers")
            object.__setattr__(self, name, tuple(values))
        if len(self.norm_percentiles) not in (0, 101):
            raise ValueError(
                f"reference: norm_percentiles has {len(self.norm_percentiles)} values, must have "
                "101 or none"
            )
        points = self.far_thresholds
        if not isinstance(points, list | tuple) or not all(map(_is_number_pair, points)):
            raise ValueError(
                f"reference: far_thresholds = {points!r:.60}, must be pairs of numbers"
            )
        object.__setattr__(self, "far_thresholds", tuple(tuple(point) for point in points))
        _check_description("reference", self.measured_on, self.flips)


def _is_finite(value: object) -> bool:
    # Not math.isfinite, which fails for integers too large for a float. The limit is far beyond any
    # score or norm.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number_pair(value: object) -> TypeGuard[Sequence[float]]:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_finite, value))


def _check_description(record: str, measured_on: object, flips: object) -> None:
    if not isinstance(measured_on, str):
        raise ValueError(f"{record}: measured_on = {measured_on!r:.60}, must be text")
    if not isinstance(flips, bool):
        raise ValueError(f"{record}: flips = {flips!r:.60}, must be true or false")
