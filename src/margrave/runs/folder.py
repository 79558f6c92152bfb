"""A run's folder: the files it holds, and how to read and write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from margrave.config import RunConfig, read_config, save_config
from margrave.evaluation import Result, read_results, write_results
from margrave.files import read_yaml
from margrave.former_names import current_config
from margrave.registry import names_from_file
from margrave.training import latest_checkpoint, read_metrics


class RunFolder:
    """The files of one run.

    Args:
        path: the folder's path.

    Attributes:
        path: the folder's path.
        config: config.yaml, all settings, with defaults filled in.
        metrics: metrics.jsonl, one line per logged step, evaluation or other event.
        model: model.safetensors, the trained model.
        best_model: best.safetensors, with `evaluation.best_by`: the best model so far, until
            training ends.
        results: results.json, the trained model's evaluation results.
        curves: curves.png, loss, feature norm, learning rate, target cosine and ROC.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model.safetensors"
        self.best_model = path / "best.safetensors"
        self.results = path / "results.json"
        self.curves = path / "curves.png"

    @property
    def checkpoint(self) -> Path | None:
        """The latest checkpoint, or None if there is none yet."""
        return latest_checkpoint(self.path)

    def is_run(self) -> bool:
        """Whether the folder holds a run's configuration."""
        return self.config.is_file()

    def read_config(
        self, overrides: Mapping[str, Any] | None = None, trust_code: bool = False
    ) -> RunConfig:
        """Read the run's configuration and apply overrides.

        Args:
            overrides: the settings that the user typed, which replace those in the file.
            trust_code: allow import paths in the file; their modules are imported and run.

        Raises:
            ValueError: the folder is not a run's folder, the configuration is invalid (see
                ``margrave.config.read_config``), or the file names code and ``trust_code`` is
                False.
        """
        if not self.is_run():
            raise ValueError(f"{self.path} is not a run's folder: it has no config.yaml")
        with names_from_file(self.config, trust_code, typed=overrides or {}):
            return read_config([self.read_yaml()], overrides or {})

    def read_yaml(self) -> dict[str, Any]:
        """The configuration as written, with former setting names replaced by current ones.

        Nothing that the configuration names is imported.

        Raises:
            ValueError: the file is not YAML, or not a mapping.
        """
        values = read_yaml(self.config.read_text(encoding="utf-8"), str(self.config)) or {}
        if not isinstance(values, dict):
            raise ValueError(
                f"{self.config} holds a {type(values).__name__}, but must map setting names to "
                "values"
            )
        try:
            return current_config(values)
        except ValueError as error:
            raise ValueError(f"{self.config}: {error}") from None

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml."""
        save_config(config, self.config)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; empty before training starts."""
        return read_metrics(self.metrics) if self.metrics.is_file() else []

    def read_results(self) -> tuple[Result, ...]:
        """The results in results.json; empty before training ends."""
        return read_results(self.results) if self.results.is_file() else ()

    def write_results(self, results: tuple[Result, ...]) -> None:
        """Write results.json."""
        write_results(self.results, results)
