"""No command empties, replaces or trusts a folder that it did not make, whatever stands in its place.

What `--force` replaces is in tests/shared_model/test_files.py; here are folders that a command begins and goes on with.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hospital_client.launch import STATE_FOLDER
from hospital_client.pinned_clientapp import install
from server import front
from server.control import Control
from server.keys import make_keys
from server.launch import _app_folder
from server.network import SERVER_FOLDER, Network
from server.run_config import RUN_CONFIG
from shared_model.errors import TemptError
from shared_model.own_folder import FolderKind, check_folder, claim
from shared_model.shipped_code import PACKAGES
from sim.cli import run as tempt
from tests.sim import consortium

KINDS = {"hospital": STATE_FOLDER, "server": SERVER_FOLDER, "front": front._FOLDER}
COMMANDS = {
    "hospital launch": STATE_FOLDER,
    "hospital check": STATE_FOLDER,
    "server launch": SERVER_FOLDER,
    "server status": SERVER_FOLDER,
    "server register": SERVER_FOLDER,
    "server front": front._FOLDER,
}


def own_folder(place: Path, kind: FolderKind) -> Path:
    """A user's own folder that has a file under a name that the command writes, and one under another."""
    (place / kind.names[0]).mkdir(parents=True)
    (place / kind.names[0] / "notes.txt").write_text("mine")
    (place / "thesis.txt").write_text("mine")
    return place


def of_all(place: Path, kind: FolderKind) -> Path:
    place.mkdir(mode=0o700)
    place.chmod(0o777)
    return place


def linked(place: Path, kind: FolderKind) -> Path:
    place.symlink_to(own_folder(place.with_name("elsewhere"), kind))
    return place


def nowhere(place: Path, kind: FolderKind) -> Path:
    place.symlink_to("nowhere")
    return place


def a_file(place: Path, kind: FolderKind) -> Path:
    place.write_text("mine")
    return place


def of_another_kind(place: Path, kind: FolderKind) -> Path:
    place.mkdir(mode=0o700)
    (place / ".tempt").write_text("dataset.json")
    return place


