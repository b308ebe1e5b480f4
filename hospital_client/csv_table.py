"""Columns of a CSV file, plain or gzip, and the exact place of whatever is wrong with it.

Two readers of blocks of whole rows. The fast one is pyarrow's: it keeps each column as its distinct texts and a
position a row, so that a text is looked at once however often it stands in the file. It gets those blocks alone that
can be read in one way (`csv_blocks.py`). All others go to the slow one (`csv_rows.py`), which knows the line and the
column of what is wrong, or reads what is odd but sound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from hospital_client.csv_blocks import Block, Positions, open_csv
from hospital_client.csv_header import chosen_columns, shown
from shared_model.errors import TemptError

Mask = NDArray[np.bool_]
_Value = TypeVar("_Value", int, str)

_TEXTS = pa.dictionary(pa.int32(), pa.string())
_MISSING = {word.casefold(): word for word in ("NA", "NULL", "None", "nan")}
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.0{1,40})?", re.ASCII)


@dataclass(frozen=True)
class _Column:
    texts: list[str]  # each distinct text of the column, as it stands in the file
    position: NDArray[np.int32]  # of every row, in `texts`


@dataclass(frozen=True)
class CsvTable:
    """The columns that were asked for, each row in the order of the file.

    A field that is empty, or NA, NULL, None or nan in any case, is a missing value; white space at both ends is none of
    its text.
    """

    path: Path
    rows_of_blocks: list[int]
    columns: dict[str, _Column]

    @property
    def rows(self) -> int:
        return sum(self.rows_of_blocks)

    def texts(self, column: str) -> tuple[list[str], Positions]:
        """The distinct texts without white space at both ends, ascending; each row's position there, -1 for none."""
        return self._distinct(column, str, "text")

    def integers(self, column: str) -> tuple[list[int], Positions]:
        """The distinct whole numbers, ascending; each row's position there, -1 for none.

        "2812", "2812.0" and " 2812" are the same number.

        Raises:
            TemptError: a field holds something else.
        """
        return self._distinct(column, _integer, "a whole number of at most 64 bits")

    def required(self, column: str, position: Positions, expected: str) -> Positions:
        """The same positions, where every row has one.

        Raises:
            TemptError: a row has a missing value.
        """
        if len(position) and position.min() < 0:
            row = int((position < 0).argmax())
            text = self.columns[column].texts[self.columns[column].position[row]].strip()
            found = f"found {shown(text)}," if text else "is empty;"
            raise self.error(row, column, f"{found} expected {expected}; correct the row")
        return position

    def missing(self, column: str) -> dict[str, Mask]:
        """The rows of each word for a missing value that stands in a column; rows with an empty field are not among."""
        texts, position = self.columns[column].texts, self.columns[column].position
        found = [_missing_word(text.strip()) for text in texts]
        return {
            word: np.isin(position, [number for number, other in enumerate(found) if other == word])
            for word in _MISSING.values()
            if word in found
        }

    def error(self, row: int, column: str, problem: str) -> TemptError:
        """An error that names the file, the line where a row (from 0) begins, and the column."""
        return TemptError(f"{self.path}: line {self.line(row)}, column {column}: {problem}")

    def line(self, row: int) -> int:
        """The line of the file where a row (from 0) begins; the header's line is 1."""
        with open_csv(self.path) as file:
            for block, rows in zip(file.blocks(), self.rows_of_blocks, strict=False):
                if row < rows:
                    return next(islice(block.rows(), row, None))[0]
                row -= rows
        raise TemptError(f"{self.path}: was changed while it was read; try again")

    def _distinct(self, name: str, convert: Callable[[str], _Value], expected: str) -> tuple[list[_Value], Positions]:
        column = self.columns[name]
        bad: list[int] = []
        converted: list[_Value | None] = []
        for number, text in enumerate(column.texts):
            text = text.strip()
            try:
                converted.append(None if not text or _missing_word(text) else convert(text))
            except ValueError:
                converted.append(None)
                bad.append(number)
        if bad:
            row = int(np.isin(column.position, bad).argmax())
            text = column.texts[column.position[row]]
            if text.strip().removeprefix("\ufeff").casefold() == name.casefold():
                raise self.error(row, name, "is the header again; expected it once; remove the line")
            raise self.error(row, name, f"found {shown(text)}, expected {expected}; correct the row")
        distinct = sorted({value for value in converted if value is not None})
        place = {value: number for number, value in enumerate(distinct)}
        new = np.array([-1 if value is None else place[value] for value in converted], dtype=np.int64)
        return distinct, new[column.position]


