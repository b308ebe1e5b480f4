"""A limit on the time that a hospital's work may take, so that work that hangs can't keep it from later rounds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LONGEST = 86_400.0  # seconds
_GRACE = 30.0  # seconds in which a process may still answer that its time is over
_WATCH = """import os, select, signal, sys
ready, _, _ = select.select([0], [], [], float(sys.argv[2]))
if not ready:  # neither the work's end nor its process's has closed the pipe
    os.kill(int(sys.argv[1]), signal.SIGKILL)
"""


def work_limit(asked: float) -> float:
    """Seconds that work at a deployed hospital may take: as the server asks, and a day at most."""
    return min(asked, _LONGEST) if asked > 0 else _LONGEST


class TimeIsOver(Exception):
    """Work passed its limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End what takes longer: with an exception, and where none gets through (a stopped process), by SIGKILL later.

    Args:
        seconds: 0 sets no limit.

    Raises:
        TimeIsOver: the work passed the limit.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeIsOver

    before = signal.signal(signal.SIGALRM, over)
    command = [sys.executable, "-S", "-c", _WATCH, str(os.getpid()), str(seconds + _GRACE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watch:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            assert watch.stdin is not None
            watch.stdin.close()
