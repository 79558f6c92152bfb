"""Sections on pair scores: distributions, DET and ROC, calibration, error versus discard."""

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
from margrave.report.naming import result_names

BINS = 60
"""Number of bins in the score histograms."""
RESAMPLES = 200
"""Number of bootstrap replicates for the bands."""
POINTS = 25
"""Number of false match rates at which each curve is computed."""
MIN_PAIRS = 20
"""Curves and calibrations need at least this many genuine and this many impostor pairs."""
MAX_BOOTSTRAP_PAIRS = 20_000
"""A curve of more pairs has no band."""
MAX_BANDS = 10
"""A chart with more curves has no bands."""
MAX_FOLDS = 10
"""Largest number of folds in the bootstrap.

More folds need more memory, and the rates over all pairs do not depend on the folds.
"""


def cosines(scores: PairScores) -> tuple[np.ndarray, np.ndarray]:
    """The cosines of genuine and of impostor pairs."""
    # The distances are squared distances of unit embeddings.
    cosine = 1 - np.array(scores.distances) / 2
    same = np.array(scores.same, bool)
    return cosine[same], cosine[~same]


def score_section(result: Result) -> Section:
    """The histograms of genuine and impostor scores, with the operating points' thresholds."""
    if result.scores is None:
        return Section("Scores")
    genuine, impostors = cosines(result.scores)
    all_scores = np.concatenate([genuine, impostors])
    edges = np.linspace(all_scores.min(), all_scores.max() + 1e-9, BINS + 1)
    rows = []
    for series, values in (("impostor pairs", impostors), ("genuine pairs", genuine)):
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        rows += [
            {"series": series, "start": float(low), "end": float(high), "share": float(share)}
            for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)
            if share
        ]
    thresholds = {
        figure.label: figure.threshold
        for figure in result.figures
        if figure.threshold is not None and not figure.stratum and not figure.too_few
    }
    caption = (
        f"Cosines of {len(genuine):,} genuine and {len(impostors):,} impostor pairs. Dashed lines "
        "are the thresholds of the operating points; pairs to the right of a line are accepted."
    )
    chart = charts.histogram(
        rows,
        "cosine",
        # A threshold outside [-1, 1] accepts all pairs or none, and would widen the axis.
        vertical={name: value for name, value in thresholds.items() if abs(value) <= 1},
        description=(
            f"Histogram: the median cosine is {_median_text(genuine)} for genuine pairs and "
            f"{_median_text(impostors)} for impostor pairs."
        ),
    )
    return Section("Scores", [Chart(caption, chart)])


def _median_text(values: np.ndarray) -> str:
    return f"{np.median(values):.3f}" if len(values) else "unknown"


def curves_section(results: Sequence[Result]) -> Section:
    """DET and ROC curves of results on the same pairs, with bootstrap intervals as bands."""
    scores_of = {
        name: result.scores
        for name, result in zip(result_names(results), results, strict=True)
        if result.scores is not None and _has_enough_pairs(result.scores)
    }
    if not scores_of:
        return Section("Error trade-off")
    has_bands = len(scores_of) <= MAX_BANDS
    num_impostors = min(len(cosines(scores)[1]) for scores in scores_of.values())
    smallest_fmr = 3 / num_impostors
    det = [row for name, scores in scores_of.items() for row in _det_rows(name, scores, has_bands)]
    roc = [
        {"series": row["series"], "x": row["x"], "y": 1 - row["y"],
         **({"low": 1 - row["high"], "high": 1 - row["low"]} if "low" in row else {})}
        for row in det
    ]  # fmt: skip
    x_domain = (min(1 / num_impostors, 0.1), 1.0)
    floor = min(0.5 / len(cosines(scores)[0]) for scores in scores_of.values())
    # A logarithmic axis has no zero, so a rate of zero is drawn as half an error.
    for row in det:
        for key in ("y", "low", "high"):
            if key in row:
                row[key] = max(row[key], floor)
    marks = {"3 / impostor pairs": smallest_fmr} if smallest_fmr < 0.5 else {}
    note = (
        f"The smallest false match rate (FMR, FAR in most papers) that {num_impostors:,} impostor "
        f"pairs support is {smallest_fmr:.2g}: if none of them is accepted, the true rate is below "
        "this with 95 % confidence. To the left of the dashed line, the curves are not reliable."
    )
    blocks: list[Block] = [
        Chart(
            "DET curve: false non-match rate (FNMR, 1 − TAR) against false match rate, both "
            "on logarithmic axes; lower is better. Bands: 95 % intervals from resampling "
            "identities, or pairs if the identities are unknown.",
            charts.lines(
                det,
                "false match rate",
                "false non-match rate",
                x_scale="log",
                y_scale="log",
                x_domain=x_domain,
                y_domain=(floor, 1.0),
                x_format="~g",
                y_format="~g",
                vertical=marks,
                description="Detection error trade-off of " + ", ".join(scores_of),
            ),
            _rates_table(scores_of),
        ),
        Chart(
            "ROC curve: the same data as true match rate (TAR, 1 − FNMR) against false match rate.",
            charts.lines(
                roc,
                "false match rate",
                "true match rate",
                x_scale="log",
                x_domain=x_domain,
                y_domain=(0.0, 1.0),
                x_format="~g",
                y_format="~%",
                description="Receiver operating characteristic of " + ", ".join(scores_of),
            ),
        ),
        Text(note, "note"),
    ]
    return Section("Error trade-off", blocks)


