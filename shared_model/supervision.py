"""Processes that are kept running: started again whatever their end, told from each other by name, ended together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from shared_model.files import private_directory

_ENDS_WITHIN = 8.0  # seconds from SIGTERM to SIGKILL


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
        self.starts = 0

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
            self._process = None
            self._again_at = time.monotonic() + self._delay
        if time.monotonic() >= self._again_at:
            private_directory(self.log.parent)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
            self.starts += 1
        return ended

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

    def last_words(self, pattern: Callable[[str], str | None]) -> str | None:
        """What the pattern finds in the latest lines of its log, the last one first."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-40:]
        except OSError:
            return None
        return next((found for line in reversed(lines) if (found := pattern(line)) is not None), None)


@contextmanager
def ended_together(kept: Sequence[Kept]) -> Iterator[None]:
    """End all of them, in time, however the block ends; the last ones first."""
    try:
        yield
    finally:
        for process in reversed(kept):
            process.end()
        until = time.monotonic() + _ENDS_WITHIN
        for process in reversed(kept):
            process.wait(until)


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flower_environment(home: Path) -> dict[str, str]:
    """The environment of every process of Flower's: all it writes in one folder, and nobody called outside."""
    private_directory(home)
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
