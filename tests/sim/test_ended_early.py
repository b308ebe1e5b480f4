"""Ctrl-C and SIGTERM at any moment: one line and the status; a traceback at none, and silence only before our code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared_model.supervision import free_port
from sim.cli import run as tempt
from tests.sim.command import Capture
from tests.sim.consortium import command, environment

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def hears(process: subprocess.Popen[str], number: int) -> bool:
    """Whether the process has a handler of its own for a signal."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> number - 1 & 1)


def started(words: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(),
        # what a shell starts in the background is deaf to Ctrl-C, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["--help"], 0),
        (["simulate", "centralized", "--preset", "papper"], 2),
        (["synth", "raw", "--hospitals", "3", "--records", "150"], 0),
    ],
    ids=["help", "a mistake", "a verb"],
)
def test_command_that_is_ended_at_any_moment_says_so_in_one_line(tmp_path: Path, words: list[str], own: int) -> None:
    """Imports take most of a second, in which Ctrl-C was a traceback and SIGTERM nothing said."""
    began = time.monotonic()
    (tmp_path / "whole").mkdir()
    whole = started(words, tmp_path / "whole")
    whole.communicate(timeout=60)
    seconds = time.monotonic() - began
    assert whole.returncode == own
    statuses = []
    for step in range(20):
        folder = tmp_path / str(step)
        folder.mkdir()
        process = started(words, folder)
        while not hears(process, signal.SIGTERM):
            assert process.poll() is None
            time.sleep(0.001)
        number = [signal.SIGINT, signal.SIGTERM][step % 2]
        time.sleep(step / 18 * min(seconds, 1.5))
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        statuses.append(process.returncode)
        assert "Traceback" not in error and process.returncode in (STATUS[number], own), (step, statuses, error)
        if process.returncode == own:  # it had told its end
            assert error.count("\n") == (1 if own else 0), error
            continue
        (line,) = error.splitlines()
        assert line.startswith("interrupted; " if number == signal.SIGINT else "ended by SIGTERM; "), error
        left = [path.name for path in folder.iterdir()]
        assert left == (["raw"] if line.endswith("; what it makes was written whole") else []), line
    assert set(statuses) - {own}, "some came before its end, else this tests nothing"


def test_command_hears_signals_before_it_imports_anything_large() -> None:
    """What it imports before can't be interrupted in words."""
    before = "import sys; known = set(sys.modules); import sim.cli; print(*sorted(set(sys.modules) - known))"
    done = subprocess.run([sys.executable, "-c", before], capture_output=True, text=True, env=environment(), check=True)
    found = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert found == {"sim", "sim.cli", "sim.ending"}


def test_command_that_was_started_deaf_to_ctrl_c_stays_so(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("--help"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def interrupts(*arguments: object, **more: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("sim.centralized.check_settings", "interrupted; nothing was written"),
        ("sim.runs.write_vocabulary", "interrupted; nothing was written"),
        ("sim.centralized.simulate", "interrupted; what is finished is kept, go on with: tempt simulate centralized "),
    ],
)
def test_run_that_was_not_begun_is_not_said_to_be_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, where: str, words: str
) -> None:
    """It named a command with --resume that was refused, as there was no run."""
    asked = ["simulate", "centralized", "--data", str(data), "--out", str(tmp_path / "run"), "--models", "frequency"]
    with monkeypatch.context() as patch:
        patch.setattr(where, interrupts)
        assert tempt(asked) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(words)
    assert (tmp_path / "run").exists() == ("kept" in line)
    again = ["--resume"] if "kept" in line else []
    assert tempt([*asked, *again]) == 0


def test_server_and_hospital_that_began_nothing_say_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    launch = ["server", "launch", "--insecure", "--vocabulary", str(data), "--out", str(tmp_path / "run")]
    launch += ["--hospitals", "1", "--port", str(free_port())]
    hospital = ["hospital", "launch", "--insecure", "--superlink", "127.0.0.1:9", "--partition", str(data)]
    hospital += ["--hospital-id", "8", "--state", str(tmp_path / "state")]
    for asked, before, after in (
        (launch, "server.launch.check_own", "server.launch._launch"),
        (hospital, "hospital_client.launch.read_policy", "hospital_client.launch.keep_policy"),
    ):
        for where, words in (
            (before, "interrupted; nothing was written"),
            (after, "interrupted; what is finished is kept, the same command goes on"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(where, interrupts)
                assert tempt(asked) == 130
            assert capsys.readouterr().err.splitlines()[-1] == words
            assert ([*tmp_path.iterdir()] == []) or where != "server.launch.check_own"


DURING_AN_IMPORT = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "sim.synthetic_raw":
            for _ in range(3):
                os.kill(os.getpid(), {number})
            os.write(1, b"imported on")
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_exception_in_an_import_aborted_in_torchs_own_code(tmp_path: Path, number: signal.Signals) -> None:
    """It is raised when the import is over: what it would have passed through may be C++."""
    (tmp_path / "sitecustomize.py").write_text(DURING_AN_IMPORT.format(number=int(number)))
    own = environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"}
    words = command("synth", tmp_path / "raw", "--hospitals", "40", "--records", "40000")
    done = subprocess.run(words, capture_output=True, text=True, env=own, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (STATUS[number], "imported on"), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.endswith("nothing was written") and not (tmp_path / "raw").exists()
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"sitecustomize.py"}
