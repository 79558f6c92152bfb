"""Progress where there is no terminal: plain lines, few of them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from margrave.cli import progress
from margrave.cli.progress import show_grid_progress, show_progress, show_training_progress
from margrave.studies import GridProgress
from margrave.synthetic import SyntheticFaces
from margrave.training import StepReport


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    pretended = Clock()
    monkeypatch.setattr(progress, "time", pretended)
    return pretended


def lines_of(seconds: float, count: int, clock: Clock, done: int = 0) -> list[str]:
    """What is printed of work that takes so long."""
    console = Console(file=io.StringIO(), force_terminal=False)
    started = clock.now
    with show_progress(console, "embedding") as report:
        for number in range(done, count):
            clock.now = started + seconds * (number - done) / (count - done)
            report(number, count)
        clock.now = started + seconds
        report(count, count)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_short_work_prints_nothing(clock: Clock) -> None:
    assert lines_of(1.9, 1000, clock) == []


def test_work_of_some_seconds_prints_lines(clock: Clock) -> None:
    assert lines_of(5, 1000, clock) == [
        "embedding: 400 of 1,000 (40 %), 200/s, 0:03 left",
        "embedding: 1,000 of 1,000 (100 %), 200/s",
    ]


def test_lines_are_ten_seconds_and_a_tenth_apart(clock: Clock) -> None:
    lines = lines_of(200, 1000, clock)
    assert len(lines) == 11
    assert lines[0] == "embedding: 10 of 1,000 (1 %), 5.00/s, 3:18 left"
    assert lines[1] == "embedding: 110 of 1,000 (11 %), 5.00/s, 2:58 left"
    assert len(lines_of(50, 1000, clock)) == 6


def test_long_work_prints_a_line_a_minute(clock: Clock) -> None:
    lines = lines_of(36_000, 100_000, clock)
    assert 590 <= len(lines) <= 601 and "9:59:" in lines[0]


def test_resumed_work_is_timed_by_what_is_done_now(clock: Clock) -> None:
    first, *_ = lines_of(10, 1000, clock, done=900)
    assert first == "embedding: 920 of 1,000 (92 %), 10/s, 0:08 left"


def test_training_prints_a_line_an_epoch_and_a_minute(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with show_training_progress(console) as report:
        for step in range(1, 21):
            report(
                StepReport(
                    step=step,
                    steps=20,
                    epoch=(step + 9) // 10,
                    epochs=2,
                    epoch_step=(step - 1) % 10 + 1,
                    epoch_steps=10,
                    loss=3.5,
                    target_cosine=0.25,
                    images_per_second=12.4,
                )
            )
            clock.now += 20
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        "epoch 1/2: step 4 of 10, loss 3.500, cosine 0.25, 12 images/s, 5:20 left",
        "epoch 1/2: step 7 of 10, loss 3.500, cosine 0.25, 12 images/s, 4:20 left",
        "epoch 1/2: loss 3.500, cosine 0.25, 12 images/s, 3:20 left",
        "epoch 2/2: step 3 of 10, loss 3.500, cosine 0.25, 12 images/s, 2:20 left",
        "epoch 2/2: step 6 of 10, loss 3.500, cosine 0.25, 12 images/s, 1:20 left",
        "epoch 2/2: step 9 of 10, loss 3.500, cosine 0.25, 12 images/s, 0:20 left",
        "epoch 2/2: loss 3.500, cosine 0.25, 12 images/s",
    ]


COMMANDS = {
    "pack": ["pack", "faces", "packed"],
    "embed": ["embed", "model.safetensors", "faces", "features"],
    "evaluate": ["evaluate", "pairs", "model.safetensors", "--images", "faces"],
    "doctor": ["doctor", "faces"],
    "all-to-all": ["evaluate", "all-to-all", "features"],
    "threshold": ["threshold", "model.safetensors", "features"],
}


# Impatient enough for tiny work to print its lines; one process, since importing torch is slow.
IMPATIENT = """
import json, sys
from margrave.cli import main, progress
progress.FIRST_LINE_SECONDS = progress.MIN_PAUSE = 0.0
for words in json.loads(sys.argv[1]):
    sys.argv = ["margrave", *words]
    try:
        main()
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    print(f"--- {status}", flush=True)
"""


def test_commands_print_plain_lines_into_a_pipe(tmp_path: Path, subtests: pytest.Subtests) -> None:
    from margrave import backbones
    from margrave.models import ModelCard, save_model

    SyntheticFaces(num_identities=30, images_per_identity=8, image_size=32).write(
        tmp_path / "faces"
    )
    spec = {"kind": "mbf", "image_size": 32, "embedding_size": 8}
    card = ModelCard(backbone=spec, image_size=32)
    save_model(tmp_path / "model.safetensors", backbones.create(spec).state_dict(), card)
    # As of a user whose terminal can show anything.
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, json.dumps(list(COMMANDS.values()))],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    outputs = done.stdout.split("--- ")
    for place, name in enumerate(COMMANDS):
        with subtests.test(name):
            assert outputs[place + 1][0] in "01", outputs[place + 1]
            assert " (100 %)" in outputs[place], outputs[place]


def test_the_grid_s_lines_have_the_time_that_is_left(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    progress = GridProgress(total=10, finished=2, done_before=2)
    with show_grid_progress(console, "training") as report:
        for finished in range(2, 11):
            progress.finished = finished
            report(progress)
            clock.now += 60
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "training: 2 of 10 finished"
    assert "training: 4 of 10 finished, 6:00 left" in lines and len(lines) == 9
