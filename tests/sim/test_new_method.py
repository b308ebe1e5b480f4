"""One new file and nothing else: methods that nobody edits anything for, through contract, commands and table.

`tests/sim/new_methods` is put on the packages' paths: a baseline of all hospitals, one of each, and an adaptation with
buffers and a parameter that never has a gradient. Each has a digit in its name.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import shared_model.adaptation
import sim.baselines
import sim.methods
from shared_model import checkpoint, training
from shared_model.errors import TemptError
from shared_model.files import read_json
from sim.centralized import History
from sim.cli import run as tempt
from tests.sim import consortium, test_methods_contract
from tests.sim.command import mistake
from tests.sim.consortium import assert_same, assigned, command, environment, fingerprint

FOLDER = Path(__file__).parent / "new_methods"
NEW = ("bag-3", "rule-2", "shift-4")
CONTRACT = [
    function
    for name, function in vars(test_methods_contract).items()
    if name.startswith("test_") and "name" in inspect.signature(function).parameters
]
PUT_THERE = f"""
import shared_model.adaptation, sim.baselines
sim.baselines.__path__.append({str(FOLDER / "baselines")!r})
shared_model.adaptation.__path__.append({str(FOLDER / "adaptation")!r})
"""


def _forget() -> None:
    shared_model.adaptation.adaptations.cache_clear()
    sim.methods._baselines.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def _put_there() -> Iterator[None]:
    sim.baselines.__path__.append(str(FOLDER / "baselines"))
    shared_model.adaptation.__path__.append(str(FOLDER / "adaptation"))
    _forget()
    yield
    sim.baselines.__path__.remove(str(FOLDER / "baselines"))
    shared_model.adaptation.__path__.remove(str(FOLDER / "adaptation"))
    _forget()
    for name in NEW:
        for package in ("sim.baselines", "shared_model.adaptation"):
            sys.modules.pop(f"{package}.{name.replace('-', '_')}", None)


def arguments(mode: str, data: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--data", str(data), "--out", str(out), "--seeds", "42", "--jobs", "1"]
    return ["simulate", mode, *fixed, *assigned(), *more]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("new") / "run"
    assert tempt(arguments("centralized", data, out, "--models", ",".join(NEW))) == 0
    return out


def rows(printed: str) -> list[str]:
    """The titles of a printed table."""
    body = printed.split("-" * 79)[1]
    return [line[:24].strip() for line in body.splitlines() if line.strip() and "±" not in line]


@pytest.mark.parametrize("function", CONTRACT, ids=lambda function: function.__name__)
@pytest.mark.parametrize("name", NEW)
def test_new_method_meets_the_contract(name: str, function: Any, tmp_path: Path) -> None:
    takes = {"name": name, "tmp_path": tmp_path}
    function(**{parameter: takes[parameter] for parameter in inspect.signature(function).parameters})


def test_new_methods_come_after_the_papers_and_a_papers_row_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ["frequency", "hospital-frequency", "full-train", "single-train", "finetune-freeze", "finetune", "tempt"]
    assert sim.methods.method_names() == [*known, *NEW]
    for name in ("star", "gpt_4", "a_first", "_shared", "p_tuning_1", "tempt_de"):  # of which one is no method
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(sim.baselines, "__path__", [*sim.baselines.__path__, str(tmp_path)])
    _forget()
    expected = [*known[:2], "gpt-4", "star", *known[2:], "tempt-de", "p-tuning-1", "a-first", *NEW]
    try:
        assert sim.methods.method_names() == expected
    finally:
        monkeypatch.undo()
        _forget()


def test_rows_follow_the_order_of_models(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    order = ["shift-4", "rule-2", "frequency", "bag-3"]
    titles = [sim.methods.method(name).TITLE for name in order]
    assert tempt(arguments("centralized", data, out, "--models", ",".join(order))) == 0
    assert rows(capsys.readouterr().out) == titles
    assert list(read_json(out / "results.json")["models"]) == order
    # another order is no other run
    assert tempt(arguments("centralized", data, out, "--resume", "--models", ",".join(order[::-1]))) == 0
    assert rows(capsys.readouterr().out) == titles[::-1]


def test_recommend_answers_from_each_new_method(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = consortium.VOCABULARY
    patient = ["--hospital", "8", "--diagnosis", vocabulary.diagnoses[3], "--procedure", vocabulary.procedures[4]]
    for name in NEW:
        assert tempt(["recommend", str(run), "--model", name, *patient, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert len(answer) == consortium.MEDICATIONS and all(0 <= of["probability"] <= 1 for of in answer)


def test_kept_tensors_of_a_method_with_buffers_are_those_of_training(run: Path) -> None:
    tensors, _ = checkpoint.load(run / "checkpoints" / "seed-42" / "shift-4" / "8.safetensors")
    best = read_json(run / "checkpoints" / "seed-42" / "shift-4" / "8.json")["best_epoch"]
    assert int(tensors["batches"]) == 3 * best  # 23 training records in batches of 8
    assert bool(tensors["mean"].any())
    assert not tensors["scale"].equal(torch.ones_like(tensors["scale"]))


@pytest.mark.parametrize("after", [3, 9, 21])
def test_interrupted_run_of_new_methods_goes_on_to_the_same_bits(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out, lines = tmp_path / "run", 0
    append = History.append
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)

    def interrupt(self: History, unit: Any, row: Any) -> None:
        nonlocal lines
        lines += 1
        if lines == after:
            raise KeyboardInterrupt
        append(self, unit, row)

    monkeypatch.setattr(History, "append", interrupt)
    assert tempt(arguments("centralized", data, out, "--models", ",".join(NEW))) == 130
    assert tempt(arguments("centralized", data, out, "--models", ",".join(NEW), "--resume")) == 0
    found, expected = fingerprint(out), fingerprint(run)
    assert_same(found, expected)


def test_federation_tunes_a_new_adaptation_and_its_metrics_leave(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert tempt(arguments("federated", data, out, "--models", "shift-4,tempt")) == 0
    assert rows(capsys.readouterr().out) == ["TEMPT (shift-4)", "TEMPT"]
    ledger = [json.loads(line) for line in (out / "egress" / "8.jsonl").read_text().splitlines()]
    assert ledger[-1]["kind"] == "tune" and 0 < ledger[-1]["numbers"]["shift-4.prauc"] <= 1
    found = fingerprint(out)
    (out / "checkpoints" / "seed-42" / "shift-4" / "8.json").unlink()
    assert tempt(arguments("federated", data, out, "--models", "shift-4,tempt", "--resume")) == 0
    again = fingerprint(out)
    for name in ("results.json", "history.jsonl", "checkpoints/seed-42/shift-4/8.safetensors"):
        assert again[name] == found[name]
    line = mistake(capsys, arguments("federated", data, tmp_path / "other", "--models", "bag-3"))
    assert line.startswith("error: --models bag-3: pretrains nothing that could be federated")


def test_local_mode_has_the_new_methods_of_one_hospital_and_not_that_of_all(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sim.methods.chosen([], "local")[-2:] == ["bag-3", "shift-4"]
    line = mistake(capsys, arguments("local", data, tmp_path / "run", "--models", "bag-3,rule-2"))
    assert line.startswith("error: --models rule-2: is fitted on the records of all hospitals")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_new_methods_that_are_killed_end_in_the_same_bits(data: Path, run: Path, tmp_path: Path, jobs: int) -> None:
    """By SIGKILL, in the middle of a fit and at its end; workers find the methods, too."""
    out, folder = tmp_path / "run", tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, signal\n"
        "import shared_model.training as training\n"
        f"{PUT_THERE}"
        "training._CHECKPOINT_SECONDS = 0.0\n"
        "save, left = training._save, int(os.environ.get('KILL_AFTER', 10**9))\n"
        "def killed(*arguments):\n"
        "    global left\n"
        "    save(*arguments)\n"
        "    left -= 1\n"
        "    if not left:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "training._save = killed\n"
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(folder), environment()["PYTHONPATH"]])}
    more = ["--models", ",".join(NEW), "--jobs", str(jobs)]
    for kill_after in ("3", "9", ""):
        resume = ["--resume"] if out.exists() else []
        done = subprocess.run(
            command(*arguments("centralized", data, out, *more, *resume)),
            capture_output=True,
            text=True,
            env=environment() | paths | ({"KILL_AFTER": kill_after} if kill_after else {}),
            timeout=300,
        )
        expected = 0 if not kill_after else -signal.SIGKILL if jobs == 1 else 2  # 2: a worker was
        assert done.returncode == expected, done.stderr
    assert_same(fingerprint(out), fingerprint(run))


@pytest.mark.parametrize("name", ["2stage", "m\u00e9thode", "my-lora", "Upper", "pretraining"])
def test_a_file_whose_name_no_result_could_have_is_told_before_anything_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / f"{name}.py").write_text("")
    for package in (shared_model.adaptation, sim.baselines):
        with monkeypatch.context() as patched:
            patched.setattr(package, "__path__", [*package.__path__, str(tmp_path / "methods")])
            _forget()
            line = mistake(capsys, arguments("federated", data, tmp_path / "run", "--models", "finetune"))
            assert f"{name}.py: expected a name of small letters" in line
        _forget()
    assert not (tmp_path / "run").exists()


def test_two_files_of_one_name_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tempt.py").write_text("")
    monkeypatch.setattr(sim.baselines, "__path__", [*sim.baselines.__path__, str(tmp_path)])
    _forget()
    with pytest.raises(TemptError, match="tempt: is the name of a baseline and of an adaptation; rename one of both"):
        sim.methods.method_names()
    monkeypatch.undo()
    _forget()
