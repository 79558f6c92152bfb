"""The inputs of a report: run folders, study folders and result files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from margrave.evaluation import Result, read_results
from margrave.inference import is_feature_store
from margrave.report.cleaning import clean_result, clean_text
from margrave.runs import RunFolder
from margrave.studies import StudyFolder

MAX_RESULTS = 50
"""Largest number of results in one file."""
MAX_SEED = 2**63
"""Seeds in a file must be below this: an integer in JSON may have thousands of digits."""


@dataclass(frozen=True)
class ReportInput:
    """One input of a report.

    Attributes:
        name: the folder's or file's name.
        results: the input's results; empty for a run without evaluation results.
        metrics: the lines of the run's metrics file; empty for other inputs.
        cell_metrics: for a study, result name -> loss name -> metrics lines of the study's first
            seed; empty for other inputs.
        run: the run's folder; None for other inputs.
        study: the study's folder; None for other inputs.
    """

    name: str
    results: tuple[Result, ...]
    metrics: Sequence[Mapping[str, Any]] = ()
    cell_metrics: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]] = field(
        default_factory=dict
    )
    run: RunFolder | None = None
    study: StudyFolder | None = None


def open_input(path: Path) -> ReportInput:
    """Open a run folder, a study folder or a result file.

    Raises:
        ValueError: the path is none of these, a file is damaged, or there are too many results.
    """
    run, study, name = RunFolder(path), StudyFolder(path), clean_text(path.name)
    if study.is_study():
        results = _clean_results(study.read_results(), study.results)
        if not results:
            raise ValueError(
                f"{path} has no results yet; to compare the cells that are finished, run: margrave "
                f"study --resume {path} --no-train"
            )
        if any(result.protocol != "study" for result in results):
            raise ValueError(
                f"{study.results} holds results that are not of this study; remove the file and "
                f"compare the finished cells again: margrave study --resume {path} --no-train"
            )
        return ReportInput(name, results, cell_metrics=_cell_metrics(study, results), study=study)
    if run.is_run():
        results = _clean_results(run.read_results(), run.results)
        return ReportInput(name, results, run.read_metrics(), run=run)
    if path.is_file() and path.suffix.lower() == ".json":
        results = _clean_results(read_results(path), path)
        if not results:
            raise ValueError(f"{path} holds no results")
        return ReportInput(clean_text(path.stem), results)
    if is_feature_store(path):
        raise ValueError(
            f"{path} holds features; evaluate them first, for example: margrave evaluate pairs "
            f"{path} PAIRS --output results.json"
        )
    problem = "is not a run, a study or a result file" if path.exists() else "does not exist"
    raise ValueError(f"{path} {problem}; give a run folder, a study folder or a JSON result file")


def _clean_results(results: Sequence[Result], path: Path) -> tuple[Result, ...]:
    """Clean the results of a file; raise ValueError if there are more than ``MAX_RESULTS``."""
    if len(results) > MAX_RESULTS:
        raise ValueError(
            f"{path} holds {len(results)} results, but a report shows at most {MAX_RESULTS}; split "
            "the file"
        )
    return tuple(clean_result(result) for result in results)


def study_losses(result: Result) -> dict[str, Mapping[str, Any]]:
    """Loss name -> settings, from a study's result; losses with malformed settings are left out."""
    losses = result.settings.get("losses")
    if not isinstance(losses, Mapping):
        return {}
    return {str(name): loss for name, loss in losses.items() if isinstance(loss, Mapping)}


def _cell_metrics(
    study: StudyFolder, results: Sequence[Result]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Result name -> loss name -> metrics lines of the study's first seed.

    A tuned loss has the name of its chosen variant. Losses without metrics are left out.
    """
    metrics: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for result in results:
        seeds, condition = result.settings.get("seeds"), result.settings.get("condition")
        seed = seeds[0] if isinstance(seeds, list | tuple) and seeds else 0
        if not isinstance(seed, int) or not 0 <= seed < MAX_SEED:
            continue
        lines_by_loss = metrics.setdefault(result.name, {})
        for loss_name, settings in study_losses(result).items():
            # A tuned loss was trained under the name of the variant that tuning chose.
            name = str(settings.get("name", loss_name))
            run = study.run_named(str(condition or result.name), name, seed)
            if run is not None and (lines := run.read_metrics()):
                lines_by_loss[name] = lines
    return metrics
