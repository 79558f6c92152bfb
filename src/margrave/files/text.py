"""Lines and comma-separated tables, refused with file and line where they are malformed."""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path

from margrave.files.ordinary import ordinary, read_bytes

MOST_COLUMNS = 1000
MOST_DIGITS = 18
"""Whole numbers of as many digits always fit 64 bits."""

DECIMAL = r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?+"
"""How numbers are spelled that float reads; it reads other spellings too."""

_NAMES_SHOWN = 5
_CHARACTERS_SHOWN = 120
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DECIMAL = re.compile(DECIMAL)
# Absolute paths (of Windows too), '..', and what no file of a test set has in its name.
_REFUSED_PATH = re.compile(r"\A/|\A[A-Za-z]:|(?:\A|/)\.\.(?:/|\Z)|[\x00-\x1f\x7f\\\ud800-\udfff]")


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, each with its number, without its end.

    Raises:
        ValueError: a file that cannot be read, or a line that is not text.
    """
    try:
        with open(path, "rb", opener=ordinary) as file:
            for number, content in enumerate(file, start=1):
                if number == 1:
                    content = content.removeprefix(_BYTE_ORDER_MARK)
                line = _decode(path, number, content).rstrip("\r\n")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise unreadable(path, error) from None


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        ValueError: a file that cannot be read, or a line that is not text.
    """
    try:
        content = read_bytes(path).removeprefix(_BYTE_ORDER_MARK)
    except OSError as error:
        raise unreadable(path, error) from None
    return _decode(path, 1, content)


def _decode(path: str | Path, number: int, content: bytes) -> str:
    """The text of the lines that begin with this one."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        number += content.count(b"\n", 0, error.start)
        begin = content.rfind(b"\n", 0, error.start) + 1
        line = content[begin:].split(b"\n", 1)[0].decode("utf-8", "replace")
        raise malformed(path, number, line, "text encoded as UTF-8") from None


def unreadable(path: str | Path, error: OSError) -> ValueError:
    """What to raise about a file that does not open."""
    return ValueError(
        f"{path} cannot be read ({error.strerror}); check that it exists and its rights"
    )


def malformed(path: str | Path, number: int, line: str, expected: str) -> ValueError:
    """What to raise about a line, shortened where it is long.

    >>> print(malformed("pairs.txt", 7, "1 2", "two templates and a label"))
    pairs.txt:7: '1 2'; expected two templates and a label
    """
    shown = line[:_CHARACTERS_SHOWN]
    return ValueError(
        f"{path}:{number}: {shown!r}{'…' if len(line) > len(shown) else ''}; expected {expected}"
    )


def some_of(names: Sequence[str]) -> str:
    """The first few names, and how many there are besides.

    >>> some_of(["a", "b"]), some_of("abcdefg")
    ('a, b', 'a, b, c, d, e and 2 more')
    """
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def whole_number(text: str) -> int | None:
    """The number that digits spell, or None of anything else.

    >>> whole_number("0042"), whole_number("-1"), whole_number("4.0")
    (42, None, None)
    """
    digits = text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS
    return int(text) if digits else None


def finite_number(text: str) -> float | None:
    """The number that a decimal spells, or None of anything else or too large.

    >>> finite_number("-1.5e2"), finite_number("nan"), finite_number("1e999")
    (-150.0, None, None)
    """
    number = float(text) if _DECIMAL.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None


def is_relative_path(text: str) -> bool:
    """Whether this can name an image below a folder: with '/' alone, and no way out.

    >>> [is_relative_path(text) for text in ("a/1.jpg", "/a/1.jpg", "../1.jpg", "a\\\\1.jpg", "")]
    [True, False, False, False, False]
    """
    return bool(text) and not _REFUSED_PATH.search(text)


class Agreement:
    """What the lines of a file said of each thing, so that none says otherwise later.

    Args:
        path: the file.
        thing: what the keys are.
        property: what the values are.
    """

    def __init__(self, path: str | Path, thing: str, property: str) -> None:
        self._path, self._thing, self._property = path, thing, property
        self._said: dict[Hashable, tuple[Hashable, int]] = {}

    def add(self, key: Hashable, value: Hashable, number: int, line: str) -> None:
        """Note what this line says.

        Raises:
            ValueError: an earlier line said otherwise, naming both.
        """
        said, earlier = self._said.setdefault(key, (value, number))
        if said != value:
            spelt = " and ".join(map(str, key)) if isinstance(key, tuple) else key
            raise malformed(
                self._path,
                number,
                line,
                f"{self._thing} {spelt} to have the {self._property} that line {earlier} gives; "
                "correct one of the two lines",
            )


def split_fields(path: str | Path, number: int, line: str) -> list[str]:
    """A line's comma-separated fields without the space around them; quotes may hold commas.

    Raises:
        ValueError: a quote that does not end on this line.
    """
    fields = line.split(",")
    if '"' in line:
        try:
            fields = next(csv.reader([line], strict=True, skipinitialspace=True), [])
        except csv.Error as error:
            raise malformed(path, number, line, f"comma-separated fields ({error})") from None
    return [field.strip() for field in fields]


def read_table(
    path: str | Path, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, str, list[str]]]:
    """The rows below a header line, with these columns in this order.

    The header names the columns in any order and case; further columns are ignored.

    Returns:
        Each row's line number, its line, and its fields of the required and the optional columns;
        a field of a column that the file lacks is empty.

    Raises:
        ValueError: a required column that is missing (with the nearest one there), a column named
            twice, a row with more fields than the header or too few.
    """
    lines = read_lines(path)
    number, header = next(lines, (1, ""))
    columns = [name.lower() for name in split_fields(path, number, header)]
    if len(columns) > MOST_COLUMNS:
        raise ValueError(
            f"{path} has {len(columns)} columns, more than the {MOST_COLUMNS} of a table"
        )
    positions = _find_columns(path, number, header, columns, required, optional)
    least = 1 + max(positions[: len(required)])
    for number, line in lines:
        fields = split_fields(path, number, line)
        if not least <= len(fields) <= len(columns):
            raise malformed(
                path, number, line, f"{len(columns)} comma-separated fields as in the header line"
            )
        # A column that is missing has the position after the last one.
        fields += [""] * (len(columns) + 1 - len(fields))
        yield number, line, [fields[position] for position in positions]


def _find_columns(
    path: str | Path,
    number: int,
    header: str,
    columns: Sequence[str],
    required: Sequence[str],
    optional: Sequence[str],
) -> list[int]:
    """Where each column stands; after the last where an optional one is missing."""
    if missing := [name for name in required if name not in columns]:
        raise malformed(
            path,
            number,
            header,
            f"{_spell_columns(missing, columns)}; begin the file with {','.join(required)}",
        )
    for name in (*required, *optional):
        if columns.count(name) > 1:
            raise malformed(path, number, header, f"one column {name!r}; rename the others")
    return [
        columns.index(name) if name in columns else len(columns) for name in (*required, *optional)
    ]


def _spell_columns(missing: Iterable[str], columns: Sequence[str]) -> str:
    """The columns that are missing, each with the one that may be meant."""
    spelt = []
    for name in missing:
        nearest = difflib.get_close_matches(name, columns, n=1)
        spelt.append(f"a column {name!r}" + (f" (nearest is {nearest[0]!r})" if nearest else ""))
    return " and ".join(spelt)
