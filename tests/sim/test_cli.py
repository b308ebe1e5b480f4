"""The command: its words, its exit status, and that a mistake is one line of error and changes nothing on disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shared_model import begun
from sim.cli import run as tempt
from tests.sim import consortium
from tests.sim.command import Capture, mistake, unchanged
from tests.sim.consortium import assigned, call, command, environment, fingerprint

DATASET = consortium.make_dataset()
LEAVES = [["synth"], ["prepare"], ["simulate", "centralized"], ["recommend"]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, another one, and a finished run of the first."""
    root = tmp_path_factory.mktemp("cli")
    consortium.write_dataset(root / "dataset", DATASET)
    consortium.write_dataset(root / "other", consortium.make_dataset(consortium.make_records(seed=8)))
    assert tempt(simulate(root, "run")) == 0
    return root


def simulate(root: Path, out: str, *more: str, data: str = "dataset") -> list[str]:
    places = ["--data", str(root / data), "--out", str(root / out)]
    fixed = ["--models", "tempt,hospital-frequency", "--jobs", "1", "--set", "tuning.epochs=2"]
    rest = [
        part for pair in zip(*[iter(assigned())] * 2, strict=True) if "tuning.epochs" not in pair[1] for part in pair
    ]
    return ["simulate", "centralized", *places, *fixed, *rest, *more]


# ------------------------------------------------------------------------------------------------ as a process


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and done.stdout == "", done
    return line


def test_misspelt_command_and_option_and_value_are_one_line_and_status_2(tmp_path: Path) -> None:
    assert "simulat" in one_line(call("simulat"))
    assert "--sed" in one_line(call("simulate", "centralized", "--sed", "42"))
    assert "--seed" in one_line(call("synth", tmp_path / "raw", "--seed", "many"))
    assert "RAW" in one_line(call("prepare"))
    line = one_line(call("simulate", "centralized", "--preset", "papper", "--out", tmp_path / "run"))
    assert line == "error: unknown preset 'papper'; did you mean 'paper'? Known: paper, released"
    assert list(tmp_path.iterdir()) == []


def test_command_without_arguments_prints_help_with_status_2() -> None:
    done = call()
    assert done.returncode == 2
    assert "Usage: tempt" in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_version_is_printed(capsys: Capture) -> None:
    assert tempt(["--version"]) == 0
    assert capsys.readouterr().out == f"tempt {importlib.metadata.version('tempt')}\n"


def test_command_to_go_on_with_is_given_as_it_is_typed() -> None:
    from sim.command import _kept

    typed = ["simulate", "local", "--out", "a run", "--force"]
    assert _kept(typed) == "nothing was written"
    begun.begin()
    assert _kept(typed) == "what is finished is kept, go on with: tempt simulate local --out 'a run' --resume"


def test_help_into_a_closed_pipe_says_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command("--help"), stdout=writer, stderr=subprocess.PIPE, text=True, env=environment())
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 141)


def test_command_waits_passively_unless_the_user_says_otherwise() -> None:
    code = "import os, sys, sim.cli; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    for policy, expected in ((None, "PASSIVE False"), ("ACTIVE", "ACTIVE False")):
        own = {k: v for k, v in environment().items() if k != "OMP_WAIT_POLICY"} | (
            {"OMP_WAIT_POLICY": policy} if policy else {}
        )
        done = subprocess.run([*command()[:1], "-c", code], capture_output=True, text=True, env=own)
        assert done.stdout.strip() == expected, done.stderr


