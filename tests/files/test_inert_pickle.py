"""Pickles that ask for more than they have; what they describe stays a description."""

from __future__ import annotations

import pickle
import struct
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import PurePosixPath

import pytest

from margrave.files import Budget, PickledObject, read_inert

MEGABYTE = 2**20


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def repeated(times: int, setup: bytes, each: bytes) -> bytes:
    return b"\x80\x05" + setup + b"](" + each * times + b"e."


LISTS = b"\x80\x04]q\x00" + b"".join(
    b"]h%cah%caq%c" % (level, level, level + 1) for level in range(60)
)
TUPLES = b"\x80\x04)q\x00" + b"".join(
    b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(60)
)
BOMBS = {
    "empty mappings": b"\x80\x04(" + b"}" * 8 * MEGABYTE + b"t.",
    "text of lists of lists": LISTS + b"cnumpy\ndtype\nh\x3c\x85R.",
    "a name of tuples of tuples": TUPLES + b"h\x3ch\x3c\x93.",
    "copies of encoded text": repeated(
        2000,
        text(b"a" * MEGABYTE) + b"q\x000" + text(b"latin1") + b"q\x010c_codecs\nencode\nq\x020",
        b"h\x02h\x00h\x01\x86R",
    ),
    "copies of bytes": repeated(
        2000,
        b"\x96" + struct.pack("<Q", MEGABYTE) + b"a" * MEGABYTE
        + b"q\x000cbuiltins\nbytearray\nq\x010",
        b"h\x01h\x00\x85R",
    ),
    "one list in many places": repeated(
        200_000, b"](" + b"N" * 200_000 + b"eq\x000", b"h\x00"
    ),
    "huge dimensions": b"\x80\x04\x8a\xff" + ((1 << 2030) - 1).to_bytes(255, "little")
    + b"q\x000cnumpy\ndtype\n" + text(b"u1") + b"\x85Rq\x010cnumpy.core.numeric\n_frombuffer\n"
    + b"(C\x01ah\x01(" + b"h\x00" * 20_000 + b"t" + text(b"C") + b"tR.",
    "few huge dimensions": b"\x80\x04\x8a\xff" + ((1 << 2030) - 1).to_bytes(255, "little")
    + b"q\x000cnumpy\ndtype\n" + text(b"u1") + b"\x85Rq\x010cnumpy.core.numeric\n_frombuffer\n"
    + b"(C\x01ah\x01(" + b"h\x00" * 7 + b"t" + text(b"C") + b"tR.",
}  # fmt: skip


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_bomb_is_refused_soon(name: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=r"bomb\.bin"):
        read_inert(BOMBS[name], "bomb.bin")
    # Linear in the file: what is left is a bound against hours, not a benchmark.
    assert time.process_time() - started < 60


@dataclass
class Point:
    x: int


def test_objects_become_records() -> None:
    names = frozenset({(Point.__module__, "Point"), ("collections", "OrderedDict")})
    data = pickle.dumps({"one": Point(3), "many": [OrderedDict()]})
    result = read_inert(data, "points.bin", names)
    assert isinstance(result["one"], PickledObject)
    assert result["one"].name == (Point.__module__, "Point")
    assert result["one"].state == {"x": 3}
    assert result["many"][0].arguments == ()
    with pytest.raises(ValueError, match=r"PurePosixPath, which does not belong in such a file"):
        read_inert(pickle.dumps(PurePosixPath("x")), "points.bin", names)


def test_a_record_is_changed_once_and_a_name_never() -> None:
    names = frozenset({("a", "b")})
    with pytest.raises(ValueError, match="sets the state of a _AllowedName"):
        read_inert(b"\x80\x02ca\nb\n}b.", "x", names)
    with pytest.raises(ValueError, match="sets the state of a PickledObject"):
        read_inert(b"\x80\x02ca\nb\n)\x81}b}b.", "x", names)


def test_keys_that_could_collide_are_refused() -> None:
    with pytest.raises(ValueError, match="type int is used as a dict key"):
        read_inert(pickle.dumps({1: 2}), "x", frozenset())


def test_a_budget_is_shared() -> None:
    budget = Budget(5, "x", allowance=5)
    budget.charge(10)
    with pytest.raises(ValueError, match="x has 5 bytes but would take more than 10"):
        budget.charge(1)
