"""Runs that are killed, interrupted or find the disk full: the same bits once resumed, and nobody left behind."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sim.cli import run as tempt
from tests.sim.consortium import assert_same, assigned, command, environment, fingerprint, tree

# Runs of some seconds, so that there is time to kill them
LONGER = {"pretraining.epochs": "8", "tuning.epochs": "10", "training.epochs": "8", "tuning.batch_size": "4"}
FEDERATED = ["--strategy", "fedadam", "--strategy-option", "eta=0.001", "--local-optimizer", "keep"]


def arguments(data: Path, out: Path, *more: str, mode: str = "centralized", jobs: int = 1, **sets: str) -> list[str]:
    """Every model of a mode, over two seeds; a federated run also with state at the server and at hospitals."""
    fixed = ["--seeds", "42,43", "--save-scores", "--jobs", str(jobs), *(FEDERATED if mode == "federated" else [])]
    return ["simulate", mode, "--data", str(data), "--out", str(out), *fixed, *assigned(sets), *more]


def bits(run: Path) -> dict[str, Any]:
    """A fingerprint but for ledgers, which tell of answers that were given twice, and state of the last answer."""
    return {name: value for name, value in fingerprint(run).items() if not name.startswith(("egress/", "kept/"))}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------ killed and ended


class Run:
    """The command as a process in a session of its own, as a terminal starts it."""

    def __init__(self, arguments: list[str], eager: Path | None = None) -> None:
        paths = [str(eager)] if eager is not None else []
        self.process = subprocess.Popen(
            command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment() | {"PYTHONPATH": os.pathsep.join([*paths, environment()["PYTHONPATH"]])},
            start_new_session=True,
            # a shell starts what runs in the background deaf to Ctrl-C, and that is inherited
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def members(self) -> list[int]:
        """The processes of the session that are alive."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                found.append(int(path.parent.name))
        return found

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Whether it came true while the process ran."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if condition():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.005)
        raise AssertionError("waited for two minutes")

    def end(self, how: Callable[[], None], seconds: float) -> tuple[int, str]:
        """End it; its status and standard error, once nobody of it is left."""
        began = time.monotonic()
        how()
        _, error = self.process.communicate(timeout=60)
        while self.members():
            assert time.monotonic() - began < seconds, f"{len(self.members())} processes are left"
            time.sleep(0.01)
        assert time.monotonic() - began < seconds
        return self.process.returncode, error