def read_csv_table(path: Path, columns: Sequence[str]) -> CsvTable:
    """Some columns of a CSV file, whichever order they have and whatever else is there.

    A column is found by its name, or if there is none by its name in upper case or any other case.

    Raises:
        TemptError: a column is missing or there twice, the file has no row, or it is no sound CSV, UTF-8 or gzip.
    """
    with open_csv(path) as file:
        chosen = chosen_columns(path, file.header, columns, file.beginning)
        parts = _parse_all(file.blocks(), chosen)
    rows = [part.num_rows for part in parts]
    if sum(rows) == 0:
        raise TemptError(f"{path}: has a header but no row; expected a table with rows; export it again")
    table = pa.concat_tables(parts).unify_dictionaries()
    return CsvTable(path, rows, {name: _column(table.column(number)) for number, name in enumerate(columns)})


def _parse_all(blocks: Iterable[Block], chosen: Sequence[int]) -> list[pa.Table]:
    """The chosen columns of each block; some blocks are parsed at a time.

    The threads are Python's, which waits for each of them. Threads of pyarrow's own were still at work when an error
    had ended the process, which was then aborted.

    Raises:
        TemptError: a row is unsound, or the file can't be read to its end.
    """
    workers = pa.cpu_count()
    parts: list[Future[pa.Table]] = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for block in blocks:
                parts.append(pool.submit(_parse, block, chosen))
                if len(parts) > 2 * workers and parts[-2 * workers].exception():
                    break
        finally:
            # In order, and also if the file can't be read further: what is wrong in the earliest line is said.
            tables = [part.result() for part in parts]
    return tables


def _parse(block: Block, chosen: Sequence[int]) -> pa.Table:
    """The chosen columns of a block, by their numbers: names may be repeated among those that nobody asked for.

    Raises:
        TemptError: a row is unsound.
    """
    names = [str(number) for number in chosen]
    if block.is_plain:
        # Memory of pyarrow's own: to let go of Python's, its threads would need Python to be still there.
        memory = pa.allocate_buffer(len(block.data))
        memoryview(memory).cast("B")[:] = block.data
        try:
            return pa.csv.read_csv(
                pa.BufferReader(memory),
                read_options=pa.csv.ReadOptions(
                    column_names=[str(number) for number in range(len(block.place.header))],
                    block_size=len(block.data) + 1,
                    use_threads=False,
                ),
                parse_options=pa.csv.ParseOptions(newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(
                    include_columns=names, column_types=dict.fromkeys(names, _TEXTS), check_utf8=False
                ),
            )
        except pa.ArrowInvalid:
            pass  # a row of too many or too few fields, or no row at all: the slow reader knows the line
    rows = [[row[number] for number in chosen] for _, row in block.rows()]
    texts = [pa.array([row[place] for row in rows], pa.string()) for place in range(len(chosen))]
    return pa.table({name: text.dictionary_encode() for name, text in zip(names, texts, strict=True)})


def _column(chunks: pa.ChunkedArray) -> _Column:
    column = chunks.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    return _Column(column.dictionary.to_pylist(), column.indices.to_numpy(zero_copy_only=False))


def _missing_word(text: str) -> str | None:
    """The word for a missing value that a text is, as `_MISSING` writes it."""
    return _MISSING.get(text.casefold()) if len(text) <= 4 else None


def _integer(text: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(text):
        raise ValueError
    number = int(text.partition(".")[0])
    if not -(2**63) <= number < 2**63:
        raise ValueError
    return number
