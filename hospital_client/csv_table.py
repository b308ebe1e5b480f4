"""Columns of a CSV file, plain or gzip, and the exact place of whatever is wrong with it.

Two readers. The fast one is pyarrow's: it decompresses, parses with all cores and keeps each column as its distinct
texts and a position a row, so that a text is looked at once however often it stands in the file. What it can't vouch
for (bytes that are not UTF-8, NUL bytes, lines that do not add up to rows) is settled by the slow one, Python's `csv`
in strict mode, which knows the line and the column; it runs only when there is something to find.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from shared_model.errors import TemptError

Positions = NDArray[np.int64]
_Value = TypeVar("_Value", int, str)

_BLOCK_BYTES = 1 << 25
_GZIP_START = b"\x1f\x8b"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is no UTF-8
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.0{1,40})?", re.ASCII)


@dataclass(frozen=True)
class _Column:
    texts: list[str]  # each distinct text of the column, as it stands in the file
    position: NDArray[np.int32]  # of every row, in `texts`


@dataclass(frozen=True)
class CsvTable:
    """The columns that were asked for, each row in the order of the file."""

    path: Path
    rows: int
    columns: dict[str, _Column]

    def texts(self, column: str) -> tuple[list[str], Positions]:
        """The distinct texts without white space at both ends, ascending; each row's position there, -1 for none."""
        return self._distinct(column, lambda text: text.strip() or None, "text")

    def integers(self, column: str) -> tuple[list[int], Positions]:
        """The distinct whole numbers, ascending; each row's position there, -1 where the field is empty.

        "2812", "2812.0" and " 2812" are the same number.

        Raises:
            TemptError: a field holds something else.
        """
        return self._distinct(column, _integer, "a whole number of at most 64 bits")

    def required(self, column: str, position: Positions, expected: str) -> Positions:
        """The same positions, where every row has one.

        Raises:
            TemptError: a row has an empty field.
        """
        if len(position) and position.min() < 0:
            raise self.error(int((position < 0).argmax()), column, f"is empty; expected {expected}; correct the row")
        return position

    def error(self, row: int, column: str, problem: str) -> TemptError:
        """An error that names the file, the line where a row (from 0) begins, and the column."""
        return TemptError(f"{self.path}: line {self.line(row)}, column {column}: {problem}")

    def line(self, row: int) -> int:
        """The line of the file where a row (from 0) begins; the header's line is 1."""
        return next(islice(_rows(self.path), row + 1, None))[0]

    def _distinct(
        self, name: str, convert: Callable[[str], _Value | None], expected: str
    ) -> tuple[list[_Value], Positions]:
        column = self.columns[name]
        bad: list[int] = []
        converted: list[_Value | None] = []
        for number, text in enumerate(column.texts):
            try:
                converted.append(convert(text))
            except ValueError:
                converted.append(None)
                bad.append(number)
        if bad:
            row = int(np.isin(column.position, bad).argmax())
            found = shown(column.texts[column.position[row]])
            raise self.error(row, name, f"found {found}, expected {expected}; correct the row")
        distinct = sorted({value for value in converted if value is not None})
        place = {value: number for number, value in enumerate(distinct)}
        new = np.array([-1 if value is None else place[value] for value in converted], dtype=np.int64)
        return distinct, new[column.position]


def read_csv_table(path: Path, columns: Sequence[str]) -> CsvTable:
    """Some columns of a CSV file, whichever order they have and whatever else is there.

    Raises:
        TemptError: a column is missing or there twice, the file has no row, or it is no sound CSV, UTF-8 or gzip.
    """
    header = _header(path, columns)
    try:
        with open(path, "rb") as file:
            text = _Text()
            blocks = text.blocks(pa.CompressedInputStream(file, "gzip") if _is_gzip(path) else file)
            table = _parse(blocks, [header.index(name) for name in columns], len(header))
    except _LooksWrong:
        table = None
    except pa.ArrowInvalid as error:
        if _verify(path) == 0:
            raise _without_rows(path) from None
        raise TemptError(f"{path}: can't be read as CSV ({str(error).splitlines()[0][:80]}); export it again") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    # An unclosed quote swallows line ends: only where every line is a row is each quote known to be closed.
    if table is None or text.lines != table.num_rows + 1 or text.quotes % 2:
        _verify(path)
    if table is None:
        raise TemptError(f"{path}: holds bytes that are not UTF-8; save it as UTF-8")
    if table.num_rows == 0:
        raise _without_rows(path)
    return CsvTable(path, table.num_rows, {n: _column(table.column(i)) for i, n in enumerate(columns)})


def shown(value: object) -> str:
    """A value as an error message shows it: in one line, quoted and not too long."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


class _LooksWrong(Exception):
    """The fast reader met bytes that only the slow one can explain."""


class _Text:
    """Decompressed bytes on their way to pyarrow: counted, and stopped where they can't be text.

    pyarrow gets whole rows in memory and never a stream to read from: what it reads ahead, in threads of its own,
    may still be at it when an error has ended the process, which is then aborted.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._ended = True  # with a line end, or nothing was read yet
        self.quotes = 0
        self._line_ends = 0

    @property
    def lines(self) -> int:
        return self._line_ends + (not self._ended)

    def blocks(self, source: Any) -> Iterator[bytes]:
        """The source's bytes, cut where a row ends."""
        rest = b""
        while data := source.read(_BLOCK_BYTES):
            self._look(data)
            if end := _end_of_rows(rest):
                yield rest[:end]
                rest = rest[end:]
            rest += data
        self._look(b"")
        yield rest

    def _look(self, data: bytes) -> None:
        try:
            self._decoder.decode(data, final=not data)
        except UnicodeDecodeError:
            raise _LooksWrong from None
        if b"\0" in data:
            raise _LooksWrong
        if data:
            self._line_ends += data.count(b"\n")
            self.quotes += data.count(b'"')
            self._ended = data.endswith(b"\n")


