"""Loggers get every number, resume as the same run, and never end a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from margrave.former_names import current_config
from margrave.registry import names_from_file
from margrave.training import TrainingSettings, read_metrics
from margrave.training.loggers import IDENTIFIERS_FILE, LOGGERS, Loggers
from margrave.training.metrics import MetricsLog


class Recorder:
    """A logger that keeps what it gets, and fails where it is told to."""

    started: list[Recorder] = []  # noqa: RUF012 - the tests read it

    def __init__(self, identifier: str | None, fails_at: int | None = None) -> None:
        self.version = identifier or f"run {len(self.started)}"
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.ended: str | None = None
        self.fails_at = fails_at
        self.started.append(self)

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server is gone")
        if values:
            self.lines.append((step, values))

    def finalize(self, status: str) -> None:
        self.ended = status


def start_recorder(folder: Path, step: int, identifier: str | None) -> Any:
    del folder, step
    return Recorder(identifier)


def start_failing(folder: Path, step: int, identifier: str | None) -> Any:
    del folder, step, identifier
    return Recorder(None, fails_at=2)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "started", [])
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


RECORDER = "test_loggers:start_recorder"


def recorders() -> list[Any]:
    """Those of the module that the import path names, which is another one than this."""
    import test_loggers

    return test_loggers.Recorder.started


def test_a_logger_of_ones_own_gets_every_number(tmp_path: Path) -> None:
    recorders().clear()
    log = MetricsLog(tmp_path, (RECORDER,))
    log.write("training", 1, {"epoch": 0.5, "loss": 2.0, "phase": "warm-up"})
    log.write("training", 2, {"epoch": 1.0, "loss": float("nan")})
    log.close()
    (one,) = recorders()
    assert one.lines[0] == (1, {"training/step": 1, "training/epoch": 0.5, "training/loss": 2.0})
    assert one.lines[1] == (2, {"training/step": 2, "training/epoch": 1.0})
    assert one.ended == "success"


def test_a_run_that_stopped_before_its_end_has_failed(tmp_path: Path) -> None:
    recorders().clear()
    MetricsLog(tmp_path, (RECORDER,)).close(succeeded=False)
    assert recorders()[0].ended == "failed"


def test_a_resumed_run_is_the_same_one(tmp_path: Path) -> None:
    recorders().clear()
    MetricsLog(tmp_path, (RECORDER,)).close()
    MetricsLog(tmp_path, (RECORDER,)).close()
    first, second = recorders()
    assert first.version == second.version == "run 0"
    assert json.loads((tmp_path / IDENTIFIERS_FILE).read_text()) == {RECORDER: "run 0"}


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 3}', "{" * 10**5, "\x00"])
def test_a_damaged_file_of_identifiers_begins_another_run(tmp_path: Path, content: str) -> None:
    (tmp_path / IDENTIFIERS_FILE).write_text(content)
    MetricsLog(tmp_path, (RECORDER,)).close()
    assert RECORDER in json.loads((tmp_path / IDENTIFIERS_FILE).read_text())


def test_a_logger_that_fails_is_left_out(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, ("test_loggers:start_failing", RECORDER))
    with pytest.warns(UserWarning, match="start_failing failed and is off .* server is gone"):
        for step in range(1, 5):
            log.write("training", step, {"epoch": 1.0, "loss": 1.0})
    log.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4
    assert [len(one.lines) for one in recorders()[-2:]] == [1, 4]


def test_unknown_loggers_suggest_and_files_name_no_code() -> None:
    with pytest.raises(ValueError, match="unknown logger 'wandbb'; did you mean 'wandb'"):
        TrainingSettings(loggers=("wandbb",))
    with names_from_file("config.yaml", trust_code=False), pytest.raises(ValueError, match="trust"):
        TrainingSettings(loggers=("os:system",))


def test_the_former_setting_is_read() -> None:
    on, off = ({"training": {"tensorboard": value, "epochs": 2}} for value in (True, False))
    assert current_config(on) == {"training": {"epochs": 2, "loggers": ["tensorboard"]}}
    assert current_config(off) == {"training": {"epochs": 2}}


def test_without_its_package_a_logger_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(folder: Path, step: int, identifier: str | None) -> Any:
        raise ModuleNotFoundError("No module named 'wandb'")

    monkeypatch.setitem(LOGGERS._components, "wandb", missing)
    with pytest.raises(ValueError, match=r"wandb is not installed .* install margrave\[wandb\]"):
        Loggers(("wandb",), tmp_path, 0)


def test_tensorboard_and_wandb_write_into_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = MetricsLog(tmp_path, ("tensorboard", "wandb"))
    log.write("training", 1, {"epoch": 0.5, "loss": 2.0})
    log.close()
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert json.loads((tmp_path / IDENTIFIERS_FILE).read_text())["wandb"]


def test_mlflow_keeps_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"):
        Loggers(("mlflow",), tmp_path, 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for step in (1, 2):
        log = MetricsLog(tmp_path, ("mlflow",), length=10**6, step=step)
        log.write("training", step, {"epoch": 0.5, "loss": 2.0 / step})
        log.close()
    client = mlflow.MlflowClient(f"file:{tmp_path}/mlruns")
    (experiment,) = [e for e in client.search_experiments() if e.name == "margrave"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert [
        point.value for point in client.get_metric_history(run.info.run_id, "training/loss")
    ] == [2, 1]