def _has_enough_pairs(scores: PairScores) -> bool:
    same = np.array(scores.same, bool)
    return min(int(same.sum()), int((~same).sum())) >= MIN_PAIRS


def _det_rows(name: str, scores: PairScores, has_bands: bool) -> list[dict[str, Any]]:
    """FNMR at FMRs from 1 / impostor pairs to 0.9, with intervals if `has_bands`."""
    genuine, impostors = cosines(scores)
    same = np.concatenate([np.ones(len(genuine), bool), np.zeros(len(impostors), bool)])
    roc = roc_curve(np.concatenate([genuine, impostors]), same)
    targets = np.geomspace(1 / len(impostors), 0.9, POINTS)
    rows: list[dict[str, Any]] = [
        {"series": name, "x": float(far),
         "y": float(1 - roc.tar[np.searchsorted(roc.far, far, "right") - 1])}
        for far in targets
    ]  # fmt: skip
    if has_bands and len(scores.same) <= MAX_BOOTSTRAP_PAIRS:
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


def _rates_table(scores_of: Mapping[str, PairScores]) -> Table:
    """The FNMR of each curve at four FMRs."""
    targets = (0.1, 0.01, 0.001, 0.0001)
    rows = []
    for name, scores in scores_of.items():
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
    return Table("False non-match rate; a dash means too few impostor pairs", columns, rows)


def calibration_section(result: Result, seed: int = 0) -> Section:
    """The cost of scores calibrated to log-likelihood ratios, on identities unseen by the fit."""
    scores, title = result.scores, "Calibration"
    if scores is None or scores.identities is None or not _has_enough_pairs(scores):
        return Section(title)
    pair_identities = np.array(scores.identities)  # (P, 2)
    shuffled = np.random.default_rng(seed).permutation(np.unique(pair_identities))
    in_fit = np.isin(pair_identities, shuffled[: len(shuffled) // 2])
    same, cosine = np.array(scores.same, bool), 1 - np.array(scores.distances) / 2
    # Pairs across the halves belong to neither.
    halves = in_fit.all(axis=1), ~in_fit.any(axis=1)
    if min(int((same & half).sum()) for half in halves) < MIN_PAIRS or (
        min(int((~same & half).sum()) for half in halves) < MIN_PAIRS
    ):
        text = (
            "There are too few pairs to fit a calibration on half of the identities and test it on "
            "the other half."
        )
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
        [
            "Cllr",
            f"{cost:.4f}",
            "cost of the calibrated ratios; 0 is perfect, 1 means no information",
        ],
        ["Cllr_min", f"{minimum:.4f}", "the lowest cost of any increasing function of the scores"],
        ["calibration loss", f"{cost - minimum:.4f}", "Cllr − Cllr_min"],
    ]
    text = (
        f"log-likelihood ratio = {slope:.2f} · cosine {'−' if offset < 0 else '+'} "
        f"{abs(offset):.2f}, fitted on half of the identities ({int(fit.sum()):,} pairs) and "
        f"tested on the other identities ({int(test.sum()):,} pairs)."
    )
    return Section(
        title, [Text(text), Table("Cost of log-likelihood ratios", ["", "bits", ""], rows)]
    )


def discard_section(result: Result) -> Section:
    """How FNMR changes as the genuine pairs with the smallest feature norm are discarded.

    A pair's feature norm is the smaller one of its two images.
    """
    scores, title = result.scores, "Error versus discard"
    if scores is None or scores.lower_norms is None:
        return Section(title)
    same, norms = np.array(scores.same, bool), np.array(scores.lower_norms)
    try:
        curve = discard_curve(cosines(scores)[0], norms[same])
    except ValueError as error:
        return Section(title, [Text(f"Not drawn: {error}.", "note")])
    if norms.std() <= 1e-3 * norms.mean():
        text = (
            "The model's embeddings all have the same norm, so the norm does not measure quality."
        )
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
        "False non-match rate of the remaining genuine pairs after those with the smallest feature "
        "norm are discarded. The threshold rejects about 5 % of all genuine pairs. Mean rate while "
        f"0 to 20 % are discarded: {100 * curve.area:.2f} %; ideal {100 * curve.ideal_area:.2f} %, "
        f"random {100 * curve.random_area:.2f} %. A curve below the random line shows that the "
        "norm measures quality."
    )
    chart = charts.lines(
        rows,
        "share of pairs discarded",
        "false non-match rate",
        x_format="%",
        y_format=".1%",
        description="Error versus discard by feature norm",
    )
    return Section(title, [Chart(caption, chart)])
