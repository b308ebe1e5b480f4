"""A run directory is there whole or not at all, is held by one process, and is resumed by the same options alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shared_model import run_directory
from shared_model.errors import TemptError
from tests.sim.consortium import tree


def fill(directory: Path) -> Mapping[str, Any]:
    (directory / "vocabulary.json").write_text("{}")
    return {"format": 1, "seeds": [42]}


def test_create_when_the_place_is_free_makes_a_private_directory(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    run_directory.create(run, fill, force=False)
    assert sorted(path.name for path in run.iterdir()) == [
        ".tempt",
        "README.txt",
        "config.json",
        "vocabulary.json",
    ]
    assert run.stat().st_mode & 0o777 == 0o700
    assert json.loads((run / "config.json").read_text()) == {"format": 1, "seeds": [42]}
    assert "may read" in (run / "README.txt").read_text()
    assert [path.name for path in run.parent.iterdir()] == ["one"]


def test_create_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(directory: Path) -> Mapping[str, Any]:
        fill(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_directory.create(tmp_path / "one", broken, force=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [False, True])
def test_create_over_a_foreign_directory_is_refused(tmp_path: Path, force: bool) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "thesis.txt").write_text("mine")
    with pytest.raises(TemptError, match=re.escape(str(tmp_path / "one"))):
        run_directory.create(tmp_path / "one", fill, force=force)
    assert tree(tmp_path) == {"one": None, "one/thesis.txt": b"mine"}


def test_create_over_a_run_needs_force(tmp_path: Path) -> None:
    run = tmp_path / "one"
    run_directory.create(run, fill, force=False)
    (run / "old").write_text("old")
    with pytest.raises(TemptError, match="--force"):
        run_directory.create(run, fill, force=False)
    assert (run / "old").exists()
    run_directory.create(run, fill, force=True)
    assert not (run / "old").exists() and (run / "config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_create_with_force_that_fails_leaves_the_old_run(tmp_path: Path) -> None:
    run = tmp_path / "one"
    run_directory.create(run, fill, force=False)
    before = tree(tmp_path)

    def broken(directory: Path) -> Mapping[str, Any]:
        raise TemptError("no such data")

    with pytest.raises(TemptError, match="no such data"):
        run_directory.create(run, broken, force=True)
    assert tree(tmp_path) == before


def test_create_with_force_over_a_run_that_a_process_holds_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "one"
    run_directory.create(run, fill, force=False)
    with run_directory.held(run):
        with pytest.raises(TemptError, match="another process"):
            run_directory.create(run, fill, force=True)
        assert (run / "config.json").exists()


def test_held_by_one_process_is_refused_to_the_next(tmp_path: Path) -> None:
    run = tmp_path / "one"
    run_directory.create(run, fill, force=False)
    # a second open file has a lock of its own, as in another process
    with run_directory.held(run), pytest.raises(TemptError, match="another process"), run_directory.held(run):
        pass
    with run_directory.held(run):
        pass


def test_held_removes_what_a_killed_process_had_begun(tmp_path: Path) -> None:
    run = tmp_path / "one"
    run_directory.create(run, fill, force=False)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / ".writing-7-tempt.safetensors").write_text("half")
    with run_directory.held(run):
        assert sorted(path.name for path in run.rglob("*") if path.is_file()) == [
            ".lock",
            ".tempt",
            "README.txt",
            "config.json",
            "vocabulary.json",
        ]


def test_held_without_a_run_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(TemptError, match="no run to resume"), run_directory.held(tmp_path / "none"):
        pass
    assert list(tmp_path.iterdir()) == []


CONFIG = {
    "settings": {"encoder": {"c": 300}},
    "seeds": [42, 43],
    "threads": 1,
    "command": ["tempt"],
    "data": "a",
    "versions": {"torch": "2.13.0", "numpy": "2.3.0"},
}


def test_compare_ignores_how_the_command_was_spelt(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    run_directory.compare(tmp_path, CONFIG | {"command": ["other"], "data": "../a", "versions": {"torch": "2.13.0"}})
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"threads": 2}, ["threads=1", "2"]),
        ({"versions": {"torch": "2.13.0+cu130"}}, ["versions.torch=2.13.0", "2.13.0+cu130"]),
        ({"seeds": [42]}, ["seeds=[42, 43]", "[42]"]),
        ({"settings": {"encoder": {"c": 6}}}, ["settings.encoder.c=300", "6"]),
        ({"hospitals": [3]}, ["hospitals=None", "[3]"]),
    ],
)
def test_compare_names_the_first_difference_with_both_values(
    tmp_path: Path, change: dict[str, Any], named: list[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(TemptError) as caught:
        run_directory.compare(tmp_path, CONFIG | change)
    assert all(word in str(caught.value) for word in [str(tmp_path / "config.json"), *named])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_compare_with_a_damaged_config_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(TemptError, match=r"config\.json") as caught:
        run_directory.compare(tmp_path, CONFIG)
    assert len(str(caught.value).splitlines()) == 1


def test_versions_name_what_results_depend_on() -> None:
    assert {"python", "torch", "numpy", "pandas"} <= set(run_directory.versions())
