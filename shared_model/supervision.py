"""Processes that are kept running: started again whatever their end, told from each other by name, ended together."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from shared_model.errors import TemptError
from shared_model.files import private_directory

_ENDS_WITHIN = 8.0  # seconds from SIGTERM to SIGKILL
_SHORT_LIFE = 30.0  # seconds
_GUARD = """import os, signal, sys
sessions = set()
for line in sys.stdin:
    (sessions.add if line[0] == "+" else sessions.discard)(int(line[1:]))
for session in sessions:  # whoever kept them was killed
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Kept:
    """A process that is started again when it ends.

    Args:
        delay: seconds before it is started again.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, *, delay: float = 1.0
    ) -> None:
        self.name, self.log = name, log
        self._command, self._environment, self._delay = list(command), dict(environment), delay
        self._process: subprocess.Popen[bytes] | None = None
        self._again_at = 0.0
        self._tell: Callable[[str], None] = _nobody
        self._started = 0.0
        self.starts = 0
        self.short_lives = 0
        """Ends in a row, each soon after its start."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def keep(self) -> int | None:
        """Start it if it is not there and its delay is over; the exit status of one that has just ended."""
        ended = None
        if self._process is not None:
            ended = self._process.poll()
            if ended is None:
                return None
            self._tell_guard("-")
            self._process = None
            self._again_at = time.monotonic() + self._delay
            self.short_lives = self.short_lives + 1 if time.monotonic() - self._started < _SHORT_LIFE else 0
        if time.monotonic() >= self._again_at:
            private_directory(self.log.parent)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
            self._tell_guard("+")
            self._started = time.monotonic()
            self.starts += 1
        return ended

    def guarded_by(self, tell: Callable[[str], None]) -> None:
        """Name every process to a guard, which ends it should this one be killed."""
        self._tell = tell

    def _tell_guard(self, sign: str) -> None:
        if self._process is not None:
            self._tell(f"{sign}{self._process.pid}\n")

    def end(self) -> None:
        """Ask it to end; its children with it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, until: float) -> None:
        """Wait until it has ended, then end what is left of its session."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._tell_guard("-")

    def last_words(self, pattern: Callable[[str], str | None]) -> str | None:
        """What the pattern finds in the latest lines of its log, the last one first."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-40:]
        except OSError:
            return None
        return next((found for line in reversed(lines) if (found := pattern(line)) is not None), None)


def _nobody(line: str) -> None:
    """Where no guard is told."""


@contextmanager
def ended_together(kept: Sequence[Kept]) -> Iterator[None]:
    """End all of them, in time, however the block ends, `kill -9` of this process included; the last ones first."""
    command = [sys.executable, "-S", "-c", _GUARD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True) as guard:
        pipe = guard.stdin
        assert pipe is not None

        def tell(line: str) -> None:
            with suppress(BrokenPipeError):
                pipe.write(line)
                pipe.flush()

        for process in kept:
            process.guarded_by(tell)
        try:
            yield
        finally:
            for process in reversed(kept):
                process.end()
            until = time.monotonic() + _ENDS_WITHIN
            for process in reversed(kept):
                process.wait(until)
            with suppress(BrokenPipeError):
                pipe.close()


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flower_environment(home: Path, *first: Path) -> dict[str, str]:
    """The environment of every process of Flower's: all it writes in one folder, and nobody called outside.

    Args:
        first: folders whose programs come before Flower's, which are those beside this Python.

    Raises:
        TemptError: Flower is installed where its servers can't find their tables.
    """
    found = importlib.util.find_spec("flwr")
    if found is not None and found.origin is not None and " " in found.origin:
        raise TemptError(
            f"{Path(found.origin).parent}: Flower's servers can't be run from a path with a blank; "
            "make the environment in another folder"
        )
    private_directory(home)
    folders = [*map(str, first), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return os.environ | {
        "PATH": os.pathsep.join(folders),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