def lines_of(out: Path) -> int:
    try:
        return (out / "history.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


@pytest.fixture(scope="module")
def longer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What runs of each mode end in that nothing disturbs."""
    folder = tmp_path_factory.mktemp("longer")
    for mode in ("centralized", "federated"):
        assert tempt(arguments(data, folder / mode, mode=mode, **LONGER)) == 0
    return {run.name: bits(run) for run in folder.iterdir()}


@pytest.fixture
def eager(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path of every process, workers too: fits keep their state each epoch, not after 20 seconds."""
    folder = tmp_path_factory.mktemp("eager")
    (folder / "sitecustomize.py").write_text("import shared_model.training as t\nt._CHECKPOINT_SECONDS = 0.0\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["centralized", "federated"])
@pytest.mark.parametrize(("jobs", "kills"), [(1, 5), (2, 4)])
def test_run_that_is_killed_again_and_again_ends_in_the_same_bits(
    data: Path, tmp_path: Path, longer: dict[str, dict[str, Any]], eager: Path, mode: str, jobs: int, kills: int
) -> None:
    out = tmp_path / "run"
    gone_on_with = 0
    chance = random.Random(f"{jobs} {kills}")
    for kill in range(kills):
        resume = ["--resume"] if (out / "config.json").exists() else []
        running = Run(arguments(data, out, *resume, mode=mode, jobs=jobs, **LONGER), eager)
        # a moment between the start (before there is a run at all) and a good part of what is left
        begun = lines_of(out)
        moment = 0 if kill == 0 else begun + chance.randrange(1, 60 if mode == "centralized" else 6)
        came = running.wait_for(lambda moment=moment: lines_of(out) >= moment)  # type: ignore[misc]
        time.sleep(chance.random() * (1.5 if kill == 0 else 0.1))
        status, _ = running.end(running.process.kill, 15)
        assert status == -9 or not came
        gone_on_with += len(list(out.rglob("*.partial.safetensors")))
    if not (out / "config.json").exists():
        assert tree(tmp_path) == {}
    resume = ["--resume"] if (out / "config.json").exists() else []
    running = Run(arguments(data, out, *resume, mode=mode, jobs=jobs, **LONGER), eager)
    stdout, error = running.process.communicate(timeout=300)
    assert running.process.returncode == 0, error
    assert "TEMPT" in stdout
    assert_same(bits(out), longer[mode])
    assert gone_on_with, "no fit was ever killed halfway"
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == []


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "jobs"), [("centralized", 1), ("centralized", 2), ("federated", 2)])
@pytest.mark.parametrize(
    ("number", "status", "words"),
    [(signal.SIGINT, 130, "interrupted; "), (signal.SIGTERM, 143, "ended by SIGTERM; ")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_run_that_is_interrupted_ends_soon_with_its_status_and_without_workers(
    data: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    mode: str,
    jobs: int,
    number: int,
    status: int,
    words: str,
) -> None:
    out = tmp_path / "run"
    running = Run(arguments(data, out, mode=mode, jobs=jobs, **LONGER))
    assert running.wait_for(lambda: lines_of(out) >= 7)

    def send() -> None:
        if number == signal.SIGINT:  # a terminal sends it to everybody
            os.killpg(running.process.pid, number)
        else:
            running.process.send_signal(number)

    found, error = running.end(send, 10)
    assert found == status, error
    *progress, last = error.splitlines()
    assert last.startswith(words) and "--resume" in last
    assert all(line.startswith("[") for line in progress), error
    if number == signal.SIGTERM:
        assert tempt(arguments(data, out, "--resume", mode=mode, jobs=1, **LONGER)) == 0
        assert_same(bits(out), request.getfixturevalue("longer")[mode])


@pytest.mark.slow
def test_ctrl_c_while_workers_start_is_one_line(data: Path, tmp_path: Path) -> None:
    """A worker takes some seconds to import torch; the terminal's signal reaches it then, too."""
    running = Run(arguments(data, tmp_path / "run", jobs=2, **LONGER))

    def is_starting() -> bool:
        for pid in running.members():
            try:
                if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
                    return True
            except OSError:
                continue
        return False

    assert running.wait_for(is_starting)
    time.sleep(0.3)
    status, error = running.end(lambda: os.killpg(running.process.pid, signal.SIGINT), 10)
    assert status == 130, error
    (line,) = [line for line in error.splitlines() if not line.startswith("[")]
    again = line.removeprefix("interrupted; what is finished is kept, go on with: ")
    assert shlex.split(again) == [*running.process.args, "--resume"], "as it was called"


@pytest.mark.slow
def test_worker_that_is_killed_ends_the_run_with_one_line(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    running = Run(arguments(data, out, jobs=2, **LONGER))
    assert running.wait_for(lambda: lines_of(out) >= 30)
    workers = [pid for pid in running.members() if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    status, error = running.end(lambda: os.kill(workers[0], signal.SIGKILL), 20)
    assert status == 2, error
    (line,) = [line for line in error.splitlines() if not line.startswith("[")]
    assert line.startswith("error: a worker process")


# ------------------------------------------------------------------------------------------------ a full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes the folder `disk` a file system of a given size, or gives it another size."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def of(size: str) -> Path:
        nonlocal mounted
        how = ["-o", f"remount,size={size}"] if mounted else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        done = subprocess.run(["mount", *how, str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted = True
        return place

    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root and `mount`")
    yield of
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


SIZES_OF_A_DISK = {
    "centralized": [("8k", 1), ("28k", 1), ("52k", 1), ("64k", 2), ("92k", 1), ("120k", 1), ("136k", 2)],
    "federated": [("8k", 1), ("28k", 1), ("52k", 1), ("64k", 2), ("92k", 1), ("120k", 1), ("136k", 2)],
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["centralized", "federated"])
def test_run_on_a_full_disk_is_one_line_and_can_go_on(
    data: Path, disk: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    """Full while the directory is made, at a checkpoint, a ledger, the history, the scores; here and in a worker."""

    def run(out: Path, *more: str, jobs: int = 1) -> int:
        models = ["--models", "hospital-frequency,tempt" if mode == "centralized" else "tempt"]
        return tempt(arguments(data, out, *models, *more, mode=mode, jobs=jobs, **{"tuning.epochs": "2"}))

    assert run(tmp_path / "reference") == 0
    for size, jobs in SIZES_OF_A_DISK[mode]:
        place = disk(size)
        out = place / "run"
        capsys.readouterr()
        status = run(out, jobs=jobs)
        error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
        assert status == 2, (size, error)
        assert len(error) == 1 and error[0].startswith("error: ") and "No space left" in error[0], (size, error)
        assert error[0].startswith(f"error: {place}"), (size, error)
        assert out.exists() or tree(place) == {}
        disk("64m")
        assert run(out, *(["--resume"] if out.exists() else [])) == 0
        assert_same(bits(out), bits(tmp_path / "reference"))
        shutil.rmtree(out)
