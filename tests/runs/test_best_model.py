"""Keeping the best model by an evaluation set, and ending a training that gets no better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from study_examples import RUN

from margrave.config import merge, read_config
from margrave.evaluation import Result
from margrave.models import load_model
from margrave.runs import Run, RunFolder

STEM = "conv1.weight"
"""The network's first parameter."""


def run_of(folder: Path, epochs: int, **evaluation: Any) -> Run:
    settings = {
        "loss": {"kind": "arcface", "scale": 8.0, "margin": 0.1},
        "training": {"epochs": epochs},
        "evaluation": {"every_epochs": 1, "best_by": "validation", **evaluation},
    }
    return Run(read_config([merge(RUN, settings)], {}), folder)


def accuracies(folder: Path, name: str = "validation") -> list[float]:
    lines = RunFolder(folder).read_metrics()
    return [x["accuracy"] for x in lines if x["kind"] == "evaluation" and x["set"] == name]


def script(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> dict[int, torch.Tensor]:
    """Evaluations during training say these accuracies; returns each epoch's first weights."""
    evaluate, weights = Run.evaluate, {}

    def scripted(self: Run, training: Any, resamples: int = 1000) -> tuple[Result, ...]:
        epoch = training.position.epoch
        weights[epoch] = training.network.state_dict()[STEM].clone()
        results = []
        for result in evaluate(self, training, resamples):
            figures = [
                replace(each, value=values[epoch - 1]) if each.metric == "accuracy" else each
                for each in result.figures
            ]
            results.append(replace(result, figures=tuple(figures)))
        return tuple(results)

    monkeypatch.setattr(Run, "evaluate", scripted)
    return weights


def first_weights(folder: Path) -> torch.Tensor:
    return load_model(folder / "model.safetensors")[0][STEM]


def test_the_model_of_the_best_evaluation_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = script(monkeypatch, [0.6, 0.8, 0.7, 0.8])
    run = run_of(tmp_path, epochs=4)
    results = run.train(run.open_training())
    assert accuracies(tmp_path) == [0.6, 0.8, 0.7, 0.8]
    torch.testing.assert_close(first_weights(tmp_path), weights[2])
    assert not torch.equal(weights[2], weights[4])
    assert not (tmp_path / "best.safetensors").exists()
    # The results are those of the model that was kept, with intervals.
    assert {result.name for result in results} == {"test", "validation"}
    assert all(result.figure("accuracy").interval is not None for result in results)
    assert RunFolder(tmp_path).read_results() == results


def test_a_training_ends_when_nothing_gets_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = script(monkeypatch, [0.6, 0.9, 0.7, 0.8, 0.9, 1.0])
    run = run_of(tmp_path, epochs=6, patience=2)
    run.train(run.open_training())
    assert accuracies(tmp_path) == [0.6, 0.9, 0.7, 0.8]
    torch.testing.assert_close(first_weights(tmp_path), weights[2])


def test_a_resumed_run_remembers_its_best_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = script(monkeypatch, [0.9, 0.7, 0.8])
    run = run_of(tmp_path, epochs=3)
    training = run.open_training()
    save = type(training).save

    def stop_after_two(self: Any, folder: Path, log_length: int) -> None:
        save(self, folder, log_length)
        if self.position.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(type(training), "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run.train(training)
    monkeypatch.setattr(type(training), "save", save)
    again = run_of(tmp_path, epochs=3)
    again.train(again.open_training(resume=True), resume=True)
    assert accuracies(tmp_path) == [0.9, 0.7, 0.8]
    torch.testing.assert_close(first_weights(tmp_path), weights[1])
    # A run that has finished can be resumed once more; its model stays.
    once_more = run_of(tmp_path, epochs=3)
    once_more.train(once_more.open_training(resume=True), resume=True)
    torch.testing.assert_close(first_weights(tmp_path), weights[1])


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"best_by": "tset"}, "did you mean 'test'"),
        ({"best_by": None, "patience": 2}, "patience needs best_by"),
        ({"every_epochs": 0}, "best_by needs every_epochs"),
    ],
)
def test_settings_that_contradict_are_refused(
    tmp_path: Path, evaluation: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path, epochs=2, **evaluation)
