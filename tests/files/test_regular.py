"""Only regular files are read: a pipe could block forever, and a device might never end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from margrave.data import ImageFiles, ShardImages, read_csv_pairs, read_pairs_bin
from margrave.distributed.checkpoint_index import read_index
from margrave.files import read_bytes
from margrave.training.checkpoint import read_state

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")

READERS: dict[str, Callable[[Path], object]] = {
    "1.jpg": lambda path: ImageFiles(path.parent, ["1.jpg"]).read(0),
    "pairs.csv": lambda path: read_csv_pairs(path, path.parent),
    "set.bin": read_pairs_bin,
    "one.tar": lambda path: ShardImages(path.parent),
    "state.json": lambda path: read_state(path.parent),
    ".metadata": read_index,
}


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("name", list(READERS))
def test_it_is_refused_by_every_reader(name: str, device: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    if device:
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    with pytest.raises(ValueError, match="not a regular file"):
        READERS[name](path)


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"content")
    (tmp_path / "two").symlink_to("one")
    assert read_bytes(tmp_path / "two") == b"content"
