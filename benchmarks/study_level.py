"""Does a study declare winners that are none, and does it find those that are?

From the stored scores of one loss that was trained with at least ten seeds, studies of five seeds
are simulated: half of the seeds enter under one name, the others under another, tested on a random
share of the identities. Then one of the two is made better, by moving its genuine pairs closer
until it leads by twice the smallest detectable difference. Prints how often a winner is declared,
and writes benchmarks/study_level.csv.

    margrave study synthetic --losses arcface --seeds 10 --set tuning=null -o studies/ten_seeds
    python benchmarks/study_level.py studies/ten_seeds
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from margrave.evaluation import SeedComparison, compare_seeds
from margrave.studies import StudyFolder, cells_of

IDENTITIES_SHARE = 0.7
FOLDS = 10


class Scores(NamedTuple):
    """One loss's scores: (S, P) distances, whether pairs are genuine, and their identities."""

    distances: np.ndarray
    same: np.ndarray
    identities: np.ndarray


class Simulated(NamedTuple):
    """What one simulated study says."""

    winner: str | None
    lead: float
    detectable: float


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=150)
    given = parser.parse_args()
    scores = stored_scores(given.study)
    rows = []
    with multiprocessing.Pool(initializer=remember, initargs=(scores, given.resamples)) as pool:

        def simulate(shift: float, number: int, first: int, what: str) -> list[Simulated]:
            todo = [(first + index, shift) for index in range(number)]
            return list(track(pool.imap(one_study, todo, chunksize=5), what, number))

        null = simulate(0.0, given.studies, 0, "equal losses")
        detectable = float(np.median([each.detectable for each in null]))
        shift = planted_shift(scores, 2 * detectable)
        planted = simulate(shift, given.studies, 10**6, "one is better")
    for what, results in (("equal losses", null), ("twice the detectable difference", planted)):
        winners = [each.winner for each in results]
        rows.append(
            {
                "studies": what,
                "number": len(results),
                "winner declared %": f"{100 * np.mean([name is not None for name in winners]):.1f}",
                "better one won %": f"{100 * np.mean([name == 'one' for name in winners]):.1f}",
                "mean lead, points": f"{100 * np.mean([r.lead for r in results]):.2f}",
                "detectable, points": f"{100 * np.median([r.detectable for r in results]):.2f}",
            }
        )
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def stored_scores(folder: Path) -> Scores:
    """The test scores of a study's first loss in its first condition, for every finished seed."""
    study = StudyFolder(folder)
    config = study.read_config()
    condition, loss = next(iter(config.conditions)), next(iter(config.losses))
    stored = []
    for cell in cells_of(config):
        results = (
            study.finished_results(cell)
            if (cell.condition, cell.loss) == (condition, loss)
            else None
        )
        stored += [each.scores for each in results or () if each.name == config.test]
    scores = [each for each in stored if each is not None and each.identities is not None]
    if len(scores) < 10:
        raise SystemExit(f"{folder} has {len(scores)} finished seeds of {loss}; ten are needed")
    return Scores(
        np.array([each.distances for each in scores]),
        np.array(scores[0].same),
        np.array(scores[0].identities),
    )


_remembered: tuple[Scores, int] | None = None


def remember(scores: Scores, resamples: int) -> None:
    """Keep the scores in a process of the pool."""
    global _remembered
    _remembered = scores, resamples


def one_study(task: tuple[int, float]) -> Simulated:
    """One simulated study, in which the genuine pairs of ``one`` are closer by the shift."""
    assert _remembered is not None
    (scores, resamples), (seed, shift) = _remembered, task
    generator = np.random.default_rng(seed)
    comparison = compare(scores, generator, shift, resamples)
    means = comparison.means
    return Simulated(
        comparison.winner,
        means["one"].value - means["two"].value,
        comparison.differences[0].smallest_detectable or 0.0,
    )


def compare(
    scores: Scores, generator: np.random.Generator, shift: float, resamples: int
) -> SeedComparison:
    """Two halves of the seeds, compared on a share of the identities."""
    people = np.unique(scores.identities)
    kept = generator.permutation(people)[: round(IDENTITIES_SHARE * len(people))]
    pairs = np.isin(scores.identities, kept).all(1)
    same = scores.same[pairs]
    order = generator.permutation(len(scores.distances))
    half = len(order) // 2
    one, two = (scores.distances[rows][:, pairs] for rows in (order[:half], order[half : 2 * half]))
    return compare_seeds(
        {"one": moved(one, same, shift), "two": two},
        same,
        FOLDS,
        scores.identities[pairs],
        resamples=resamples,
    )


def moved(distances: np.ndarray, same: np.ndarray, shift: float) -> np.ndarray:
    """Distances with the genuine pairs closer."""
    return (distances - shift * same).clip(0, 4)


def planted_shift(scores: Scores, lead: float) -> float:
    """How much closer genuine pairs must be for the mean accuracy to rise by a lead."""
    low, high = 0.0, 1.0

    def rise(shift: float) -> float:
        rows = {"one": moved(scores.distances, scores.same, shift), "two": scores.distances}
        means = compare_seeds(rows, scores.same, FOLDS, scores.identities, resamples=2).means
        return means["one"].value - means["two"].value

    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if rise(middle) < lead else (low, middle)
    return high


if __name__ == "__main__":
    main()
