"""Old content or new, never half of one."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shared_model.errors import TemptError
from shared_model.files import (
    check_place,
    new_directory,
    read_json,
    remove_leftovers,
    replacing,
    write_json,
    write_private,
    write_text,
)


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("durable", [True, False])
def test_replacing_when_the_block_ends_well_leaves_the_new_content(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path, durable=durable) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
        assert beside.parent == tmp_path
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("mistake", [ValueError, KeyboardInterrupt, TemptError])
def test_replacing_when_the_block_raises_leaves_the_old_content(mistake: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(mistake), replacing(path) as beside:
        beside.write_text("half")
        raise mistake("x")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_replacing_on_a_full_disk_is_one_line_and_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(TemptError) as error, replacing(path) as beside:
        beside.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(error.value) == f"{path}: can't be written: No space left on device; nothing was changed there"
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_replacing_in_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "no" / "a.txt"
    with pytest.raises(TemptError) as error:
        write_text(path, "x")
    assert str(error.value) == f"{path}: can't be written: No such file or directory; nothing was changed there"


def test_replacing_in_a_process_killed_within_the_block_leaves_the_old_content(tmp_path: Path) -> None:
    """SIGKILL after half of the content; `remove_leftovers` takes away what it had begun."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    program = (
        "import os, signal, sys; from pathlib import Path; from shared_model.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as beside:\n"
        "    beside.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.txt"]


