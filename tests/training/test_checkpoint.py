"""A checkpoint's state is believed where it is what was written, and what is not ours stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from margrave.distributed import World
from margrave.training import latest_checkpoint, read_state
from margrave.training.checkpoint import remove_checkpoints, save_checkpoint

STATE: dict[str, Any] = {
    "position": {"epoch": 1, "batch": 0, "step": 6},
    "optimizer": "sgd",
    "images": {"count": 3},
    "batches": {"batch_size": 2, "seed": 0},
    "order": {},
    "unreadable": {},
    "log_length": 12,
    "precision": "float32",
    "products": None,
    "loss_scale": None,
}


def save(folder: Path, **changes: Any) -> Path:
    save_checkpoint(folder, {**STATE, **changes}, {"weight": torch.ones(2)}, {}, World())
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint


def test_copies_and_notes_of_the_users_own_stay(tmp_path: Path) -> None:
    own = ["checkpoint-best", "checkpoint-1-copy", "checkpoint-"]
    for name in own:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"of months")
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    (tmp_path / "checkpoint-7").write_text("a file")
    assert latest_checkpoint(tmp_path) is None
    save(tmp_path)
    assert save(tmp_path).name == "checkpoint-2"
    remove_checkpoints(tmp_path)
    assert latest_checkpoint(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {
        *own,
        "checkpoint-notes.txt",
        "checkpoint-7",
    }
    assert all((tmp_path / name / "weights").read_bytes() == b"of months" for name in own)


@pytest.mark.parametrize("name", sorted(set(STATE) - {"precision", "products"}))
def test_a_state_of_another_form_is_refused(tmp_path: Path, name: str) -> None:
    assert read_state(save(tmp_path))["optimizer"] == "sgd"
    for value in ([1], "text", -5, {"epoch": "a"} if name == "position" else [[]]):
        if isinstance(value, str) and name == "optimizer":
            continue
        with pytest.raises(ValueError, match=rf"state\.json: damaged .*\(.*{name}\)"):
            read_state(save(tmp_path, **{name: value}))


def test_a_state_that_lacks_something_is_refused(tmp_path: Path) -> None:
    for name in ("position", "optimizer", "images", "unreadable", "log_length"):
        path = save(tmp_path) / "state.json"
        state = json.loads(path.read_text())
        del state[name]
        path.write_text(json.dumps(state))
        with pytest.raises(ValueError, match=rf"state\.json: damaged .*\(.*{name}\)"):
            read_state(path.parent)
