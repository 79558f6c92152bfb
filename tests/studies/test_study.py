"""Studies from settings to comparison: kept, interrupted, damaged and failing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_examples import STUDY

from margrave.evaluation import read_results
from margrave.studies import StudyFolder, cells_of, compare_cells, read_study, run_study
from margrave.studies.comparison import FinishedCell
from margrave.studies.study import _trained

NAN_LOSS = '''
from dataclasses import dataclass

from margrave.losses import ArcFace


@dataclass(frozen=True, kw_only=True)
class Diverging(ArcFace):
    """Becomes NaN."""

    def target(self, cosine, context):
        return cosine * float("nan")
'''


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, with tuning."""
    folder = tmp_path_factory.mktemp("study") / "finished"
    tuning = {"tuning": {"factors": {"margin": [1, 2]}}}
    outcome = run_study(read_study([STUDY], tuning), folder, devices=2)
    assert not outcome.failed and set(outcome.comparisons["data"].means) == {"arcface", "adaface"}
    assert [result.name for result in outcome.results] == ["data", "data, tuned"]
    assert set(outcome.results[1].settings["losses"]) == {"arcface", "adaface"}
    assert len(outcome.tuned_comparisons["data"].means) == 2
    return folder


def test_its_results_are_an_envelope_and_a_table(finished: Path) -> None:
    own, tuned = read_results(finished / "results.json")
    assert (own.protocol, own.name, tuned.name) == ("study", "data", "data, tuned")
    assert own.counts["seeds"] == 2 and own.counts["steps"] == 6
    mean = own.figure("accuracy", loss="arcface")
    assert mean.value is not None and mean.interval is not None
    assert own.curves["accuracy by seed"].keys() == {"arcface", "adaface"}
    difference = own.figure("difference in accuracy")
    assert set(difference.details) == {"p_value", "adjusted_p_value", "smallest_detectable"}
    rows = (finished / "figures.csv").read_text().splitlines()
    assert rows[0].startswith("condition,loss,seed,steps,accuracy") and len(rows) >= 5


def no_training(*_: Any, **__: Any) -> None:
    raise AssertionError("a finished cell was trained again")


def test_the_same_command_again_trains_nothing(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in (finished / "results.json",
                                                   finished / "figures.csv")}  # fmt: skip
    monkeypatch.setattr("margrave.studies.study.train_cells", no_training)
    config = StudyFolder(finished).read_config()
    run_study(config, finished, devices=1)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_what_is_finished_is_compared_without_training(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / "cells" / "data" / "adaface" / "seed-1" / "results.json").unlink()
    tuning = sorted(folder.glob("cells/data/*/seed-100000/results.json"))
    tuning[0].unlink()
    monkeypatch.setattr("margrave.studies.study.train_cells", no_training)
    config = StudyFolder(folder).read_config()
    outcome = run_study(config, folder, train=False)
    (result,) = outcome.results
    assert (result.name, result.counts["seeds"]) == ("data", 1)
    assert StudyFolder(folder).read_results() == outcome.results


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the study did not get so far")


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_as_if_it_had_not_been(
    finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({**STUDY, "tuning": {"factors": {"margin": [1, 2]}}}, sort_keys=False)
    )
    folder = tmp_path / "killed"
    words = [sys.executable, "-m", "margrave", "study"]
    process = subprocess.Popen(
        [*words, "study.yaml", "-o", str(folder), "--devices", "2"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    cells = folder / "cells" / "data"
    wait_for(lambda: any(cells.glob("*/*/results.json")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in cells.glob("*/*/results.json")}
    # Trainings end with the study; until then, they hold their folders.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _is_training(folder):
        time.sleep(0.2)
    for checkpoint in cells.glob("*/*/checkpoint-*/state.json"):
        if checkpoint.parents[1] / "results.json" not in done:
            checkpoint.write_text("{")
    again = subprocess.run(
        [*words, "--resume", str(folder), "--devices", "2"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert "data: 2 seeds" in again.stdout and "nothing" not in again.stderr
    assert done.keys() and all(path.stat().st_mtime_ns == when for path, when in done.items())
    for name in ("figures.csv", "results.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def _is_training(folder: Path) -> bool:
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(folder) in os.readlink(entry):
                return True
        except OSError:
            continue
    return False


def test_a_training_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_losses.py").write_text(NAN_LOSS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = read_study([STUDY], {"seeds": 1}, ["my_losses:Diverging", "arcface"])
    outcome = run_study(config, tmp_path / "study", devices=2)
    assert list(outcome.failed) == ["data/Diverging/seed-0"]
    assert "is not finite" in outcome.failed["data/Diverging/seed-0"]
    assert list(outcome.comparisons["data"].means) == ["arcface"]
    assert outcome.results[0].notes[0].endswith("none of their runs finished: Diverging.")
    with pytest.raises(ValueError, match=r"names 'my_losses:Diverging'.*--trust-code"):
        StudyFolder(tmp_path / "study").read_config()
    StudyFolder(tmp_path / "study").read_config(trust_code=True)


def test_code_that_a_folder_names_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    study = StudyFolder(tmp_path / "study")
    study.begin(read_study([STUDY], {}))
    text = study.settings.read_text()
    study.settings.write_text(text.replace("kind: adaface", "kind: evil:Loss"))
    with pytest.raises(ValueError, match=r"study.yaml names 'evil:Loss'.*--trust-code"):
        study.begin(read_study([STUDY], {}))


def test_another_study_in_the_folder_is_refused(finished: Path, tmp_path: Path) -> None:
    tuning = {"tuning": {"factors": {"margin": [1, 2]}}}
    other = {**tuning, "losses": {"arcface": {"margin": 0.1}}, "run": {"training": {"epochs": 7}}}
    with pytest.raises(ValueError, match=r"run.training.epochs is 7, was 2; losses.arcface.margin"):
        StudyFolder(finished).begin(read_study([STUDY], other))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="neither empty nor a study"):
        StudyFolder(tmp_path).begin(read_study([STUDY], {}))
    with pytest.raises(ValueError, match="is not a study's folder"):
        StudyFolder(tmp_path).read_config()


def test_cells_that_do_not_belong_together_are_refused(finished: Path) -> None:
    study = StudyFolder(finished)
    config = study.read_config()
    cells = list(cells_of(config))
    trained = _trained(study, cells, "test")
    assert trained[0].result.scores is not None
    first, *others = trained

    def refused(cell: FinishedCell, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            compare_cells([*others, cell], config, resamples=5)

    refused(replace(first, steps=99), "for 6 steps|for 99 steps")
    scores = replace(first.result.scores, images_digest="other")  # type: ignore[type-var]
    refused(replace(first, result=replace(first.result, scores=scores)), "tested on other pairs")
    refused(replace(first, result=replace(first.result, scores=None)), "has no pair scores")
    run = study.run_of(cells[0])
    text = run.config.read_text()
    try:
        run.config.write_text(text.replace("batch_size: 16", "batch_size: 8"))
        with pytest.raises(ValueError, match=r"training.batch_size = 8, but this study has 16"):
            study.finished_results(cells[0])
    finally:
        run.config.write_text(text)
