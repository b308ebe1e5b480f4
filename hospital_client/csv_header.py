"""The header of a CSV file: which of its columns are meant, and what it is where none can be.

White space around a name is none of it, and a name may be in another case. All else that is odd is told, not guessed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from shared_model.errors import TemptError

_OTHER_SEPARATORS = {";": "';'", "\t": "a tab", "|": "'|'"}
_MARKS = re.compile(r"^\W+|\W+$")  # around a name, such as quotes of another kind, brackets or a comment's sign
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?", re.ASCII)


def shown(value: object) -> str:
    """A value as an error message shows it: in one line, quoted and not too long."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def chosen_columns(path: Path, header: Sequence[str], columns: Sequence[str], beginning: bytes) -> list[int]:
    """Where each column stands: the one of its name, or if there is none the one of its name in any other case.

    Args:
        beginning: of the file, in which a header may stand that is not in line 1.

    Raises:
        TemptError: a column is missing, or there twice.
    """
    folded = [name.casefold() for name in header]
    chosen = []
    for name in columns:
        alike = [place for place, other in enumerate(folded) if other == name.casefold()]
        found = [place for place in alike if header[place] == name] or alike
        if not found:
            raise _without(path, header, name, columns, beginning)
        if len(found) > 1:
            raise TemptError(
                f"{path}: line 1: has column {name} {len(found)} times; expected it once; remove the others"
            )
        chosen += found
    return chosen


def other_separator(path: Path, line: str) -> TemptError | None:
    """The error for a header whose columns are separated by something else than commas; None if they are not."""
    separator = max(_OTHER_SEPARATORS, key=line.count)
    if line.count(separator) <= line.count(","):
        return None
    return TemptError(
        f"{path}: line 1: its columns are separated by {_OTHER_SEPARATORS[separator]}; expected commas; export the"
        " table again with commas"
    )


def _without(path: Path, header: Sequence[str], name: str, columns: Sequence[str], beginning: bytes) -> TemptError:
    """The error for a header without one of the columns."""
    lines = beginning.splitlines()
    below = next((line for line, text in enumerate(lines[1:], start=2) if _holds(text, columns)), None)
    value = next((other for other in header if _NUMBER.fullmatch(other)), None)
    marked = next((other for other in header if _MARKS.sub("", other).casefold() == name.casefold()), None)
    if below:
        problem = (
            f"is {shown(lines[0].decode(errors='replace'))}, and the header stands in line {below}; expected it first;"
            " remove what is above it, or move it up"
        )
    elif value and not {other.casefold() for other in header} & {other.casefold() for other in columns}:
        problem = (
            f"has the value {shown(value)} where names are expected; expected a header with {', '.join(columns)}; put"
            " it above the rows"
        )
    elif error := other_separator(path, ",".join(header)):
        return error
    elif len(header) == 1 and _holds(header[0].encode(), columns):
        problem = "is one text in quotes; expected quotes around each name or none; export the table again"
    elif marked:
        problem = (
            f"has {shown(marked)} for column {name}; expected the name alone; export the table again without the marks"
            " around it"
        )
    else:
        near = get_close_matches(name.casefold(), [other.casefold() for other in header], n=1)
        there = next((other for other in header if other.casefold() in near), ", ".join(header))
        problem = f"has no column {name} (it has {shown(there)}); expected {', '.join(columns)}; add the column"
    return TemptError(f"{path}: line 1: {problem}")


def _holds(line: bytes, columns: Sequence[str]) -> bool:
    """Whether a line is a header with all the columns."""
    names = next(csv.reader([line.decode(errors="replace")]), [])
    return {name.casefold() for name in columns} <= {name.strip().casefold() for name in names}
