"""What a long run shows: a progress bar on a terminal, plain lines elsewhere, both on standard error."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from shared_model.errors import printable
from shared_model.lines import say
from sim.listener import Listener

_LINE_SECONDS = 5.0


class Display(Listener):
    """Progress over the fits of a run."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = self._done = 0
        self._spoke = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            with suppress(OSError):  # a terminal that is gone
                self._bar.console.print(printable(line), highlight=False, markup=False)
        else:
            say(line)

    def begin(self, total: int, done: int) -> None:
        """Start to count fits."""
        self._total, self._done = total, done
        if done:
            self.say(f"{done} of {total} fits were done before")
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=total, completed=done)
            self._bar.start()

    def epoch(self, label: str, row: Mapping[str, Any]) -> None:
        """An epoch of a fit ended."""
        score = "" if row["score"] is None else f", validation {row['score']:.4f}"
        self._show(f"{label}: epoch {row['epoch']}, loss {row['loss']:.4f}{score}")

    def advance(self, label: str) -> None:
        """A fit is done."""
        self._done += 1
        if self._bar is not None and self._task is not None:
            with suppress(OSError):
                self._bar.advance(self._task)
        self._show(f"{label}: done")

    def _show(self, text: str) -> None:
        text = printable(text)
        if self._bar is not None and self._task is not None:
            with suppress(OSError):
                self._bar.update(self._task, description=text)
        elif time.monotonic() - self._spoke >= _LINE_SECONDS or self._done == self._total:
            self._spoke = time.monotonic()
            say(f"[{self._done}/{self._total}] {text}")
