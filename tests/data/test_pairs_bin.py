"""Verification sets from every pickle generation, and hostile ones."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from margrave.data import read_pairs_bin, write_pairs_bin
from margrave.files import read_inert

GOLDEN = Path(__file__).parents[1] / "golden" / "recordio"
EXPECTED = json.loads((GOLDEN / "pairs_expected.json").read_text())


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("pairs_*.bin")))
def test_golden_sets(name: str) -> None:
    pairs, images = read_pairs_bin(GOLDEN / name)
    digests = [hashlib.sha256(image).hexdigest() for image in images.encoded]
    assert digests == EXPECTED["sha256"]
    assert pairs.same.tolist() == EXPECTED["same"]
    assert pairs.first.tolist() == list(range(0, 80, 2)) and pairs.folds == 10
    assert images.read(0).shape == (112, 112, 3)
    assert images.name(3).endswith("image 3")


CONTENT = ([b"a" * 300, b"\x00\xff", b"", b"c"] * 5, [True, False] * 5)
FORMS = {
    "bytes": CONTENT,
    "list": list(CONTENT),
    "numpy truth": (CONTENT[0], [np.bool_(value) for value in CONTENT[1]]),
    "truth as an array": (CONTENT[0], np.array(CONTENT[1])),
    "arrays of bytes": ([np.frombuffer(b, np.uint8) for b in CONTENT[0]], CONTENT[1]),
    "array of objects": (np.array([*CONTENT[0]], dtype=object), CONTENT[1]),
    "integers": (CONTENT[0], [int(value) for value in CONTENT[1]]),
    "bytearrays": ([bytearray(b) for b in CONTENT[0]], CONTENT[1]),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", list(FORMS))
def test_every_generation(form: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "set.bin"
    path.write_bytes(pickle.dumps(FORMS[form], protocol=protocol))
    pairs, images = read_pairs_bin(path)
    assert list(images.encoded) == CONTENT[0]
    assert pairs.same.tolist() == CONTENT[1]


def test_python_2s_text(tmp_path: Path) -> None:
    old = b"((lp0\nS'\\xff\\x00a'\np1\naS'b'\np2\na(lp3\nI01\na tp4\n.".replace(b" ", b"")
    assert read_inert(old, "old.bin") == ([b"\xff\x00a", b"b"], [True])


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write_pairs_bin(tmp_path / "set.bin", *CONTENT)
    assert pickle.loads((tmp_path / "set.bin").read_bytes()) == CONTENT
    pairs, images = read_pairs_bin(tmp_path / "set.bin")
    assert (list(images.encoded), pairs.same.tolist()) == CONTENT
    with pytest.raises(ValueError, match="1 image for 1 pair"):
        write_pairs_bin(tmp_path / "set.bin", [b""], [True])


def test_no_pairs_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"empty\.bin would contain no pairs; give at least one"):
        write_pairs_bin(tmp_path / "empty.bin", [], [])
    assert not any(tmp_path.iterdir())


class Hostile:
    def __init__(self, function: object, *given: object) -> None:
        self.call = function, given

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Hostile(eval, "open('executed', 'w')"), "eval"),
        (Hostile(__import__("os").system, "touch executed"), "system"),
        (Hostile(np.load, "file.npy"), "load"),
        (Hostile(getattr, b"", "join"), "getattr"),
    ],
)
def test_whatever_calls_something_is_refused_by_name(
    call: Hostile, named: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("set.bin").write_bytes(pickle.dumps(([call], [True]), protocol=protocol))
    with pytest.raises(ValueError, match=rf"set.bin .*names [\w.]*{named}.*nothing was executed"):
        read_pairs_bin("set.bin")
    assert not Path("executed").exists()


@pytest.mark.parametrize(("number", "folds"), [(1, 1), (7, 7), (10, 10), (15, 10), (20, 10)])
def test_any_number_of_pairs_makes_folds(number: int, folds: int, tmp_path: Path) -> None:
    write_pairs_bin(
        tmp_path / "own.bin", [b"a", b"b"] * number, [n % 2 == 0 for n in range(number)]
    )
    pairs, _ = read_pairs_bin(tmp_path / "own.bin")
    assert (len(pairs), pairs.folds) == (number, folds)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (([b"a", b"b"] * 10, [True] * 9), "20 images for 9 pairs"),
        (([], []), "0 images for 0 pairs"),
        (([1, 2] * 10, [True] * 10), "image 0 is a int, not bytes"),
        (([b"a", b"b"] * 10, [3] * 10), "pair 0 is 3; it must be true or false"),
        ([b"a"], "not a pair of \\(images, same\\)"),
        (({"a": 1}, 1), "expected a list, got dict"),
        ((3, [True]), "expected a list, got int"),
    ],
)
def test_other_content_is_refused(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "set.bin"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_pairs_bin(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"]r\xff\xff\xff\x7f.",  # memory slot two thousand million
        b"\x80\x04\x8e\x00\x00\x00\x00\xff\x00\x00\x00.",  # a terabyte of bytes
        b"\x80\x04\x8b\xff\xff\xff\x7f.",  # a number of two gigabytes
        b"cnumpy\ndtype\n(S'V999999999999'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I99999999999\ntcnumpy\ndtype\n(S'u1'\ntR"
        b"I00\nS''\ntb.",
    ],
)
def test_lengths_are_not_believed(data: bytes) -> None:
    try:
        value = read_inert(data, "set.bin")
    except ValueError as error:
        assert "set.bin" in str(error)
    else:
        assert value == []


def test_one_image_many_times_is_no_more_than_a_file_may_ask_for(tmp_path: Path) -> None:
    path = tmp_path / "set.bin"
    for image in (bytes(2**21), bytearray(2**21), np.zeros(2**21, np.uint8)):
        path.write_bytes(pickle.dumps(([image] * 1000, [True] * 500)))
        with pytest.raises(ValueError, match=r"set\.bin has \d+ bytes but would take more"):
            read_pairs_bin(path)


def test_a_truth_value_of_lists_of_lists_is_named_soon(tmp_path: Path) -> None:
    value: list[object] = []
    for _ in range(60):
        value = [value, value]
    (tmp_path / "set.bin").write_bytes(pickle.dumps(([b"a", b"b"], [value])))
    with pytest.raises(ValueError, match="pair 0 is a list"):
        read_pairs_bin(tmp_path / "set.bin")
