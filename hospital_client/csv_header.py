"""The header of a CSV file: which of its columns are meant, and what it is where none can be."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from shared_model.errors import TemptError

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
            raise other_separator(path, ",".join(header)) or _missing(path, header, name, columns)
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


def _missing(path: Path, header: Sequence[str], name: str, columns: Sequence[str]) -> TemptError:
    near = get_close_matches(name, header, n=1)
    hint = f" (it has {shown(near[0])})" if near else ""
    return TemptError(f"{path}: line 1: has no column {name}{hint}; expected {', '.join(columns)}; add the column")