def _end_of_rows(data: bytes) -> int:
    """Where the last row that is whole ends: behind a line end with an even number of quotes before it; 0 for none."""
    end = data.rfind(b"\n") + 1
    while end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, data.rfind(b'"', 0, end)) + 1
    return end


def _parse(blocks: Iterator[bytes], chosen: Sequence[int], width: int) -> pa.Table:
    # Columns go by number: names may be repeated among those that nobody asked for.
    names = [str(number) for number in chosen]
    tables = [
        pa.csv.read_csv(
            pa.BufferReader(block),
            read_options=pa.csv.ReadOptions(
                column_names=[str(number) for number in range(width)],
                skip_rows_after_names=0 if number else 1,
                block_size=max(1 << 20, len(block) // 4),
            ),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(names, pa.dictionary(pa.int32(), pa.string())),
                check_utf8=False,
            ),
        )
        for number, block in enumerate(blocks)
        if block.strip()
    ]
    return pa.concat_tables(tables).unify_dictionaries()


def _column(chunks: pa.ChunkedArray) -> _Column:
    column = chunks.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    return _Column(column.dictionary.to_pylist(), column.indices.to_numpy(zero_copy_only=False))


def _integer(text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if not _WHOLE_NUMBER.fullmatch(text):
        raise ValueError
    number = int(text.partition(".")[0])
    if not -(2**63) <= number < 2**63:
        raise ValueError
    return number


def _header(path: Path, columns: Sequence[str]) -> list[str]:
    first = next(_rows(path), None)
    if first is None:
        raise TemptError(f"{path}: is empty; expected a header and rows; export it again")
    if first[0] != 1:
        raise TemptError(f"{path}: line 1: is empty; expected the header; remove the empty lines")
    header = [name.strip() for name in first[1]]
    for name in columns:
        if name not in header:
            near = get_close_matches(name, header, n=1)
            hint = f" (it has {shown(near[0])})" if near else ""
            raise TemptError(
                f"{path}: line 1: has no column {name}{hint}; expected {', '.join(columns)}; add the column"
            )
        if header.count(name) > 1:
            raise TemptError(
                f"{path}: line 1: has column {name} {header.count(name)} times; expected it once; remove the others"
            )
    return header


def _verify(path: Path) -> int:
    """The number of rows, by the slow reader, which raises at the first problem."""
    rows = _rows(path)
    width = len(next(rows)[1])
    count = 0
    for count, (line, row) in enumerate(rows, start=1):  # noqa: B007
        if len(row) != width:
            raise TemptError(
                f"{path}: line {line}: has {len(row)} fields, expected {width} as in the header; correct the row"
            )
    return count


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not empty, header first, with the line where it begins."""
    header: list[str] | None = None
    line = 1
    try:
        with _open_text(path) as file:
            reader = csv.reader(file, strict=True)
            while (row := next(reader, None)) is not None:
                if row:
                    header = header or row
                    _check_text(path, line, row, header)
                    yield line, row
                line = reader.line_num + 1
    except csv.Error as error:
        raise _quote_problem(path, line, reader.line_num, header, error) from None
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _check_text(path: Path, line: int, row: Sequence[str], header: Sequence[str]) -> None:
    whole = "".join(row)
    if whole.isascii() and "\0" not in whole:
        return
    for number, text in enumerate(row):
        named = row is not header and number < len(header)
        place = f"{path}: line {line}, column {' '.join(header[number].split()) if named else number + 1}"
        if _NOT_UTF8.search(text):
            raise TemptError(f"{place}: holds bytes that are not UTF-8; expected UTF-8 text; save the file as UTF-8")
        if "\0" in text:
            raise TemptError(f"{place}: holds a NUL byte; expected text; export the file again")


def _quote_problem(path: Path, line: int, last: int, header: Sequence[str] | None, error: csv.Error) -> TemptError:
    if last == line and "expected after" in str(error):
        return TemptError(f"{path}: line {line}: text follows a closing quote; expected a comma; correct the row")
    # The field that is still open at the end of its line is the last one of that line.
    with _open_text(path) as file:
        fields = next(csv.reader(islice(file, line - 1, line)))
    column = f", column {header[len(fields) - 1]}" if header and len(fields) <= len(header) else ""
    return TemptError(f"{path}: line {line}{column}: a quote is opened and never closed; close it, or export it again")


def _open_text(path: Path) -> IO[str]:
    opened: IO[bytes] = gzip.open(path) if _is_gzip(path) else open(path, "rb")  # type: ignore[assignment]  # noqa: SIM115
    return io.TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _is_gzip(path: Path) -> bool:
    return path.suffix == ".gz"


def _without_rows(path: Path) -> TemptError:
    return TemptError(f"{path}: has a header but no row; expected a table with rows; export it again")


def _unreadable(path: Path, error: Exception) -> TemptError:
    if isinstance(error, OSError) and error.strerror:
        return TemptError(f"{path}: can't be read: {error.strerror}")
    with open(path, "rb") as file:
        if file.read(2) != _GZIP_START:
            return TemptError(
                f"{path}: is not gzip, as its name says; expected a gzip file; rename it or fetch it again"
            )
    return TemptError(f"{path}: the gzip data are damaged or cut short ({error}); fetch the file again")
