from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from margrave.files.text import is_relative_path, read_lines, read_table


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffone\r\n\n  \n två \x0b\u2028more".encode())
    assert list(read_lines(path)) == [(1, "one"), (4, " två \x0b\u2028more")]


def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b"one\ntw\xff\xfeo\nthree\n")
    with pytest.raises(ValueError, match=r"lines\.txt:2: 'tw\ufffd\ufffdo'; expected text"):
        list(read_lines(path))


@pytest.mark.parametrize("name", ["absent.txt", "."])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read \("):
        list(read_lines(tmp_path / name))


def test_a_table_has_its_columns_in_any_order_and_case(write: Callable[..., Path]) -> None:
    path = write("table.csv", 'Other, B ,a,"c"', 'x, "1, 2",3,4', "x,y,z")
    assert [fields for *_, fields in read_table(path, ("a", "b"), ("c", "d"))] == [
        ["3", "1, 2", "4", ""],
        ["z", "y", "", ""],
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            (),
            r":1: ''; expected a column 'path' and a column 'role'; begin the file with path,role",
        ),
        (("paht,role",), r":1: 'paht,role'; expected a column 'path' \(nearest is 'paht'\); begin"),
        (("path,role,PATH",), r":1: .* expected one column 'path'"),
        (("path,role", "", "a"), r":3: 'a'; expected 2 comma-separated fields"),
        (("path,role", "a,b,c"), r":2: 'a,b,c'; expected 2 comma-separated fields"),
        (("path,role", '"a,b'), r""":2: '"a,b'; expected comma-separated fields \("""),
        (('path,"role',), r""":1: 'path,"role'; expected comma-separated fields \("""),
    ],
)
def test_malformed_tables_are_refused(
    write: Callable[..., Path], lines: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=r"table\.csv" + message):
        list(read_table(write("table.csv", *lines), ("path", "role")))


def test_a_header_of_a_million_columns_is_refused_soon(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="has 1000000 columns"):
        list(read_table(write("table.csv", "a," * 999_999 + "b"), ("a", "c")))


def test_long_lines_are_shortened(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r":2: 'x{120}'…; expected") as caught:
        list(read_table(write("table.csv", "a,b", "x" * 10_000), ("a", "b")))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name",
    ["", "/a", "..", "../a", "a/../b", "a/..", "C:/a", "c:a", "a\\b", "a\0b", "a\nb", "\ud800"],
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    assert not is_relative_path(name)


@pytest.mark.parametrize("name", ["1.jpg", "363/36395475@N00/2663229765_1.jpg", "a..b/..c", "é ü"])
def test_names_of_images_are_taken(name: str) -> None:
    assert is_relative_path(name)