# ------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("path", [[], ["simulate"], *LEAVES], ids=" ".join)
def test_help_has_a_sentence_an_example_and_80_columns(path: list[str], capsys: Capture) -> None:
    assert tempt([*path, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(captured.out.split())
    assert re.search(r"\[(OPTIONS|ARGS)\].*? ([A-Z][^.]+)\. ", text)
    if path in LEAVES:
        assert f"Example: tempt {' '.join(path)}" in text
    else:
        names = [of[len(path)] for of in LEAVES if of[: len(path)] == path]
        assert all(re.search(rf"^  {name} +[A-Z]", captured.out, re.M) for name in names)


def test_help_of_simulate_names_every_option_of_the_design(capsys: Capture) -> None:
    tempt(["simulate", "centralized", "--help"])
    text = capsys.readouterr().out
    wanted = ["data", "out", "models", "preset", "seeds", "device", "set", "resume", "force", "save-scores", "jobs"]
    wanted += ["min-records", "top-medications"]
    assert [name for name in wanted if f"--{name}" not in text] == []
    assert "\\" not in text


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--models", "temptt"], ["unknown model 'temptt'", "did you mean 'tempt'?", "full-train"]),
        (["--models", "tempt,tempt"], ["--models", "twice"]),
        (["--preset", "release"], ["unknown preset 'release'", "did you mean 'released'?"]),
        (["--device", "tpu"], ["unknown device 'tpu'", "cpu, cuda"]),
        (["--device", "cuda:99"], ["cuda:99", "--device cpu"]),
        (["--device", "cpu:1"], ["unknown device 'cpu:1'"]),
        (["--device", "cuda:²"], ["unknown device 'cuda:²'"]),
        (["--threads", "3", "--jobs", "2"], ["--threads 3", "--jobs 2"]),
        (["--seeds", "42,x"], ["--seeds 42,x", "integers"]),
        (["--seeds", ""], ["--seeds", "blank"]),
        (["--seeds", "42,42"], ["--seeds 42,42", "different"]),
        (["--seeds", "-1"], ["--seeds -1", "at least 0"]),
        (["--hospitals", "99"], ["--hospitals", "no hospital 99", "3, 8, 21, 34"]),
        (["--jobs", "0"], ["--jobs", "0"]),
        (["--threads", "0"], ["--threads", "0"]),
        (["--resume", "--force"], ["--resume", "--force"]),
        (["--min-records", "0"], ["--min-records", "0"]),
        (["--observation-window", "0"], ["--observation-window", "0"]),
        (["--set", "tuning.patience"], ["--set tuning.patience", "NAME=VALUE"]),
        (["--set", "tuning.epoch=5"], ["--set tuning.epoch=5", "did you mean", "tuning.epochs"]),
        (["--set", "epochs=5"], ["--set epochs=5", "did you mean", ".epochs"]),
        (["--set", "tuning=5"], ["--set tuning=5", "no such field"]),
        (["--set", "tuning.patience=many"], ["tuning.patience=many", "integer"]),
        (["--set", "tuning.patience=0"], ["tuning.patience=0", "greater than or equal to 1"]),
        (["--set", "tuning.patience=3", "--set", "tuning.patience=4"], ["tuning.patience", "twice"]),
        (["--set", "encoder.heads=4"], ["c=6", "heads=4"]),
        (["--set", "training.learning_rate=nan"], ["training.learning_rate=nan"]),
        (
            ["--set", "tuning.patience=many", "--set", "evaluation.threshold=2", "--set", "training.patience=0"],
            ["tuning.patience=many", "evaluation.threshold=2", "training.patience=0"],
        ),
        (
            ["--set", "tuning.patence=3", "--set", "evaluation.threshold=2"],
            ["tuning.patence", "evaluation.threshold=2"],
        ),
    ],
    ids=lambda of: " ".join(of) if of and str(of[0]).startswith("--") else "",
)
def test_option_that_is_wrong_is_one_line_and_makes_nothing(
    work: Path, tmp_path: Path, capsys: Capture, options: list[str], words: list[str]
) -> None:
    with unchanged(tmp_path):
        repeated = {"--models", "--jobs"} & set(options)
        arguments = simulate(work, "run")
        if repeated:
            place = arguments.index(*repeated)
            arguments = arguments[:place] + arguments[place + 2 :]
        arguments[arguments.index("--out") + 1] = str(tmp_path / "new")
        line = mistake(capsys, [*arguments, *options])
    assert [word for word in words if word not in line] == [], line


def test_out_that_is_taken_is_refused_and_left(work: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine too")
    for out, more, word in (
        ("mine", [], "not empty"),
        ("mine", ["--force"], "did not make it"),
        ("file", [], "is a file"),
        ("file", ["--force"], "is a file"),
        ("file/run", [], "can't be written"),
        ("mine", ["--resume"], "no run to resume"),
        ("none", ["--resume"], "no run to resume"),
    ):
        with unchanged(tmp_path):
            arguments = simulate(work, "run", *more)
            arguments[arguments.index("--out") + 1] = str(tmp_path / out)
            assert word in mistake(capsys, arguments)
    with unchanged(work):
        assert "not empty" in mistake(capsys, simulate(work, "run"))


def test_data_that_is_not_there_is_named(work: Path, capsys: Capture) -> None:
    with unchanged(work):
        assert "nowhere" in mistake(capsys, simulate(work, "new", data="nowhere"))
        # a run is neither raw tables nor a dataset
        assert str(work / "run") in mistake(capsys, simulate(work, "new", data="run"))


def test_force_over_the_run_that_holds_the_data_is_refused(work: Path, tmp_path: Path, capsys: Capture) -> None:
    """`--data runs/a/dataset --out runs/a --force` would delete what it reads."""
    run = tmp_path / "run"
    shutil.copytree(work / "run", run)
    shutil.copytree(work / "dataset", run / "dataset")
    with unchanged(tmp_path):
        assert "--out" in mistake(capsys, simulate(tmp_path, "run", "--force", data="run/dataset"))


def test_force_in_one_process_fits_the_new_data(work: Path, tmp_path: Path) -> None:
    """What a process remembers of a run is not taken for another one of the same name."""
    for name in ("dataset", "other"):
        shutil.copytree(work / name, tmp_path / name)
    assert tempt(simulate(tmp_path, "run")) == 0
    assert tempt(simulate(tmp_path, "run", "--force", data="other")) == 0
    assert tempt(simulate(tmp_path, "fresh", data="other")) == 0
    again, fresh = fingerprint(tmp_path / "run"), fingerprint(tmp_path / "fresh")
    assert [name for name in fresh if name != "config.json" and again[name] != fresh[name]] == []


# ------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--set", "tuning.patience=3"], "settings.tuning.patience=10, this command 3"),
        (["--preset", "released", "--set", "encoder.heads=2"], "preset=paper, this command released"),
        (["--seeds", "43"], "seeds=[42], this command [43]"),
        (["--threads", "2", "--jobs", "2"], "threads=1, this command 2"),
        (["--save-scores"], "save_scores=False, this command True"),
        (["--hospitals", "3,8"], ", this command"),
        (["--data", "other"], "dataset.digest="),
        (["--models", "tempt"], "models=['hospital-frequency', 'tempt'], this command ['tempt']"),
    ],
    ids=lambda of: " ".join(of) if isinstance(of, list) else "",
)
def test_resume_with_other_options_is_refused_and_changes_nothing(
    work: Path, capsys: Capture, more: list[str], word: str
) -> None:
    if more[0] == "--data":
        arguments = simulate(work, "run", "--resume", data="other")
    else:
        arguments = simulate(work, "run", "--resume", *more)
        if more[0] == "--models":
            place = arguments.index("--models")
            del arguments[place : place + 2]
    with unchanged(work):
        line = mistake(capsys, arguments)
    assert word in line and str(work / "run" / "config.json") in line, line


