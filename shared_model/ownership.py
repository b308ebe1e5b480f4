"""Whether another user could change what is run and believed from a folder.

Nobody but its user and root may own the folder, what is in it and what leads to it, folders and links, or write there.
What leads to it may be open to all where it is sticky, as /tmp is: there nobody renames what is another's.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
import struct
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from shared_model.errors import TemptError

_LINKS = 40  # as many as Linux follows
_FIRST_LOGIN, _NOBODY = 1000, 65534
_NO_LOGIN = ("nologin", "false", "sync", "")
_NAMED_USER, _NAMED_GROUP, _WRITES, _ENTERS = 0x02, 0x08, 0o2, 0o1  # of POSIX ACLs, acl(5)


def check_own(folder: Path, *, apart: Collection[str] = ()) -> None:
    """Refuse a folder that another user owns or may write, or could put another one in the place of.

    Args:
        folder: need not be there yet.
        apart: names in it whose content may be another user's, as nobody believes it.

    Raises:
        TemptError: another user owns it or may write there; the first such folder, link or file is named.
    """
    everybodys = {
        Path("/"): "the root of all files",
        Path(os.path.expanduser("~")): "a home folder",
        **dict.fromkeys(
            map(Path, ("/tmp", "/var/tmp", tempfile.gettempdir())), "everybody's folder for what is temporary"
        ),
    }
    if (what := everybodys.get(Path(os.path.realpath(folder)))) is not None:
        raise TemptError(f"{folder}: is {what}; expected a folder of its own, such as {folder / 'tempt'}")
    path = _check_way(folder)
    if path is None:
        return
    status = path.stat()
    if _others_write(path, status):
        raise _open_to_others(path, status)
    for entry, found in _content(path, apart):
        _check_owner(entry, found)
        if stat.S_ISLNK(found.st_mode):
            _check_target(entry, path)
        elif _others_write(entry, found) and _others_enter(path, status):
            raise _open_to_others(entry, found)


def check_not_open(*paths: Path) -> None:
    """Refuse what this user has and others may write; what is another user's, as secrets of containers, is that one's.

    Raises:
        TemptError: others may write one; the first is named.
    """
    for path in paths:
        status = path.stat()
        if status.st_uid == os.geteuid() and _others_write(path, status):
            raise _open_to_others(path, status)


def readable_by_others(path: Path) -> bool:
    """Whether a file's mode, and those of all folders that lead to it, let every user read it."""
    return bool(path.stat().st_mode & stat.S_IROTH) and all(f.stat().st_mode & stat.S_IXOTH for f in _leading(path))


def _leading(path: Path) -> Sequence[Path]:
    return path.resolve().parents


def _check_way(folder: Path) -> Path | None:
    """Check every folder and link that leads to a folder; where it is, None if it is not there yet.

    Raises:
        TemptError: another user has, or may write, one of them, or it is no folder.
    """
    here, pending = Path(folder.absolute().anchor), [(name, False) for name in folder.absolute().parts[:0:-1]]
    links, by_link = 0, False
    while True:
        try:
            status = here.lstat()
        except FileNotFoundError:
            if by_link:
                raise TemptError(f"{folder}: is behind a link to {here}, which is not there; make it") from None
            return None
        _check_owner(here, status)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _LINKS:
                raise TemptError(f"{folder}: is behind more than {_LINKS} links; name the folder itself")
            target = here.parent / os.readlink(here)
            here = Path(target.anchor)
            pending += [(name, True) for name in target.parts[:0:-1]]
        elif not stat.S_ISDIR(status.st_mode):
            raise TemptError(f"{here}: is a file; expected a folder, name another")
        elif pending and not status.st_mode & stat.S_ISVTX and _others_write(here, status):
            raise _open_to_others(here, status)
        if not pending:
            return here
        name, by_link = pending.pop()
        here = here.parent if name == ".." else here / name


def _check_target(link: Path, folder: Path) -> None:
    """Check what a link in a folder leads to, which is run and believed as what is in it; nothing is no harm."""
    target = Path(os.path.realpath(link))  # of a loop, too
    if target.is_relative_to(folder.resolve()) or not target.exists():
        return
    if target.is_dir():
        check_own(target)
        return
    _check_way(target.parent)
    status = target.stat()
    _check_owner(target, status)
    if _others_write(target, status):
        raise _open_to_others(target, status)


def _content(folder: Path, apart: Collection[str]) -> Iterator[tuple[Path, os.stat_result]]:
    for place, folders, files in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in apart]
        for name in (*folders, *files):
            try:
                yield Path(place, name), Path(place, name).lstat()
            except FileNotFoundError:  # a process of ours is at work there
                continue


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid in (0, os.geteuid()):
        return
    owner, user = _name(status.st_uid), _name(os.geteuid())
    also = f", or run it as {owner}" if os.geteuid() == 0 else ""
    raise TemptError(f"{path}: belongs to {owner}, and this runs as {user}; name a folder of {user}'s own{also}")


def _open_to_others(path: Path, status: os.stat_result) -> TemptError:
    who = "o" if status.st_mode & stat.S_IWOTH else ""
    who += "g" if status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid) else ""
    mend = f"chmod {who}-w" if who else "setfacl -b"
    return TemptError(
        f"{path}: can be written by other users (mode {stat.S_IMODE(status.st_mode):o}), who could change what is run "
        f"and believed; {mend} {shlex.quote(str(path))}, or name another folder"
    )


def _others_write(path: Path, status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and (not _is_own_group(status.st_gid) or _names_others(path))


def _others_enter(path: Path, status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IXOTH:
        return True
    return bool(status.st_mode & stat.S_IXGRP) and (not _is_own_group(status.st_gid) or _names_others(path, _ENTERS))


def _is_own_group(group: int) -> bool:
    """Whether it is the user's own, as umask 002 expects it: the primary one, without another user who logs in."""
    user = os.geteuid()
    try:
        account = pwd.getpwuid(user)
    except KeyError:  # in a container
        return group == os.getegid()
    if group not in (account.pw_gid, os.getegid()):
        return False
    try:
        members = set(grp.getgrgid(group).gr_mem) - {account.pw_name, "root"}
    except KeyError:
        members = set()
    return not members and not any(
        other.pw_gid == group and other.pw_uid not in (0, user) and _logs_in(other) for other in pwd.getpwall()
    )


def _logs_in(account: pwd.struct_passwd) -> bool:
    shell = account.pw_shell.rpartition("/")[2]
    return _FIRST_LOGIN <= account.pw_uid != _NOBODY and shell not in _NO_LOGIN


def _names_others(path: Path, right: int = _WRITES) -> bool:
    """Whether an access control list lets somebody else write or enter, which the mode shows as its group's right."""
    try:
        found = os.getxattr(path, "system.posix_acl_access")
    except (OSError, AttributeError):  # none, or a system or file system without
        return False
    able = [(kind, who) for kind, rights, who in struct.iter_unpack("<HHI", found[4:]) if rights & right]
    return any(
        (kind == _NAMED_USER and who not in (0, os.geteuid())) or (kind == _NAMED_GROUP and not _is_own_group(who))
        for kind, who in able
    )


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"uid {user}"
