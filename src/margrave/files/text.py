"""Read text lines and CSV tables; error messages name the file and the line."""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path

from margrave.files.regular import open_regular, read_bytes

MAX_COLUMNS = 1000
MAX_DIGITS = 18
"""Integers of up to this many digits always fit into 64 bits."""

DECIMAL = r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?+"
"""Pattern of decimal numbers; stricter than float, which also accepts 'nan' and '1_0'."""

_CHARACTERS_SHOWN = 120
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DECIMAL = re.compile(DECIMAL)
# Absolute POSIX and Windows paths, '..', and characters that no path in a test set contains.
_REFUSED_PATH = re.compile(r"\A/|\A[A-Za-z]:|(?:\A|/)\.\.(?:/|\Z)|[\x00-\x1f\x7f\\\ud800-\udfff]")


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each non-blank line of a UTF-8 file, without line endings.

    Raises:
        ValueError: the file cannot be read or is not UTF-8.
    """
    try:
        with open(path, "rb", opener=open_regular) as file:
            for line_number, content in enumerate(file, start=1):
                if line_number == 1:
                    content = content.removeprefix(_BYTE_ORDER_MARK)
                line = _decode(path, line_number, content).rstrip("\r\n")
                if line.strip():
                    yield line_number, line
    except OSError as error:
        raise unreadable(path, error) from None


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        ValueError: the file cannot be read or is not UTF-8.
    """
    try:
        content = read_bytes(path).removeprefix(_BYTE_ORDER_MARK)
    except OSError as error:
        raise unreadable(path, error) from None
    return _decode(path, 1, content)


def _decode(path: str | Path, line_number: int, content: bytes) -> str:
    """Decode UTF-8 content that begins at line `line_number`; an error names the faulty line."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line_number += content.count(b"\n", 0, error.start)
        begin = content.rfind(b"\n", 0, error.start) + 1
        line = content[begin:].split(b"\n", 1)[0].decode("utf-8", "replace")
        raise malformed(path, line_number, line, "text encoded as UTF-8") from None


def unreadable(path: str | Path, error: OSError) -> ValueError:
    """The error for a file that cannot be opened."""
    return ValueError(
        f"{path} cannot be read ({error.strerror}); check the path and its permissions"
    )


def malformed(path: str | Path, line_number: int, line: str, expected: str) -> ValueError:
    """The error for a malformed line; long lines are truncated.

    >>> print(malformed("pairs.txt", 7, "1 2", "two templates and a label"))
    pairs.txt:7: '1 2'; expected two templates and a label
    """
    text = line[:_CHARACTERS_SHOWN]
    return ValueError(
        f"{path}:{line_number}: {text!r}{'…' if len(line) > len(text) else ''}; expected {expected}"
    )


def parse_whole_number(text: str) -> int | None:
    """Parse a non-negative integer of at most 18 decimal digits; None for any other text.

    >>> parse_whole_number("0042"), parse_whole_number("-1"), parse_whole_number("4.0")
    (42, None, None)
    """
    is_valid = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    return int(text) if is_valid else None


def parse_finite_number(text: str) -> float | None:
    """Parse a finite decimal number; None for any other text.

    >>> parse_finite_number("-1.5e2"), parse_finite_number("nan"), parse_finite_number("1e999")
    (-150.0, None, None)
    """
    number = float(text) if _DECIMAL.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None


def is_relative_path(text: str) -> bool:
    """Whether text is a relative path with '/' as separator that does not leave its folder.

    >>> [is_relative_path(text) for text in ("a/1.jpg", "/a/1.jpg", "../1.jpg", "a\\\\1.jpg", "")]
    [True, False, False, False, False]
    """
    return bool(text) and not _REFUSED_PATH.search(text)


class ConsistencyCheck:
    """Checks that no line of a file contradicts an earlier one.

    Args:
        path: the file.
        thing: what a key identifies, such as "the pair", for messages.
        property: what a value is, such as "label", for messages.
    """

    def __init__(self, path: str | Path, thing: str, property: str) -> None:
        self._path, self._thing, self._property = path, thing, property
        # Key -> its first value, and the number of the line with that value.
        self._first: dict[Hashable, tuple[Hashable, int]] = {}

    def add(self, key: Hashable, value: Hashable, line_number: int, line: str) -> None:
        """Add the value that a line gives for a key.

        Raises:
            ValueError: an earlier line gives a different value; the message names both lines.
        """
        first_value, first_line_number = self._first.setdefault(key, (value, line_number))
        if first_value != value:
            name = " and ".join(map(str, key)) if isinstance(key, tuple) else key
            raise malformed(
                self._path,
                line_number,
                line,
                f"{self._thing} {name} to have the {self._property} that line {first_line_number} "
                "gives; correct one of the two lines",
            )


def split_fields(path: str | Path, line_number: int, line: str) -> list[str]:
    """Split a line at commas and strip the fields; quoted fields may contain commas.

    Raises:
        ValueError: a quote is not closed on this line.
    """
    fields = line.split(",")
    if '"' in line:
        try:
            fields = next(csv.reader([line], strict=True, skipinitialspace=True), [])
        except csv.Error as error:
            raise malformed(path, line_number, line, f"comma-separated fields ({error})") from None
    return [field.strip() for field in fields]


def read_table(
    path: str | Path, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, str, list[str]]]:
    """Read a CSV table with a header line.

    The header may name the columns in any order and case; other columns are ignored.

    Returns:
        For each row: the line number, the line, and the fields, first of the required and then of
        the optional columns. The field of a missing optional column is empty.

    Raises:
        ValueError: a required column is missing (the message suggests a similar name), a column
            occurs twice, or a row has too few or too many fields.
    """
    lines = read_lines(path)
    line_number, header = next(lines, (1, ""))
    columns = [name.lower() for name in split_fields(path, line_number, header)]
    if len(columns) > MAX_COLUMNS:
        raise ValueError(f"{path} has {len(columns)} columns; at most {MAX_COLUMNS} are supported")
    positions = _find_columns(path, line_number, header, columns, required, optional)
    min_fields = 1 + max(positions[: len(required)])
    for line_number, line in lines:
        fields = split_fields(path, line_number, line)
        if not min_fields <= len(fields) <= len(columns):
            raise malformed(
                path,
                line_number,
                line,
                f"{len(columns)} comma-separated fields, as in the header line",
            )
        # The position of a missing column is one past the last column.
        fields += [""] * (len(columns) + 1 - len(fields))
        yield line_number, line, [fields[position] for position in positions]


def _find_columns(
    path: str | Path,
    line_number: int,
    header: str,
    columns: Sequence[str],
    required: Sequence[str],
    optional: Sequence[str],
) -> list[int]:
    """The positions of the required, then the optional columns; `len(columns)` for missing ones."""
    if missing := [name for name in required if name not in columns]:
        raise malformed(
            path,
            line_number,
            header,
            f"{_describe_missing(missing, columns)}; begin the file with {','.join(required)}",
        )
    for name in (*required, *optional):
        if columns.count(name) > 1:
            raise malformed(path, line_number, header, f"one column {name!r}; rename the others")
    return [
        columns.index(name) if name in columns else len(columns) for name in (*required, *optional)
    ]


def _describe_missing(missing: Iterable[str], columns: Sequence[str]) -> str:
    """The missing columns, each with the most similar column of the table."""
    described = []
    for name in missing:
        nearest = difflib.get_close_matches(name, columns, n=1)
        described.append(
            f"a column {name!r}" + (f" (nearest is {nearest[0]!r})" if nearest else "")
        )
    return " and ".join(described)
