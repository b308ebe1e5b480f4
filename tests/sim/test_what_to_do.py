"""Each message says what was found, what was expected and what to do; what nobody reads ends no work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hospital_client.policy import FILE, Policy, read_policy
from shared_model.errors import TemptError
from shared_model.files import read_json
from shared_model.ownership import check_own
from sim.cli import run as tempt
from tests.sim.command import Capture, mistake, unchanged
from tests.sim.consortium import command, environment

MARK = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one model."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert tempt(simulate(data, out)) == 0
    return out


def simulate(data: Path, out: Path, *more: str, mode: str = "centralized") -> list[str]:
    models = "hospital-frequency" if mode == "centralized" else "tempt"
    return ["simulate", mode, "--data", str(data), "--out", str(out), "--models", models, "--jobs", "1", *more]


def test_same_run_twice_beside_is_refused_by_any_spelling(
    data: Path, run: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Its rows stood twice in the table, as if they were two runs'."""
    (tmp_path / "link").symlink_to(run)
    with unchanged(tmp_path):
        for other in (run, f"{run}/../run", tmp_path / "link"):
            line = mistake(capsys, simulate(data, tmp_path / "new", "--beside", f"{run},{other}", mode="federated"))
            assert f"--beside {Path(other)}: is the run of --beside {run}; name each other run once" in line
        own = simulate(data, run, "--resume", "--beside", str(tmp_path / "link"), mode="federated")
        assert f"--beside {tmp_path / 'link'}: is the run of --out {run}" in mistake(capsys, own)


def test_place_that_is_not_there_is_told_with_what_is_expected(data: Path, tmp_path: Path, capsys: Capture) -> None:
    hospital = ["hospital", "launch", "--insecure", "--superlink", "127.0.0.1:9", "--hospital-id", "8"]
    hospital += ["--state", str(tmp_path / "state"), "--partition", str(tmp_path / "nosuch")]
    nosuch = ["--beside", str(tmp_path / "nosuch")]
    server = ["server", "launch", "--insecure", "--out", str(tmp_path / "r"), "--hospitals", "1"]
    for asked, words in (
        (simulate(data, tmp_path / "new", *nosuch, mode="federated"), "name the --out of a run that has ended"),
        (hospital, "dataset.json: no such file; expected a dataset directory, name one that `tempt prepare` made"),
        (
            [*server, "--vocabulary", str(tmp_path / "nosuch")],
            "expected the vocabulary that `tempt prepare` writes; name",
        ),
    ):
        assert words in mistake(capsys, asked)
    assert list(tmp_path.iterdir()) == []


def test_damaged_file_is_told_with_what_to_do(data: Path, run: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "config.json").write_text("{")
    assert "can't be read as JSON: " in (line := mistake(capsys, simulate(data, copy, "--resume")))
    assert line.endswith("; begin another run with another --out")
    from safetensors.torch import save_file

    shutil.copy(run / "config.json", copy)
    place = copy / "checkpoints" / "seed-42" / "hospital-frequency.safetensors"
    save_file({}, place, metadata={"other": "1"})
    line = mistake(capsys, simulate(data, copy, "--resume"))
    assert line.endswith(
        "damaged checkpoint (it lacks the note that every checkpoint of TEMPT has); delete it to compute it again"
    )


def test_progress_that_nobody_can_read_does_not_end_a_run(data: Path, tmp_path: Path) -> None:
    """It ended with status 2 and without results.json, after hours perhaps."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full:
        for name, stream in (("full", full), ("gone", writer)):
            words = command(*simulate(data, tmp_path / name))
            done = subprocess.run(
                words, stdout=subprocess.PIPE, stderr=stream, env=environment(), check=False, timeout=300
            )
            assert done.returncode == 0 and b"Hospital frequency" in done.stdout
            assert (tmp_path / name / "results.json").is_file()
    os.close(writer)


@pytest.mark.parametrize("name", [b"\xc3\xa9-1", b"\xe9-1"], ids=["UTF-8", "none"])
def test_name_that_the_locale_does_not_read_is_told_rightly(tmp_path: Path, name: bytes) -> None:
    """It was said to be no UTF-8, which it is."""
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [*map(os.fsencode, command("synth")), name]
    done = subprocess.run(words, capture_output=True, env=environment() | ascii_alone, cwd=tmp_path, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    if name.startswith(b"\xc3"):
        assert line == rb"error: RAW \xe9-1: is UTF-8, which this locale (ascii) does not read; set LC_ALL=C.UTF-8"
    else:
        assert line.endswith(b": has bytes that are no UTF-8; give another")


def test_byte_order_mark_of_an_editor_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(MARK + b"unmasked_sums = true\n")
    assert read_policy(tmp_path) == Policy(unmasked_sums=True)
    (tmp_path / "a.json").write_bytes(MARK + json.dumps({"a": "\u00e9"}).encode())
    assert read_json(tmp_path / "a.json") == {"a": "\u00e9"}


def test_folder_that_is_everybodys_is_not_to_be_chmodded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--state /` was answered with chmod o-w /tmp."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("/tmp")
    for folder in ("/", "/tmp", "/var/tmp", str(tmp_path), f"{tmp_path}/link"):
        with pytest.raises(TemptError, match=r": is .*; expected a folder of its own, such as ") as error:
            check_own(Path(folder))
        assert "chmod" not in str(error.value)
    check_own(tmp_path / "own")


def test_link_that_leads_to_itself_is_one_line(data: Path, run: Path, tmp_path: Path, capsys: Capture) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with unchanged(tmp_path):
        for asked in (
            ["synth", str(loop), "--hospitals", "2", "--records", "20"],
            ["prepare", str(loop), str(tmp_path / "new")],
            simulate(loop, tmp_path / "new"),
            simulate(loop, tmp_path / "new", "--force"),
            simulate(data, loop),
            simulate(data, tmp_path / "new", "--beside", f"{run},{loop}", mode="federated"),
            ["server", "status", str(loop)],
            ["recommend", str(loop), "--hospital", "8", "--diagnosis", "d", "--procedure", "p"],
        ):
            assert "loop" in mistake(capsys, asked)
