"""Flower's SuperNode and SuperExec kept to one hospital; `flower_programs` starts them.

SuperNode hands messages to ClientApps, and takes their replies, at a port of the loopback that every user of the
machine reaches. Here it does so only for its own SuperExec, which knows a secret, and which hands no token on by a
command line.
"""

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


def supernode() -> None:
    """Run SuperNode, which tells the hospital's SuperExec a new secret."""
    secret = secrets.token_hex(32)
    write_private(_secret(), secret)
    # Flower asks for a secret only where another than the SuperNode starts the SuperExec
    api: Any = importlib.import_module("flwr.supernode.main")
    cli: Any = importlib.import_module("flwr.supernode.cli.flower_supernode")
    api.create_app = partial(_guarded, api.create_app, secret.encode())
    cli.flower_supernode()


def _guarded(create_app: Any, secret: bytes, **options: Any) -> Any:
    return create_app(**options | {"superexec_auth_secret": secret})


def superexec() -> None:
    """Run SuperExec, which knows the secret."""
    cli: Any = importlib.import_module("flwr.supercore.cli.flower_superexec")
    executor: Any = importlib.import_module("flwr.supercore.superexec.executor.subprocess_executor")
    executor.subprocess = SimpleNamespace(Popen=hidden_token.popen, DEVNULL=subprocess.DEVNULL)
    sys.argv += ["--superexec-auth-secret-file", str(_secret())]
    cli.flower_superexec()


def _secret() -> Path:
    return Path(os.environ["FLWR_HOME"]) / "runtime.secret"
