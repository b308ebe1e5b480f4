"""`flwr-clientapp` as a hospital runs it: the code that its own installation has, and no other.

SuperNode starts this for every message, as `launch` puts it first on its path. What the server ships is compared with
the installed packages, file by file, before any of it is unpacked or imported.
"""

from __future__ import annotations

import fcntl
import importlib
import io
import os
import shlex
import shutil
import signal
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from shared_model.errors import printable
from shared_model.files import private_directory, write_text
from shared_model.shipped_code import CLIENT_APP, shipped_files

REFUSED = "TEMPT_REFUSED"
"""The environment variable that names the file in which a refusal is told to `tempt hospital launch`."""


AT_WORK = "TEMPT_AT_WORK"
"""The environment variable that names the file by which one process of a hospital works at a time."""
_LEAVES_WITHIN, _ENDS_WITHIN = 10.0, 40.0  # seconds: of one that has answered, and of one that is killed after them


class OtherCode(Exception):
    """What a server ships is not what is installed here."""


def check_code(fab: bytes) -> None:
    """Refuse an app that holds anything but this installation's files.

    Args:
        fab: as Flower ships it, a zip archive.

    Raises:
        OtherCode: the first difference is named.
    """
    ours = shipped_files()
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        for name in archive.namelist():
            if name.startswith(".info/") or name.endswith("/"):
                continue
            if name == "pyproject.toml":
                components = tomllib.loads(archive.read(name).decode())["tool"]["flwr"]["app"]["components"]
                if components["clientapp"] != CLIENT_APP:
                    raise OtherCode(f"its ClientApp is {printable(components['clientapp'], 60)}, expected {CLIENT_APP}")
            elif name not in ours:
                raise OtherCode(f"it holds {printable(name, 80)}, which is not installed here")
            elif archive.read(name) != ours[name]:
                raise OtherCode(f"its {name} is not the one installed here")


def unpacked(fab: bytes, unpack: Callable[[], Path]) -> Path:
    """Unpack an app that was compared, and make sure that its folder holds just that.

    Flower leaves a folder of that name as it is, whoever has left it: a process that was killed, or another version.

    Raises:
        OtherCode: also what was unpacked just now is something else.
    """
    found = unpack()
    if found.is_symlink():
        raise OtherCode(f"{found} is a link; expected the folder that is made there, remove the link")
    if not _holds(found, fab):
        shutil.rmtree(found)
        found = unpack()
    if not _holds(found, fab):
        raise OtherCode(f"{found} is not what was unpacked there")
    return found


def _holds(folder: Path, fab: bytes) -> bool:
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        names = [name for name in archive.namelist() if not name.startswith(".info/") and not name.endswith("/")]
        shipped = {name: archive.read(name) for name in names}
    there = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in there} == shipped


def install(folder: Path) -> None:
    """Write a `flwr-clientapp` that runs this module into a folder, to be put first on the path."""
    private_directory(folder)
    path = folder / "flwr-clientapp"
    write_text(path, f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m {__name__} "$@"\n')
    path.chmod(0o700)


def work_alone(path: Path) -> int:
    """Be the one process that works for the hospital, until it ends: the descriptor of the file that says so.

    SuperNode gives one message at a time to a process. One that is still there was given up, as it was stopped; it is
    killed, as it would go on with an older message's work beside ours.

    Raises:
        TimeoutError: the system does not end it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    began = time.monotonic()
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        waited = time.monotonic() - began
        if waited > _ENDS_WITHIN:
            raise TimeoutError(f"{path}: an older process of this hospital can't be ended")
        if waited > _LEAVES_WITHIN:
            with suppress(ValueError, ProcessLookupError):  # it has just ended
                os.kill(int(os.pread(descriptor, 20, 0)), signal.SIGKILL)
        time.sleep(0.05)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def main() -> None:
    """Run Flower's ClientApp process, with the check before the app is unpacked."""
    if AT_WORK in os.environ:
        work_alone(Path(os.environ[AT_WORK]))
    from flwr.supernode.cli import flwr_clientapp

    # Flower has no place for this check of its own
    process: Any = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    unpack = process.install_from_fab

    def checked(fab_file: bytes, *arguments: Any, **options: Any) -> Path:
        try:
            check_code(fab_file)
        except OtherCode as other:
            if REFUSED in os.environ:
                write_text(Path(os.environ[REFUSED]), f"{other}\n")
            raise
        return unpacked(fab_file, lambda: unpack(fab_file, *arguments, **options))

    process.install_from_fab = checked
    flwr_clientapp()


if __name__ == "__main__":
    main()
