"""Flower's SuperNode and SuperExec as a hospital runs them: `python -m hospital_client.guarded_flower flower-supernode ...`.

SuperNode hands messages to ClientApps, and takes their replies, at a port of the loopback that every user of the machine
reaches. Here it does so only for its own SuperExec, which knows a secret, and which hands no token on by a command line.
"""  # noqa: E501

from __future__ import annotations

import importlib
import os
import secrets
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shared_model import hidden_token
from shared_model.files import write_private

_SECRET = "runtime.secret"


def main() -> None:
    """Run one of the two, named by the first argument, with the arguments after it."""
    sys.argv = sys.argv[1:]
    secret = Path(os.environ["FLWR_HOME"]) / _SECRET
    {"flower-supernode": _supernode, "flower-superexec": _superexec}[sys.argv[0]](secret)


def _supernode(path: Path) -> None:
    secret = secrets.token_hex(32)
    write_private(path, secret)
    # Flower asks for a secret only where another than the SuperNode starts the SuperExec
    api: Any = importlib.import_module("flwr.supernode.main")
    cli: Any = importlib.import_module("flwr.supernode.cli.flower_supernode")
    api.create_app = partial(_guarded, api.create_app, secret.encode())
    cli.flower_supernode()


def _guarded(create_app: Any, secret: bytes, **options: Any) -> Any:
    return create_app(**options | {"superexec_auth_secret": secret})


def _superexec(path: Path) -> None:
    cli: Any = importlib.import_module("flwr.supercore.cli.flower_superexec")
    executor: Any = importlib.import_module("flwr.supercore.superexec.executor.subprocess_executor")
    executor.subprocess = SimpleNamespace(Popen=hidden_token.popen, DEVNULL=subprocess.DEVNULL)
    sys.argv += ["--superexec-auth-secret-file", str(path)]
    cli.flower_superexec()


if __name__ == "__main__":
    main()
