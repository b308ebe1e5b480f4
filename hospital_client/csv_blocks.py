"""A CSV file, plain or gzip, as blocks of whole rows that a fast reader can't read wrongly.

Where a row ends is decided here and nowhere else: a fast reader that cuts by itself has cut within a CR LF, or within a
quoted text, and said nothing.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hospital_client.csv_header import other_separator
from hospital_client.csv_kinds import BYTE_ORDER_MARK, other_kind
from hospital_client.csv_rows import MOST_BYTES, Place, end_of_rows, line_ends, rows
from shared_model.errors import TemptError

Bytes = NDArray[np.uint8]
Positions = NDArray[np.int64]

_BLOCK_BYTES = 1 << 23
_HEADER_BYTES = 1 << 16
_TAIL_BYTES = 1 << 16  # where the last row most probably ends
_GZIP_START = b"\x1f\x8b"
_ENDS = np.isin(np.arange(256), list(b',\r\n"'))  # what may stand before an opening quote and behind a closing one


@dataclass(frozen=True)
class Block:
    """Whole rows of a file.

    Attributes:
        place: where they stand.
        is_plain: text in which every quote opens or closes a field, or is doubled within one.
    """

    data: bytes
    place: Place
    is_plain: bool

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Each row that is not empty, with the line where it begins; slowly.

        Raises:
            TemptError: a row is unsound.
        """
        return rows(self.data, self.place)


class CsvFile:
    """An open CSV file, read block by block.

    Attributes:
        header: the names of its columns, without white space at both ends.
        beginning: of the file, header and all.
    """

    def __init__(self, path: Path, file: IO[bytes] | gzip.GzipFile) -> None:
        """Read the header.

        Raises:
            TemptError: the file can't be read, has no header, or is no CSV.
        """
        self._file = file
        self._rest = b""
        self._place = Place(path, (), 1)
        self._read(_HEADER_BYTES)
        self._rest = self.beginning = self._rest.removeprefix(BYTE_ORDER_MARK)
        _check_kind(path, self._rest)
        while not (end := end_of_rows(self._rest)) and self._read(len(self._rest)):
            pass
        try:
            _, names = next(rows(self._rest[:end] if end else self._rest, self._place))
        except TemptError as error:
            raise other_separator(path, self._rest.splitlines()[0].decode(errors="replace")) or error from None
        self.header = tuple(name.strip() for name in names)
        lines = 1 + sum(line_ends(name.encode()) for name in names)
        self._rest = b"".join(self._rest.splitlines(keepends=True)[lines:])
        self._place = Place(path, self.header, 1 + lines)

    def blocks(self) -> Iterator[Block]:
        """The rows behind the header.

        Raises:
            TemptError: the file can't be read to its end.
        """
        more = True
        while more:
            more = self._read(max(_BLOCK_BYTES, len(self._rest)))
            while self._rest:
                end, is_plain = _cut(self._rest, is_last=not more)
                if not end:
                    break
                data, self._rest = self._rest[:end], self._rest[end:]
                yield Block(data, self._place, is_plain and _is_text(data))
                self._place = replace(self._place, line=self._place.line + line_ends(data))

    def _read(self, size: int) -> bool:
        """Read on; whether there was more."""
        if len(self._rest) > MOST_BYTES:
            problem = f"begins a row of more than {MOST_BYTES >> 20} MiB; expected an end of it; look for an open quote"
            raise self._place.error(self._place.line, None, problem)
        try:
            data = self._file.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(self._place.path, error) from None
        self._rest += data
        return bool(data)


@contextmanager
def open_csv(path: Path) -> Iterator[CsvFile]:
    """An open file, decompressed where its name ends in .gz.

    Raises:
        TemptError: it can't be read, has no header, or is no CSV.
    """
    is_gzip = path.suffix.lower() == ".gz"
    try:
        opened = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise _unreadable(path, error) from None
    with opened, gzip.open(opened) if is_gzip else opened as file:
        yield CsvFile(path, file)


def _cut(data: bytes, *, is_last: bool) -> tuple[int, bool]:
    """Where the first rows of some data end that can be read in one way, and whether their quotes are sound.

    0 if the data end before a row does.
    """
    text = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(text == ord('"'))
    sound = _sound_until(text, quotes)
    if is_last and sound == len(data) and len(quotes) % 2 == 0:
        return len(data), True
    if end := _end_outside_quotes(text[:sound], quotes):
        return end, True
    if is_last or sound == len(data):
        return len(data) if is_last else 0, False
    return end_of_rows(data), False


def _sound_until(text: Bytes, quotes: Positions) -> int:
    """Where the first quote stands that neither opens nor closes a field, nor is doubled within one."""
    opening, closing = quotes[::2], quotes[1::2]
    wrong = np.zeros(len(quotes), dtype=bool)
    wrong[::2] = ~_ENDS[text[opening - 1]]  # the first of all is looked at below
    wrong[1::2] = ~_ENDS[text[(closing + 1) % len(text)]]
    if len(quotes) and quotes[0] == 0:
        wrong[0] = False
    if len(closing) and closing[-1] == len(text) - 1:
        wrong[2 * len(closing) - 1] = False
    return int(quotes[wrong.argmax()]) if wrong.any() else len(text)


def _end_outside_quotes(text: Bytes, quotes: Positions) -> int:
    """Behind the last line end that is a row's; 0 for none. A CR at the very end may be half of one."""
    for begin in (max(len(text) - _TAIL_BYTES, 0), 0):
        tail = text[begin:]
        ends = begin + np.flatnonzero((tail == ord("\n")) | (tail == ord("\r")))
        if len(ends) and ends[-1] == len(text) - 1 and text[-1] == ord("\r"):
            ends = ends[:-1]
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
        if len(ends):
            return int(ends[-1]) + 1
    return 0


def _is_text(data: bytes) -> bool:
    """Whether the data are UTF-8 without NUL, and do not begin with what a reader takes for a byte order mark."""
    try:
        return b"\0" not in data and not data.startswith(BYTE_ORDER_MARK) and (data.isascii() or bool(data.decode()))
    except UnicodeDecodeError:
        return False


def _check_kind(path: Path, beginning: bytes) -> None:
    if not beginning.strip(b"\r\n"):
        raise TemptError(f"{path}: is empty; expected a header and rows; export it again")
    if kind := other_kind(beginning):
        raise TemptError(f"{path}: expected CSV, found {kind}")
    if beginning[:1] in (b"\r", b"\n"):
        raise TemptError(f"{path}: line 1: is empty; expected the header; remove the empty lines")


def _unreadable(path: Path, error: Exception) -> TemptError:
    if isinstance(error, OSError) and error.strerror:
        return TemptError(f"{path}: can't be read: {error.strerror}")
    with open(path, "rb") as file:
        beginning = file.read(_HEADER_BYTES)
    if beginning.startswith(_GZIP_START):
        return TemptError(f"{path}: the gzip data are damaged or cut short ({error}); fetch the file again")
    if kind := other_kind(beginning):
        return TemptError(f"{path}: expected gzip, as its name says, found {kind}")
    return TemptError(f"{path}: is not gzip, as its name says; expected a gzip file; rename it or fetch it again")
