"""Flower's own command line on the server's side: keys registered, nodes listed, a run submitted and asked for.

The control side of Flower is reached on the loopback alone, and by who has the operator's token (`operator_login`).
"""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server import operator_login
from shared_model.errors import TemptError
from shared_model.files import check_file, private_directory, write_text
from shared_model.supervision import flower_environment
from shared_model.toml_value import toml_value

NAME = "tempt"
"""What Flower's commands call the SuperLink."""
_SECONDS = 120.0
_SHORT_SECONDS = 30.0  # for what changes nothing and is asked again
_IN_USE = "Public key already in use"


def program(name: str) -> str:
    """A program of Flower's that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def guarded(name: str) -> list[str]:
    """The command of a program of Flower's that `guarded_flower` starts."""
    return [sys.executable, "-P", "-m", "server.guarded_flower", name]


@dataclass(frozen=True)
class Control:
    """A SuperLink's control side.

    Attributes:
        home: the folder that Flower keeps everything in.
        address: the SuperLink's, host:port.
        certificates: the CA's, by which it is known; None: it speaks without TLS.
    """

    home: Path
    address: str
    certificates: Path | None

    @classmethod
    def of_home(cls, home: Path) -> Control:
        """The one that `connect` has told Flower's commands of."""
        path = home / "config.toml"
        check_file(path)
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))["superlink"][NAME]
            address, certificates = str(found["address"]), found.get("root-certificates")
            return cls(home, address, None if certificates is None else Path(certificates))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TemptError(
                f"{path}: can't be read ({error}); launch the server again, which writes it anew"
            ) from None

    def connect(self) -> None:
        """Tell Flower's commands where the SuperLink is, and give them and the next SuperLink a new token."""
        private_directory(self.home)
        trust = "insecure = true"
        if self.certificates is not None:
            trust = f"root-certificates = {toml_value(str(self.certificates.absolute()))}"
        text = f'[superlink]\ndefault = "{NAME}"\n[superlink.{NAME}]\naddress = "{self.address}"\n{trust}\n'
        write_text(self.home / "config.toml", text)
        operator_login.renew(self.home, self.address)

    @property
    def environment(self) -> dict[str, str]:
        return flower_environment(self.home)

    def trust(self) -> list[str]:
        """The options of Flower's programs that say how they know the SuperLink."""
        if self.certificates is None:
            return ["--insecure"]
        return ["--root-certificates", str(self.certificates.absolute())]

    def answers(self) -> bool:
        """Whether the SuperLink is there: the one with our certificate, not another that happens to listen."""
        try:
            context, scheme = None, "http"
            if self.certificates is not None:
                context, scheme = ssl.create_default_context(cafile=str(self.certificates)), "https"
            # it is on this machine: whatever proxy the environment names is another's way
            ways = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
            with urllib.request.build_opener(*ways).open(f"{scheme}://{self.address}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (OSError, http.client.HTTPException):
            return False

    def register(self, public: Path, hospital: int) -> str | None:
        """Bind a hospital's key to its name; Flower's number for it, None if Flower has the key already.

        Raises:
            TemptError: the SuperLink refuses the key.
        """
        done = self._flwr(["supernode", "register", str(public.absolute()), NAME, "--name", f"hospital-{hospital}"])
        found = _json(done)
        if _IN_USE in _text(done):
            return None
        if done.returncode or "node-id" not in found:
            raise TemptError(f"{public}: could not be registered: {_text(done)}")
        return str(found["node-id"])

    def unregister(self, node: str) -> None:
        """Take a key out; its hospital can't take part any more.

        Raises:
            TemptError: the SuperLink refuses to.
        """
        done = self._flwr(["supernode", "unregister", node, NAME])
        if done.returncode:
            raise TemptError(f"node {node}: could not be unregistered: {_text(done)}")

    def nodes(self) -> dict[str, str]:
        """What Flower says of each registered node, by its number: registered, online or offline.

        Raises:
            TemptError: the SuperLink does not answer now.
        """
        done = self._flwr(["supernode", "list", NAME], seconds=_SHORT_SECONDS)
        found = _json(done)
        if "nodes" not in found:
            raise TemptError(f"{self.address}: the SuperLink does not tell its nodes; try again: {_text(done)}")
        states = {str(row["node-id"]): str(row["status"]) for row in found["nodes"]}
        return {node: state for node, state in states.items() if state not in ("unregistered", "deleted")}

    def submit(self, app: Path) -> str:
        """Begin a run of an app's folder; its number.

        Raises:
            TemptError: it could not be submitted.
        """
        done = self._flwr(["run", str(app), NAME])
        found = _json(done)
        if "run-id" not in found:
            logs = self.home.parent / "logs"
            raise TemptError(f"{logs}: the run could not be submitted, superlink.log says more: {_text(done)}")
        return str(found["run-id"])

    def status_of(self, run: str) -> str | None:
        """What Flower says of a run; None while the SuperLink does not answer."""
        if not self.answers():  # a stopped one would be waited for
            return None
        found = _json(self._flwr(["list", NAME, "--run-id", run], seconds=_SHORT_SECONDS))
        return next((str(row["status"]) for row in found.get("runs", [])), None)

    def _flwr(self, arguments: Sequence[str], *, seconds: float = _SECONDS) -> subprocess.CompletedProcess[str]:
        command = [program("flwr"), *arguments, "--format", "json"]
        try:
            return subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, "", f"no answer within {seconds:g} s")


def _json(done: subprocess.CompletedProcess[str]) -> Mapping[str, Any]:
    """What a command of Flower's printed; words of its own may stand before."""
    try:
        found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        return {}
    return found


def _text(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stdout + done.stderr).split())[-300:]
