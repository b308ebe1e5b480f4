"""Lines for people, whole and escaped: text and newline in one write, so that those of several writers never mix, and
nothing in them that moves the cursor or hides.

`print` writes the two apart: unbuffered, or with two threads, "keeps it" and "Table 2" become "keeps itTable 2".
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from shared_model.errors import TemptError, printable


def tell(*lines: str) -> None:
    """Lines of a result on standard output; what the terminal's encoding lacks is replaced by question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write("".join(f"{printable(line)}\n" for line in lines).encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TemptError(
            f"standard output: can't be written: {error.strerror}; redirect it to where there is room"
        ) from None


def say(*lines: str) -> None:
    """Lines on standard error: errors, warnings, progress. Where they can't be written, the work goes on without."""
    with suppress(OSError):
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
        sys.stderr.flush()


def takes(text: str) -> bool:
    """Whether standard output's encoding has every character of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def open_streams() -> None:
    """Give a process whose standard streams were closed ones that nobody reads.

    Else the next file that it opens gets the number of one of them, and whatever is written there ends in that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def give_up(*numbers: int) -> None:
    """Send what the standard streams of these numbers still hold to nobody, and what comes.

    Else Python tries to write it once more as it ends, and ends with status 120.
    """
    nobody = os.open(os.devnull, os.O_WRONLY)
    for number in numbers:
        os.dup2(nobody, number)
    os.close(nobody)
