"""Run a study: train its cells, tune its losses, and compare the losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from margrave.evaluation import Result, SeedComparison
from margrave.hardware import usable_cores
from margrave.quantity import quantity
from margrave.studies.budget import prepare
from margrave.studies.comparison import FinishedCell, compare_cells, results_of, rows_of
from margrave.studies.folder import StudyFolder
from margrave.studies.settings import Cell, StudyConfig, cells_of, grid_of
from margrave.studies.worker import GridProgress, Report, slots_for, train_cells
from margrave.training import locked

FIRST_TUNING_SEED = 100_000
"""The first seed of tuning, far from the seeds of the comparison."""


class StudyEvents:
    """Receives what a study reports; this base class ignores everything."""

    def message(self, text: str) -> None:
        """Report a line of information."""

    def training(self, what: str) -> AbstractContextManager[Report]:
        """Return a context manager whose value is called with the progress of several trainings.

        Args:
            what: what is trained, such as "tuning".
        """
        del what
        return nullcontext(lambda progress: None)


@dataclass(frozen=True)
class StudyOutcome:
    """The comparisons of the cells that have finished so far.

    Attributes:
        config: the study.
        comparisons: condition -> comparison of the losses.
        tuned_comparisons: condition -> comparison of the tuned losses; empty without tuning.
        results: all comparisons in the common result format: one per condition, and with tuning a
            second one per condition.
        failed: name of a failed training -> reason.
    """

    config: StudyConfig
    comparisons: Mapping[str, SeedComparison]
    tuned_comparisons: Mapping[str, SeedComparison]
    results: tuple[Result, ...]
    failed: Mapping[str, str]


def run_study(
    config: StudyConfig,
    folder: Path,
    *,
    budget: float | None = None,
    devices: int | None = None,
    events: StudyEvents | None = None,
    train: bool = True,
) -> StudyOutcome:
    """Train every cell that is not finished, compare the losses, and write the results.

    A study can be stopped at any time and run again: finished cells are not trained again, and
    the others resume from their checkpoints.

    Args:
        config: the study.
        folder: the study's folder; new, empty, or of the same study.
        budget: seconds for each training. The number of epochs that fits is chosen when the study
            begins, from the speed measured on this machine. None keeps the epochs of the settings.
        devices: number of trainings at a time; by default one per GPU, or as many as the cores
            allow.
        events: receives what the study reports; by default nothing is shown.
        train: False only compares finished cells, even while another process trains; the tuned
            losses are compared once every tuning run has finished.

    Raises:
        ValueError: the folder holds another study or is in use, or cells of one
            condition differ in their test pairs or numbers of steps.
        KeyboardInterrupt: a signal stopped the trainings, after each had written a checkpoint.
    """
    study, events = StudyFolder(folder), events or StudyEvents()
    config = study.begin(config)
    with locked(folder) if train else nullcontext():
        if not config.prepared and train:
            threads = max(1, usable_cores() // devices) if devices else 1
            config = study.begin(prepare(config, budget, threads, events.message))
        trainer = _Trainer(study, devices, events, train)
        cells = list(cells_of(config))
        if train:
            _announce(study, config, cells, events)
        trainer.train(cells, "training")
        trained = _trained(study, cells, config.test)
        comparisons = compare_cells(trained, config)
        results = results_of(comparisons, trained, config)
        tuned: dict[str, dict[str, dict[str, Any]]] = {}
        tuned_comparisons: dict[str, SeedComparison] = {}
        if config.tuning is not None and not trainer.failed and (train or _is_tuned(study, config)):
            tuned, tuned_cells = _tune(study, config, trainer)
            trainer.train(tuned_cells, "training tuned losses")
            trained_tuned = _trained(study, tuned_cells, config.test)
            tuned_comparisons = compare_cells(trained_tuned, config)
            results += results_of(tuned_comparisons, trained_tuned, config, tuned)
            trained += [cell for cell in trained_tuned if cell not in trained]
        if trained:
            study.write_figures(rows_of(trained))
        if results:
            study.write_results(results)
        return StudyOutcome(config, comparisons, tuned_comparisons, results, trainer.failed)


def _announce(
    study: StudyFolder, config: StudyConfig, cells: Sequence[Cell], events: StudyEvents
) -> None:
    """Report the number of trainings before the first one begins."""
    if all(study.finished_results(cell) is not None for cell in cells):
        return
    text = quantity(len(cells), "training")
    if config.tuning is not None:
        tuning = len(_tuning_cells(config))
        text += (
            f", then {tuning} to tune every loss and up to {len(cells)} of the tuned losses "
            "(tuning: null skips both)"
        )
    events.message(text)


@dataclass
class _Trainer:
    """Trains a study's unfinished cells, unless training is disabled.

    Attributes:
        study: the study's folder.
        devices: number of trainings at a time; None chooses it as in `run_study`.
        events: receives the progress.
        enabled: False makes `train` do nothing.
        failed: name of a failed training -> reason.
    """

    study: StudyFolder
    devices: int | None
    events: StudyEvents
    enabled: bool
    failed: dict[str, str] = field(default_factory=dict)

    def train(self, cells: Iterable[Cell], what: str) -> None:
        """Train the cells that are not finished."""
        cells = list(cells)
        unfinished = [cell for cell in cells if self.study.finished_results(cell) is None]
        if not unfinished or not self.enabled:
            return
        done = len(cells) - len(unfinished)
        progress = GridProgress(len(cells), finished=done, done_before=done)
        threads = unfinished[0].config.training.threads
        slots = slots_for(self.devices, threads if isinstance(threads, int) else 1)
        with self.events.training(what) as report:
            train_cells(
                unfinished,
                lambda cell: self.study.run_of(cell).path,
                progress,
                slots=slots,
                report=report,
                message=self.events.message,
            )
        self.failed |= progress.failed


def _trained(study: StudyFolder, cells: Iterable[Cell], set_name: str) -> list[FinishedCell]:
    """The finished cells, with their results on one evaluation set."""
    trained = []
    for cell in cells:
        results = study.finished_results(cell)
        if results is None:
            continue
        steps = [line["step"] for line in study.run_of(cell).read_metrics()]
        result = next((result for result in results if result.name == set_name), None)
        if result is None:
            raise ValueError(
                f"{study.run_of(cell).results} has no result of the set {set_name!r}; remove the "
                "cell's folder to train it again"
            )
        trained.append(
            FinishedCell(cell.condition, cell.loss, cell.seed, max(steps, default=0), result)
        )
    return trained


def _tuning_cells(config: StudyConfig) -> list[Cell]:
    """The cells that try every variant of every loss."""
    assert config.tuning is not None
    variants = {name: loss for grid in grid_of(config).values() for name, loss in grid.items()}
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + config.tuning.seeds)
    return list(cells_of(config, variants, seeds))


def _is_tuned(study: StudyFolder, config: StudyConfig) -> bool:
    """Whether every tuning run has finished."""
    return all(study.finished_results(cell) is not None for cell in _tuning_cells(config))


def _tune(
    study: StudyFolder, config: StudyConfig, trainer: _Trainer
) -> tuple[dict[str, dict[str, dict[str, Any]]], list[Cell]]:
    """Tune each loss.

    Returns:
        First, the best variants: condition -> loss -> name and settings. Second, the cells that
        train these variants with the seeds of the comparison.
    """
    assert config.tuning is not None
    grids, metric = grid_of(config), config.metric
    variants = {name: loss for grid in grids.values() for name, loss in grid.items()}
    tuning_cells = _tuning_cells(config)
    trainer.train(tuning_cells, "tuning")
    trained = _trained(study, tuning_cells, config.tuning.validation)
    at: dict[str, Any] = {"FAR": config.far} if metric == "TAR" else {}
    tuned: dict[str, dict[str, dict[str, Any]]] = {}
    cells: list[Cell] = []
    for condition in config.conditions:
        tuned[condition] = {}
        for loss, variants_of_loss in grids.items():
            ratings = {}
            for name in variants_of_loss:
                values = [
                    cell.result.figure(metric, **at).value or 0.0
                    for cell in trained
                    if (cell.condition, cell.loss) == (condition, name)
                ]
                if values:
                    # A lower EER is better.
                    ratings[name] = fmean(values) * (-1 if metric == "EER" else 1)
            if ratings:
                # max returns the first of equally good variants; the unchanged loss comes first.
                best = max(ratings, key=ratings.__getitem__)
                tuned[condition][loss] = {"name": best, **variants[best]}
        chosen = {choice["name"]: variants[choice["name"]] for choice in tuned[condition].values()}
        cells += [cell for cell in cells_of(config, chosen) if cell.condition == condition]
    return tuned, cells
