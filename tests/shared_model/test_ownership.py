"""A folder that another user could change, itself or on the way to it, is refused; as umask 002 makes it, it is not."""

from __future__ import annotations

import grp
import os
import pwd
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from shared_model.errors import TemptError
from shared_model.ownership import check_own, readable_by_others

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
EVE = 4321


def make(path: Path, mode: int = 0o755, owner: int = -1, group: int = -1) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, owner, group)
    path.chmod(mode)
    return path


def account(name: str, user: int, group: int, shell: str = "/bin/bash") -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", user, group, "", "/", shell))


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750, 0o775, 0o770, 0o2775])
def test_check_own_of_a_folder_as_any_umask_makes_it_passes(mode: int, tmp_path: Path) -> None:
    check_own(make(tmp_path / "above" / "state", mode))
    make(tmp_path / "above", mode)
    check_own(tmp_path / "above" / "state")
    check_own(tmp_path / "above" / "new" / "state")
    assert not (tmp_path / "above" / "new").exists()


def test_check_own_below_a_sticky_folder_passes(tmp_path: Path) -> None:
    make(tmp_path / "tmp", 0o1777)
    check_own(tmp_path / "tmp" / "new")
    check_own(make(tmp_path / "tmp" / "state", 0o700))


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777, 0o702])
def test_check_own_of_a_folder_that_all_may_write_is_refused(mode: int, tmp_path: Path) -> None:
    place = make(tmp_path / "a state", mode)
    with pytest.raises(TemptError) as error:
        check_own(place)
    assert str(error.value) == (
        f"{place}: can be written by other users (mode {mode:o}), who could change what is run and believed; "
        f"chmod o-w '{place}', or name another folder"
    )


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_check_own_below_a_folder_that_all_may_write_names_that_one(depth: int, there: bool, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c" / "state"
    make(path if there else path.parent)
    opened = make(path.parents[depth - 1], 0o777)
    with pytest.raises(TemptError, match=rf"^{opened}: can be written by other users"):
        check_own(path)


@needs_root
@pytest.mark.parametrize("mode", [0o775, 0o770, 0o2775])
def test_check_own_of_a_folder_that_another_group_may_write_is_refused(mode: int, tmp_path: Path) -> None:
    place = make(tmp_path / "state", mode, group=EVE)
    with pytest.raises(TemptError, match="chmod g-w"):
        check_own(place)
    check_own(make(place, mode & ~0o020, group=EVE))


@needs_root
@pytest.mark.parametrize("whose", ["state", ".", "state/flower", "state/flower/bin/flwr-clientapp"])
def test_check_own_of_what_is_another_users_is_refused(whose: str, tmp_path: Path) -> None:
    above = make(tmp_path / "above")
    make(above / "state" / "flower" / "bin")
    (above / "state" / "flower" / "bin" / "flwr-clientapp").write_text("#!/bin/sh\n")
    check_own(above / "state")
    os.chown(above / whose, EVE, EVE)
    with pytest.raises(TemptError) as error:
        check_own(above / "state")
    assert str(error.value) == (
        f"{above / whose}: belongs to uid {EVE}, and this runs as root; name a folder of root's own, "
        f"or run it as uid {EVE}"
    )


def test_check_own_for_another_user_than_root_does_not_say_to_become_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, EVE, EVE)
    monkeypatch.setattr(os, "geteuid", lambda: EVE + 1)
    with pytest.raises(
        TemptError, match=rf"belongs to .*, and this runs as uid {EVE + 1}; name .* uid {EVE + 1}'s own$"
    ):
        check_own(tmp_path)


@needs_root
def test_check_own_by_another_user_of_roots_folder_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: EVE)
    check_own(make(tmp_path / "state", 0o755))


def test_check_own_of_a_file_that_all_may_write_is_refused_where_others_reach_it(tmp_path: Path) -> None:
    place = make(tmp_path / "state" / "egress").parent
    (place / "egress" / "5.jsonl").write_text("")
    (place / "egress" / "5.jsonl").chmod(0o666)
    with pytest.raises(TemptError, match=r"5\.jsonl: can be written by other users"):
        check_own(place)
    check_own(make(place, 0o700))


@needs_root
def test_check_own_of_what_is_set_apart_does_not_ask_whose_it_is(tmp_path: Path) -> None:
    make(tmp_path / "front-body" / "0", owner=EVE)
    with pytest.raises(TemptError):
        check_own(tmp_path)
    check_own(tmp_path, apart=("front-body",))


def test_check_own_follows_links_of_our_own_and_looks_at_where_they_lead(tmp_path: Path) -> None:
    place = make(tmp_path / "disk" / "state")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(tmp_path / "disk" / ".." / "disk" / "state")
    check_own(tmp_path / "one")
    check_own(tmp_path / "one" / "new")
    make(tmp_path / "disk", 0o777)
    with pytest.raises(TemptError, match=rf"^{tmp_path}/disk: can be written"):
        check_own(tmp_path / "one")
    make(tmp_path / "disk")
    make(place, 0o777)
    with pytest.raises(TemptError, match=rf"^{place}: can be written"):
        check_own(tmp_path / "two")


def test_check_own_of_a_link_that_stands_where_all_may_write_is_refused(tmp_path: Path) -> None:
    (make(tmp_path / "open") / "link").symlink_to(make(tmp_path / "state", 0o700))
    make(tmp_path / "open", 0o777)
    with pytest.raises(TemptError, match=rf"^{tmp_path}/open: can be written"):
        check_own(tmp_path / "open" / "link")


