"""An evaluation that is killed at any moment goes on to the same digits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from margrave.search import StateFile

SCRIPT = """
import sys
import numpy as np
from margrave.evaluation import evaluate_all_to_all
from margrave.search import score_blocks
from margrave.search import StateFile

score_blocks.ROWS_PER_BLOCK = score_blocks.COLUMNS_PER_BLOCK = 16
generator = np.random.default_rng(0)
people = np.arange(200) // 4
faces = generator.standard_normal((50, 8))[people] + generator.standard_normal((200, 8))
strangers = generator.standard_normal((100, 8))
state_store = StateFile(sys.argv[1], "this", seconds=0.0)
told = state_store.save
count = 0

def offer(name, state):
    global count
    told(name, state)
    count += 1
    print(count, flush=True)
    if len(sys.argv) > 2 and count == int(sys.argv[2]):
        input()  # wait for the kill

state_store.save = offer
result = evaluate_all_to_all(faces, people, strangers, far_targets=[0.01], state_store=state_store)
print(result)
"""


def _run(state: Path, *stop: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(state), *stop]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path) -> None:
    full = _run(tmp_path / "whole.npz").communicate()[0].splitlines()
    blocks = int(full[-2])
    # Within the second of the two sweeps; tests/evaluation stops at other moments.
    stop = blocks - 4
    process = _run(tmp_path / "killed.npz", str(stop))
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == str(stop):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = _run(tmp_path / "killed.npz").communicate()[0].splitlines()
    assert again[-1] == full[-1]
    assert int(again[-2]) == blocks - stop


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    state_store = StateFile(path, "one", seconds=0.0)
    state_store.save("own", lambda: {"done": 3, "tail": {"scores": np.arange(3.0)}})
    result = StateFile(path, "one").load("own")
    assert result is not None and int(result["done"]) == 3
    np.testing.assert_array_equal(result["tail"]["scores"], np.arange(3.0))
    with pytest.raises(ValueError, match="is the state of another evaluation"):
        StateFile(path, "other")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="not a saved evaluation state"):
        StateFile(path, "one")
    assert StateFile(tmp_path / "none.npz", "one").load("own") is None


def test_a_file_with_any_damaged_bit_is_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    StateFile(path, "one", seconds=0.0).save("own", lambda: {"done": np.arange(3)})
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(0, 8 * len(content), 400).tolist():
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            StateFile(path, "one")
        except ValueError as error:
            assert str(path) in str(error)


def test_states_are_written_now_and_then_only(tmp_path: Path) -> None:
    state_store = StateFile(tmp_path / "state.npz", "one", seconds=1000.0)
    state_store.save("own", lambda: {"done": 3})
    assert not (tmp_path / "state.npz").exists()
