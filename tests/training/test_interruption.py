"""One writer for a run's folder; Ctrl-C, SIGTERM and a launcher's death lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from margrave.training import (
    Position,
    StepReport,
    StopRequested,
    fit,
    interruption,
    latest_checkpoint,
    locked,
    read_metrics,
    read_state,
)
from margrave.training.interruption import StopSignals

sys.path.insert(0, str(Path(__file__).parent))

import test_on_device as runs

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and locks are POSIX's")
CONFIG = {
    "data": {
        "train": {
            "kind": "synthetic",
            "num_identities": 8,
            "images_per_identity": 8,
            "image_size": 32,
        },
        "image_size": 32,
        "cached": True,
    },
    "backbone": {
        "kind": "iresnet",
        "block_counts": [1, 1, 1, 1],
        "channels": [8, 8, 8, 8],
        "embedding_size": 8,
    },
    "training": {"epochs": 400, "batch_size": 16, "precision": "float32", "log_steps": 1},
}
PARTS = {"kind": "adaface"}, {"kind": "chunked"}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "-m", "margrave", "train", *(arguments or (str(recipe),))]
    command += [] if "--resume" in arguments else ["--output", str(folder / "run")]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def steps(run: Path) -> int:
    curve = run / "metrics.jsonl"
    return len(curve.read_text().splitlines()) if curve.is_file() else 0


def wait_for_steps(run: Path, process: subprocess.Popen[str], count: int = 6) -> None:
    deadline = time.monotonic() + 90
    while steps(run) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_keeps_it(tmp_path: Path, number: int) -> None:
    process = start(tmp_path)
    run = tmp_path / "run"
    wait_for_steps(run, process)
    process.send_signal(number)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 130, error
    assert f"resume with: margrave train --resume {run}" in " ".join(output.split())
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = max(line["step"] for line in lines if line["kind"] == "training")
    # Nothing that was trained is lost, although no checkpoint was due for minutes.
    assert read_state(checkpoint)["position"]["step"] == last


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path: Path) -> None:
    process = start(tmp_path)
    run = tmp_path / "run"
    wait_for_steps(run, process)
    while latest_checkpoint(run) is None:
        time.sleep(0.05)
    second = start(tmp_path, "--resume", str(run))
    _, error = second.communicate(timeout=300)
    assert second.returncode == 1
    assert f"is in use by process {process.pid} on" in " ".join(error.split())
    assert process.poll() is None
    process.kill()
    process.communicate()
    with locked(run), locked(run):
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ranks_end_soon_after_their_launcher(tmp_path: Path) -> None:
    process = start(tmp_path, str(tmp_path / "recipe.yaml"), "--devices", "2")
    wait_for_steps(tmp_path / "run", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [
        child
        for child in children
        if b"train" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
    ]
    assert len(ranks) == 2
    process.kill()
    deadline = time.monotonic() + 10
    alive = ranks
    while alive and time.monotonic() < deadline:
        time.sleep(0.1)
        alive = [rank for rank in alive if _is_running(rank)]
    assert not alive


def _is_running(rank: str) -> bool:
    try:
        return Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_timer_outlives_a_stop_that_was_requested_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interruption, "has_launcher", lambda: True)
    before = set(threading.enumerate())
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        (timer,) = set(threading.enumerate()) - before
        assert stop.requested
    timer.join(10)
    assert not timer.is_alive()


class Stop(Exception):
    """Raised in the middle of a run."""


@pytest.mark.parametrize("changed", [{"batch_size": 4}, {"seed": 5}])
def test_an_epoch_of_other_batches_begins_anew(tmp_path: Path, changed: dict[str, int]) -> None:
    def stop(step: StepReport) -> None:
        if step.step == 9:
            raise Stop

    settings: dict[str, Any] = {"checkpoint_seconds": 0.0, "epochs": 3}
    with pytest.raises(Stop):
        fit(runs.training(*PARTS, **settings), tmp_path, report=stop)
    again = runs.training(*PARTS, **{**settings, **changed})
    seen: Counter[int] = Counter()
    images, begun = again.images, []
    plain = images.__class__.__getitems__

    def watch(self: Any, positions: Any) -> Any:
        seen.update(index for epoch, index in positions if epoch == 1)
        return plain(self, positions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images.__class__, "__getitems__", watch)
        fit(again, tmp_path, resume=True, after_resume=begun.append)
    # Epochs have other numbers of steps now, but steps are counted on.
    assert begun == [Position(1, 0, 8)]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    steps = [line["step"] for line in lines if line["kind"] == "training"]
    assert steps == sorted(set(steps)) and max(steps) == again.position.step
    assert again.epochs_after() == 3
    assert set(seen.values()) == {1} and len(seen) == len(images)
    (note,) = again.notes
    name, value = next(iter(changed.items()))
    assert f"training.{name} is {value} instead of" in note
    assert "the batches of epoch 2 have changed, so it starts again" in note


def test_a_stop_between_epochs_is_no_loss(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    trained = runs.training(*PARTS, epochs=2)

    def ask(step: StepReport) -> None:
        if step.step == runs.STEPS - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StopRequested):
        fit(trained, tmp_path, report=ask)
    assert trained.position == Position(0, runs.STEPS, runs.STEPS)
    again = runs.training(*PARTS, epochs=2)
    fit(again, tmp_path, resume=True)
    assert again.position == Position(2, 0, 2 * runs.STEPS)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    fit(runs.training(*PARTS, epochs=2), tmp_path / "whole")
    whole = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    adaptation = [line for line in lines if line["kind"] == "adaptation"]
    assert adaptation == [line for line in whole if line["kind"] == "adaptation"]
    assert signal.getsignal(signal.SIGTERM) == handler
