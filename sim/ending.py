"""Ctrl-C and SIGTERM, heard from the command's first line to its last.

While it starts, nothing is written yet and an exception would come out of half an import: it ends at once. While it
works an exception unwinds what is under way, once no import is. While it tells its end, and after, that end stands.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from contextlib import suppress
from types import FrameType

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM"}

_IMPORT_SECONDS = 0.05  # until a signal that came during an import is heard again
_works = _has_worked = False
_status: int | None = None
_came: signal.Signals | None = None


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came; the plain exception, once it has passed through `exec`, makes Python end by the signal after all."""


class Terminated(BaseException):
    """SIGTERM came."""


def listen() -> None:
    """Hear both from now on; what the process was started deaf to, as a shell starts jobs, it stays deaf to."""
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _heard)
            # the last to be called: after it Python takes its handlers away, and a signal would kill
            atexit.register(signal.signal, number, signal.SIG_IGN)


def works(now: bool) -> None:
    """Whether the command is at work, where a signal is an exception; else it is at its start or its end."""
    global _works, _has_worked
    _works, _has_worked = now, True


def came() -> signal.Signals | None:
    """The signal that came, whatever became of its exception: one that hits an import may come out as another."""
    return _came


def told(status: int) -> None:
    """The command has told its end: a signal from now on ends the process with that status."""
    global _status
    _status = status


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported: an exception there may pass through C++ (torch's), which aborts."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _heard(number: int, frame: FrameType | None) -> None:
    global _came
    if _works and _status is None and _imports(frame):
        again = threading.Timer(_IMPORT_SECONDS, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    before, _came = _came, signal.Signals(number)
    if _status is not None:
        os._exit(_status)
    if _works:
        raise Interrupted if number == signal.SIGINT else Terminated
    if not _has_worked:
        with suppress(OSError):
            os.write(2, f"{WORDS[_came]}; nothing was written\n".encode())
        os._exit(128 + number)
    if before is not None:  # it waits perhaps for who does not read its last words
        os._exit(128 + before)
