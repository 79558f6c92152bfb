"""``margrave train --devices``: one of its processes killed, and going on afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from margrave.models import load_model
from margrave.training import latest_checkpoint, read_metrics

CONFIG = {
    "data": {
        "train": {
            "kind": "synthetic",
            "num_identities": 8,
            "images_per_identity": 8,
            "image_size": 32,
        },
        "image_size": 32,
    },
    "backbone": {
        "kind": "iresnet",
        "block_counts": [1, 1, 1, 1],
        "channels": [8, 8, 8, 8],
        "embedding_size": 8,
    },
    "loss": {"kind": "curricularface", "scale": 16},
    "training": {"epochs": 60, "batch_size": 16, "log_steps": 1, "checkpoint_seconds": 0},
}


def margrave(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "margrave", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def processes_of(parent: int) -> list[int]:
    result = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [
        int(child)
        for child in result
        if b"train" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
    ]


def steps_of(run: Path) -> list[int]:
    lines = read_metrics(run / "metrics.jsonl")
    return [line["step"] for line in lines if line["kind"] == "training"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_process_ends_the_job_and_another_number_goes_on(tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(CONFIG))
    job = margrave(str(recipe), "--output", str(run), "--devices", "2")
    deadline = time.monotonic() + 120
    while latest_checkpoint(run) is None and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks = processes_of(job.pid)
    assert len(ranks) == 2, job.communicate()
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    output, error = job.communicate(timeout=300)
    assert time.monotonic() - killed < 60
    assert job.returncode == 1
    assert "process 2 of 2 was killed (SIGKILL)" in error, (output, error)
    assert f"margrave train --resume {run}" in error
    assert "Traceback" not in error

    assert latest_checkpoint(run) is not None
    reached = steps_of(run)[-1]
    assert reached < 28
    shorter = ("--set", "training.epochs=8", "--set", "training.checkpoint_seconds=60")
    job = margrave("--resume", str(run), "--devices", "3", *shorter)
    output, error = job.communicate(timeout=240)
    assert job.returncode == 0, error
    assert "resuming after" in output
    load_model(run / "model.safetensors")
    assert steps_of(run) == list(range(1, 33))


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    job = margrave("--data", str(tmp_path / "nowhere"), "--output", str(tmp_path), "--devices", "2")
    _, error = job.communicate(timeout=300)
    assert job.returncode == 1
    assert error.count("nowhere: no such file or folder") == 1, error
    assert "Traceback" not in error
