"""One hospital of a deployment: its SuperNode, kept running, on its own partition.

It is started again whatever its end, also after exit status 0, with a delay: the server takes a node back only when its
lease of up to 60 seconds has run out.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hospital_client.eicu_tables import read_tables
from hospital_client.partition import read_partition
from hospital_client.preparation_options import PreparationOptions
from shared_model.errors import TemptError
from shared_model.supervision import Kept, ended_together, flower_environment, free_port

_DELAY = 10.0
_REASONS = (
    (r"code: 2004", "the server does not know this key, or still holds this hospital's lease (up to 60 s)"),
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
        is_raw: the partition is raw tables; records are prepared from them once the hospitals agreed on a vocabulary.
        minimum_count: a code that fewer of its stays have is not named in an agreement, whatever the server asks for.
    """

    superlink: str
    partition: Path
    hospital: int
    state: Path
    root_certificates: Path
    private_key: Path
    is_raw: bool = False
    minimum_count: int = 1


def launch(place: HospitalPlace, say: Callable[[str], None], *, until: Callable[[], bool] = lambda: False) -> None:
    """Keep the hospital's SuperNode running until the process is ended.

    Args:
        until: asked now and then; True ends it.

    Raises:
        TemptError: the partition has no such hospital, or others too where it is raw; a key or certificate is missing,
            or the address is none.
    """
    if place.is_raw:
        read_tables(place.partition, PreparationOptions(), hospital=place.hospital)
    else:
        read_partition(place.partition, place.hospital)
    for path in (place.root_certificates, place.private_key):
        if not path.is_file():
            raise TemptError(f"{path}: no such file")
    if not re.fullmatch(r"\S+:\d{1,5}", place.superlink):
        raise TemptError(f"--superlink {place.superlink}: expected HOST:PORT")
    config = {
        "hospital-id": place.hospital,
        "raw" if place.is_raw else "partition": str(place.partition.absolute()),
        "minimum-count": place.minimum_count,
        "folder": str(place.state.absolute()),
    }
    command = [str(Path(sys.executable).with_name("flower-supernode")), "--superlink", place.superlink]
    command += ["--root-certificates", str(place.root_certificates.absolute())]
    command += ["--auth-supernode-private-key", str(place.private_key.absolute())]
    command += ["--host", "127.0.0.1", "--port", str(free_port())]
    command += ["--node-config", " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())]
    environment = flower_environment(place.state / "flower")
    node = Kept("supernode", command, environment, place.state / "supernode.log", delay=_DELAY)
    said = ""
    with ended_together([node]):
        say(f"hospital {place.hospital}: serving {place.superlink}; log in {node.log}")
        while not until():
            status = node.keep()
            if status is not None:
                why = node.last_words(reason) or f"exit status {status}"
                if why != said:
                    said = why
                    say(f"hospital {place.hospital}: its SuperNode ended: {why}; trying again every {_DELAY:g} s")
            time.sleep(0.2)


def reason(line: str) -> str | None:
    """In plain words, what a line of the SuperNode's log says went wrong."""
    return next((words for pattern, words in _REASONS if re.search(pattern, line)), None)
