"""The one error that a user can mend; anything else that reaches the command line is a defect of ours."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class TemptError(Exception):
    """A mistake of the user's: one line that says what was found, what was expected and what to do."""

    status = 2
    """The exit status of the command that it ends."""

    def __str__(self) -> str:
        """The line, whatever it names: see `printable`."""
        return printable(" ".join(super().__str__().splitlines()))


class TooFewHospitals(TemptError):
    """A federation has fewer hospitals than its quorum."""

    status = 3


class Defect(RuntimeError):
    """A defect of ours in another process."""


def unknown(kind: str, found: str, known: Iterable[str]) -> TemptError:
    """The error for a name that is not among the known ones: it lists them and points to the nearest.

    >>> print(unknown("preset", "papper", ["paper", "released"]))
    unknown preset 'papper'; did you mean 'paper'? Known: paper, released
    """
    names = sorted(known)
    near = get_close_matches(found.lower(), names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return TemptError(f"unknown {kind} '{found}'{hint} Known: {', '.join(names)}")


def printable(text: object, most: int | None = None) -> str:
    r"""A text from elsewhere, fit for a terminal: on one line, where nothing moves the cursor, hides or turns around.

    All that comes from a file, a message, an option or a table goes through it where a line is printed; what is
    printable stays as it is, so that a line may go through it more than once.

    Args:
        most: characters that are left of it; None: all.

    >>> print(printable("encoder\x1b[2J\nweight\u202e of"))
    encoder\x1b[2J\nweight\u202e of
    """
    whole = str(text)
    if not whole.isprintable():
        whole = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole)
    return whole[:most]


HOSPITALS_ERROR = 100
"""The code of an error that a hospital itself replies with; Flower's own codes are smaller."""

_ROOM, _RIGHTS, _NAME = "make room there, or name another place", "check who may use it", "name another place"
_MENDABLE: dict[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _RIGHTS),
    **dict.fromkeys((errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP), _NAME),
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.EIO: "the disk or the terminal fails; name another place",
}


def of_the_system(error: OSError) -> TemptError | None:
    """The error for what the system refuses and a user can mend, such as a full disk; None for a defect of ours."""
    if error.errno not in _MENDABLE:
        return None
    where = "standard output, or a file" if error.filename is None else error.filename
    return TemptError(f"{where}: {error.strerror}; {_MENDABLE[error.errno]}")
