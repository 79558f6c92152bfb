"""A study's folder: its settings, one run per cell, and the comparison."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from margrave.config import flat_settings
from margrave.evaluation import Result, read_results, write_results
from margrave.files import atomic_write, read_yaml
from margrave.registry import names_from_file
from margrave.runs import RunFolder
from margrave.studies.settings import NAME, Cell, StudyConfig, read_study, to_yaml


class StudyFolder:
    """The files of one study.

    Args:
        path: the folder's path.

    Attributes:
        path: the folder's path.
        settings: study.yaml, all settings, with defaults filled in.
        cells: the folder with one run folder per cell: per condition, loss and seed.
        results: results.json, the comparison: one result per condition, and with tuning a second
            one.
        figures: figures.csv, every figure of every finished cell.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "study.yaml"
        self.cells = path / "cells"
        self.results = path / "results.json"
        self.figures = path / "figures.csv"

    def is_study(self) -> bool:
        """Whether the folder holds a study's settings."""
        return self.settings.is_file()

    def run_of(self, cell: Cell) -> RunFolder:
        """The folder of a cell's run."""
        return RunFolder(self.cells / cell.name)

    def run_named(self, condition: str, loss: str, seed: int) -> RunFolder | None:
        """The folder of the run with these names, as a results file contains them.

        The names become parts of a path, so they must match `NAME`; None if one does not.
        """
        if not (NAME.fullmatch(condition) and NAME.fullmatch(loss)):
            return None
        return RunFolder(self.cells / condition / loss / f"seed-{seed}")

    def read_config(
        self,
        overrides: Mapping[str, Any] | None = None,
        trust_code: bool = False,
        typed: object = (),
    ) -> StudyConfig:
        """Read the study's settings; settings that the user typed override them.

        Args:
            overrides: settings that the user typed, which replace those in the file.
            trust_code: allow import paths in the file; their modules are imported and run.
            typed: other settings that the user typed; import paths that occur in them are trusted.

        Raises:
            ValueError: the folder holds no study, the settings are invalid, or they contain an
                import path that is not trusted.
        """
        if not self.is_study():
            raise ValueError(f"{self.path} is not a study's folder: it has no study.yaml")
        block = read_yaml(self.settings.read_text(encoding="utf-8"), str(self.settings)) or {}
        if not isinstance(block, dict):
            raise ValueError(f"{self.settings} holds a {type(block).__name__}, expected settings")
        with names_from_file(self.settings, trust_code, typed=[overrides or {}, typed]):
            return read_study([block], overrides or {})

    def begin(self, config: StudyConfig) -> StudyConfig:
        """Create the folder, or open that of the same study, and write the settings.

        Losses, conditions, seeds and tuning may be added to an existing study.

        Returns:
            The settings, with the `prepared` settings of an existing study.

        Raises:
            ValueError: the folder holds another study, or other files.
        """
        if self.is_study():
            existing = self.read_config(typed=config.model_dump())
            if changes := list(_changes(existing, config)):
                raise ValueError(
                    f"{self.path} holds another study: {'; '.join(changes[:5])}; choose another "
                    "--output, or use the same settings"
                )
            config = config.model_copy(update={"prepared": existing.prepared or config.prepared})
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} is neither empty nor a study; choose another --output")
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.settings) as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")
        return config

    def finished_results(self, cell: Cell) -> tuple[Result, ...] | None:
        """A finished cell's results; None if it has not finished.

        Raises:
            ValueError: the run's settings differ from the cell's, or its results are damaged.
        """
        run = self.run_of(cell)
        if run.is_run():
            expected = flat_settings(cell.config.model_dump(mode="json"))
            actual = flat_settings(run.read_yaml())
            # Settings that only one of them has, as after an update of Margrave, are not compared.
            for name in sorted(expected.keys() & actual.keys()):
                if expected[name] != actual[name]:
                    raise ValueError(
                        f"{run.path} was trained with {name} = {actual[name]!r}, but this study "
                        f"has {expected[name]!r}; remove that folder, or choose another --output"
                    )
        return run.read_results() if run.results.is_file() else None

    def write_results(self, results: tuple[Result, ...]) -> None:
        """Write results.json."""
        write_results(self.results, results)

    def read_results(self) -> tuple[Result, ...]:
        """The results in results.json; empty if that file does not exist yet."""
        return read_results(self.results) if self.results.is_file() else ()

    def write_figures(self, rows: list[dict[str, Any]]) -> None:
        """Write figures.csv; all rows have the same keys."""
        with (
            atomic_write(self.figures) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)


def _changes(existing: StudyConfig, config: StudyConfig) -> Iterator[str]:
    """Describe each setting that differs from the existing study's, although it must not."""
    before, after = existing.model_dump(mode="json"), config.model_dump(mode="json")
    names = ["run", "metric", "far", "test", "first_seed"]
    names += ["tuning"] if before["tuning"] and after["tuning"] else []
    for name in names:
        for key, (old, new) in _different(before[name], after[name]).items():
            yield f"{name}{key} is {new!r}, was {old!r}"
    for name in ("conditions", "losses"):
        for item in before[name].keys() & after[name].keys():
            for key, (old, new) in _different(before[name][item], after[name][item]).items():
                yield f"{name}.{item}{key} is {new!r}, was {old!r}"


def _different(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each setting that differs, by its name with a leading dot.

    If `before` and `after` are single values, the name is empty.
    """
    old, new = flat_settings(before), flat_settings(after)
    return {
        f".{key}" if key else "": (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }
