"""What pair scores show: distributions, DET and ROC curves, calibration, error versus discard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from margrave.evaluation import (
    PairScores,
    Result,
    bootstrap_pairs,
    cllr,
    cllr_min,
    discard_curve,
    fit_calibration,
    roc_curve,
)
from margrave.report import charts
from margrave.report.contents import Block, Chart, Section, Table, Text

BINS = 60
RESAMPLES = 200
POINTS = 25
"""False match rates per curve at which the bootstrap's bands are computed."""
MIN_PAIRS = 20
"""Smallest number of genuine and of impostor pairs that curves and calibrations are drawn for."""
MAX_BOOTSTRAP_PAIRS = 20_000
MAX_BANDS = 10
"""Number of curves in one chart that still get bands."""
MAX_FOLDS = 10
"""Folds do not change rates over all pairs, but the bootstrap's memory."""


def cosines(scores: PairScores) -> tuple[np.ndarray, np.ndarray]:
    """The cosines of genuine and of impostor pairs."""
    cosine = 1 - np.array(scores.distances) / 2
    same = np.array(scores.same, bool)
    return cosine[same], cosine[~same]


def score_section(result: Result) -> Section:
    """The distribution of genuine and impostor scores, with the operating points."""
    if result.scores is None:
        return Section("Scores")
    genuine, impostors = cosines(result.scores)
    both = np.concatenate([genuine, impostors])
    edges = np.linspace(both.min(), both.max() + 1e-9, BINS + 1)
    rows = []
    for series, values in (("impostor pairs", impostors), ("genuine pairs", genuine)):
        counts = np.histogram(values, edges)[0] / max(len(values), 1)
        rows += [
            {"series": series, "start": float(low), "end": float(high), "share": float(share)}
            for low, high, share in zip(edges[:-1], edges[1:], counts, strict=True)
            if share
        ]
    vertical = {
        each.label: each.threshold
        for each in result.figures
        if each.threshold is not None and not each.stratum and not each.too_few
    }
    caption = (
        f"Cosines of {len(genuine):,} genuine and {len(impostors):,} impostor pairs; dashed lines "
        "are the thresholds of the operating points. What lies right of a line is accepted."
    )
    chart = charts.histogram(
        rows,
        "cosine",
        vertical={name: value for name, value in vertical.items() if abs(value) <= 1},
        description=(
            f"Histogram: the median cosine of genuine pairs is {_median(genuine)}, that of "
            f"impostor pairs {_median(impostors)}."
        ),
    )
    return Section("Scores", [Chart(caption, chart)])


def _median(values: np.ndarray) -> str:
    return f"{np.median(values):.3f}" if len(values) else "unknown"


def curves_section(results: Sequence[Result]) -> Section:
    """DET and ROC curves of results on the same pairs, with bands over identities."""
    usable = {
        _name(result, results): result.scores
        for result in results
        if result.scores is not None and _enough(result.scores)
    }
    if not usable:
        return Section("Error trade-off")
    bands = len(usable) <= MAX_BANDS
    impostors = min(len(cosines(scores)[1]) for scores in usable.values())
    smallest = 3 / impostors
    det = [row for name, scores in usable.items() for row in _det_rows(name, scores, bands)]
    roc = [
        {"series": row["series"], "x": row["x"], "y": 1 - row["y"],
         **({"low": 1 - row["high"], "high": 1 - row["low"]} if "low" in row else {})}
        for row in det
    ]  # fmt: skip
    limits = (min(1 / impostors, 0.1), 1.0)
    floor = min(0.5 / len(cosines(scores)[0]) for scores in usable.values())
    # A logarithmic axis has no zero; no errors are drawn at half an error.
    for row in det:
        for key in ("y", "low", "high"):
            if key in row:
                row[key] = max(row[key], floor)
    marks = {"3 / impostor pairs": smallest} if smallest < 0.5 else {}
    note = (
        f"The smallest false match rate (FMR, the field's FAR) that {impostors:,} impostor pairs "
        f"support is {smallest:.2g}: without any error among so many, the rate is below it with "
        "95 % confidence. Left of the dashed line a curve says little."
    )
    blocks: list[Block] = [
        Chart(
            "DET curve: false non-match rate (FNMR, 1 − TAR) against false match rate, both "
            "logarithmic; lower is better. Bands: 95 % intervals over identities, or over pairs "
            "where identities are unknown.",
            charts.lines(
                det,
                "false match rate",
                "false non-match rate",
                x_scale="log",
                y_scale="log",
                x_domain=limits,
                y_domain=(floor, 1.0),
                x_format="~g",
                y_format="~g",
                vertical=marks,
                description="Detection error trade-off of " + ", ".join(usable),
            ),
            _rates_table(usable),
        ),
        Chart(
            "ROC curve: the same, as true match rate (TAR).",
            charts.lines(
                roc,
                "false match rate",
                "true match rate",
                x_scale="log",
                x_domain=limits,
                y_domain=(0.0, 1.0),
                x_format="~g",
                y_format="~%",
                description="Receiver operating characteristic of " + ", ".join(usable),
            ),
        ),
        Text(note, "note"),
    ]
    return Section("Error trade-off", blocks)


def _name(result: Result, results: Sequence[Result]) -> str:
    names = [each.name for each in results]
    if names.count(result.name) == 1:
        return result.name or result.protocol
    return result.origin.model or f"{result.name} {results.index(result) + 1}"


def _enough(scores: PairScores) -> bool:
    same = np.array(scores.same, bool)
    return min(int(same.sum()), int((~same).sum())) >= MIN_PAIRS


