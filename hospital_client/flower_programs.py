"""Flower's programs as a hospital runs them: kept to it, telling signs of life, and ended when their main thread is.

SuperNode tells the heartbeats that the server has acknowledged, and answers messages in step (`in_step`); the SuperExec
that it starts (found first on its path, as `install` puts it there) tells that it has asked for work.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from hospital_client import guarded_flower
from shared_model.files import private_directory, write_text
from shared_model.signs_of_life import run_alone, tell

SUPERNODE, SUPEREXEC = "flower-supernode", "flower-superexec"


def command(program: str, signs: Path) -> list[str]:
    """What runs a program of Flower's.

    Args:
        signs: the file that it touches.
    """
    return [sys.executable, "-P", "-m", __name__, str(signs), str(Path(sys.executable).with_name(program))]


def install(folder: Path, signs: Path) -> None:
    """Write a `flower-superexec` that runs this module into a folder, to be put first on SuperNode's path."""
    private_directory(folder)
    path = folder / SUPEREXEC
    write_text(path, f'#!/bin/sh\nexec {shlex.join(command(SUPEREXEC, signs))} "$@"\n')
    path.chmod(0o700)


def main() -> None:
    """Run the program that is named, with its own arguments after the file of its signs."""
    signs = Path(sys.argv[1])
    sys.argv = sys.argv[2:]
    run_alone(_told(Path(sys.argv[0]).name, signs))


def _told(program: str, signs: Path) -> Callable[[], object]:
    if program == SUPERNODE:
        from flwr.supernode import start_client_internal
        from flwr.supernode.fleet_http_client import FleetHttpClient

        from hospital_client.in_step import keep_in_step  # launch and check need no Flower

        keep_in_step(start_client_internal)
        tell(FleetHttpClient, "SendNodeHeartbeat", signs)
        return guarded_flower.supernode
    from flwr.supercore.runtime import RuntimeHttpClient

    tell(RuntimeHttpClient, "AcquireTask", signs)
    return guarded_flower.superexec


if __name__ == "__main__":
    main()
