"""Compare the losses of a study's finished cells, and state the verdict in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from margrave.evaluation import (
    Figure,
    PairMetric,
    PairScores,
    Result,
    SeedComparison,
    SeedDifference,
    compare_seeds,
)
from margrave.studies.settings import Claim, StudyConfig

METRICS: Mapping[str, PairMetric] = {
    "accuracy": "accuracy",
    "AUC": "area_under_roc",
    "EER": "equal_error_rate",
    "TAR": "true_accept_rate",
}
"""A study's name for a metric -> the name in ``margrave.evaluation``."""
RULES = (
    "the same seeds for every loss, paired; uncertainty over seeds and identities; p values "
    "corrected by Holm over all pairs of losses"
)

FEW_SEEDS = 4
"""With fewer seeds, the verdict warns that the smallest detectable difference is uncertain."""


@dataclass(frozen=True)
class FinishedCell:
    """A finished cell: its condition, loss, seed, training steps, and result on one test set."""

    condition: str
    loss: str
    seed: int
    steps: int
    result: Result


def compare_cells(
    cells: Sequence[FinishedCell], config: StudyConfig, resamples: int = 300
) -> dict[str, SeedComparison]:
    """Compare each condition's losses over the seeds that all of them have finished.

    A loss without a finished cell is left out; the verdict names it.

    Args:
        cells: the finished cells.
        config: the study.
        resamples: number of bootstrap replicates.

    Returns:
        Condition -> comparison, for the conditions with a seed that all their losses have finished.

    Raises:
        ValueError: cells of one condition were tested on different pairs, or trained for different
            numbers of steps.
    """
    comparisons = {}
    for condition in config.conditions:
        in_condition = [cell for cell in cells if cell.condition == condition]
        seeds = _complete_seeds(in_condition)
        if not seeds:
            continue
        scores = _checked_scores(in_condition)
        distances = {
            loss: np.array([_scores(cell).distances for seed in seeds for cell in in_condition
                            if (cell.loss, cell.seed) == (loss, seed)])
            for loss in dict.fromkeys(cell.loss for cell in in_condition)
        }  # fmt: skip
        comparisons[condition] = compare_seeds(
            distances,
            np.array(scores.same),
            scores.folds,
            None if scores.identities is None else np.array(scores.identities),
            METRICS[config.metric],
            config.far,
            resamples,
        )
    return comparisons


def _complete_seeds(cells: Sequence[FinishedCell]) -> list[int]:
    """The seeds that every loss among these cells has finished."""
    by_loss: dict[str, set[int]] = {}
    for cell in cells:
        by_loss.setdefault(cell.loss, set()).add(cell.seed)
    return sorted(set.intersection(*by_loss.values())) if by_loss else []


def _scores(cell: FinishedCell) -> PairScores:
    if cell.result.scores is None:
        raise ValueError(
            f"{cell.condition}/{cell.loss}/seed-{cell.seed} has no pair scores; remove its "
            "folder to train it again"
        )
    return cell.result.scores


def _checked_scores(cells: Sequence[FinishedCell]) -> PairScores:
    """Return the first cell's scores; check that all cells have the same pairs and steps."""
    first, scores = cells[0], _scores(cells[0])
    for cell in cells:
        cell_scores = _scores(cell)
        cell_name = f"{cell.condition}/{cell.loss}/seed-{cell.seed}"
        if (cell_scores.same, cell_scores.identities) != (scores.same, scores.identities) or (
            cell_scores.images_digest != scores.images_digest
        ):
            raise ValueError(
                f"{cell_name} was tested on other pairs than {first.loss}/seed-{first.seed}; "
                "remove its folder to train it again"
            )
        if cell.steps != first.steps:
            raise ValueError(
                f"{cell_name} was trained for {cell.steps} steps, but "
                f"{first.loss}/seed-{first.seed} for {first.steps}; remove its folder to train it "
                "again"
            )
    return scores


