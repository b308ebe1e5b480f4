"""What tests of the command's mistakes have in common."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.cli import run as tempt
from tests.sim.consortium import tree

Capture = pytest.CaptureFixture[str]


def mistake(capsys: Capture, arguments: list[str]) -> str:
    """The one line of error of a command that is to fail as the user's mistake."""
    capsys.readouterr()
    status = tempt(arguments)
    captured = capsys.readouterr()
    said = re.compile(r"preparing |making |\d+ of \d+ fits were done before|\[\d+/\d+\] ")
    lines = [line for line in captured.err.splitlines() if not said.match(line)]
    assert status == 2, (status, captured)
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    assert captured.out == ""
    return lines[0]


@contextlib.contextmanager
def unchanged(*places: Path) -> Iterator[None]:
    before = [tree(place) for place in places]
    yield
    assert [tree(place) for place in places] == before
