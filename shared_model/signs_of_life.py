"""Signs of life of a process that is kept running: one that is stopped, or has lost the thread that works, shows none.

That it is there says little: Flower's SuperNode goes on as a process when its main thread has ended, and a stopped
process still takes connections, as the system does that for it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from shared_model.lines import say

LIMIT = 60.0
"""Seconds without a sign after which a process is taken for dead: Flower's lease, after which a hospital is away."""
START_LIMIT = 180.0
"""Seconds until the first one."""
_EVERY = 5.0  # seconds between two looks
_MOST = 15.0  # seconds that a look counts: whoever looks may have been stopped, too, or the machine asleep


class Signs:
    """One kind of signs, and how long there was none.

    Args:
        what: what is missing where there is none, in words.
        seen: whether there was one since it was asked last.
        excused: asked when the time is over: whether the cause is another's, such as a server that is down.
    """

    def __init__(self, what: str, seen: Callable[[], bool], *, excused: Callable[[], bool] = lambda: False) -> None:
        self.what, self._seen, self._excused = what, seen, excused
        self._looked, self._silent, self._limit = time.monotonic(), 0.0, START_LIMIT

    def begin(self) -> None:
        """The process is started now; what another has left is no sign of it."""
        self._seen()
        self._looked, self._silent, self._limit = time.monotonic(), 0.0, START_LIMIT

    def missing(self) -> float | None:
        """The limit in seconds, if there was no sign for so long."""
        passed = time.monotonic() - self._looked
        if passed < _EVERY:
            return None
        self._looked += passed
        if self._seen():
            self._silent, self._limit = 0.0, LIMIT
            return None
        self._silent += min(passed, _MOST)
        if self._silent < self._limit:
            return None
        if self._excused():
            self._silent = 0.0
            return None
        return self._limit


def touched(path: Path) -> Callable[[], bool]:
    """Signs that are a file's change of time, as `tell` makes them."""
    last: int | None = None

    def seen() -> bool:
        nonlocal last
        before = last
        with suppress(OSError):
            last = path.stat().st_mtime_ns
        return last != before

    return seen


def tell(client: Any, call: str, path: Path) -> None:
    """Let a client of Flower's touch a file whenever such a call is answered well."""
    plain = getattr(client, call)

    def told(self: Any, request: Any) -> Any:
        reply = plain(self, request)
        if getattr(reply, "success", True):
            with suppress(OSError):
                path.touch(mode=0o600)
        return reply

    setattr(client, call, told)


def run_alone(main: Callable[[], object]) -> NoReturn:
    """Run a program that ends when its main thread does or any other fails, whatever threads it leaves behind."""

    def failed(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        traceback.print_exception(kind, error, trace)
        _exit(1)

    threading.excepthook = lambda of: failed(of.exc_type, of.exc_value, of.exc_traceback)
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            say(end.code)
        _exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException as error:
        failed(type(error), error, error.__traceback__)
    _exit(0)


def _exit(status: int) -> NoReturn:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
