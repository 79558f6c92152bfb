"""Tensors written by one number of ranks and read by another; hostile folders."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from ranks import on_ranks

from margrave.distributed import World, current_world, owned_classes
from margrave.distributed.tensor_store import load_tensors, save_tensors, stored_tensors

ROWS = 7


def tensors(world: World, empty: bool = False) -> dict[str, Tensor]:
    own = owned_classes(ROWS, world)
    whole = torch.arange(3.0 * ROWS, dtype=torch.float64).reshape(ROWS, 3)[own.start : own.stop]
    found = {
        "weight": whole,
        "label": torch.arange(ROWS)[own.start : own.stop],
        "count": torch.tensor(5),
        "low": torch.ones(2, dtype=torch.bfloat16),
    }
    return {name: torch.zeros_like(value) for name, value in found.items()} if empty else found


def write(rank: int, folder: str) -> None:
    del rank
    world = current_world()
    save_tensors(Path(folder), tensors(world), {"weight": ROWS, "label": ROWS}, world)


def read(rank: int, folder: str) -> bool:
    del rank
    world = current_world()
    found, expected = tensors(world, empty=True), tensors(world)
    load_tensors(Path(folder), found, {"weight": ROWS, "label": ROWS}, world)
    return all(torch.equal(found[name], expected[name]) for name in expected)


def test_any_number_of_ranks_reads_them(tmp_path: Path) -> None:
    # Of seven rows two ranks own four and three, and three ranks three, three and one.
    on_ranks(2, write, str(tmp_path / "by two"))
    assert stored_tensors(tmp_path / "by two")["weight"] == (torch.Size((7, 3)), torch.float64)
    assert read(0, str(tmp_path / "by two"))
    assert all(on_ranks(3, read, str(tmp_path / "by two")))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "stored", tensors(World()), {}, World())
    return tmp_path / "stored"


def test_what_is_not_there_is_refused(stored: Path) -> None:
    with pytest.raises(ValueError, match="absent"):
        load_tensors(stored, {"absent": torch.zeros(1)}, {}, World())
    shutil.rmtree(stored)
    with pytest.raises(ValueError, match="damaged"):
        stored_tensors(stored)


@pytest.mark.parametrize("call", ["posix.system", "builtins.eval", "torch.load", "torch.Tensor"])
def test_an_index_may_call_nothing(stored: Path, call: str) -> None:
    module, name = call.rsplit(".", 1)
    hostile = b"c" + f"{module}\n{name}\n".encode() + b"(S'touch hacked'\ntR."
    (stored / ".metadata").write_bytes(hostile)
    with pytest.raises(ValueError, match=f"{name} does not belong"):
        stored_tensors(stored)


def test_damaged_bytes_are_refused(stored: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for path in sorted(stored.iterdir()):
        whole = path.read_bytes()
        for _ in range(60):
            position = int(torch.randint(len(whole), (), generator=generator))
            length = int(torch.randint(1, 9, (), generator=generator))
            noise = torch.randint(256, (length,), generator=generator, dtype=torch.uint8)
            changed = whole[:position] + noise.numpy().tobytes() + whole[position + length :]
            path.write_bytes(changed if length < 6 else whole[:position])
            found = tensors(World(), empty=True)
            try:
                load_tensors(stored, found, {}, World())
            except ValueError as error:
                assert "stored" in str(error)
        path.write_bytes(whole)


def test_the_index_is_a_pickle_that_names_its_parts_alone(stored: Path) -> None:
    assert pickle.loads((stored / ".metadata").read_bytes()).state_dict_metadata.keys() == {
        "weight", "label", "count", "low",
    }  # fmt: skip