@needs_root
def test_check_own_of_another_users_link_in_a_sticky_folder_is_refused(tmp_path: Path) -> None:
    link = make(tmp_path / "tmp", 0o1777) / "link"
    link.symlink_to(make(tmp_path / "state", 0o700))
    check_own(link)
    os.chown(link, EVE, EVE, follow_symlinks=False)
    with pytest.raises(TemptError, match=rf"^{link}: belongs to uid {EVE}"):
        check_own(link)


@pytest.mark.parametrize(
    ("leads", "words"),
    [
        (lambda link: link.symlink_to("nowhere"), "is behind a link to .*nowhere, which is not there"),
        (lambda link: link.symlink_to("link"), "is behind more than 40 links; name the folder itself"),
        (lambda link: link.write_text("mine"), "is a file; expected a folder"),
        (lambda link: os.mkfifo(link), "is a file; expected a folder"),
    ],
)
def test_check_own_of_what_is_no_folder_is_one_line(
    leads: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    leads(tmp_path / "link")
    with pytest.raises(TemptError, match=words) as error:
        check_own(tmp_path / "link")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("members", "accounts", "well"),
    [
        ([], [], True),
        (["alice", "root"], [], True),
        (["bob"], [], False),
        ([], [account("bob", 1001, 1000)], False),
        ([], [account("daemon", 1001, 1000, "/usr/sbin/nologin"), account("sync", 4, 1000)], True),
    ],
)
def test_check_own_of_a_folder_of_the_primary_group_asks_whose_that_is(
    members: list[str], accounts: list[pwd.struct_passwd], well: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = os.stat(make(tmp_path / "state", 0o775)).st_gid
    alice = account("alice", os.geteuid(), group)
    all_ = [alice, *(account(a.pw_name, a.pw_uid, group, a.pw_shell) for a in accounts)]
    monkeypatch.setattr(pwd, "getpwuid", lambda user: alice)
    monkeypatch.setattr(pwd, "getpwall", lambda: all_)
    monkeypatch.setattr(grp, "getgrgid", lambda number: grp.struct_group(("alice", "x", number, members)))
    if well:
        check_own(tmp_path / "state")
    else:
        with pytest.raises(TemptError, match="chmod g-w"):
            check_own(tmp_path / "state")


def test_check_own_without_an_account_takes_the_process_s_group_as_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's user often has no name there."""

    def none(user: int) -> pwd.struct_passwd:
        raise KeyError(user)

    make(tmp_path / "state", 0o775)
    monkeypatch.setattr(pwd, "getpwuid", none)
    check_own(tmp_path / "state")


@pytest.mark.parametrize(("who", "rights", "well"), [(EVE, 7, False), (EVE, 5, True), (0, 7, True)])
def test_check_own_of_a_folder_whose_access_list_lets_another_write_is_refused(
    who: int, rights: int, well: bool, tmp_path: Path
) -> None:
    place = make(tmp_path / "state", 0o700)
    nobody = 0xFFFFFFFF
    entries = [(0x01, 7, nobody), (0x02, rights, who), (0x04, 5, nobody), (0x10, 7, nobody), (0x20, 0, nobody)]
    try:
        os.setxattr(
            place, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
        )
    except OSError:
        pytest.skip("this file system has no access control lists")
    if well:
        check_own(place)
    else:
        with pytest.raises(TemptError, match="setfacl -b"):
            check_own(place)


@pytest.mark.parametrize(
    ("folder", "file", "told"),
    [(0o755, 0o644, True), (0o700, 0o644, False), (0o711, 0o604, True), (0o755, 0o640, False)],
)
def test_a_file_is_readable_by_others_by_its_mode_and_those_of_the_folders_that_lead_to_it(
    folder: int, file: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "keys") / "server.key"
    path.write_text("key")
    path.chmod(file)
    path.parent.chmod(folder)
    # without pytest's own folder, which is closed to others
    monkeypatch.setattr("shared_model.ownership._leading", lambda found: [path.parent])
    assert readable_by_others(path) is told


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_check_own_follows_a_link_in_the_folder_to_what_others_may_write(kind: str, tmp_path: Path) -> None:
    state, outside = make(tmp_path / "state", 0o700), tmp_path / "outside"
    if kind == "folder":
        make(outside, 0o755)
    else:
        outside.write_text("x = 1")
    (state / "link").symlink_to(outside)
    check_own(state)
    outside.chmod(0o777)
    with pytest.raises(TemptError, match=rf"{outside}: can be written by other users"):
        check_own(state)
    outside.rmdir() if kind == "folder" else outside.unlink()
    check_own(state)  # it leads to nothing


def test_check_own_sees_another_user_whom_a_list_lets_in(tmp_path: Path) -> None:
    state = make(tmp_path / "state", 0o700)
    make(state / "bin", 0o777)
    check_own(state)
    entries = [
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 1, 65534),
        (0x04, 0, 0xFFFFFFFF),
        (0x10, 1, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    ]
    content = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(state, "system.posix_acl_access", content)
    except OSError:
        pytest.skip("this file system has no access control lists")
    with pytest.raises(TemptError, match=rf"{state / 'bin'}: can be written by other users"):
        check_own(state)
