from __future__ import annotations

import gzip
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from scipy.io import savemat

from margrave.files.matlab import read_matlab_lists

WRITTEN_BY_MATLAB = Path(scipy.io.__file__).parent / "matlab/tests/data"


def cells(*entries: Any) -> np.ndarray:
    column = np.empty((len(entries), 1), object)
    column[:, 0] = entries
    return column


@pytest.mark.parametrize("compressed", [False, True])
def test_lists_are_read(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "lists.mat"
    content = {
        "other": {"a": np.eye(3)},
        "names": cells("1_1.jpg", "a rather long name_é_日本.jpg", "", 3.5, np.zeros((0, 0))),
        "small": np.array([[1], [65535]], np.uint16),
        "large": np.array([[-(2**63), 2**63 - 1]], np.int64),
        "real": np.array([[1.0, 3.0], [2.0, -0.5]]),
        "rows": np.array(["one", "two"]),
        "volume": np.zeros((2, 2, 2)),
    }
    savemat(path, content, do_compression=compressed)
    assert read_matlab_lists(path, ["names", "small", "large", "real", "rows"]) == {
        "names": ["1_1.jpg", "a rather long name_é_日本.jpg", None, 3.5, None],
        "small": [1, 65535],
        "large": [-(2**63), 2**63 - 1],
        "real": [1.0, 2.0, 3.0, -0.5],
        "rows": ["one", "two"],
    }
    for name in ("other", "volume"):
        with pytest.raises(ValueError, match=r"lists\.mat cannot be read as a MATLAB file \("):
            read_matlab_lists(path, [name])
    with pytest.raises(
        ValueError, match=r"lists\.mat contains no ids and no set; download it again"
    ):
        read_matlab_lists(path, ["ids", "set"])


@pytest.mark.skipif(not WRITTEN_BY_MATLAB.is_dir(), reason="scipy was installed without its tests")
@pytest.mark.parametrize("version", ["6.1_SOL2", "6.5.1_GLNX86", "7.1_GLNX86", "7.4_GLNX86"])
def test_what_matlab_wrote_is_read(version: str) -> None:
    def read(name: str) -> list[Any]:
        path = WRITTEN_BY_MATLAB / f"{name}_{version}.mat"
        return read_matlab_lists(path, [name])[name]

    quotation = '"Do nine men interpret?" "Nine men," I nod.'
    assert read("teststring") == [quotation]
    assert read("teststringarray") == ["one  ", "two  ", "three"]
    np.testing.assert_allclose(read("testdouble"), np.linspace(0, 2 * np.pi, 9))
    with pytest.raises(ValueError, match="a cell contains more than one text or number"):
        read("testcell")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "it does not have version 5"),
        (lambda content: content[:127], "it does not have version 5"),
        (lambda content: content[:124] + b"\0\2" + content[126:], "it does not have version 5"),
        (lambda content: gzip.compress(content), "it does not have version 5"),
        (lambda content: content[:-3], "it is truncated"),
        (lambda content: content[:-9], "it is truncated"),
        (lambda content: content + b"\1", "unpack"),
        (lambda content: content[:128] + struct.pack("<II", 1, 0), "an element of type 1 is not"),
        (
            lambda content: content[:128] + struct.pack("<II", 15, 0),
            "an element of type 0 is not",
        ),
        (lambda content: content[:128] + struct.pack("<II4s", 15, 4, b"\0\0\0\0"), "decompressing"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "lists.mat"
    savemat(path, {"names": cells("1_1.jpg", "2_1.jpg")})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(
        ValueError, match=rf"lists\.mat cannot be read as a MATLAB file \(.*{message}"
    ):
        read_matlab_lists(path, ["names"])


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.mat cannot be read \("):
        read_matlab_lists(tmp_path / "absent.mat", ["names"])


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


@pytest.mark.parametrize("shape", [(100_000_000, 1), (100_000_000, 0), (1, 1), (-1, -1)])
def test_what_unpacks_to_gigabytes_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    head = b" " * 124 + struct.pack("<H", 0x0100) + b"IM"
    content = b"".join(
        element(kind, part)
        for kind, part in (
            (6, struct.pack("<II", 11, 0)),
            (5, struct.pack("<ii", *shape)),
            (1, b"names"),
            (4, b"\x39\x30" * 50_000_000),
        )
    )
    packed = zlib.compress(element(14, content), 1)
    path = tmp_path / "lists.mat"
    path.write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"lists\.mat cannot be read"):
        read_matlab_lists(path, ["names"])
    assert tracemalloc.get_traced_memory()[1] < 2**29
    tracemalloc.stop()
