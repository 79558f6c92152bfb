"""The results format: what every evaluation returns, and how files store it.

A file contains one or more results. All protocols share this format, so commands, comparisons and
reports need not know which protocol produced a result.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.results_0_1 import read_0_1
from margrave.files import atomic_write, read_bytes, read_json
from margrave.registry import suggest
from margrave.version import __version__

FORMAT = "margrave results"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 2**28
"""Largest size of a results file to read. Even dozens of results are smaller, because one stores at
most 100,000 pair scores."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The value of one metric, with its uncertainty.

    Attributes:
        metric: the metric's name: accuracy, TAR, EER, AUC, identification rate, TPIR, DIR, …
        value: the metric's value, in [0, 1] if ``percent``, or in [−1, 1] if it is a difference;
            None if there is nothing to measure.
        at: the operating point, such as ``{"FAR": 1e-4}``.
        stratum: the subset of the data, such as ``quality 0.5 to 0.75``; empty for all data.
        interval: the value's 95 % confidence interval, over identities if they are known; None
            without a bootstrap.
        threshold: the cosine above which pairs are accepted.
        threshold_interval: the threshold's 95 % confidence interval.
        realized: the FAR or FPIR at the threshold.
        too_few: True if the operating point allows too few false accepts for a reliable value:
            fewer than one, or fewer than ten if the value is a difference between two models.
        percent: True if the value is a rate, which tables show as a percentage.
        details: additional values by name, such as the p value of a difference.
    """

    metric: str
    value: float | None
    at: Mapping[str, float | str] = field(default_factory=dict)
    stratum: str = ""
    interval: Interval | None = None
    threshold: float | None = None
    threshold_interval: Interval | None = None
    realized: float | None = None
    too_few: bool = False
    percent: bool = True
    details: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Metric, operating point and stratum as text.

        >>> Figure(metric="TAR", value=0.9, at={"FAR": 1e-4}).label
        'TAR at FAR 0.0001'
        """
        point = ", ".join(
            f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}"
            for name, value in self.at.items()
        )
        label = f"{self.metric} at {point}" if point else self.metric
        return f"{label}, {self.stratum}" if self.stratum else label


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """The scores of all pairs, for comparing two models on the same pairs.

    Attributes:
        distances: (P,) squared distances between unit embeddings, in [0, 4].
        same: (P,) True where both images show the same identity.
        folds: number of contiguous folds.
        identities: (P, 2) labels of both sides; None if unknown.
        images_digest: digest of the names of all pairs' images; empty if unknown.
        lower_norms: (P,) the smaller of the two images' feature norms, as a measure of quality;
            None if unknown.
    """

    distances: tuple[float, ...]
    same: tuple[bool, ...]
    folds: int
    identities: tuple[tuple[int, int], ...] | None = None
    images_digest: str = ""
    lower_norms: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model and data that a result was measured on.

    Attributes:
        model: the model's name.
        weights: digest of the model's weights.
        preparation: the images' preprocessing, from the model's card.
        features: digest of the extracted features.
        images: the name of the image set.
        images_digest: digest of the images' names and labels.
    """

    model: str = ""
    weights: str = ""
    preparation: Mapping[str, Any] = field(default_factory=dict)
    features: str = ""
    images: str = ""
    images_digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one evaluation.

    Attributes:
        protocol: the protocol's registered name.
        name: the name of the pair set, the group or the part of the protocol.
        rules: the protocol's rules as text.
        figures: the metrics' values.
        counts: the number of identities, images, pairs, comparisons, …
        curves: curve name -> column name -> values; all columns of a curve are equally long.
        scores: the scores of all pairs, for comparing models; None if the protocol has no pairs.
        settings: the settings of the protocol and the bootstrap.
        origin: the model and data.
        unreadable: image -> reason, for images that could not be read and were left out.
        notes: what the figures mean, as sentences; in the result of a study, the first one is the
            verdict.
        version: the version of Margrave that produced the result.
    """

    protocol: str
    name: str = ""
    rules: str = ""
    figures: tuple[Figure, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    scores: PairScores | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    version: str = __version__

    def figure(self, metric: str, stratum: str = "", **at: float | str) -> Figure:
        """Find the first figure of a metric, optionally at a certain operating point.

        Args:
            metric: the metric's name.
            stratum: the subset of the data; all data by default.
            at: the operating point, such as ``FAR=1e-4``.

        Raises:
            ValueError: there is no such figure; the message suggests the most similar one.

        >>> result = Result(protocol="pairs", figures=(Figure(metric="accuracy", value=0.99),))
        >>> result.figure("accuracy").value
        0.99
        """
        for figure in self.figures:
            is_match = (figure.metric, figure.stratum) == (metric, stratum)
            if is_match and all(figure.at.get(name) == at[name] for name in at):
                return figure
        label = Figure(metric=metric, value=None, at=at, stratum=stratum).label
        labels = [figure.label for figure in self.figures]
        raise ValueError(f"{self.name or self.protocol} has no {label!r}; {suggest(label, labels)}")


def write_results(path: str | Path, results: Sequence[Result]) -> None:
    """Write results to a file atomically: an existing file is replaced only by a complete one.

    Raises:
        ValueError: a value is not finite.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "results": [
            {**_compact(result), "figures": [_compact(figure) for figure in result.figures]}
            for result in results
        ],
    }
    text = json.dumps(content, indent=1, allow_nan=False, default=str)
    with atomic_write(path) as temporary:
        temporary.write_text(_one_line_lists(text) + "\n", encoding="utf-8")


def read_results(path: str | Path) -> tuple[Result, ...]:
    """Read the results in a file, including files written by version 0.1.

    Raises:
        ValueError: the file cannot be read, contains no results, has a different format version, or
            is damaged.
    """
    from pydantic import TypeAdapter, ValidationError

    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path} is too large to be a results file; check the path")
        content = read_json(read_bytes(path), str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    # Version 0.1 wrote no format.
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        content = {"format_version": FORMAT_VERSION, "results": read_0_1(content, str(path))}
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {content.get('format_version')!r:.20}, but this version of "
            f"Margrave reads {FORMAT_VERSION}; use the version that wrote it"
        )
    try:
        results = TypeAdapter(tuple[Result, ...]).validate_python(content.get("results"))
    except ValidationError as error:
        first_error = error.errors()[0]
        key = ".".join(str(part) for part in ("results", *first_error["loc"]))
        raise ValueError(f"{path} is damaged: {key}: {first_error['msg']}") from None
    for index, result in enumerate(results):
        problem = None if result.scores is None else _scores_problem(result.scores)
        if problem:
            raise ValueError(f"{path} is damaged: results.{index}.scores: {problem}")
    return results


def _scores_problem(scores: PairScores) -> str | None:
    """Describe what is wrong with stored pair scores; None if they are valid."""
    pairs = len(scores.same)
    for name in ("distances", "identities", "lower_norms"):
        values = getattr(scores, name)
        if values is not None and len(values) != pairs:
            return f"{len(values)} {name} for {pairs} pairs"
    if not 1 <= scores.folds <= pairs:
        return f"{scores.folds} folds for {pairs} pairs"
    # Rounding may put a squared distance of unit vectors slightly outside [0, 4].
    if not all(-1e-6 <= distance <= 4 + 1e-6 for distance in scores.distances):
        return "a squared distance is not in [0, 4]"
    if not all(0 <= norm < math.inf for norm in scores.lower_norms or ()):
        return "a norm is negative or not finite"
    identities = scores.identities or ()
    if any((a == b) != same for (a, b), same in zip(identities, scores.same, strict=False)):
        return "the identities contradict the values of same"
    return None


def is_results(path: str | Path) -> bool:
    """True if a path is a results file (a file with the suffix .json), not a feature store."""
    return Path(path).is_file() and Path(path).suffix.lower() == ".json"


def _compact(record: Figure | Result) -> dict[str, Any]:
    """A record's fields as a dict, without those that have their default value.

    ``version`` is always included, because its default changes with each version of Margrave.
    """
    values: dict[str, Any] = {}
    for field_ in fields(record):
        value = getattr(record, field_.name)
        default = field_.default_factory() if callable(field_.default_factory) else field_.default
        if value != default or field_.name == "version":
            values[field_.name] = asdict(value) if isinstance(value, Origin | PairScores) else value
    return values


def _one_line_lists(text: str) -> str:
    """Put each list of plain values on one line, instead of one line per value."""
    # JSON strings contain no raw line breaks, so the pattern matches lists only.
    return re.sub(r"\[\n[^\[\]{}]*\]", lambda match: re.sub(r"\n\s*", " ", match[0]), text)