def _det_rows(name: str, scores: PairScores, bands: bool) -> list[dict[str, Any]]:
    """FNMR at FMRs from the smallest that the pairs resolve to 1, with intervals."""
    genuine, impostors = cosines(scores)
    same = np.concatenate([np.ones(len(genuine), bool), np.zeros(len(impostors), bool)])
    roc = roc_curve(np.concatenate([genuine, impostors]), same)
    targets = np.geomspace(1 / len(impostors), 0.9, POINTS)
    rows: list[dict[str, Any]] = [
        {"series": name, "x": float(far),
         "y": float(1 - roc.tar[np.searchsorted(roc.far, far, "right") - 1])}
        for far in targets
    ]  # fmt: skip
    if bands and len(scores.same) <= MAX_BOOTSTRAP_PAIRS:
        intervals = bootstrap_pairs(
            np.array(scores.distances),
            np.array(scores.same),
            min(scores.folds, MAX_FOLDS),
            None if scores.identities is None else np.array(scores.identities),
            targets.tolist(),
            RESAMPLES,
        ).true_accept_rates
        for row, (low, high) in zip(rows, intervals, strict=True):
            row |= {"low": 1 - high, "high": 1 - low}
    return rows


def _rates_table(usable: Mapping[str, PairScores]) -> Table:
    targets = (0.1, 0.01, 0.001, 0.0001)
    rows = []
    for name, scores in usable.items():
        genuine, impostors = cosines(scores)
        same = np.concatenate([np.ones(len(genuine), bool), np.zeros(len(impostors), bool)])
        roc = roc_curve(np.concatenate([genuine, impostors]), same)
        cells = [
            f"{100 * (1 - roc.tar[np.searchsorted(roc.far, far, 'right') - 1]):.2f} %"
            if far * len(impostors) >= 1
            else "-"
            for far in targets
        ]
        rows.append([name, *cells])
    columns = ["FNMR at FMR", *(f"{far:g}" for far in targets)]
    return Table("False non-match rate; – where the pairs are too few", columns, rows)


def calibration_section(result: Result, seed: int = 0) -> Section:
    """What the scores are worth as log-likelihood ratios, on identities disjoint from the fit."""
    scores, title = result.scores, "Calibration"
    if scores is None or scores.identities is None or not _enough(scores):
        return Section(title)
    labels = np.array(scores.identities)
    people = np.unique(labels)
    fitted = np.isin(labels, np.random.default_rng(seed).permutation(people)[: len(people) // 2])
    same, cosine = np.array(scores.same, bool), 1 - np.array(scores.distances) / 2
    halves = fitted.all(axis=1), ~fitted.any(axis=1)
    if min(int((same & half).sum()) for half in halves) < MIN_PAIRS or (
        min(int((~same & half).sum()) for half in halves) < MIN_PAIRS
    ):
        text = "There are too few pairs to fit a calibration on half of the identities and test it."
        return Section(title, [Text(text, "note")])
    fit, test = halves
    try:
        slope, offset = fit_calibration(cosine[fit & same], cosine[fit & ~same])
    except ValueError:
        text = "Genuine scores are not higher than impostor scores, so they cannot be calibrated."
        return Section(title, [Text(text, "note")])
    genuine, impostors = cosine[test & same], cosine[test & ~same]
    cost = cllr(slope * genuine + offset, slope * impostors + offset)
    minimum = cllr_min(genuine, impostors)
    rows = [
        ["Cllr", f"{cost:.4f}", "cost of the calibrated ratios in bits; 0 perfect, 1 worthless"],
        ["Cllr_min", f"{minimum:.4f}", "the best that any increasing function of the scores has"],
        ["lost by calibration", f"{cost - minimum:.4f}", "Cllr − Cllr_min"],
    ]
    text = (
        f"log-likelihood ratio = {slope:.2f} · cosine {'−' if offset < 0 else '+'} "
        f"{abs(offset):.2f}, fitted on half of the identities ({int(fit.sum()):,} pairs) and "
        f"tested on the others ({int(test.sum()):,} pairs)."
    )
    return Section(
        title, [Text(text), Table("Cost of log-likelihood ratios", ["", "bits", ""], rows)]
    )


def discard_section(result: Result) -> Section:
    """How fast errors fall when images of small feature norm are rejected."""
    scores, title = result.scores, "Error versus discard"
    if scores is None or scores.lower_norms is None:
        return Section(title)
    same, norms = np.array(scores.same, bool), np.array(scores.lower_norms)
    try:
        curve = discard_curve(cosines(scores)[0], norms[same])
    except ValueError as error:
        return Section(title, [Text(f"Not drawn: {error}.", "note")])
    if norms.std() <= 1e-3 * norms.mean():
        text = "The model's embeddings all have one length, so their norm says nothing of quality."
        return Section(title, [Text(text, "note")])
    rows = [
        {"series": series, "x": discarded, "y": rate}
        for series, rates in (
            ("by feature norm", curve.fnmr),
            ("ideal", curve.ideal),
            ("random", [curve.random_area] * len(curve.discarded)),
        )
        for discarded, rate in zip(curve.discarded, rates, strict=True)
    ]
    caption = (
        "False non-match rate of the genuine pairs that are left after those with the smallest "
        "feature norm are discarded, at the threshold that rejects about 5 % without discarding. "
        f"Mean over 0 to 20 %: {100 * curve.area:.2f} %; ideal {100 * curve.ideal_area:.2f} %, "
        f"random {100 * curve.random_area:.2f} %. Below the random line the norm measures quality."
    )
    chart = charts.lines(
        rows,
        "discarded",
        "false non-match rate",
        x_format="%",
        y_format=".1%",
        description="Error versus discard by feature norm",
    )
    return Section(title, [Chart(caption, chart)])