TAKEN: dict[str, tuple[Callable[[Path, FolderKind], Path], str]] = {
    "a user's own": (own_folder, "did not make, as there is no .tempt; nothing was changed"),
    "a link to a user's own": (linked, "did not make, as there is no .tempt; nothing was changed"),
    "a link to nowhere": (nowhere, "which is not there"),
    "a file": (a_file, "is a file; expected a folder"),
    "of another kind": (of_another_kind, "is a folder of another kind (dataset.json)"),
    "open to all": (of_all, "can be written by other users (mode 777)"),
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("keys") / "keys"
    make_keys(place, ["localhost"], [3, 8])
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consortium.write_dataset(tmp_path_factory.mktemp("data") / "data", consortium.make_dataset())


def arguments(command: str, root: Path, keys: Path, data: Path) -> list[str]:
    """A command whose own folder is `root/run.server`."""
    words, place = command.split(), root / "run.server"
    if words[0] == "hospital":
        at = ["--superlink", "127.0.0.1:9", "--partition", str(data), "--hospital-id", "8", "--state", str(place)]
        return [*words, *at, "--root-certificates", str(keys / "ca.pem"), "--private-key", f"{keys}/hospitals/8/key"]
    if command == "server front":
        return [*words, "--keys", str(keys), "--link", "127.0.0.1:9", "--state", str(place)]
    if command == "server launch":
        places = ["--keys", str(keys), "--vocabulary", str(data), "--out", str(root / "run")]
        return [*words, *places, "--hospitals", "1", "--port", "9"]
    more = [f"{keys}/hospitals/8/key.pub", "--hospital-id", "8"] if command == "server register" else []
    return [*words, str(root / "run"), *more]


@pytest.mark.parametrize("how", TAKEN)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_folder_is_somebodys_is_refused_in_a_line_and_changes_nothing(
    command: str, how: str, keys: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = TAKEN[how]
    place = make(tmp_path / "run.server", COMMANDS[command])
    before = consortium.tree(tmp_path)
    capsys.readouterr()
    assert tempt(arguments(command, tmp_path, keys, data)) == 2
    told = capsys.readouterr()
    if command in ("server status", "server register"):
        assert told.err.startswith(f"error: {place}: no server was launched with --out")
    elif command == "hospital check":
        assert words in next(line for line in told.out.splitlines() if line.startswith("WRONG  write access"))
    else:
        assert told.err.startswith("error: ") and words in told.err and told.err.count("\n") == 1
    assert consortium.tree(tmp_path) == before


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, found in KINDS.items() for name in found.names], ids="-".join
)
@pytest.mark.parametrize("how", ["file", "folder", "link", "link to nowhere"])
def test_every_name_that_a_command_writes_is_somebodys_where_there_is_no_mark(
    kind: str, name: str, how: str, tmp_path: Path
) -> None:
    place, mine = tmp_path / "place", tmp_path / "mine"
    place.mkdir()
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    if how == "file":
        (place / name).write_text("mine")
    elif how == "folder":
        mine.rename(place / name)
    else:
        (place / name).symlink_to(mine if how == "link" else tmp_path / "nowhere")
    before = consortium.tree(tmp_path)
    with pytest.raises(TemptError, match=rf"^{place}: has a {name} that `tempt .*` did not make"):
        claim(place, KINDS[kind])
    assert consortium.tree(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_folder_is_marked_private_and_gone_on_with(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "place"
    claim(place, KINDS[kind])
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert (place / ".tempt").read_text() == kind
    for name in KINDS[kind].names:
        (place / name).write_text("ours")
    claim(place, KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_command_leaves_alone_may_be_there_before(kind: str, tmp_path: Path) -> None:
    """Keys and a policy that an operator lays there first, a disk of its own, a folder that a volume is mounted on."""
    for name in ("lost+found", *KINDS[kind].names):
        (tmp_path / name).mkdir()
    for name in ("key", "ca.pem", "policy.toml"):
        (tmp_path / name).write_text("mine")
    claim(tmp_path, KINDS[kind])
    assert (tmp_path / ".tempt").read_text() == kind


def test_a_folder_that_is_a_link_to_a_disk_is_claimed_there(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run.server").symlink_to("disk")
    claim(tmp_path / "run.server", SERVER_FOLDER)
    assert (tmp_path / "disk" / ".tempt").read_text() == "server"


def test_folders_of_the_release_before_which_had_no_mark_are_gone_on_with(tmp_path: Path) -> None:
    Control(tmp_path / "server" / "flower", "127.0.0.1:9", None).connect()
    (tmp_path / "server" / "superlink.db").write_text("")
    install(tmp_path / "hospital" / "flower" / "bin")
    (tmp_path / "hospital" / "agreement.json").write_text("{}")
    front.FrontPlace(tmp_path, tmp_path / "front", tmp_path / "facts.json", "127.0.0.1", 9, "127.0.0.1:9")
    (tmp_path / "front").mkdir()
    front.FrontPlace(tmp_path, tmp_path / "front", tmp_path / "f.json", "127.0.0.1", 9, "127.0.0.1:9").configure()
    for name, kind in KINDS.items():
        check_folder(tmp_path / name, kind)
        assert not (tmp_path / name / ".tempt").exists()
        claim(tmp_path / name, kind)
        assert (tmp_path / name / ".tempt").read_text() == name


def test_network_of_a_run_whose_folder_others_may_write_is_refused(tmp_path: Path) -> None:
    Control(tmp_path / "run.server" / "flower", "127.0.0.1:9", None).connect()
    assert Network.of_run(tmp_path / "run").own == tmp_path / "run.server"
    (tmp_path / "run.server").chmod(0o777)
    with pytest.raises(TemptError, match="can be written by other users"):
        Network.of_run(tmp_path / "run")


def test_the_shipped_app_replaces_its_own_and_that_of_the_release_before(tmp_path: Path) -> None:
    app = _app_folder(tmp_path / "app", RUN_CONFIG)
    (app / "server" / "older.py").write_text("")
    _app_folder(app, RUN_CONFIG)
    (app / ".tempt").unlink()
    (app / "server" / "older.py").write_text("")
    _app_folder(app, RUN_CONFIG)
    assert not (app / "server" / "older.py").exists()
    assert {path.name for path in app.iterdir()} == {".tempt", "pyproject.toml", *PACKAGES}
    assert [path.name for path in tmp_path.iterdir()] == ["app"]


@pytest.mark.parametrize("how", ["of a user", "a checkout", "a link", "a link to ours", "a file"])
def test_the_shipped_app_never_replaces_what_is_somebodys(how: str, tmp_path: Path) -> None:
    app, mine = tmp_path / "app", tmp_path / "mine"
    mine.mkdir()
    (mine / "server").mkdir()
    (mine / "server" / "mine.py").write_text("mine")
    if how == "a checkout":
        for name in PACKAGES:
            (mine / name).mkdir(exist_ok=True)
        (mine / "pyproject.toml").write_text('[tool.flwr.app]\npublisher = "tempt"\n')
        (mine / "README.md").write_text("mine")
    if how == "a link to ours":
        _app_folder(tmp_path / "ours", RUN_CONFIG)
    if how.startswith("a link"):
        app.symlink_to("ours" if how == "a link to ours" else "mine")
    elif how == "a file":
        app.write_text("mine")
    else:
        mine.rename(app)
    before = consortium.tree(tmp_path)
    with pytest.raises(TemptError):
        _app_folder(app, RUN_CONFIG)
    assert consortium.tree(tmp_path) == before


def test_secrets_that_others_can_read_are_refused_before_anything_starts(
    keys: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shared_model.ownership._leading", lambda path: [])  # pytest's own folder is closed to others
    secret = keys / "superexec.secret"
    secret.chmod(0o644)
    try:
        assert tempt(arguments("server launch", tmp_path, keys, data)) == 2
    finally:
        secret.chmod(0o600)
    assert capsys.readouterr().err == f"error: {secret}: can be read by other users; chmod 600 {secret}\n"
    assert os.listdir(tmp_path) == []


def test_secrets_of_another_user_are_that_ones_to_close(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user reads what its host's user has mounted there."""
    monkeypatch.setattr("shared_model.ownership._leading", lambda path: [])
    key = keys / "server.pem"  # readable for all
    monkeypatch.setattr(os, "geteuid", lambda: key.stat().st_uid + 1)
    front.check_secrets(keys, key.name)
    monkeypatch.setattr(os, "geteuid", lambda: key.stat().st_uid)
    with pytest.raises(TemptError):
        front.check_secrets(keys, key.name)


@pytest.mark.parametrize("name", ["tuning", "scores", "asked.json"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_users_own_folder_of_a_name_that_a_tuning_removes_was_claimed(
    name: str, is_link: bool, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("mine")
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    if is_link:
        (state / name).symlink_to(tmp_path / "mine")
    else:
        (tmp_path / "mine").rename(state / name)
    with pytest.raises(TemptError, match=f"has a {name} that `tempt hospital launch` did not make"):
        claim(state, STATE_FOLDER)


@pytest.mark.parametrize("inside", ["", "hospitals", "hospitals/3", "hospitals/3/key.pub", "ca.pem"])
def test_keys_that_others_may_replace_were_believed(tmp_path: Path, inside: str) -> None:
    make_keys(tmp_path / "keys", ["localhost"], [3])
    front.check_keys(tmp_path / "keys", "ca.pem")
    (tmp_path / "keys" / inside).chmod(0o777)
    with pytest.raises(TemptError, match="can be written by other users"):
        front.check_keys(tmp_path / "keys", "ca.pem")
