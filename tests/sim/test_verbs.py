"""What holds for every verb: no blank value, whole lines, any terminal, a closed one, a folder that is gone."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from hospital_client.preparation_options import PreparationOptions
from shared_model.comma_lists import LARGEST
from shared_model.records import Dataset
from shared_model.vocabulary import Vocabulary
from sim.cli import run as tempt
from sim.command import app
from sim.commands import options
from sim.commands.verb import as_called
from tests.sim import consortium
from tests.sim.command import Capture, mistake, unchanged
from tests.sim.consortium import ROOT, assigned, command, environment

ROOT_COMMAND = typer.main.get_command(app)


def verbs(of: Any = ROOT_COMMAND, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every verb with its words; groups are gone into."""
    if hasattr(of, "commands"):
        for name, inner in of.commands.items():
            yield from verbs(inner, (*path, name))
    else:
        yield path, of


VERBS = dict(verbs())
GROUPS: list[tuple[str, ...]] = [(), *sorted({path[:-1] for path in VERBS if len(path) > 1})]


def complete(path: tuple[str, ...], given: dict[str, str] | None = None) -> list[str]:
    """A command line with everything that the verb requires, some values given."""
    words = list(path)
    for parameter in VERBS[path].params:
        name = parameter.name or ""
        value = (given or {}).get(name, "1")
        if isinstance(parameter, click.Argument):
            words.append(value)
        elif parameter.required or name in (given or {}):
            words.append(f"{parameter.opts[0]}={value}")
    return words


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_blank_value_of_any_option_or_argument_is_refused(
    path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """`--models ""` was all models, `synth ""` the folder of now."""
    monkeypatch.chdir(tmp_path)
    takers = [p for p in VERBS[path].params if isinstance(p, click.Argument) or not getattr(p, "is_flag", False)]
    for parameter in takers:
        name = parameter.name or ""
        shown = parameter.opts[0] if isinstance(parameter, click.Option) else name.upper()
        for blank in ("", " \t"):
            line = mistake(capsys, complete(path, {name: blank}))
            assert shown in line, line
            is_text = not isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType)
            assert not is_text or "blank" in line, line
    assert list(tmp_path.iterdir()) == []


def test_blank_value_is_refused_also_where_others_are_given(tmp_path: Path, capsys: Capture) -> None:
    codes = ["--procedure", "p", "--diagnosis", "d", "--diagnosis", "", "--hospital", "1"]
    line = mistake(capsys, ["recommend", str(tmp_path), *codes])
    assert line == ("error: --diagnosis : is blank; give another")
    assert tempt(["synth", "", "--help"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", ","], "--models ,: a name is blank"),
        (["--models", "tempt,,frequency"], "--models tempt,,frequency: a name is blank"),
        (["--seeds", "1-3"], "--seeds 1-3: expected integers with commas between them, such as 42,43"),
        (["--seeds", "42,"], "--seeds 42,: expected integers"),
        (["--seeds", "42, "], "--seeds 42, : expected integers"),
        (["--seeds", "1e3"], "--seeds 1e3: expected integers"),
        (["--seeds", "1_000"], "--seeds 1_000: expected integers"),
        (["--seeds", "-1"], "--seeds -1: expected different integers"),
        (["--seeds", "7,007"], "--seeds 7,007: expected different integers"),
        (["--seeds", str(2**63)], f"of at least 0 and at most {LARGEST}"),
        (["--seeds", "1" + "0" * 5000], f"of at least 0 and at most {LARGEST}"),
        (["--hospitals", "1,x"], "--hospitals 1,x: expected integers with commas between them, such as 101,102"),
        (["--hospitals", str(2**63)], f"of at least 0 and at most {LARGEST}"),
        (["--set", " =5"], "--set  =5: expected NAME=VALUE"),
        (["--observation-window", "0"], "error: --observation-window=0.0: Input should be greater than 0"),
        (["--observation-window", "nan"], "error: --observation-window nan: expected a finite number"),
    ],
    ids=lambda of: of[1][:20] if isinstance(of, list) else "",
)
def test_value_that_is_wrong_is_told_by_its_option(
    arguments: list[str], words: str, tmp_path: Path, capsys: Capture
) -> None:
    for mode in ("centralized", "federated", "local"):
        assert words in mistake(capsys, ["simulate", mode, "--out", str(tmp_path / "run"), *arguments])
    assert list(tmp_path.iterdir()) == []


def test_lists_of_the_other_verbs_are_refused_in_the_same_words(tmp_path: Path, capsys: Capture) -> None:
    launch = ["server", "launch", "--insecure", "--vocabulary", str(tmp_path), "--out", str(tmp_path / "run")]
    launch += ["--hospitals", "1"]
    keys = ["server", "keys", str(tmp_path / "keys")]
    for arguments, words in (
        ([*launch, "--models", "tempt,"], "--models tempt,: a name is blank"),
        ([*launch, "--seeds", "1-3"], "--seeds 1-3: expected integers with commas between them, such as 42,43"),
        ([*launch, "--seeds", f"42,{2**63}"], f"of at least 0 and at most {LARGEST}"),
        (
            [*keys, "--hospitals", "5,x"],
            "--hospitals 5,x: expected integers",
        ),
        ([*keys, "--hospitals", "0"], f"of at least 1 and at most {LARGEST}"),
        ([*keys, "--hospitals", "5", "--hosts", ","], "--hosts ,: a name is blank"),
        (["simulate", "federated", "--beside", "a,,b"], "--beside a,,b: a name is blank"),
    ):
        assert words in mistake(capsys, arguments)
    assert list(tmp_path.iterdir()) == []


