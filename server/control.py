"""Flower's own command line on the server's side: keys registered, nodes listed, a run submitted and asked for.

The control side of Flower has no login; it is reached on the loopback alone.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.keys import CA
from shared_model.errors import TemptError
from shared_model.files import private_directory, write_text
from shared_model.supervision import flower_environment

_NAME = "tempt"
_SECONDS = 120.0


def program(name: str) -> str:
    """A program of Flower's that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


@dataclass(frozen=True)
class Control:
    """A SuperLink's control side.

    Attributes:
        home: the folder that Flower keeps everything in.
        keys: what `tempt server keys` made.
        address: the SuperLink's, host:port.
    """

    home: Path
    keys: Path
    address: str

    def connect(self) -> None:
        """Tell Flower's commands where the SuperLink is."""
        private_directory(self.home)
        certificates = json.dumps(str((self.keys / CA).absolute()))
        text = f'[superlink]\ndefault = "{_NAME}"\n[superlink.{_NAME}]\n'
        write_text(self.home / "config.toml", f'{text}address = "{self.address}"\nroot-certificates = {certificates}\n')

    @property
    def environment(self) -> dict[str, str]:
        return flower_environment(self.home)

    def answers(self) -> bool:
        """Whether the SuperLink is there: the one with our certificate, not another that happens to listen."""
        try:
            context = ssl.create_default_context(cafile=str(self.keys / CA))
            with urllib.request.urlopen(f"https://{self.address}/health", context=context, timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def register(self, public: Path, hospital: int) -> bool:
        """Bind a hospital's key to its name, the only one that the server believes; False if the key was known.

        Raises:
            TemptError: the SuperLink refuses the key.
        """
        done = self._flwr(["supernode", "register", str(public.absolute()), _NAME, "--name", f"hospital-{hospital}"])
        if done.returncode and "already in use" in _text(done):
            return False
        if done.returncode:
            raise TemptError(f"{public}: could not be registered: {_text(done)}")
        return True

    def submit(self, app: Path) -> str:
        """Begin a run of an app's folder; its number.

        Raises:
            TemptError: it could not be submitted.
        """
        done = self._flwr(["run", str(app), _NAME])
        found = _json(done)
        if "run-id" not in found:
            raise TemptError(f"the run could not be submitted: {_text(done)}")
        return str(found["run-id"])

    def status_of(self, run: str) -> str | None:
        """What Flower says of a run; None while the SuperLink does not answer."""
        found = _json(self._flwr(["list", _NAME, "--run-id", run]))
        return next((str(row["status"]) for row in found.get("runs", [])), None)

    def _flwr(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = [program("flwr"), *arguments, "--format", "json"]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )


def _json(done: subprocess.CompletedProcess[str]) -> Mapping[str, Any]:
    """What a command of Flower's printed; words of its own may stand before."""
    try:
        found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        return {}
    return found


def _text(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stdout + done.stderr).split())[-300:]
