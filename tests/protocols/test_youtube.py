from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from margrave.protocols.youtube import read_youtube_pairs

HEADER = "split number, pair number in split, first name, second name, is same:"
PAIRS = (
    "1, 1, Sadie_Frost/1, Sadie_Frost/5, 1",
    "1, 2, Edgar_Savisaar/1, Ray_Wasden/0, 0",
    "2, 1, Marco_Andretti/0, Marco_Andretti/3, 1",
)


def test_pairs_are_read(write: Callable[..., Path]) -> None:
    pairs = read_youtube_pairs(write("splits.txt", HEADER, *PAIRS))
    assert pairs.first == ("Sadie_Frost/1", "Edgar_Savisaar/1", "Marco_Andretti/0")
    assert pairs.second == ("Sadie_Frost/5", "Ray_Wasden/0", "Marco_Andretti/3")
    assert pairs.same.tolist() == [True, False, True] and pairs.same.dtype == bool
    assert pairs.fold.tolist() == [0, 0, 1] and pairs.fold.dtype == np.int64


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("split_number, first_name, second_name, similarity, is_same_identity", "1,a/0,b/0,1,0"),
        ("split number, pair, First Name, Second Name, is same, corrected", "1,1,a/0,b/0,1,0"),
    ],
)
def test_the_last_column_is_the_label(write: Callable[..., Path], header: str, line: str) -> None:
    pairs = read_youtube_pairs(write("splits.txt", header, line))
    assert (pairs.first, pairs.second, pairs.same.tolist()) == (("a/0",), ("b/0",), [False])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), r":1: ''; expected a header line 'split number, pair number in split, first name"),
        (PAIRS, r":1: '1, 1, Sadie_Frost/1.*expected a header line .*; begin the file with it"),
        ((HEADER,), r" holds no pairs below its header line"),
        ((HEADER, "1, 1, a/0, b/0"), r":2: '1, 1, a/0, b/0'; expected fields as in the header"),
        ((HEADER, "1, 1, a/0, b/0, 1, 1"), r":2: .*; expected fields as in the header"),
        ((HEADER, "1, 1, a/0, b/0, 2"), r":2: .*; expected fields as in the header"),
        ((HEADER, "x, 1, a/0, b/0, 1"), r":2: .*; expected fields as in the header"),
        ((HEADER, "99999999999999999999, 1, a/0, b/0, 1"), r":2: .*; expected fields as in"),
        ((HEADER, "1, 1, ../a/0, b/0, 1"), r":2: .*; expected two videos as 'Name/number'"),
        ((HEADER, "1, 1, , b/0, 1"), r":2: .*; expected two videos as 'Name/number'"),
        (
            (HEADER, "1, 1, a/0, b/0, 1", "2, 1, b/0, a/0, 0"),
            r":3: .*; expected the pair a/0 and b/0 to have the label that line 2 gives",
        ),
        (
            (HEADER, "1,1,a/0,b/0,1", "2,1,c/0,d/0,1", "1,2,e/0,f/0,1"),
            r": a fold's lines are not contiguous",
        ),
        (
            (HEADER, "1,1,a/0,b/0,1", "2,1,c/0,d/0,1", "2,2,e/0,f/0,1"),
            r": the folds have 1, 2 pairs; the protocol requires 2, 1",
        ),
    ],
)
def test_malformed_pairs_are_refused(
    write: Callable[..., Path], lines: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=r"splits\.txt" + message):
        read_youtube_pairs(write("splits.txt", *lines))