def test_every_field_of_the_preparation_is_told_by_an_option_that_exists() -> None:
    known = {name for parameter in VERBS["prepare",].params for name in parameter.opts}
    assert {options.option_of(field) for field in PreparationOptions.model_fields} <= known


def test_name_that_is_no_utf_8_is_refused(tmp_path: Path, capsys: Capture) -> None:
    """It can be written into no JSON file and on no terminal; the run ended in a traceback, some after hours."""
    line = mistake(capsys, ["synth", f"{tmp_path}/a\udcff"])
    assert "a\\udcff: has bytes that are no UTF-8" in line
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("path", [*GROUPS, *VERBS], ids=" ".join)
def test_help_of_every_verb_and_group_is_ascii_of_80_columns_and_has_a_short_name(
    path: tuple[str, ...], capsys: Capture
) -> None:
    assert tempt([*path, "-h"]) == 0
    short = capsys.readouterr()
    assert tempt([*path, "--help"]) == 0
    assert capsys.readouterr() == short
    assert short.err == "" and short.out.isascii()
    assert max(map(len, short.out.splitlines())) <= 80
    assert short.out.startswith(f"Usage: {' '.join(['tempt', *path])} ")
    assert "-h, --help" in short.out
    text = " ".join(short.out.split())
    assert (f"Example: tempt {' '.join(path)} " in text) == (path in VERBS)


# ------------------------------------------------------------------------------------------------ lines


def test_product_code_prints_by_whole_lines_alone() -> None:
    """`print` writes text and newline apart, so that lines of two writers mix."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("shared_model", "hospital_client", "server", "sim")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []


class Written(io.RawIOBase):
    """What is written here, a piece a write."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self.pieces.append(bytes(piece))
        return len(piece)


