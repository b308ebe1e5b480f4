"""Files that are never half-written: content goes beside its place and is renamed into it.

After a kill at any moment a path holds the old content or the new. What a killed process left behind starts with
`.writing-` and is removed by `remove_leftovers`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared_model.errors import TemptError

_PREFIX = ".writing-"
_BEGUN = re.compile(re.escape(_PREFIX) + r"(\d{1,9})-")  # the process's number; what is named otherwise is somebody's
MARK = ".tempt"
"""The file in a directory that says which command made it."""


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path to write to that becomes `path` when the block ends well, and vanishes when it does not.

    Args:
        durable: also survive a loss of power: the content is on the disk before it gets its name.

    Raises:
        TemptError: the disk is full or the folder can't be written to.
    """
    beside = path.with_name(f"{_PREFIX}{os.getpid()}-{path.name}")
    try:
        yield beside
        if durable:
            descriptor = os.open(beside, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        beside.replace(path)
    except OSError as error:
        raise TemptError(f"{path}: can't be written: {error.strerror or error}; nothing was changed there") from error
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file's text in one step."""
    with replacing(path, durable=durable) as beside:
        beside.write_text(text, encoding="utf-8")


def write_private(path: Path, text: str) -> None:
    """Replace a file's text in one step; nobody but its owner can read it at any moment (mode 0600)."""
    with replacing(path) as beside:
        beside.touch(mode=0o600)
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Replace a JSON file in one step, indented for readers."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # a path that is no text in UTF-8 has half a character, which JSON knows as an escape
    write_text(path, text.encode("utf-8", "backslashreplace").decode(), durable=durable)


def check_file(path: Path, mend: str = "correct its name, or make it first") -> None:
    """Refuse what is no file: opening a pipe would wait for whoever writes into it.

    Args:
        mend: what is to be done where it is missing.

    Raises:
        TemptError: it is missing, can't be reached, or is a folder, a pipe or a device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise TemptError(f"{path}: no such file; {mend}") from None
    except OSError as error:
        raise TemptError(f"{path}: can't be read: {error.strerror}; check who may read it, and its folder") from None
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "something else"
        raise TemptError(f"{path}: expected a file, found {found}; move it away, or name a file")


def read_json(path: Path, mend: str = "put the file back as it was written, or make it anew") -> dict[str, Any]:
    """A JSON file that holds an object; a byte order mark before it, as some editors put there, is passed over.

    Args:
        mend: what is to be done about a file that holds something else.

    Raises:
        TemptError: the file is missing or holds something else.
    """
    check_file(path)
    try:
        content = parsed(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise TemptError(f"{path}: can't be read as JSON: {error}; {mend}") from None
    if not isinstance(content, dict):
        raise TemptError(f"{path}: expected a JSON object, found {type(content).__name__}; {mend}")
    return content


def parsed(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is none, or Python's reader would take it otherwise than another's: NaN, infinity, a name twice.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_each_name_once)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text[:20])


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the name '{next(name for name in names if names.count(name) > 1)}' twice")
    return found


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed process had begun to write below a directory."""
    for path in directory.rglob(f"{_PREFIX}*"):
        if not _BEGUN.match(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def new_directory(directory: Path, *, mark: str, force: bool) -> Iterator[Path]:
    """A directory to fill that gets its name when the block ends well, with mode 0700.

    Args:
        mark: names the kind of directory; it is written into `.tempt`, and `force` deletes only what has it there.
        force: replace an older directory of the same kind.

    Raises:
        TemptError: the place is taken, can't be written to, or the disk is full.
    """
    directory = real(directory)
    check_place(directory, mark=mark, force=force)
    beside = directory.with_name(f"{_PREFIX}{os.getpid()}-{directory.name}")
    made = [parent for parent in directory.parents if not parent.exists()]
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(directory)
        beside.mkdir(mode=0o700)
        (beside / MARK).write_text(mark, encoding="utf-8")
        yield beside
        take_place(beside, directory)
    except OSError as error:
        reason = error.strerror or error
        culprit = Path(os.fsdecode(error.filename)) if error.filename else directory
        if not (culprit.is_relative_to(beside) or directory.is_relative_to(culprit)):
            raise TemptError(f"{culprit}: {reason}; nothing was written to {directory}") from error
        raise TemptError(f"{directory}: can't be written: {reason}; nothing was changed there") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if not directory.exists():
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()


def take_place(beside: Path, directory: Path) -> None:
    """Give a directory the name of another, in one step where the system can; what had the name is removed.

    Raises:
        OSError: the system refuses it.
    """
    if not directory.exists():
        beside.rename(directory)
    elif _exchange(beside, directory):
        shutil.rmtree(beside, ignore_errors=True)
    else:
        old = directory.with_name(f"{_PREFIX}{os.getpid()}-old-{directory.name}")
        directory.rename(old)
        beside.rename(directory)
        shutil.rmtree(old)


def _remove_abandoned(directory: Path) -> None:
    """Remove what killed processes had begun to write in a directory's place."""
    for path in directory.parent.iterdir():
        begun = _BEGUN.match(path.name)
        if begun is None or path.name[begun.end() :] not in (directory.name, f"old-{directory.name}"):
            continue
        if not path.is_symlink() and (int(begun[1]) == os.getpid() or not _is_alive(int(begun[1]))):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two directories' names in one step, where the system can (Linux); False where it can't."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock's file for this process alone; the system lets it go however the process ends.

    Raises:
        TemptError: another process holds it; `taken` is what is said then.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TemptError(taken) from None
        yield
    finally:
        os.close(descriptor)


def private_directory(path: Path) -> None:
    """Make a directory and those above it that are missing, readable for their owner alone (mode 0700)."""
    for folder in [*reversed(path.parents), path]:
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)


def real(path: Path) -> Path:
    """Where a path leads, as `resolve` says, but that a link to itself stays what it is: opening it is an error."""
    return Path(os.path.realpath(path))


def check_place(directory: Path, *, mark: str, force: bool) -> None:
    """Refuse an output directory that holds something, unless `force` and it is one of ours."""
    if directory.exists() and not directory.is_dir():
        raise TemptError(f"{directory}: is a file; expected a directory that is new or empty")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not force:
        raise TemptError(f"{directory}: is not empty; name another directory, or use --force to replace it")
    own = directory / MARK
    if not own.is_file() or own.read_text(encoding="utf-8", errors="replace") != mark:
        raise TemptError(
            f"{directory}: has no {MARK} of this kind, so this command did not make it; --force deletes only its own"
        )
