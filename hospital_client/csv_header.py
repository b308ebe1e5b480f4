"""The header of a CSV file: which of its columns are meant, and what it is where none can be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from hospital_client.file_kinds import no_header
from shared_model.errors import TemptError

_QUOTES = " '`\"[]()\u00b4\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"
_NUMBER = re.compile(r"[-+]?[0-9]+([.,][0-9]+)?")
_OTHER_SEPARATORS = {";": "';'", "\t": "a tab", "|": "'|'"}


def shown(value: object) -> str:
    """A value as an error message shows it: in one line, quoted and not too long."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def chosen_columns(path: Path, header: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Where each column stands: the one of its name, or if there is none the one of its name in any other case.

    Raises:
        TemptError: a column is missing, or there twice.
    """
    folded = [name.casefold() for name in header]
    chosen = []
    for name in columns:
        alike = [place for place, other in enumerate(folded) if other == name.casefold()]
        found = [place for place in alike if header[place] == name] or alike
        if not found:
            line = ",".join(header)
            raise first_line_problem(path, line) or other_separator(path, line) or _missing(path, header, name, columns)
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


def first_line_problem(path: Path, line: str) -> TemptError | None:
    """The error for a first line that is no header; None if it may be one."""
    what = no_header(line)
    return None if what is None else TemptError(f"{path}: line 1: {what}")


def _missing(path: Path, header: Sequence[str], name: str, columns: Sequence[str]) -> TemptError:
    bare = {other.strip(_QUOTES).casefold(): other for other in header}
    if (other := bare.get(name.casefold())) is not None:
        return TemptError(
            f"{path}: line 1: has {shown(other)}, expected {name}; export the table again with plain names, or names "
            "in double quotes"
        )
    expected = ", ".join(columns)
    if any(map(_NUMBER.fullmatch, header)) and not {c.casefold() for c in columns} & {h.casefold() for h in header}:
        return TemptError(f"{path}: line 1: holds values; expected a header with {expected}; add it above")
    near = get_close_matches(name, header, n=1)
    hint = f" (it has {shown(near[0])})" if near else ""
    return TemptError(f"{path}: line 1: has no column {name}{hint}; expected {expected}; add the column")
