"""``kill -9`` at random moments, some inside a checkpoint's write: nothing is lost.

Twenty kills: `MARGRAVE_KILLS=20 pytest tests/training/test_kill.py`; a few by default.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from margrave.training import latest_checkpoint

KILLS = int(os.environ.get("MARGRAVE_KILLS", "2"))

# Every step is checkpointed, so that kills fall inside writes; the checkpoint is slowed down so
# that they do so often. A momentum encoder, an averaged network and dropout are all at stake.
SLOW_WRITER = """
import random, sys, time
import torch
from margrave.training import checkpoint
save = checkpoint.save_tensors
def slow_save(folder, *given):
    save(folder, *given)
    for path in folder.iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole) // 2])
        time.sleep(0.02)
        path.write_bytes(whole)
checkpoint.save_tensors = slow_save
from margrave.cli import main
main()
"""

CONFIG = {
    "data": {
        "train": {
            "kind": "synthetic",
            "num_identities": 8,
            "images_per_identity": 8,
            "image_size": 32,
        },
        "image_size": 32,
        "augmentation": {"crop": 0.5, "photometric": 0.5},
    },
    "backbone": {
        "kind": "iresnet",
        "block_counts": [1, 1, 1, 1],
        "channels": [8, 8, 8, 8],
        "embedding_size": 8,
        "dropout": 0.2,
    },
    "loss": {"kind": "kappaface", "estimator": "momentum_encoder", "scale": 16},
    "training": {
        "epochs": 5,
        "precision": "float32",
        "batch_size": 16,
        "threads": 1,
        "log_steps": 1,
        "checkpoint_seconds": 0,
        "weight_average": 0.9,
    },
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", SLOW_WRITER, "train", *arguments]


def curve(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_killed_runs_end_in_the_same_weights(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(CONFIG))
    full, cut = tmp_path / "whole", tmp_path / "cut"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        command(str(recipe), "--output", str(full)),
        check=True,
        capture_output=True,
        env=environment,
    )

    moments = random.Random(0)
    kills = inside_a_write = 0
    start = command(str(recipe), "--output", str(cut))
    while kills < KILLS:
        arguments = command("--resume", str(cut)) if latest_checkpoint(cut) else start
        before = _changed(cut)
        process = subprocess.Popen(
            arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
        # Wait until it trains, then a random moment of a step or two.
        deadline = time.monotonic() + 60
        while process.poll() is None and _changed(cut) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.25))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
            inside_a_write += bool(list(cut.glob(".checkpoint-*")))
        error = process.communicate()[1].decode()
        assert process.returncode in (0, -signal.SIGKILL), error
        if process.returncode == 0:
            shutil.rmtree(cut)
    final = command("--resume", str(cut)) if latest_checkpoint(cut) else start
    subprocess.run(final, check=True, capture_output=True, env=environment)

    ours, theirs = load_file(cut / "model.safetensors"), load_file(full / "model.safetensors")
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert curve(cut) == curve(full)
    assert not list(cut.glob(".checkpoint-*"))
    print(f"{kills} kills, {inside_a_write} inside a write of the checkpoint")


def _changed(folder: Path) -> float:
    checkpoint = latest_checkpoint(folder)
    return checkpoint.stat().st_mtime if checkpoint else 0.0