@pytest.mark.parametrize(
    "name",
    ["tempt/8.safetensors", "tempt/8.json", "pretraining.safetensors", "hospital-frequency.safetensors"],
)
def test_resume_with_a_damaged_file_is_refused_until_it_is_deleted(
    work: Path, tmp_path: Path, capsys: Capture, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(work / "run", run)
    expected = fingerprint(run)
    path = run / "checkpoints" / "seed-42" / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    arguments = simulate(work, "run", "--resume")
    arguments[arguments.index("--out") + 1] = str(run)
    with unchanged(tmp_path):
        assert str(path) in mistake(capsys, arguments)
    path.unlink()
    assert tempt(arguments) == 0
    found = fingerprint(run)
    assert [of for of in expected if of != "config.json" and found[of] != expected[of]] == []


def test_resume_with_a_damaged_state_of_a_fit_under_way_is_refused(work: Path, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    shutil.copytree(work / "run", run)
    folder = run / "checkpoints" / "seed-42" / "tempt"
    (folder / "8.json").unlink()
    (folder / "8.partial.safetensors").write_bytes(b"half")
    arguments = simulate(work, "run", "--resume")
    arguments[arguments.index("--out") + 1] = str(run)
    assert "8.partial.safetensors: damaged checkpoint" in mistake(capsys, arguments)


def test_resume_with_a_damaged_config_or_dataset_is_refused(work: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(work / "run", tmp_path / "run")
    shutil.copytree(work / "dataset", tmp_path / "dataset")
    for name in ("run/config.json", "dataset/dataset.json", "dataset/hospitals/8/records.parquet"):
        path = tmp_path / name
        content = path.read_bytes()
        path.write_bytes(content[:-7])
        with unchanged(tmp_path):
            assert str(path) in mistake(capsys, simulate(tmp_path, "run", "--resume"))
        path.write_bytes(content)


def test_resume_of_a_finished_run_changes_no_bit_and_prints_the_table(work: Path, capsys: Capture) -> None:
    before = fingerprint(work / "run")
    assert tempt(simulate(work, "run", "--resume")) == 0
    out = capsys.readouterr().out
    consortium.assert_same(fingerprint(work / "run"), before)
    assert max(map(len, out.splitlines())) <= 80 or str(work) in out.splitlines()[-1]
    summary = json.loads((work / "run" / "results.json").read_text())["models"]["tempt"]["summary"]
    assert f"{summary['prauc']['mean']:.4f}" in out


@pytest.mark.parametrize("selection", ["hospital", "common"])
def test_simulate_with_a_hospital_of_one_record_gives_defined_results(selection: str, tmp_path: Path) -> None:
    """int(0.8) is 0: no record to learn from, none to validate with, one to test."""
    records = consortium.make_records({3: 20, 5: 1})
    consortium.write_dataset(tmp_path / "dataset", consortium.make_dataset(records))
    places = ["--data", str(tmp_path / "dataset"), "--out", str(tmp_path / "run")]
    chosen = ["--set", f"tuning.selection={selection}"]
    assert tempt(["simulate", "centralized", *places, "--jobs", "1", *assigned(), *chosen]) == 0
    models = json.loads((tmp_path / "run" / "results.json").read_text())["models"]
    assert all(of["seeds"]["42"]["hospitals"]["5"]["records"] == 1 for of in models.values())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)