def results_of(
    comparisons: Mapping[str, SeedComparison],
    cells: Sequence[FinishedCell],
    config: StudyConfig,
    tuned: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> tuple[Result, ...]:
    """Convert the comparisons to the common result format: one result per condition.

    Args:
        comparisons: each condition's comparison.
        cells: the trainings that were compared.
        config: the study.
        tuned: condition -> loss -> the variant that tuning chose: its name and hyperparameters.
            None if the losses are not tuned.
    """
    at = {"FAR": config.far} if config.metric == "TAR" else {}
    percent = config.metric != "AUC"
    results = []
    for condition, comparison in comparisons.items():
        in_condition = [cell for cell in cells if cell.condition == condition]
        seeds = _complete_seeds(in_condition)
        figures = [
            Figure(
                metric=config.metric,
                at={**at, "loss": loss},
                value=mean.value,
                interval=mean.interval,
                percent=percent,
                details={"std over seeds": mean.seed_std, "standard error": mean.std_error},
            )
            for loss, mean in comparison.means.items()
        ]
        for metric in ("AUC", "EER", "accuracy", "TAR"):
            figures += _means_of(metric, in_condition, seeds, config.metric)
        figures += [
            _difference_figure(difference, config, at, percent)
            for difference in comparison.differences
        ]
        chosen = {} if tuned is None else tuned[condition]
        results.append(
            Result(
                protocol="study",
                name=condition if tuned is None else f"{condition}, tuned",
                rules=RULES,
                figures=tuple(figures),
                counts={
                    **in_condition[0].result.counts,
                    "seeds": len(seeds),
                    "steps": in_condition[0].steps,
                },
                curves={
                    f"{config.metric} by seed": {
                        loss: mean.seed_values for loss, mean in comparison.means.items()
                    }
                },
                settings={
                    "question": config.question,
                    "condition": condition,
                    "metric": config.metric,
                    "seeds": seeds,
                    "losses": dict(config.losses if tuned is None else chosen),
                },
                origin=in_condition[0].result.origin,
                notes=(
                    verdict(comparison, config, chosen),
                    *_judged_claims(condition, comparison, config, chosen),
                ),
            )
        )
    return tuple(results)


def _means_of(
    metric: str, cells: Sequence[FinishedCell], seeds: Sequence[int], deciding_metric: str
) -> list[Figure]:
    """Each loss's means over seeds of the figures that have this metric.

    Two kinds of figures are left out: the deciding metric's figures over all data, which are
    reported separately with intervals; and figures by stratum, unless the metric is accuracy.
    """
    figures = []
    # The first cell tells which figures there are.
    for first_figure in cells[0].result.figures:
        if first_figure.metric != metric or first_figure.value is None:
            continue
        if first_figure.stratum and metric != "accuracy":
            continue
        if not first_figure.stratum and metric == deciding_metric:
            continue
        for loss in dict.fromkeys(cell.loss for cell in cells):
            values = [
                figure.value
                for cell in cells
                if cell.loss == loss and cell.seed in seeds
                for figure in cell.result.figures
                if (figure.metric, figure.at) == (metric, first_figure.at)
                and figure.stratum == first_figure.stratum
                and figure.value is not None
            ]
            figures.append(
                Figure(
                    metric=metric,
                    at={**first_figure.at, "loss": loss},
                    stratum=first_figure.stratum,
                    value=fmean(values) if values else None,
                    percent=first_figure.percent,
                    details={"pairs": first_figure.details.get("pairs")}
                    if first_figure.stratum
                    else {},
                )
            )
    return figures


def _difference_figure(
    difference: SeedDifference, config: StudyConfig, at: Mapping[str, float], percent: bool
) -> Figure:
    return Figure(
        metric=f"difference in {config.metric}",
        at={**at, "first": difference.first, "second": difference.second},
        value=difference.mean.value,
        interval=difference.mean.interval,
        percent=percent,
        details={
            "p_value": difference.p_value,
            "adjusted_p_value": difference.adjusted_p_value,
            "smallest_detectable": difference.smallest_detectable,
        },
    )


def verdict(
    comparison: SeedComparison,
    config: StudyConfig,
    chosen: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Sum up a condition's comparison in words; name a winner only if one loss beats all others.

    Args:
        comparison: the condition's comparison.
        config: the study. Its losses that are not in the comparison are named as missing.
        chosen: loss -> the variant that tuning chose, with its name; None or empty if the losses
            are not tuned.
    """
    names = [_compared_name(loss, chosen or {}) for loss in config.losses]
    missing = [name for name in names if name not in comparison.means]
    if not missing:
        return _verdict_on_compared(comparison, config, "loss")
    text = _verdict_on_compared(comparison, config, "compared loss")
    return f"{text} Not compared, because none of their runs finished: {', '.join(missing)}."


def _compared_name(loss: str, chosen: Mapping[str, Mapping[str, Any]]) -> str:
    """A loss's name in a comparison: that of the variant that tuning chose, or its own."""
    return chosen.get(loss, {}).get("name", loss)


def _verdict_on_compared(comparison: SeedComparison, config: StudyConfig, noun: str) -> str:
    """The verdict on the losses in a comparison, each of which the text calls a ``noun``."""
    # The means are sorted, the best loss first.
    best = next(iter(comparison.means))
    seeds = len(comparison.means[best].seed_values)
    if len(comparison.means) < 2:
        return f"{best} alone was trained, so there is nothing to compare."
    if seeds < 2:
        return (
            "One seed cannot show how much results vary between seeds, so there are no p values: "
            "train at least two seeds, better five."
        )
    smallest = [difference.smallest_detectable for difference in comparison.differences]
    detectable = sorted(value for value in smallest if value is not None)
    unit = "" if config.metric == "AUC" else " points"
    median = _difference_text(detectable[len(detectable) // 2], config)
    # The smallest detectable difference is defined by a power of 0.8.
    sensitivity = (
        f"A true difference of {median}{unit} would have been detected in four of five such "
        "studies."
    )
    if seeds < FEW_SEEDS:
        sensitivity += f" This number is uncertain with {seeds} seeds; train five for a better one."
    if comparison.winner is not None:
        return f"{comparison.winner} is better than every other {noun}. {sensitivity}"
    not_worse = comparison.not_worse_than(best)
    if len(not_worse) == len(comparison.means) - 1:
        return (
            f"No {noun} is significantly better or worse than {best}, which ranks first. "
            f"{sensitivity}"
        )
    worse = [name for name in comparison.means if name != best and name not in not_worse]
    return (
        f"There is no single winner: {best} ranks first, and is not significantly better than "
        f"{', '.join(not_worse)}; it is better than {', '.join(worse)}. {sensitivity}"
    )


def _judged_claims(
    condition: str,
    comparison: SeedComparison,
    config: StudyConfig,
    chosen: Mapping[str, Mapping[str, Any]],
) -> Iterator[str]:
    """Yield each claim about a condition, followed by whether the comparison reproduced it."""
    for claim in config.claims:
        if claim.condition == condition:
            # In the comparison, a tuned loss has the name of the variant that tuning chose.
            names = {key: _compared_name(getattr(claim, key), chosen) for key in ("loss", "over")}
            outcome = judge_claim(claim.model_copy(update=names), comparison, config)
            yield f"Claim: {claim.text}. {outcome[:1].upper()}{outcome[1:]}"


def judge_claim(claim: Claim, comparison: SeedComparison, config: StudyConfig) -> str:
    """State whether a claim was reproduced, and how much better its ``loss`` is than ``over``."""
    for difference in comparison.differences:
        if {difference.first, difference.second} != {claim.loss, claim.over}:
            continue
        # A difference is positive if its second loss is better.
        sign = 1 if difference.second == claim.loss else -1
        value = sign * difference.mean.value
        if difference.adjusted_p_value is None or difference.mean.interval is None:
            return "not decided: one seed gives no p value"
        low, high = sorted(sign * end for end in difference.mean.interval)
        unit = "" if config.metric == "AUC" else " points"
        numbers = (
            f"{_difference_text(value, config, '+')}{unit} "
            f"({_difference_text(low, config, '+')} to {_difference_text(high, config, '+')}), "
            f"p {_p_text(difference.adjusted_p_value)}; smallest detectable: "
            f"{_difference_text(difference.smallest_detectable or 0.0, config)}"
        )
        if difference.better == claim.loss:
            outcome = "reproduced" if claim.helps else f"contradicted, {claim.loss} is better"
        elif difference.better == claim.over:
            outcome = f"contradicted, {claim.over} is better"
        else:
            outcome = "not reproduced" if claim.helps else "as claimed, no difference was found"
        return f"{outcome}: {numbers}"
    return f"not decided: {claim.loss} or {claim.over} was not trained"


def _difference_text(value: float, config: StudyConfig, sign: str = "") -> str:
    """Format a difference: unchanged for the AUC, in percentage points for other metrics."""
    return f"{value:{sign}.4f}" if config.metric == "AUC" else f"{100 * value:{sign}.2f}"


def _p_text(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def rows_of(cells: Sequence[FinishedCell]) -> list[dict[str, Any]]:
    """Table rows with every figure of every cell: one row per cell, the same columns in each.

    A value is empty if the cell lacks the figure.
    """
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell.condition, cell.loss, cell.seed)):
        row: dict[str, Any] = {
            "condition": cell.condition,
            "loss": cell.loss,
            "seed": cell.seed,
            "steps": cell.steps,
        }
        for figure in cell.result.figures:
            row[figure.label] = figure.value
        rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, "") for name in columns} for row in rows]
