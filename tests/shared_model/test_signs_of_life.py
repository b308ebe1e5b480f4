"""A process without a sign of life is ended and started again, however it is stuck; one that works for long is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared_model import signs_of_life, supervision
from shared_model.signs_of_life import LIMIT, START_LIMIT, Signs, tell, touched
from shared_model.supervision import Kept, ended_together
from tests.sim.consortium import ROOT

TOUCHES = "import pathlib, sys, time\nwhile True:\n pathlib.Path(sys.argv[1]).touch()\n time.sleep(0.02)\n"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(signs_of_life, "time", found)
    return found


def silence(signs: Signs, clock: Clock, step: float, most: float = 1000.0) -> float:
    """Seconds of the clock until signs are missing."""
    began = clock.now
    while signs.missing() is None and clock.now - began < most:
        clock.now += step
    return clock.now - began


def test_a_process_has_longer_for_its_first_sign_than_for_the_next(clock: Clock) -> None:
    alive = True
    signs = Signs("test", lambda: alive)
    alive = False
    signs.begin()
    assert silence(signs, clock, 5.0) == START_LIMIT
    signs.begin()
    alive = True
    clock.now += 5.0
    assert signs.missing() is None
    alive = False
    assert silence(signs, clock, 5.0) == LIMIT
    alive = True
    assert silence(signs, clock, 5.0) == 1000.0


def test_seconds_in_which_nobody_looked_do_not_count(clock: Clock) -> None:
    """Whoever looks was stopped himself, or the machine was asleep."""
    signs = Signs("test", lambda: False)
    signs.begin()
    clock.now += 3600.0
    assert signs.missing() is None


def test_silence_that_is_another_ones_fault_begins_anew(clock: Clock) -> None:
    is_down = True
    signs = Signs("test", lambda: False, excused=lambda: is_down)
    signs.begin()
    assert silence(signs, clock, 5.0) == 1000.0
    is_down = False
    assert silence(signs, clock, 5.0) <= START_LIMIT


def test_only_an_answer_that_says_yes_touches_the_file(tmp_path: Path) -> None:
    class Client:
        def ask(self, request: object) -> object:
            if isinstance(request, Exception):
                raise request
            return request

    class No:
        success = False

    path = tmp_path / "sign"
    tell(Client, "ask", path)
    seen = touched(path)
    with pytest.raises(ValueError, match="lost"):
        Client().ask(ValueError("lost"))
    Client().ask(No())
    assert not seen() and not path.exists()
    assert Client().ask(7) == 7
    assert seen() and not seen()
    tell(Client, "ask", tmp_path / "no such folder" / "sign")
    assert Client().ask(8) == 8, "what can't be told costs nothing else"


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs_of_life, "LIMIT", 0.5)
    monkeypatch.setattr(signs_of_life, "_EVERY", 0.05)


def test_a_stopped_process_is_killed_and_started_again_and_is_told_so(tmp_path: Path, impatient: None) -> None:
    sign = tmp_path / "sign"
    signs = [Signs("no touch", touched(sign))]
    kept = Kept(
        "test", [sys.executable, "-S", "-c", TOUCHES, str(sign)], os.environ, tmp_path / "log", delay=0.0, signs=signs
    )
    with ended_together([kept]):
        kept.keep()
        _until(sign.exists)
        for _ in range(20):  # it is at work: nothing ends it
            assert kept.keep() is None
            time.sleep(0.05)
        first = kept.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        _until(lambda: kept.keep() is not None)
        assert kept.last_end == "showed no sign of life for 0.5 s (no touch) and was killed"
        assert kept.starts == 2 and kept.pid != first
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


CHILD = "import subprocess as s, sys, time; print(s.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"


@pytest.mark.parametrize("stay", [False, True])
def test_children_end_with_a_process_or_with_the_whole_as_it_is_said(tmp_path: Path, stay: bool) -> None:
    kept = Kept(
        "test", [sys.executable, "-S", "-c", CHILD], os.environ, tmp_path / "log", delay=0.0, children_stay=stay
    )

    def children() -> list[int]:
        return [int(line) for line in kept.log.read_text().split()] if kept.log.exists() else []

    with ended_together([kept]):
        kept.keep()
        _until(lambda: len(children()) == 1)
        assert kept.pid is not None
        os.kill(kept.pid, signal.SIGKILL)
        _until(lambda: kept.keep() is not None)
        _until(lambda: len(children()) == 2)
        assert stay or not _lives(children()[0])
        assert not stay or _lives(children()[0])
        kept.restart()
        _until(lambda: not any(map(_lives, children())))
        kept.keep()
        _until(lambda: len(children()) == 3)
    _until(lambda: not any(map(_lives, children())))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.mark.parametrize(
    ("end", "status", "words"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('told')", 1, "told"),
        ("raise ValueError('broken')", 1, "ValueError: broken"),
        ("threading.Thread(target=lambda: 1 / 0).start(); time.sleep(600)", 1, "ZeroDivisionError"),
    ],
)
def test_a_program_ends_with_its_main_thread_or_any_other_that_fails(end: str, status: int, words: str) -> None:
    """As Flower's SuperNode did not: a thread that serves stays behind."""
    code = f"""
import sys, threading, time
from shared_model.signs_of_life import run_alone
def main():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {end}
run_alone(main)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert found.returncode == status
    assert words in found.stderr


def test_the_last_words_are_those_since_the_last_start(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("401 of a life before\n")
    kept = Kept("test", [sys.executable, "-S", "-c", "print('new')"], os.environ, tmp_path / "log")
    with ended_together([kept]):
        kept.keep()
        _until(lambda: kept.keep() == 0)
    assert kept.last_words(lambda line: line) == "new"
    assert kept.last_words(lambda line: line if "401" in line else None) is None
    assert supervision._LAST_WORDS > 4096