def test_json_written_and_read_is_equal_and_readable(tmp_path: Path) -> None:
    content = {"name": "Röntgen", "values": [1, 2.5, None]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert "Röntgen" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_write_json_of_nan_is_refused_and_leaves_the_old_content(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "content, expected",
    [
        (b'{"a": ', "can't be read as JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b"\xff", "can't be read as JSON"),
    ],
)
def test_read_json_of_something_else_is_one_line_that_names_the_file(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(TemptError) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(error.value)


def make_old(directory: Path, *, mark: bool = True) -> None:
    directory.mkdir()
    (directory / "old.txt").write_text("old")
    if mark:
        (directory / ".tempt").write_text("mark.json")


def test_new_directory_gets_its_name_when_the_block_ends_with_mode_0700(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "out"
    with new_directory(place, mark="mark.json", force=False) as beside:
        (beside / "a.txt").write_text("new")
        assert not place.exists()
    assert names(tmp_path) == ["deep", "deep/out", "deep/out/.tempt", "deep/out/a.txt"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_new_directory_in_an_empty_one_fills_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_directory(tmp_path / "out", mark="mark.json", force=False) as beside:
        (beside / "a.txt").write_text("new")
    assert names(tmp_path) == ["out", "out/.tempt", "out/a.txt"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


@pytest.mark.parametrize("mistake", [ValueError, KeyboardInterrupt, TemptError, OSError])
def test_new_directory_when_the_block_raises_leaves_the_old_one(mistake: type[BaseException], tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    before = names(tmp_path)
    expected = TemptError if mistake is OSError else mistake
    with pytest.raises(expected), new_directory(tmp_path / "out", mark="mark.json", force=True) as beside:
        (beside / "a.txt").write_text("half")
        raise mistake("x")
    assert names(tmp_path) == before
    assert (tmp_path / "out" / "old.txt").read_text() == "old"


def test_new_directory_with_force_replaces_one_with_the_mark(tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    with new_directory(tmp_path / "out", mark="mark.json", force=True) as beside:
        (beside / "a.txt").write_text("new")
    assert names(tmp_path) == ["out", "out/.tempt", "out/a.txt"]


@pytest.mark.parametrize(
    "mark, force, expected",
    [
        (True, False, "is not empty; name another directory, or use --force to replace it"),
        (False, False, "is not empty; name another directory, or use --force to replace it"),
        (False, True, "has no .tempt of this kind, so this command did not make it; --force deletes only its own"),
    ],
)
def test_new_directory_in_a_place_that_is_taken_is_refused_and_touches_nothing(
    mark: bool, force: bool, expected: str, tmp_path: Path
) -> None:
    make_old(tmp_path / "out", mark=mark)
    before = names(tmp_path)
    with pytest.raises(TemptError) as error, new_directory(tmp_path / "out", mark="mark.json", force=force):
        pytest.fail("the block must not run")
    assert str(error.value) == f"{tmp_path / 'out'}: {expected}"
    assert names(tmp_path) == before


def test_check_place_of_a_file_is_refused_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(TemptError) as error:
        check_place(tmp_path / "out", mark="mark.json", force=True)
    assert str(error.value) == f"{tmp_path / 'out'}: is a file; expected a directory that is new or empty"
    assert (tmp_path / "out").read_text() == "mine"


def test_check_place_that_is_new_or_empty_passes(tmp_path: Path) -> None:
    check_place(tmp_path / "new", mark="mark.json", force=False)
    check_place(tmp_path, mark="mark.json", force=False)


def test_remove_leftovers_takes_what_was_begun_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a" / ".writing-1-b").mkdir(parents=True)
    (tmp_path / "a" / ".writing-1-b" / "c.txt").write_text("half")
    (tmp_path / "a" / ".writing-2-d.txt").write_text("half")
    (tmp_path / "a" / "writing-e.txt").write_text("kept")
    (tmp_path / ".other").write_text("kept")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".other", "a", "a/writing-e.txt"]


def test_new_directory_after_a_killed_process_of_the_same_number_works(tmp_path: Path) -> None:
    """In a container every run is process 1: what a killed one left behind must not block the next."""
    left = tmp_path / f".writing-{os.getpid()}-out"
    left.mkdir()
    (left / "half.txt").write_text("half")
    with new_directory(tmp_path / "out", mark="mark.json", force=False) as beside:
        (beside / "a.txt").write_text("new")
    assert names(tmp_path) == ["out", "out/.tempt", "out/a.txt"]


def test_new_directory_that_is_the_working_directory_is_defined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tempt prepare RAW .`: filled, or refused in one line; never a traceback."""
    monkeypatch.chdir(tmp_path)
    try:
        with new_directory(Path("."), mark="mark.json", force=False) as beside:
            (beside / "a.txt").write_text("new")
    except TemptError as error:
        assert "\n" not in str(error)
    else:
        assert names(tmp_path) == [".tempt", "a.txt"]


@pytest.mark.parametrize("name", ["config.json", "dataset.json"])
def test_check_place_of_a_strangers_directory_with_a_common_file_is_refused(name: str, tmp_path: Path) -> None:
    """Countless projects have a config.json; --force must not take them for ours."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_text('{"format": 1}')
    with pytest.raises(TemptError, match="did not make it"):
        check_place(tmp_path / "model", mark=name, force=True)


def test_new_directory_that_fails_leaves_no_new_parent(tmp_path: Path) -> None:
    with pytest.raises(ValueError), new_directory(tmp_path / "a" / "b" / "out", mark="mark.json", force=False):
        raise ValueError
    assert names(tmp_path) == []


def test_new_directory_whose_source_cannot_be_read_names_the_source(tmp_path: Path) -> None:
    with pytest.raises(TemptError) as error, new_directory(tmp_path / "out", mark="x", force=False):
        (tmp_path / "raw" / "patient.csv").read_bytes()
    assert str(error.value) == (
        f"{tmp_path / 'raw' / 'patient.csv'}: No such file or directory; nothing was written to {tmp_path / 'out'}"
    )
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name", [".writing-notes-out", ".writing-7-other", ".writing-out", ".writing-7x-out", ".writing-99999999999-out"]
)
def test_new_directory_leaves_alone_what_no_process_of_ours_has_begun(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    with new_directory(tmp_path / "out", mark="mark.json", force=False):
        pass
    assert names(tmp_path) == [name, f"{name}/mine.txt", "out", "out/.tempt"]


@pytest.mark.parametrize("name", ["*", "o[u]t", "out?"])
def test_new_directory_of_a_name_that_is_a_pattern_leaves_other_directories_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / ".writing-999999999-out").mkdir()
    (tmp_path / f".writing-999999999-{name}").mkdir()
    (tmp_path / f".writing-999999999-old-{name}").mkdir()
    with new_directory(tmp_path / name, mark="mark.json", force=False):
        pass
    assert names(tmp_path) == sorted([".writing-999999999-out", name, f"{name}/.tempt"])


def test_remove_leftovers_leaves_alone_what_is_named_otherwise_and_where_links_lead(tmp_path: Path) -> None:
    mine, run = tmp_path / "mine", tmp_path / "run"
    for folder in (mine, run, run / ".writing-notes"):
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    (run / ".writing-7-link").symlink_to(mine)
    remove_leftovers(run)
    assert names(tmp_path) == [
        *("mine", "mine/mine.txt", "run", "run/.writing-notes", "run/.writing-notes/mine.txt", "run/mine.txt"),
    ]


def test_new_directory_through_a_link_replaces_only_what_has_the_mark(tmp_path: Path) -> None:
    make_old(tmp_path / "mine", mark=False)
    (tmp_path / "out").symlink_to("mine")
    with (
        pytest.raises(TemptError, match="this command did not make it"),
        new_directory(tmp_path / "out", mark="mark.json", force=True),
    ):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["mine", "mine/old.txt", "out"]


def test_write_private_is_readable_for_its_owner_alone_whatever_was_there(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("old")
    write_private(tmp_path / "secret", "new")
    assert (tmp_path / "secret").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