def unbuffered(monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> list[bytes]:
    """Both streams as an unbuffered process has them (PYTHONUNBUFFERED=1); the pieces that are written to either."""
    pieces: list[bytes] = []
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(Written(pieces), encoding=encoding, write_through=True)  # type: ignore[type-var]
        monkeypatch.setattr(sys, name, stream)
    return pieces


def test_prepare_unbuffered_writes_whole_lines_and_names_the_next_command_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text and newline were two writes: "a smaller --min-records keeps itTable 2"."""
    raw, dataset = tmp_path / "raw", tmp_path / "a set"
    assert tempt(["synth", str(raw), "--hospitals", "3", "--records", "150"]) == 0
    pieces = unbuffered(monkeypatch)
    assert tempt(["prepare", str(raw), str(dataset), "--min-records", "45"]) == 0
    assert all(piece.endswith(b"\n") for piece in pieces), pieces
    assert any(piece.startswith(b"note: ") for piece in pieces), pieces
    assert pieces[-1].decode() == f"Next: tempt simulate centralized --data '{dataset}'\n"


def test_error_and_table_unbuffered_are_a_write_each(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = unbuffered(monkeypatch)
    assert tempt(["simulat"]) == 2
    assert [piece.count(b"\n") for piece in pieces] == [1]
    words = ["--data", str(data), "--out", str(tmp_path / "run"), "--models", "frequency", "--jobs", "1"]
    assert tempt(["simulate", "centralized", *words]) == 0
    assert all(piece.endswith(b"\n") for piece in pieces), pieces


def test_command_is_printed_as_it_was_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "a b" / "tempt"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(tmp_path)
    for called, path, expected in (
        ("a b/tempt", "/usr/bin:/bin", "'a b/tempt'"),
        (str(program), "/usr/bin:/bin", f"'{program}'"),
        (str(program), f"{program.parent}:/bin", "tempt"),
        ("a b/tempt", f"{program.parent}:/bin", "tempt"),
        ("/nowhere/tempt", "/bin", "tempt"),
        (f"{ROOT}/sim/cli.py", "/bin", shlex.join([sys.executable, "-m", "sim.cli"])),
        ("/usr/bin/pytest", "/bin", "tempt"),
    ):
        monkeypatch.setattr(sys, "argv", [called])
        monkeypatch.setenv("PATH", path)
        assert as_called() == expected, called


# ------------------------------------------------------------------------------------------------ terminals


def ended(words: Sequence[str], shell: str, **more: str) -> tuple[int, str, str]:
    """A command's status and what it said, with a redirection of the shell's."""
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(command(*words))} {shell}"],
        capture_output=True,
        text=True,
        env=environment() | more,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


FULL = "error: standard output: can't be written: No space left on device; redirect it to where there is room\n"


@pytest.mark.parametrize(
    ("words", "shell", "expected"),
    [
        (["simulat"], "2>&-", (2, "", "")),
        (["simulat"], "2>/dev/full", (2, "", "")),
        (["synth", ""], "0<&- 1>&- 2>&-", (2, "", "")),
        (["--version"], ">&-", (0, "", "")),
        (["--version"], ">/dev/full", (2, "", FULL)),
        (["server"], ">/dev/full", (2, "", FULL)),
        (["server"], ">/dev/full 2>/dev/full", (2, "", "")),
    ],
    ids=["closed", "full", "all closed", "stdout closed", "stdout full", "help on full", "all full"],
)
def test_exit_status_when_nobody_can_read_is_still_that_of_the_end(
    words: list[str], shell: str, expected: tuple[int, str, str]
) -> None:
    assert ended(words, shell) == expected


def test_mistake_when_the_reader_of_standard_error_has_gone_ends_with_2() -> None:
    """It was a traceback that nobody read, and status 1."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command("simulat"), stderr=writer, stdout=subprocess.PIPE, env=environment(), check=False)
    os.close(writer)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("encoding", ["ascii", "cp1251"])
def test_table_and_recommendation_on_a_terminal_of_few_characters_are_printed(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of several seeds has a plus-minus sign: after the last fit there was a traceback."""
    whole = consortium.make_dataset()
    words = whole.vocabulary
    names = tuple(f"DRUG é {code}" for code in words.medications)
    vocabulary = Vocabulary(words.diagnoses, words.procedures, words.medications, names)
    consortium.write_dataset(tmp_path / "dataset", Dataset(vocabulary, whole.records, whole.split_by_patient))
    run = tmp_path / "run é"
    pieces = unbuffered(monkeypatch, encoding)
    asked = ["--data", str(tmp_path / "dataset"), "--out", str(run), "--jobs", "1", "--models", "frequency"]
    assert tempt(["simulate", "centralized", *asked, "--seeds", "42,43"]) == 0
    said = b"".join(pieces).decode(encoding)
    assert re.search(r"^ +\?0\.\d{4}" if encoding == "ascii" else r"^ +±0\.\d{4}", said, re.MULTILINE), said
    assert "run ?: results.json" in said
    recommend = ["recommend", str(run), "--model", "frequency", "--hospital", "8"]
    recommend += ["--diagnosis", words.diagnoses[0], "--procedure", words.procedures[0]]
    assert tempt(recommend) == 0
    assert b"DRUG ? 9000" in b"".join(pieces)
    pieces.clear()
    assert tempt([*recommend, "--json"]) == 0
    assert "DRUG é 900001" in {one["name"] for one in json.loads(b"".join(pieces))}


# ------------------------------------------------------------------------------------------------ folders


def test_command_in_a_deleted_folder_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    gone, kept = tmp_path / "gone", tmp_path / "kept"
    gone.mkdir()
    for words in (["synth", str(kept)], ["simulate", "centralized", "--out", str(kept)], ["server", "status", "run"]):
        script = f"mkdir -p {gone}; cd {gone}; rmdir {gone}; {shlex.join(command(*words))}"
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, env=environment(), timeout=300, check=False
        )
        line = "error: the working folder was deleted; change into one that is there (cd)\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert not kept.exists()


def test_working_folder_deleted_under_a_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()

    def deletes(*arguments: object, **more: object) -> None:
        gone.rmdir()
        Path("run").resolve()

    monkeypatch.chdir(gone)
    monkeypatch.setattr("sim.synthetic_raw.synthesize", deletes)
    assert mistake(capsys, ["synth", "raw"]) == (
        "error: the working folder was deleted; change into one that is there (cd)"
    )
    os.chdir(tmp_path)


def test_paths_beyond_the_basic_plane_work_from_raw_tables_to_a_recommendation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    folder = tmp_path / "work 🏥"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with unchanged():
        assert tempt(["synth", "raw😀", "--hospitals", "3", "--records", "150"]) == 0
        assert tempt(["prepare", "raw😀", "set😀", "--min-records", "45"]) == 0
    assert capsys.readouterr().out.endswith("Next: tempt simulate centralized --data 'set😀'\n")
    words = ["--data", "set😀", "--out", "run😀", "--models", "tempt", "--jobs", "1", *assigned()]
    assert tempt(["simulate", "federated", *words]) == 0
    codes = json.loads((folder / "run😀" / "vocabulary.json").read_text(encoding="utf-8"))
    asked = ["--diagnosis", codes["diagnoses"][0], "--procedure", codes["procedures"][0]]
    hospital = min(path.name for path in (folder / "set😀" / "hospitals").iterdir())
    assert tempt(["recommend", "run😀", "--hospital", hospital, *asked]) == 0


def test_more_memory_than_there_is_was_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def allocates(*arguments: object, **more: object) -> None:
        raise MemoryError("Unable to allocate 4.5 PiB")

    monkeypatch.setattr("sim.synthetic_raw.World", allocates)
    assert mistake(capsys, ["synth", str(tmp_path / "raw")]) == (
        "error: the memory does not suffice (Unable to allocate 4.5 PiB); ask for less, or close other work"
    )
    assert list(tmp_path.iterdir()) == []
