"""The README's commands work as they stand, in the order in which they stand."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shared_model.supervision import free_port
from sim import cli
from tests.sim.consortium import command, environment

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)]
COMMANDS = [line for block in BLOCKS[:2] for line in block]


def test_readme_shows_every_verb() -> None:
    lines = [line for block in BLOCKS for line in block]
    shown = {" ".join(word for word in shlex.split(line)[1:3] if word.isalpha()) for line in lines}
    verbs = {"simulate centralized", "simulate federated", "simulate local", "server launch", "hospital launch"}
    assert verbs | {"synth raw", "prepare raw", "recommend"} <= shown
    assert [len(block) for block in BLOCKS] == [3, 3, 3], "three uses of three lines"


def test_readme_commands_when_typed_as_they_stand_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        assert program == "tempt"
        status = cli.run(arguments)
        said = capsys.readouterr()
        assert status == 0, f"{line}\n{said.out}{said.err}"
        assert said.out.strip(), line
    assert "medications are above the threshold" in said.out


@pytest.mark.faults
def test_readme_single_hospital_when_typed_as_it_stands_answers(tmp_path: Path) -> None:
    for line in BLOCKS[0][:2]:
        assert (
            subprocess.run(command(*shlex.split(line)[1:]), cwd=tmp_path, env=environment(), check=False).returncode
            == 0
        )
    port = str(free_port())
    server, hospital, answer = (line.replace("8443", port) for line in BLOCKS[2])
    server = server.replace("server launch", f"server launch --port {port}")
    shell = f'tempt() {{ {shlex.quote(sys.executable)} -m sim.cli "$@"; }}'
    script = "\n".join(["set -m", shell, server, hospital, answer, "wait"])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert "tempt: prauc" in done.stdout, done.stdout + done.stderr
    assert "medications are above the threshold" in done.stdout, done.stdout + done.stderr
