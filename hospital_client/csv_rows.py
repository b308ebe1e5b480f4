"""Rows of a CSV file one by one, and the exact place of whatever is wrong with them.

What a row is: RFC 4180 with line ends of any kind (LF, CR LF, CR), also mixed, and empty lines passed over. A quote
that does not begin its field is a character like others; after the quote that closes a field only a comma or a line
end may come. Python's `csv` in strict mode has it so, and is the one judge: `csv_blocks.py` hands the fast reader
nothing on which the two could differ.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_model.errors import TemptError, printable

MOST_BYTES = 1 << 28
"""Of one row."""
csv.field_size_limit((1 << 31) - 1)  # of the whole process; 131,072 characters otherwise, which a note may exceed

_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is no UTF-8
_FIELD = re.compile(rb'"[^"]*(?:""[^"]*)*"?|[^,\r\n]*')


@dataclass(frozen=True)
class Place:
    """Where rows stand: their file, its header as far as it is known, and the line where they begin."""

    path: Path
    header: tuple[str, ...]
    line: int

    def error(self, line: int, field: int | None, problem: str) -> TemptError:
        """An error that names the file, the line and, if given, the column by its header or else by its number."""
        if field is None:
            return TemptError(f"{self.path}: line {line}: {problem}")
        column = " ".join(printable(self.header[field], 60).split()) if field < len(self.header) else field + 1
        return TemptError(f"{self.path}: line {line}, column {column}: {problem}")


def rows(data: bytes, place: Place) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not empty, with the line of the file where it begins; `data` hold whole rows.

    Raises:
        TemptError: a row is no sound CSV, has not as many fields as the header, or holds bytes that are no text.
    """
    lines = data.splitlines(keepends=True)
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for line in lines), strict=True)
    begin = 0
    try:
        for row in reader:
            line, begin = place.line + begin, reader.line_num
            if row:
                _check(row, line, place)
                yield line, row
    except csv.Error:
        raise _quote_problem(b"".join(lines[begin:]), place.line + begin, place) from None


def end_of_rows(data: bytes) -> int:
    """Where the last row ends that is whole, whatever follows the data; behind all of them if one can't be read."""
    lines = data.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()  # what follows may be more of its text, or the second half of its line end
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for line in lines), strict=True)
    end = 0
    try:
        for _ in reader:
            end = reader.line_num
    except csv.Error as error:
        if "unexpected end" not in str(error):
            return len(data)
    return sum(map(len, lines[:end]))


def line_ends(data: bytes, end: int | None = None) -> int:
    """How many lines end in the data, or in the beginning of it; CR LF is one."""
    returns = data.count(b"\r", 0, end)
    return data.count(b"\n", 0, end) + (returns and returns - data.count(b"\r\n", 0, end))


def _check(row: Sequence[str], line: int, place: Place) -> None:
    whole = "".join(row)
    for field, text in enumerate(row if not whole.isascii() or "\0" in whole else ()):
        if _NOT_UTF8.search(text):
            problem = "holds bytes that are not UTF-8; expected UTF-8 text; save the file as UTF-8"
            raise place.error(line, field, problem)
        if "\0" in text:
            raise place.error(line, field, "holds a NUL byte; expected text; export the file again")
    if place.header and len(row) != len(place.header):
        found, expected = len(row), len(place.header)
        raise place.error(line, None, f"has {found} fields, expected {expected} as in the header; correct the row")


def _quote_problem(data: bytes, line: int, place: Place) -> TemptError:
    """What is wrong with the quotes of a row that begins with the data, in a line of the file."""
    field = begin = 0
    while data[(end := _end_of_field(data, begin)) : end + 1] == b",":
        field, begin = field + 1, end + 1
    opened, closed = line + line_ends(data, begin), line + line_ends(data, end)
    # A quote behind a comma or a line end is meant to open the next field, so this one was never closed.
    if end == len(data) or (closed > opened and data[end - 2 : end - 1] in b",\r\n"):
        named = field if place.header else None
        return place.error(opened, named, "a quote is opened and never closed; close it, or export it again")
    of = f" (of a field that begins in line {opened})" if closed > opened else ""
    return place.error(closed, None, f"text follows a closing quote{of}; expected a comma; correct the row")


def _end_of_field(data: bytes, begin: int) -> int:
    found = _FIELD.match(data, begin)
    assert found is not None  # an empty field is one
    return found.end()
