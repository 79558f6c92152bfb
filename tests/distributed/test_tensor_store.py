"""Tensors written by one number of ranks and read by another; hostile folders."""

from __future__ import annotations

import io
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint.metadata as index_classes
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo

sys.path.insert(0, str(Path(__file__).parent))
from ranks import on_ranks

from margrave.distributed import World, current_world, owned_classes
from margrave.distributed.tensor_store import load_tensors, save_tensors, stored_tensors

ROWS = 7


def tensors(world: World, empty: bool = False) -> dict[str, Tensor]:
    own = owned_classes(ROWS, world)
    full = torch.arange(3.0 * ROWS, dtype=torch.float64).reshape(ROWS, 3)[own.start : own.stop]
    result = {
        "weight": full,
        "label": torch.arange(ROWS)[own.start : own.stop],
        "count": torch.tensor(5),
        "low": torch.ones(2, dtype=torch.bfloat16),
    }
    return {name: torch.zeros_like(value) for name, value in result.items()} if empty else result


def write(rank: int, folder: str) -> None:
    del rank
    world = current_world()
    save_tensors(Path(folder), tensors(world), {"weight": ROWS, "label": ROWS}, world)


def read(rank: int, folder: str) -> bool:
    del rank
    world = current_world()
    result, expected = tensors(world, empty=True), tensors(world)
    load_tensors(Path(folder), result, {"weight": ROWS, "label": ROWS}, world)
    return all(torch.equal(result[name], expected[name]) for name in expected)


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
    with pytest.raises(ValueError, match=f"names {call}, which does not belong"):
        stored_tensors(stored)


class Patched:
    """Written as a class of the index with a state, which pickle would change the class by."""


class Disguised:
    """Written as a member of that class, with the state of a tensor's entry."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state


class HostilePickler(pickle._Pickler):
    def save(self, obj: Any, *rest: Any, **options: Any) -> None:
        if isinstance(obj, Patched):
            super().save(index_classes._MEM_FORMAT_ENCODING)
            bases = index_classes.TensorStorageMetadata, index_classes.BytesStorageMetadata
            super().save((None, {"__bases__": bases}))
            self.write(pickle.BUILD)
        elif isinstance(obj, Disguised):
            super().save(index_classes._MEM_FORMAT_ENCODING)
            super().save((0,))
            self.write(pickle.REDUCE)
            super().save(obj.state)
            self.write(pickle.BUILD)
        else:
            super().save(obj, *rest, **options)


class Payload:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("hacked"),)


def dump(index: Any, path: Path) -> None:
    content = io.BytesIO()
    HostilePickler(content, 2).dump(index)
    path.write_bytes(content.getvalue())


def test_an_index_changes_no_class(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would have torch read a tensor as a pickle."""
    monkeypatch.chdir(stored.parent)
    index = pickle.loads((stored / ".metadata").read_bytes())
    entry = index.state_dict_metadata["count"]
    index.state_dict_metadata["count"] = Disguised(vars(entry))
    index.planner_data = Patched()
    payload = io.BytesIO()
    torch.save(Payload(), payload)
    (stored / "__9_9.distcp").write_bytes(payload.getvalue())
    index.storage_data[index_classes.MetadataIndex("count")] = _StorageInfo(
        "__9_9.distcp", 0, len(payload.getvalue())
    )
    dump(index, stored / ".metadata")
    for call in (
        lambda: stored_tensors(stored),
        lambda: load_tensors(stored, tensors(World(), empty=True), {}, World()),
    ):
        with pytest.raises(ValueError, match="BytesStorageMetadata, which does not belong"):
            call()
    assert not Path("hacked").exists()


def test_a_tensor_that_is_a_pickle_is_not_run(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stored.parent)
    payload = io.BytesIO()
    torch.save(Payload(), payload)
    for path in stored.glob("*.distcp"):
        path.write_bytes(payload.getvalue() + bytes(path.stat().st_size))
    index = pickle.loads((stored / ".metadata").read_bytes())
    for part in index.storage_data.values():
        part.offset, part.length = 0, len(payload.getvalue())
    dump(index, stored / ".metadata")
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_tensors(stored, tensors(World(), empty=True), {}, World())
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda part: setattr(part, "relative_path", "../other.distcp"),
            "unexpected file name '../other",
        ),
        (
            lambda part: setattr(part, "relative_path", "/etc/passwd"),
            "unexpected file name '/etc/passwd'",
        ),
        (lambda part: setattr(part, "length", 10**9), "ends beyond"),
        (lambda part: setattr(part, "offset", -1), "expected a size, got -1"),
        (lambda part: setattr(part, "length", 1 << 500), "expected a size, got"),
        (lambda part: vars(part).pop("length"), "'length'"),
    ],
)
def test_a_part_lies_within_its_folder(stored: Path, change: Any, message: str) -> None:
    index = pickle.loads((stored / ".metadata").read_bytes())
    change(next(iter(index.storage_data.values())))
    dump(index, stored / ".metadata")
    with pytest.raises(ValueError, match=message):
        stored_tensors(stored)


def test_properties_without_a_state_are_refused(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = pickle.loads((stored / ".metadata").read_bytes())
    monkeypatch.setattr(index_classes.TensorProperties, "__getstate__", lambda self: ())
    (stored / ".metadata").write_bytes(pickle.dumps(index, 2))
    with pytest.raises(ValueError, match="expected TensorProperties"):
        stored_tensors(stored)


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"full cannot be written \(\d+ MB free there; .*No space"):
        save_tensors(tmp_path / "full", tensors(World()), {}, World())


def test_damaged_bytes_are_refused(stored: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for path in sorted(stored.iterdir()):
        full = path.read_bytes()
        for _ in range(60):
            position = int(torch.randint(len(full), (), generator=generator))
            length = int(torch.randint(1, 9, (), generator=generator))
            noise = torch.randint(256, (length,), generator=generator, dtype=torch.uint8)
            changed = full[:position] + noise.numpy().tobytes() + full[position + length :]
            path.write_bytes(changed if length < 6 else full[:position])
            result = tensors(World(), empty=True)
            try:
                load_tensors(stored, result, {}, World())
            except ValueError as error:
                assert "stored" in str(error)
        path.write_bytes(full)


def test_the_index_is_a_pickle_that_names_its_parts_alone(stored: Path) -> None:
    assert pickle.loads((stored / ".metadata").read_bytes()).state_dict_metadata.keys() == {
        "weight", "label", "count", "low",
    }  # fmt: skip
