"""Whole runs: the same bits with any number of jobs and after any number of kills; an end leaves nobody behind."""

from __future__ import annotations

import os
import random
import re
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

from shared_model import checkpoint
from shared_model.files import read_json
from sim.cli import run as tempt
from sim.methods import method_names
from tests.sim import consortium
from tests.sim.consortium import assert_same, assigned, command, environment, fingerprint, tree

MODELS = ",".join(method_names())
# A run of some seconds, so that there is time to kill it
LONGER = {"pretraining.epochs": "8", "tuning.epochs": "10", "training.epochs": "8", "tuning.batch_size": "4"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consortium.write_dataset(tmp_path_factory.mktemp("data") / "dataset", consortium.make_dataset())


def arguments(data: Path, out: Path, *more: str, jobs: int = 1, models: str = MODELS, **sets: str) -> list[str]:
    chosen = assigned({name.replace("__", "."): value for name, value in sets.items()})
    fixed = ["--models", models, "--seeds", "42,43", "--save-scores", "--jobs", str(jobs)]
    return ["simulate", "centralized", "--data", str(data), "--out", str(out), *fixed, *chosen, *more]


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every method that nothing disturbed, in one process."""
    out = tmp_path_factory.mktemp("reference") / "run"
    assert tempt(arguments(data, out)) == 0
    return out


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------ results


def test_run_when_done_holds_what_the_design_lists(reference: Path) -> None:
    results = read_json(reference / "results.json")
    assert list(results["models"]) == method_names()
    assert results["mode"] == "centralized" and results["format"] == 1
    assert results["dataset"]["records"] == sum(consortium.SIZES.values())
    assert set(results["dataset"]["split_digests"]) == {"42", "43"}
    for name, of in results["models"].items():
        assert list(of["seeds"]) == ["42", "43"]
        for seed in of["seeds"].values():
            assert list(seed["hospitals"]) == [str(hospital) for hospital in consortium.SIZES]
            counted = [own["prauc"] for own in seed["hospitals"].values()]
            assert seed["hospital_mean"]["prauc"] == pytest.approx(sum(counted) / len(counted))
        assert ("paired_t_test_of_tempt" in of) == (name != "tempt")
    tuned = results["models"]["tempt"]["seeds"]["42"]
    assert tuned["last_epoch_for_want_of_validation_records"] == [consortium.WITHOUT_VALIDATION]
    assert reference.stat().st_mode & 0o777 == 0o700
    assert list(reference.rglob("*.partial.safetensors")) == list(reference.rglob(".writing-*")) == []


def test_run_with_two_jobs_gives_the_same_bits_as_with_one(data: Path, reference: Path, tmp_path: Path) -> None:
    assert tempt(arguments(data, tmp_path / "run", jobs=2)) == 0
    assert_same(fingerprint(tmp_path / "run"), fingerprint(reference))


def test_seeds_and_hospitals_alone_give_the_same_bits_as_in_company(
    data: Path, reference: Path, tmp_path: Path
) -> None:
    """A seed is a run of its own; a hospital's own network is the same whoever else takes part."""
    alone = [part if part != "42,43" else "43" for part in arguments(data, tmp_path / "run", models="tempt")]
    assert tempt(alone) == 0
    own = arguments(data, tmp_path / "own", "--hospitals", "8,21", models="single-train")
    assert tempt(own) == 0
    both = fingerprint(reference)
    for run in ("run", "own"):
        found = {k: v for k, v in fingerprint(tmp_path / run).items() if k.startswith(("checkpoints", "scores"))}
        assert found and [name for name in found if both[name] != found[name]] == []


# ------------------------------------------------------------------------------------------------ selection=common


@pytest.fixture(scope="module")
def common(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("common") / "run"
    models = "frequency,finetune-freeze,tempt"
    assert tempt(arguments(data, out, models=models, tuning__selection="common", tuning__epochs="6")) == 0
    return out


@pytest.mark.parametrize("model", ["tempt", "finetune-freeze"])
@pytest.mark.parametrize("seed", [42, 43])
def test_common_selection_fits_every_hospital_for_the_epoch_of_the_best_mean(
    common: Path, model: str, seed: int
) -> None:
    folder = common / "checkpoints" / f"seed-{seed}" / model
    trials = {h: [row["score"] for row in read_json(folder / f"{h}.trial.json")["history"]] for h in consortium.SIZES}
    assert trials.pop(consortium.WITHOUT_VALIDATION) == [None] * 6
    means = [sum(scores[epoch] for scores in trials.values()) / len(trials) for epoch in range(6)]
    best = means.index(max(means)) + 1
    for hospital in consortium.SIZES:
        result = read_json(folder / f"{hospital}.json")
        assert result["best_epoch"] == len(result["history"]) == best
        assert checkpoint.load(folder / f"{hospital}.safetensors")[1]["best_epoch"] == best


def test_common_selection_when_resumed_changes_no_bit(data: Path, common: Path, tmp_path: Path) -> None:
    """After its end, and after tuned hospitals were done but one."""
    expected = fingerprint(common)
    models = "frequency,finetune-freeze,tempt"
    for lost in ([], ["tempt/8.json"], ["tempt/21.json", "tempt/8.trial.json"]):
        run = tmp_path / f"run-{len(lost)}"
        shutil.copytree(common, run)
        for name in lost:
            (run / "checkpoints" / "seed-42" / name).unlink()
        more = {"tuning__selection": "common", "tuning__epochs": "6"}
        assert tempt(arguments(data, run, "--resume", models=models, **more)) == 0
        assert_same(fingerprint(run), expected)


def test_common_selection_when_resumed_fits_nothing_again(data: Path, common: Path, tmp_path: Path) -> None:
    shutil.copytree(common, tmp_path / "run")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*.*")}
    models = "frequency,finetune-freeze,tempt"
    more = {"tuning__selection": "common", "tuning__epochs": "6"}
    assert tempt(arguments(data, tmp_path / "run", "--resume", models=models, **more)) == 0
    assert [path.name for path, time in times.items() if path.stat().st_mtime_ns != time] == []


def test_common_selection_never_reports_more_fits_than_there_are(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sim.display._LINE_SECONDS", 0.0)
    more = {"tuning__selection": "common", "tuning__epochs": "2"}
    assert tempt(arguments(data, tmp_path / "run", models="tempt", **more)) == 0
    counts = [tuple(map(int, pair)) for pair in re.findall(r"^\[(\d+)/(\d+)\]", capsys.readouterr().err, re.M)]
    assert counts[-1][0] == counts[-1][1]
    assert all(done <= total for done, total in counts)


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
def longer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("longer") / "run"
    assert tempt(arguments(data, out, **LONGER)) == 0
    return fingerprint(out)


@pytest.fixture
def eager(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path of every process, workers too: fits keep their state each epoch, not after 20 seconds."""
    folder = tmp_path_factory.mktemp("eager")
    (folder / "sitecustomize.py").write_text("import shared_model.training as t\nt._CHECKPOINT_SECONDS = 0.0\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "kills"), [(1, 5), (2, 4)])
def test_run_that_is_killed_again_and_again_ends_in_the_same_bits(
    data: Path, tmp_path: Path, longer: dict[str, Any], eager: Path, jobs: int, kills: int
) -> None:
    out = tmp_path / "run"
    gone_on_with = 0
    chance = random.Random(f"{jobs} {kills}")
    for kill in range(kills):
        resume = ["--resume"] if (out / "config.json").exists() else []
        running = Run(arguments(data, out, *resume, jobs=jobs, **LONGER), eager)
        # a moment between the start (before there is a run at all) and a good part of what is left
        begun = lines_of(out)
        moment = 0 if kill == 0 else begun + chance.randrange(1, 60)
        came = running.wait_for(lambda moment=moment: lines_of(out) >= moment)  # type: ignore[misc]
        time.sleep(chance.random() * (1.5 if kill == 0 else 0.1))
        status, _ = running.end(running.process.kill, 15)
        assert status == -9 or not came
        gone_on_with += len(list(out.rglob("*.partial.safetensors")))
    if not (out / "config.json").exists():
        assert tree(tmp_path) == {}
    resume = ["--resume"] if (out / "config.json").exists() else []
    running = Run(arguments(data, out, *resume, jobs=jobs, **LONGER), eager)
    stdout, error = running.process.communicate(timeout=300)
    assert running.process.returncode == 0, error
    assert "TEMPT" in stdout
    assert_same(fingerprint(out), longer)
    assert gone_on_with, "no fit was ever killed halfway"
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == []


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("number", "status", "words"),
    [(signal.SIGINT, 130, "interrupted; "), (signal.SIGTERM, 143, "ended by SIGTERM; ")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_run_that_is_interrupted_ends_soon_with_its_status_and_without_workers(
    data: Path, tmp_path: Path, request: pytest.FixtureRequest, jobs: int, number: int, status: int, words: str
) -> None:
    out = tmp_path / "run"
    running = Run(arguments(data, out, jobs=jobs, **LONGER))
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
        assert tempt(arguments(data, out, "--resume", jobs=1, **LONGER)) == 0
        assert_same(fingerprint(out), request.getfixturevalue("longer"))


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
    assert shlex.split(again) == ["tempt", *running.process.args[3:], "--resume"]


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


@pytest.mark.slow
def test_run_on_a_full_disk_is_one_line_and_can_go_on(
    data: Path, disk: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full while the directory is made, at a checkpoint, at the history, at the scores; here and in a worker."""
    few = {"models": "tempt,hospital-frequency", "tuning__epochs": "2"}
    assert tempt(arguments(data, tmp_path / "reference", **few)) == 0
    expected = fingerprint(tmp_path / "reference")
    for size, jobs in (("8k", 1), ("28k", 1), ("52k", 1), ("64k", 2), ("92k", 1), ("120k", 1), ("136k", 2)):
        place = disk(size)
        out = place / "run"
        capsys.readouterr()
        status = tempt(arguments(data, out, jobs=jobs, **few))
        error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
        assert status == 2, (size, error)
        assert len(error) == 1 and error[0].startswith("error: ") and "No space left" in error[0], (size, error)
        assert out.exists() or tree(place) == {}
        disk("64m")
        assert tempt(arguments(data, out, *(["--resume"] if out.exists() else []), **few)) == 0
        assert_same(fingerprint(out), expected)
        shutil.rmtree(out)
