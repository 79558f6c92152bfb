"""What a report is made of: a run's folder, a study's folder, or files of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from margrave.evaluation import Result, read_results
from margrave.inference import is_feature_store
from margrave.runs import RunFolder
from margrave.studies import StudyFolder


@dataclass(frozen=True)
class ReportInput:
    """One input of a report.

    Attributes:
        name: the folder's or file's name.
        results: its results; empty for a run that has not finished.
        metrics: the run's metrics; empty for other inputs.
        cells: for each of a study's results, the metrics of each loss's first seed.
        run: the run's folder; None for other inputs.
        study: the study's folder; None for other inputs.
    """

    name: str
    results: tuple[Result, ...]
    metrics: Sequence[Mapping[str, Any]] = ()
    cells: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]] = field(default_factory=dict)
    run: RunFolder | None = None
    study: StudyFolder | None = None


def open_input(path: Path) -> ReportInput:
    """Open a run's folder, a study's folder, or a file of results.

    Raises:
        ValueError: the path is none of these, or is damaged.
    """
    run, study = RunFolder(path), StudyFolder(path)
    if study.is_study():
        results = study.read_results()
        if not results:
            raise ValueError(
                f"{path} has no results yet: no seed of every loss is finished; go on with "
                f"margrave study --resume {path}"
            )
        return ReportInput(path.name, results, cells=_cell_metrics(study, results), study=study)
    if run.is_run():
        return ReportInput(path.name, run.read_results(), run.read_metrics(), run=run)
    if path.is_file() and path.suffix.lower() == ".json":
        return ReportInput(path.stem, read_results(path))
    if is_feature_store(path):
        raise ValueError(
            f"{path} holds features; evaluate them first, such as: margrave evaluate pairs {path} "
            "PAIRS --output results.json"
        )
    what = "is none" if path.exists() else "does not exist"
    raise ValueError(
        f"{path} {what}; give a run's folder, a study's folder, or a JSON file of results"
    )


def _cell_metrics(
    study: StudyFolder, results: Sequence[Result]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """For each result, the metrics of each loss's first seed; missing ones are left out."""
    metrics: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for result in results:
        settings = result.settings
        seeds, condition = settings.get("seeds") or [0], str(settings.get("condition", result.name))
        own = metrics.setdefault(result.name, {})
        for loss, settings_of_loss in dict(settings.get("losses", {})).items():
            # A tuned loss was trained under the name of what tuning chose.
            name = str(settings_of_loss.get("name", loss))
            cell = study.cell_folder(condition, name, int(seeds[0]))
            if cell is not None and (lines := cell.read_metrics()):
                own[name] = lines
    return metrics
