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
from shared_model.proxies import without_proxies
from shared_model.signs_of_life import Signs

_ENDS_WITHIN = 8.0  # seconds from SIGTERM to SIGKILL
_SHORT_LIFE = 30.0  # seconds
_LAST_WORDS = 65536  # bytes
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
    """A process that is started again when it ends, and ended when it shows no sign of life.

    Args:
        delay: seconds before it is started again.
        signs: of all of these there must be some.
        children_stay: what it has started does not end with it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        delay: float = 1.0,
        signs: Sequence[Signs] = (),
        children_stay: bool = False,
    ) -> None:
        self.name, self.log = name, log
        self._command, self._environment, self._delay = list(command), dict(environment), delay
        self._signs, self._children_stay = list(signs), children_stay
        self._sessions: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._again_at = 0.0
        self._tell: Callable[[str], None] = _nobody
        self._started = 0.0
        self._log_from = 0
        self.starts = 0
        self.short_lives = 0
        """Ends in a row, each soon after its start."""
        self.last_end = ""
        """How it ended last, in words."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def keep(self) -> int | None:
        """Start it if it is not there and its delay is over; the exit status of one that has just ended."""
        ended = None
        if self._process is not None:
            ended = self._ended(self._process)
            if ended is None:
                return None
            self._process = None
            self._again_at = time.monotonic() + self._delay
            self.short_lives = self.short_lives + 1 if time.monotonic() - self._started < _SHORT_LIFE else 0
            if not self._children_stay:
                self._end_sessions()
        if time.monotonic() >= self._again_at:
            self._start()
        return ended

    def _start(self) -> None:
        private_directory(self.log.parent)
        with self.log.open("ab") as log:
            self._log_from = log.tell()
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        for session in [session for session in self._sessions if not _lives(session)]:
            self._sessions.remove(session)
            self._tell(f"-{session}\n")  # the system may give its number to others
        self._sessions.append(self._process.pid)
        self._tell(f"+{self._process.pid}\n")
        self._started = time.monotonic()
        self.starts += 1
        for signs in self._signs:
            signs.begin()

    def _ended(self, process: subprocess.Popen[bytes]) -> int | None:
        """Its exit status, also of one that is killed now as it shows no sign of life."""
        status = process.poll()
        if status is not None:
            self.last_end = f"ended (exit status {status})"
            return status
        for signs in self._signs:
            limit = signs.missing()
            if limit is not None:
                process.kill()  # nothing else ends one that is stopped
                self.last_end = f"showed no sign of life for {limit:g} s ({signs.what}) and was killed"
                return process.wait()
        return None

    def restart(self) -> None:
        """End it at once with all that it has started, also before it was itself started again; it begins anew."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._end_sessions()

    def guarded_by(self, tell: Callable[[str], None]) -> None:
        """Name every process to a guard, which ends it should this one be killed."""
        self._tell = tell

    def _end_sessions(self) -> None:
        for session in self._sessions:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(session, signal.SIGKILL)
            self._tell(f"-{session}\n")
        self._sessions.clear()

    def end(self) -> None:
        """Ask it to end; its children with it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, until: float) -> None:
        """Wait until it has ended, then end what is left of its sessions."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, until - time.monotonic()))
        self.restart()

    def last_words(self, pattern: Callable[[str], str | None]) -> str | None:
        """What the pattern finds in the latest lines of its log since its last start, the last one first."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._log_from, log.seek(0, os.SEEK_END) - _LAST_WORDS))
                lines = log.read().decode(errors="replace").splitlines()[-40:]
        except OSError:
            return None
        return next((found for line in reversed(lines) if (found := pattern(line)) is not None), None)


def _lives(session: int) -> bool:
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


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
    """The environment of every process of Flower's: all it writes in one folder, and nobody called outside, no proxy.

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
    return without_proxies(os.environ) | {
        "PATH": os.pathsep.join(folders),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
