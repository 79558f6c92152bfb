"""Pickles of PyTorch's that would keep its own reader busy for ever, or take all memory."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from pickle import encode_long

import pytest
import torch

from margrave.models import read_checkpoint

TUPLES = b"\x80\x02)q\x00" + b"".join(
    b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(60)
)
COLLIDING = b"".join(
    b"\x8a%c%bN" % (len(number := encode_long(factor * (2**61 - 1))), number)
    for factor in range(1, 50_000)
)
BOMBS = {
    "a key of tuples of tuples": TUPLES + b"}h\x3cNs.",
    "numbers of one hash": b"\x80\x02}(" + COLLIDING + b"u.",
    "a set of numbers of one hash": b"\x80\x02c__builtin__\nset\n]("
    + COLLIDING.replace(b"N\x8a", b"\x8a")[:-1] + b"e\x85R.",
    "bytes of nothing": b"\x80\x02cbuiltins\nbytearray\nJ" + struct.pack("<i", 2**31 - 1)
    + b"\x85R.",
    "empty mappings": b"\x80\x02(" + b"}" * 4_000_000 + b"t.",
    "a tensor of nothing": b"\x80\x02}X\x01\0\0\0actorch\nTensor\nM\0\x20M\0\x20\x86Rs.",
    "another codec": b"\x80\x02c_codecs\nencode\nX\x02\0\0\0abX\x08\0\0\0punycode\x86R.",
    "a list copied again and again": b"\x80\x02c__builtin__\nset\nq\x00](" + b"K\x01" * 100_000
    + b"e\x85q\x01" + b"h\x00h\x01R0" * 100_000 + b"N.",
}  # fmt: skip


def archive(path: Path, content: bytes, **parts: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, part in {"data.pkl": content, "version": b"3\n", **parts}.items():
            file.writestr(f"archive/{name}", part)
    return path


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", list(BOMBS))
def test_a_bomb_is_refused_soon(name: str, old: bool, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    if old:
        path.write_bytes(BOMBS[name])
    else:
        archive(path, BOMBS[name])
    started = time.process_time()
    with pytest.raises(ValueError, match=r"bomb\.pth"):
        read_checkpoint(path)
    assert time.process_time() - started < 60


def test_what_trainers_save_is_read(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": OrderedDict(network.state_dict()),
        "optimizer": optimizer.state_dict(),
        "history": [{"epoch": epoch, (epoch, 1): 0.5} for epoch in range(300)],
        "seen": {1, 2, 3}, "raw": bytearray(b"abc"), "content": b"abc", "large": 2**80,
    }  # fmt: skip
    for number, new in enumerate((False, True)):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=new)
        assert torch.equal(read_checkpoint(path)["weight"], network.weight)


def test_python_and_torch_read_one_directory(tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, content)
    path = tmp_path / "weights.pth"
    for changed in (
        content.getvalue() + b"PK\5\6" + bytes(8),
        content.getvalue() + bytes(9),
        b"PK\3\4" + content.getvalue(),
    ):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"weights\.pth is damaged or not a PyTorch file"):
            read_checkpoint(path)
    path.write_bytes(content.getvalue())
    assert read_checkpoint(path)["weight"].sum() == 3


def test_no_name_is_read_twice_in_other_capitals(tmp_path: Path) -> None:
    bomb = archive(
        tmp_path / "a.pth", pickle.dumps({}, 2), **{"DATA.PKL": BOMBS["bytes of nothing"]}
    )
    with pytest.raises(ValueError, match=r"a\.pth"):
        read_checkpoint(bomb)


def test_numbers_that_an_old_file_lacks_are_not_made_up(tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, content, _use_new_zipfile_serialization=False)
    path = tmp_path / "old.pth"
    path.write_bytes(content.getvalue())
    assert read_checkpoint(path)["weight"].sum() == 3
    content.seek(0)
    for _ in range(4):
        list(pickletools.genops(content))
    path.write_bytes(content.getvalue()[: content.tell()] + pickle.dumps([], 2))
    with pytest.raises(ValueError, match="the values of some tensors are missing"):
        read_checkpoint(path)
