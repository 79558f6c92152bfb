"""Do intervals cover the truth, and does the paired test keep its level? On simulated people.

Every person has a face of its own and a difficulty of its own, so images and pairs of one person
are not independent. Prints how often 95 % intervals cover the figure's mean over many samples, and
how often two equally good models are called different at 5 %; writes benchmarks/coverage.csv. The
cases of few people have rates of about 0.9, and of 0.99 and more, where every interval that does
not collapse covers more often than it says: beside them stands what Clopper and Pearson's interval
over as many independent people, each right or wrong, covers. About an hour on two cores.

    python benchmarks/coverage.py
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import special

from margrave.evaluation import (
    bootstrap_pairs,
    compare_pairs,
    evaluate_all_to_all,
    evaluate_open_set,
    evaluate_pairs,
)

PEOPLE, IMAGES, STRANGERS, WIDTH = 120, 4, 150, 10
UNEVEN = (30, 15, 10, 8, *[4] * 40, *[2] * 40)
FOLDS, PAIRS_PEOPLE, PAIRS = 5, 24, 60
FEW_IMAGES, FEW_WIDTH = 6, 16
RESAMPLES = 300
EXACT = "Clopper-Pearson %"
Found = dict[str, tuple[float, tuple[float, float] | None]]
Row = dict[str, str]


class Simulation(NamedTuple):
    """A figure or more of one sample of people, given (seed, resamples).

    Quick ones get more resamples, and several times as many trials.
    """

    once: Callable[..., Found]
    resamples: int
    times: int


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--truths", type=int, default=4000)
    parser.add_argument("--only", choices=(*SIMULATIONS, "tests"))
    given = parser.parse_args()
    rows: list[Row] = []
    with multiprocessing.Pool() as pool:

        def run(function: Callable, seeds: Iterable[int], what: str) -> list:
            todo = list(seeds)
            result = pool.imap_unordered(function, todo, chunksize=10)
            return list(track(result, what, len(todo)))

        for name, simulation in SIMULATIONS.items():
            if given.only in (None, name):
                rows += coverage(name, simulation, given.truths, given.trials, run)
        if given.only in (None, "tests"):
            tested = run(equal_models_once, range(3 * given.trials), "equal models")
            for figure in tested[0]:
                share = np.mean([each[figure] for each in tested])
                rows.append(row(f"p < 0.05 for {figure}", 0.0, share))
    table = Table(*rows[0])
    for each in rows:
        table.add_row(*each.values())
    Console().print(table)
    write(rows, Path(__file__).with_suffix(".csv"))


def coverage(
    name: str, simulation: Simulation, truths: int, trials: int, run: Callable[..., list]
) -> list[Row]:
    """How often intervals hold the mean over many samples."""
    seeds = range(10**6, 10**6 + simulation.times * trials)
    judged = run(
        partial(simulation.once, resamples=simulation.resamples), seeds, f"{name}, intervals"
    )
    samples = run(partial(simulation.once, resamples=0), range(truths), f"{name}, truth")
    rows = []
    for figure in samples[0]:
        truth = float(np.mean([each[figure][0] for each in samples]))
        ends = [each[figure][1] for each in judged]
        covered = np.mean([low <= truth <= high for low, high in ends])
        people = few_people(figure)
        exact = "" if people is None else f"{100 * clopper_pearson_coverage(truth, people):.1f}"
        rows.append(row(f"interval of {figure}", truth, covered) | {EXACT: exact})
    return rows


def row(what: str, truth: float, share: np.floating) -> Row:
    """A line of the table."""
    return {"what": what, "truth": f"{truth:.3f}", "share %": f"{100 * share:.1f}", EXACT: ""}


def few_people(figure: str) -> int | None:
    """How many people a rate is over, in the cases of few people; thresholds are no rates."""
    case = re.search(r"(\d+) people, ", figure)
    if case is None or "threshold" in figure:
        return None
    people = int(case[1])
    # Open-set search enrolls half of them.
    return (people + 1) // 2 if "open set" in figure or "TPIR" in figure else people


def clopper_pearson_coverage(rate: float, people: int) -> float:
    """How often Clopper and Pearson's 95 % interval from independent people covers a rate."""
    right = np.arange(people + 1)
    low = np.nan_to_num(special.betaincinv(right, people - right + 1, 0.025), nan=0.0)
    high = np.nan_to_num(special.betaincinv(right + 1, people - right, 0.975), nan=1.0)
    chances = special.binom(people, right) * rate**right * (1 - rate) ** (people - right)
    return float(chances[(low <= rate) & (rate <= high)].sum())


