"""One hospital of a deployment: its SuperNode, kept running, on its own partition.

It is started again whatever its end, also after exit status 0, with a delay: the server takes a node back only when its
lease of up to 60 seconds has run out.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hospital_client import pinned_clientapp
from hospital_client.eicu_tables import read_tables
from hospital_client.partition import read_partition
from hospital_client.preparation_options import PreparationOptions
from shared_model.errors import TemptError
from shared_model.files import locked
from shared_model.own_folder import FolderKind, claim
from shared_model.supervision import Kept, ended_together, flower_environment, free_port
from shared_model.vocabulary_rules import MINIMUM_COUNT

STATE_FOLDER = FolderKind(
    "hospital",
    "`tempt hospital launch`",
    (
        *("flower", "supernode.log", "egress", "kept", "prepared", "checkpoints"),
        *("agreement.json", "vocabulary.json", "config.json", "results.json"),
    ),
    ("flower/bin/flwr-clientapp", "-m hospital_client.pinned_clientapp"),
)
_DELAY = 10.0
_REASONS = (
    (r"code: 2004", "the server does not know this key (yet), or still holds this hospital's lease (up to 60 s)"),
    (r"code: 2001", "the server wants a key: give --private-key"),
    (r"CERTIFICATE_VERIFY_FAILED", "the server's certificate is not of this CA: check --root-certificates"),
    (r"certificate is not valid for", "the server's certificate lacks the address that --superlink names"),
    (r"Exit Code: 302|Unable to parse the private key", "--private-key is no EC key in OpenSSH's format"),
    (r"\b401\b|[Uu]nauthorized", "the server refused the signature: is this machine's clock right (5 s)?"),
    (r"[Cc]onnection refused|unavailable|ConnectError", "nobody answers at --superlink"),
)


@dataclass(frozen=True)
class HospitalPlace:
    """A hospital of a deployment.

    Attributes:
        superlink: where the server's front is, host:port.
        partition: a dataset directory that holds this hospital's records, or its own raw tables.
        state: the hospital's own folder: prompts, heads, metrics, ledger, Flower's files, log.
        root_certificates, private_key: both, or neither for a server without TLS on this machine.
        is_raw: the partition is raw tables; records are prepared from them once the hospitals agreed on a vocabulary.
        minimum_count: a code that fewer of its stays have is not named in an agreement, whatever the server asks for.
    """

    superlink: str
    partition: Path
    hospital: int
    state: Path
    root_certificates: Path | None
    private_key: Path | None
    is_raw: bool = False
    minimum_count: int = MINIMUM_COUNT

    @property
    def host(self) -> str:
        return self.superlink.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.superlink.rpartition(":")[2])

    def check_options(self) -> None:
        """Refuse what no hospital can be launched with.

        Raises:
            TemptError: what was found, and what was expected.
        """
        if not re.fullmatch(r"\S+:\d{1,5}", self.superlink) or not 0 < self.port < 65536:
            raise TemptError(f"--superlink {self.superlink}: expected HOST:PORT")
        if self.root_certificates is None and self.private_key is None:
            if self.host not in ("127.0.0.1", "localhost"):
                raise TemptError(
                    f"--superlink {self.superlink}: --insecure expects a server on the loopback, 127.0.0.1"
                )
        elif self.root_certificates is None or self.private_key is None:
            raise TemptError("expected --root-certificates and --private-key, or --insecure without them")


def launch(place: HospitalPlace, say: Callable[[str], None], *, until: Callable[[], bool] = lambda: False) -> None:
    """Keep the hospital's SuperNode running until the process is ended.

    Args:
        until: asked now and then; True ends it.

    Raises:
        TemptError: the partition has no such hospital, or others too where it is raw; a key or certificate is missing,
            the address is none, or the hospital's folder is somebody else's or could be changed by others.
    """
    place.check_options()
    if place.is_raw:
        read_tables(place.partition, PreparationOptions(), hospital=place.hospital)
    else:
        read_partition(place.partition, place.hospital)
    for path in (place.root_certificates, place.private_key):
        if path is not None and not path.is_file():
            raise TemptError(f"{path}: no such file")
    claim(place.state, STATE_FOLDER)
    taken = f"{place.state}: another process works for this hospital; end it, or name another --state"
    with locked(place.state / ".launched", taken):
        _keep_running(place, say, until)


def _keep_running(place: HospitalPlace, say: Callable[[str], None], until: Callable[[], bool]) -> None:
    config = {
        "hospital-id": place.hospital,
        "raw" if place.is_raw else "partition": str(place.partition.absolute()),
        "minimum-count": place.minimum_count,
        "folder": str(place.state.absolute()),
    }
    command = [sys.executable, "-P", "-m", pinned_clientapp.GUARDED, "flower-supernode", "--superlink", place.superlink]
    if place.root_certificates is None or place.private_key is None:
        command.append("--insecure")
    else:
        command += ["--root-certificates", str(place.root_certificates.absolute())]
        command += ["--auth-supernode-private-key", str(place.private_key.absolute())]
    command += ["--host", "127.0.0.1", "--port", str(free_port())]
    command += ["--node-config", " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())]
    home = place.state.absolute() / "flower"
    refused = home / "refused.txt"
    pinned_clientapp.install(home / "bin")
    environment = flower_environment(home, home / "bin") | {pinned_clientapp.REFUSED: str(refused)}
    node = Kept("supernode", command, environment, place.state / "supernode.log", delay=_DELAY)
    said = ""
    left = _Ledger(place.state / "egress" / f"{place.hospital}.jsonl")
    with ended_together([node]):
        say(f"hospital {place.hospital}: serving {place.superlink}; log in {node.log}")
        if not _answers(place):
            say(f"hospital {place.hospital}: nobody answers at {place.superlink} yet; trying again until someone does")
        while not until():
            status = node.keep()
            why = None
            if refused.exists():
                why = (
                    f"the server's code was refused: {refused.read_text(encoding='utf-8').strip()}; install its version"
                )
                refused.unlink()
            elif status is not None:
                ended = node.last_words(reason) or f"exit status {status}"
                why = f"its SuperNode ended: {ended}; trying again every {_DELAY:g} s"
            if why is not None and why != said:
                said = why
                say(f"hospital {place.hospital}: {why}")
            for line in left.new_lines():
                said = ""
                say(f"hospital {place.hospital}: {line}")
            time.sleep(0.2)


def _answers(place: HospitalPlace) -> bool:
    try:
        socket.create_connection((place.host, place.port), timeout=5).close()
    except OSError:
        return False
    return True


class _Ledger:
    """What leaves the hospital from now on, a line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0  # half a line is written anew

    def new_lines(self) -> list[str]:
        if not self._path.exists() or self._path.stat().st_size <= self._read:
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        return [_in_words(json.loads(line)) for line in whole.splitlines()]


def _in_words(entry: Mapping[str, Any]) -> str:
    numbered = entry["kind"] == "pretrain" and entry["round"]
    kind = f"round {entry['round']}" if numbered else str(entry["kind"]).replace("_", " ")
    if "error" in entry.get("texts", {}):
        return f"could not answer {kind}: {entry['texts']['error']}; supernode.log says more"
    return f"answered {kind}: {len(entry['arrays'])} arrays, {entry['bytes'] / 1e6:.1f} MB"


def reason(line: str) -> str | None:
    """In plain words, what a line of the SuperNode's log says went wrong."""
    return next((words for pattern, words in _REASONS if re.search(pattern, line)), None)
