"""What a federation tells its operator while it is at work: lines, each hospital's part, and how it ended."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from shared_model.errors import printable
from shared_model.file_forms import Count, Form, Id, Integer, Node, read_form
from shared_model.files import write_json

log = logging.getLogger("tempt.server")
STATUS = "status.json"
_LINES = 200


class _Ended(Form):
    status: Integer
    error: str


class _Part(Form):
    node: Node | str | None = None
    records: Count = 0
    last_round: Count = 0
    missed: Count = 0
    rejected: list[str] = Field(default_factory=list)


class _Status(Form):
    """What a server tells of a run."""

    lines_before: Count
    lines: list[str]
    hospitals: dict[Id, _Part]
    ended: _Ended | None


def read_status(path: Path) -> dict[str, Any]:
    """What `StatusFile` has written last.

    Raises:
        TemptError: the file is damaged.
    """
    return read_form(path, _Status, "delete it; the run writes it anew")


class StatusFile:
    """A file that is written anew with every change.

    Args:
        path: None writes none; lines go to the log all the same.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._content: dict[str, Any] = {"lines_before": 0, "lines": [], "hospitals": {}, "ended": None}

    def say(self, line: str) -> None:
        """Tell the operator something, such as how long a wait may take before it begins."""
        log.info("%s", printable(line))
        self._content["lines"].append(line)
        if len(self._content["lines"]) > _LINES:
            del self._content["lines"][0]
            self._content["lines_before"] += 1
        self._write()

    def hospitals(self, parts: Mapping[int, Mapping[str, Any]]) -> None:
        """Tell each hospital's part: node, records, last round taken, replies missed and rejected."""
        self._content["hospitals"] = {str(hospital): dict(part) for hospital, part in parts.items()}
        self._write()

    def ended(self, status: int, error: str = "") -> None:
        """Tell the exit status of the run, and why if it is not 0."""
        self._content["ended"] = {"status": status, "error": error}
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            write_json(self._path, self._content, durable=False)
