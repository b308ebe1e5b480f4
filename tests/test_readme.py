"""The README's commands work as they stand, in the order in which they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sim import cli

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]


def test_readme_shows_every_verb() -> None:
    shown = {" ".join(word for word in shlex.split(line)[1:3] if word.isalpha()) for line in COMMANDS}
    assert {"synth raw", "prepare raw", "simulate centralized", "simulate federated", "recommend"} <= shown


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
