"""A rank that is stopped, or hangs, is named, and the others end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from margrave.distributed import World
from margrave.distributed.watch import RankStatus, RankWatch
from margrave.training import latest_checkpoint

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stops processes")

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
    "training": {"epochs": 2000, "batch_size": 16, "log_steps": 1, "checkpoint_seconds": 0},
}
HANGING = """
import os
import time
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.steps = nn.Linear(3 * 32 * 32, 8), 0

    def forward(self, images):
        self.steps += self.training
        if self.steps == 12 and os.environ["RANK"] == "1":
            self.wait_for_ever()
        return self.last(images.flatten(1))

    def wait_for_ever(self):
        while True:
            time.sleep(1)
"""
# Ranks that find each other by a store in the first of them, and add up numbers for ever.
ADDING = """
import os, sys, torch, torch.distributed as dist
from margrave.distributed import RankWatch, current_world
dist.init_process_group("gloo")
with RankWatch(current_world(), 3.0) as watch:
    while True:
        watch.step += 1
        dist.all_reduce(torch.ones(1))
        if watch.step == 100:
            print("adding", flush=True)
"""


def start(*words: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def train(folder: Path, *settings: str) -> subprocess.Popen[str]:
    words = ["recipe.yaml", "--output", "run", "--devices", "2"]
    words += [f"--set=training.{one}" for one in settings]
    return start("-m", "margrave", "train", *words, cwd=folder)


def ranks_of(job: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"train" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
    ]


def wait_for_checkpoint(run: Path, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while latest_checkpoint(run) is None and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job.poll() is None, job.communicate()


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(CONFIG))
    yield tmp_path


def test_a_stopped_rank_is_named_and_the_job_ends(folder: Path) -> None:
    rank = 1
    job = train(folder, "rank_silence_seconds=3")
    wait_for_checkpoint(folder / "run", job)
    ranks = ranks_of(job)
    assert len(ranks) == 2
    os.kill(ranks[rank], signal.SIGSTOP)
    stopped = time.monotonic()
    while all(map(is_alive, ranks)) and time.monotonic() < stopped + 30:
        time.sleep(0.05)
    named = time.monotonic() - stopped
    output, error = job.communicate(timeout=300)
    print(f"named after {named:.1f} s, ended after {time.monotonic() - stopped:.1f} s")
    assert 2.5 < named < 15
    assert job.returncode == 1 and not any(map(is_alive, ranks))
    who = rf"process {rank + 1} of 2 \(rank {rank}, pid {ranks[rank]} on \S+\)"
    assert re.search(rf"error: {who} has not answered for \d s, last seen in step \d+, ", error)
    assert "the limit is training.rank_silence_seconds = 3" in error
    assert "margrave train --resume run" in error
    assert "Traceback" not in error and error.count("error:") == 1, (output, error)


def test_a_hanging_rank_is_named_with_its_place(folder: Path) -> None:
    (folder / "hanging.py").write_text(HANGING)
    backbone = ("--set", "backbone={kind: hanging:Net}")
    words = ["recipe.yaml", "--output", "run", "--devices", "2", *backbone]
    job = start(
        "-m", "margrave", "train", *words, "--set=training.rank_stall_seconds=12", cwd=folder
    )
    output, error = job.communicate(timeout=300)
    assert job.returncode == 1, (output, error)
    assert re.search(r"waited \d+ s for others: process 2 of 2 \(rank 1, pid \d+ on \S+\)", error)
    assert re.search(r"is in step 12, \S+hanging.py:\d+ in wait_for_ever; the limit is", error)
    assert "training.rank_stall_seconds = 12" in error and "Traceback" not in error, error


def test_a_whole_job_that_was_stopped_goes_on(folder: Path) -> None:
    job = train(folder, "rank_silence_seconds=2")
    try:
        wait_for_checkpoint(folder / "run", job)
        processes = [*ranks_of(job), job.pid]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        time.sleep(5)
        for process in processes:
            os.kill(process, signal.SIGCONT)
        before = latest_checkpoint(folder / "run")
        time.sleep(6)
        assert job.poll() is None, job.communicate()
        assert latest_checkpoint(folder / "run") != before
    finally:
        job.send_signal(signal.SIGINT)
        job.communicate(timeout=300)


@pytest.mark.parametrize("rank", [0, 2])
def test_ranks_without_a_launcher_name_one_too(rank: int, tmp_path: Path) -> None:
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000 + rank)}
    jobs = [
        start("-c", ADDING, cwd=tmp_path, WORLD_SIZE="3", RANK=str(each), **places)
        for each in range(3)
    ]
    try:
        for job in jobs:
            assert job.stdout is not None and job.stdout.readline() == "adding\n"
        time.sleep(2)
        jobs[rank].send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        errors = [job.communicate(timeout=120)[1] for job in jobs if job is not jobs[rank]]
        print(f"all others ended after {time.monotonic() - stopped:.1f} s")
        assert time.monotonic() - stopped < 15
        who = f"process {rank + 1} of 3 (rank {rank}, pid {jobs[rank].pid} on "
        assert all(who in error and "has not answered for" in error for error in errors), errors
    finally:
        for job in jobs:
            job.kill()
            job.communicate()


def watch_of_three(**statuses: tuple[RankStatus, float]) -> RankWatch:
    """Rank 0's at 100 s, where each rank's line changed last at the time given."""
    watch = RankWatch(World(rank=0, size=3), 10.0, 50.0, "training.rank_{}_seconds")
    watch._last_contact, watch._awake_since = 100.0, 0.0
    watch._statuses = {int(name[-1]): seen for name, seen in statuses.items()}
    return watch


def status(place: str, step: int = 7, waiting: bool = True, done: bool = False) -> RankStatus:
    return RankStatus(40, "node", step=step, place=place, waiting=waiting, done=done)


def test_who_is_blamed() -> None:
    fresh, old = 99.0, 80.0
    waits, reads = status("a.py:1 in wait"), status("b.py:2 in read", waiting=False)
    healthy = watch_of_three(rank0=(waits, fresh), rank1=(waits, fresh), rank2=(reads, fresh))
    assert healthy._find_failure(100.0) is None
    silent = watch_of_three(rank0=(waits, fresh), rank1=(waits, old))
    assert "process 2 of 3 (rank 1, pid 40 on node) has not answered for 20 s" in str(
        silent._find_failure(100.0)
    )
    ended = watch_of_three(rank0=(waits, fresh), rank1=(status("", done=True), old))
    assert ended._find_failure(100.0) is None
    # The store does not answer: nothing is known of the others.
    assert "which hosts the store" in str(silent._find_failure(115.0))
    # Somebody reads while the others wait.
    healthy._waiting_since = 40.0
    blamed = str(healthy._find_failure(100.0))
    assert "waited 60 s for others: process 3 of 3" in blamed and "process 2" not in blamed
    assert "the limit is training.rank_stall_seconds = 50" in blamed
    # All wait, one of them a step behind; or for each other.
    behind = status("c.py:3 in wait", step=6)
    late = watch_of_three(rank0=(waits, fresh), rank1=(behind, fresh), rank2=(waits, fresh))
    late._waiting_since = 40.0
    assert "for others: process 2 of 3" in str(late._find_failure(100.0))
    all_wait = watch_of_three(rank0=(waits, fresh), rank1=(waits, fresh))
    all_wait._waiting_since = 40.0
    assert "all processes have waited for each other for 60 s: process 1" in str(
        all_wait._find_failure(100.0)
    )


def test_one_process_is_not_watched() -> None:
    with RankWatch(World()) as watch:
        watch.step = 1