def write(rows: list[Row], path: Path) -> None:
    """Rows into the file, in the place of earlier ones of the same name."""
    known = {}
    if path.exists():
        with open(path, newline="") as file:
            known = {each["what"]: each for each in csv.DictReader(file)}
    known |= {each["what"]: each for each in rows}
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(known.values())


def faces_once(seed: int, resamples: int) -> Found:
    """All-to-all, distractors and open-set search over one sample of people."""
    generator = np.random.default_rng(seed)
    people = np.arange(PEOPLE).repeat(IMAGES)
    faces = faces_of(people, generator)
    strangers = 1.3 * generator.standard_normal((STRANGERS, WIDTH))
    settings = {"far_targets": [0.1, 0.01], "resamples": resamples, "seed": seed}
    own = evaluate_all_to_all(faces, people, **settings)
    against = evaluate_all_to_all(
        faces,
        people,
        strangers,
        impostors_within=False,
        ranks=(1, 5),
        identification_far_targets=(0.05,),
        **settings,
    )
    first = np.arange(len(faces)) % IMAGES == 0
    enrolled = first & (people < PEOPLE // 2)
    searched = evaluate_open_set(
        faces[~first],
        people[~first],
        faces[enrolled],
        people[enrolled],
        fpir_targets=[0.1],
        ranks=(1,),
        resamples=resamples,
        seed=seed,
    )
    result: Found = {}
    for rate in own.verification:
        result[f"TAR at FAR {rate.far_target:g}"] = rate.tar, rate.interval
        result[f"threshold at FAR {rate.far_target:g}"] = rate.threshold, rate.threshold_interval
    for rate in against.verification:
        result[f"TAR at FAR {rate.far_target:g}, distractors"] = rate.tar, rate.interval
    for rank in against.ranks:
        result[f"rank {rank.rank}, distractors"] = rank.rate, rank.interval
    for rate in against.identification:
        result[f"identified at FAR {rate.far_target:g}"] = rate.tar, rate.interval
    result["TPIR at FPIR 0.1"] = searched.rates[0].tpir, searched.rates[0].interval
    result["rank 1, open set"] = searched.ranks[0].rate, searched.ranks[0].interval
    return result


def faces_of(
    people: np.ndarray,
    generator: np.random.Generator,
    noise: float = 0.75,
    width: int = WIDTH,
) -> np.ndarray:
    """(N, width) about each one's person, as far as the person is difficult."""
    number = max(PEOPLE, int(people.max()) + 1)
    centers = generator.standard_normal((number, width))[people]
    std = noise * np.exp(0.5 * generator.standard_normal(number))[people][:, None]
    return centers + std * generator.standard_normal(centers.shape)


def uneven_once(seed: int, resamples: int) -> Found:
    """All-to-all over people of whom one makes up half of the genuine pairs."""
    generator = np.random.default_rng(seed)
    people = np.arange(len(UNEVEN)).repeat(UNEVEN)
    faces = faces_of(people, generator)
    result = evaluate_all_to_all(
        faces, people, far_targets=[0.1, 0.01], resamples=resamples, seed=seed
    )
    return {
        f"TAR at FAR {rate.far_target:g}, uneven people": (rate.tar, rate.interval)
        for rate in result.verification
    }


def few_people_once(seed: int, resamples: int, number: int, noise: float) -> Found:
    """Every protocol over six images each of a handful of people."""
    generator = np.random.default_rng(seed)
    people = np.arange(number).repeat(FEW_IMAGES)
    faces = faces_of(people, generator, noise, FEW_WIDTH)
    own = evaluate_all_to_all(faces, people, far_targets=[0.1], resamples=resamples, seed=seed)
    first, second = np.triu_indices(len(people), 1)
    same = people[first] == people[second]
    met = generator.choice(np.flatnonzero(~same), int(same.sum()), replace=False)
    pairs = generator.permutation(np.concatenate([np.flatnonzero(same), met]))
    first, second = first[pairs], second[pairs]
    verified = evaluate_pairs(
        faces[first],
        faces[second],
        same[pairs],
        FOLDS,
        identities=np.stack([people[first], people[second]], axis=1),
        far_targets=[0.1],
        resamples=resamples,
        seed=seed,
    )
    gallery = np.arange(len(faces)) % FEW_IMAGES == 0
    enrolled = gallery & (people < (number + 1) // 2)
    searched = evaluate_open_set(
        faces[~gallery],
        people[~gallery],
        faces[enrolled],
        people[enrolled],
        fpir_targets=[0.1],
        ranks=(1,),
        resamples=resamples,
        seed=seed,
    )
    rate, tpir, rank = own.verification[0], searched.rates[0], searched.ranks[0]
    intervals = verified.intervals
    result: Found = {
        "TAR at FAR 0.1": (rate.tar, rate.interval),
        "threshold at FAR 0.1": (rate.threshold, rate.threshold_interval),
        "accuracy, pairs": (verified.accuracy, intervals and intervals.accuracy),
        "area under roc, pairs": (
            verified.area_under_roc,
            intervals and intervals.area_under_roc,
        ),
        "equal error rate, pairs": (
            verified.equal_error_rate,
            intervals and intervals.equal_error_rate,
        ),
        "TAR at FAR 0.1, pairs": (verified.accept_rates[0].tar, verified.accept_rates[0].interval),
        "TPIR at FPIR 0.1": (tpir.tpir, tpir.interval),
        "rank 1, open set": (rank.rate, rank.interval),
    }
    kind = "easy" if noise < 0.5 else "hard"
    return {f"{name}, {number} people, {kind}": value for name, value in result.items()}


def people_of_pairs(generator: np.random.Generator) -> np.ndarray:
    """(P, 2) people of pairs, each fold with its own."""
    sides = []
    for fold in range(FOLDS):
        alone = generator.integers(PAIRS_PEOPLE, size=(PAIRS, 1)).repeat(2, 1)
        met = generator.random((PAIRS, PAIRS_PEOPLE)).argsort(1)[:, :2]
        sides += [alone + fold * PAIRS_PEOPLE, met + fold * PAIRS_PEOPLE]
    return np.concatenate(sides)


def effects(
    generator: np.random.Generator, people: np.ndarray, same: np.ndarray, share: float = 0.4
) -> np.ndarray:
    """(P,) of variance 1, of which a share is the persons'."""
    genuine, impostor = generator.standard_normal((2, FOLDS * PAIRS_PEOPLE))
    persons = np.where(same, genuine[people[:, 0]], impostor[people].sum(1) / 2**0.5)
    return share**0.5 * persons + (1 - share) ** 0.5 * generator.standard_normal(len(same))


def pairs_once(seed: int, resamples: int) -> Found:
    """LFW's protocol over one sample of pairs."""
    generator = np.random.default_rng(seed)
    people = people_of_pairs(generator)
    same = people[:, 0] == people[:, 1]
    distances = (2 - 0.35 * (effects(generator, people, same) + 2 * same)).clip(0, 3.99)
    result = bootstrap_pairs(distances, same, FOLDS, people, [0.1], max(resamples, 2), seed)
    # The figures themselves: equal models' comparison has them.
    point = compare_pairs(distances, distances, same, FOLDS, people, [0.1], 2, seed)
    intervals = (
        result.accuracy,
        result.area_under_roc,
        result.equal_error_rate,
        result.true_accept_rates[0],
    )
    return {
        f"{each.metric.replace('_', ' ')}, pairs": (each.first, interval)
        for each, interval in zip(point, intervals, strict=True)
    }


def equal_models_once(seed: int) -> dict[str, bool]:
    """Which figures of two equally good models differ significantly."""
    generator = np.random.default_rng(seed)
    people = people_of_pairs(generator)
    same = people[:, 0] == people[:, 1]
    common = effects(generator, people, same)
    first, second = (
        (2 - 0.35 * ((common + effects(generator, people, same)) / 2**0.5 + 2 * same)).clip(0, 3.99)
        for _ in range(2)
    )
    compared = compare_pairs(first, second, same, FOLDS, people, [0.1], RESAMPLES, seed)
    return {each.metric.replace("_", " "): each.p_value < 0.05 for each in compared}


SIMULATIONS = {
    "faces": Simulation(faces_once, 300, 1),
    "pairs": Simulation(pairs_once, 1000, 3),
    "uneven": Simulation(uneven_once, 300, 1),
    **{
        f"{number} people, {kind}": Simulation(
            partial(few_people_once, number=number, noise=noise), 200, 1
        )
        for number in (5, 10, 20)
        for kind, noise in (("easy", 0.3), ("hard", 0.6))
    },
}

if __name__ == "__main__":
    main()
