"""One hospital of a deployment: its SuperNode, kept running, on its own partition.

It is started again whatever its end, also after exit status 0, with a delay: the server takes a node back only when its
lease of up to 60 seconds has run out.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hospital_client import flower_programs, one_agreement, pinned_clientapp
from hospital_client.admission import counts_of
from hospital_client.eicu_tables import read_tables
from hospital_client.partition import read_partition
from hospital_client.policy import FILE, keep_policy, read_policy
from hospital_client.preparation_options import PreparationOptions
from hospital_client.route import Route, ServerAnswer
from shared_model.addresses import Address, address_of, is_loopback
from shared_model.errors import TemptError
from shared_model.files import check_file, locked, parsed
from shared_model.node_keys import fingerprint, public_key
from shared_model.own_folder import FolderKind, claim
from shared_model.signs_of_life import LIMIT, Signs, touched
from shared_model.supervision import Kept, ended_together, flower_environment, free_port
from shared_model.toml_value import toml_value
from shared_model.vocabulary_rules import MINIMUM_COUNT

STATE_FOLDER = FolderKind(
    "hospital",
    "`tempt hospital launch`",
    (
        *("flower", "supernode.log", "egress", "kept", "prepared", "checkpoints", "tuning", "scores"),
        *("agreement.json", "asked.json", "vocabulary.json", "config.json", "results.json"),
    ),
    ("flower/bin/flwr-clientapp", "-m hospital_client.pinned_clientapp"),
)
_DELAY = 10.0
_SIGNATURE = "the server refused the signature: it is another than before, or this machine's clock is off (5 s)"
_REASONS = (
    (r"code: 2004", "the server does not know this key (yet), or still holds this hospital's lease (up to 60 s)"),
    (r"code: 2001", "the server wants a key: give --private-key"),
    (r"CERTIFICATE_VERIFY_FAILED", "the server's certificate is not of this CA: check --root-certificates"),
    (r"certificate is not valid for", "the server's certificate lacks the address that --superlink names"),
    (r"Exit Code: 302|Unable to parse the private key", "--private-key is no EC key in OpenSSH's format"),
    (r"\b401\b|[Uu]nauthorized", _SIGNATURE),
    (r"\b407\b", "the proxy wants a name and a password: http://NAME:PASSWORD@HOST:PORT"),
    (r"timed out", "who listens at --superlink takes connections and does not answer"),
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
    def address(self) -> Address:
        return address_of(self.superlink, "--superlink")

    def route(self) -> Route:
        """The way to the server.

        Raises:
            TemptError: the environment names a proxy that can't be used.
        """
        return Route.to(self.address)

    def check_options(self) -> None:
        """Refuse what no hospital can be launched with.

        Raises:
            TemptError: what was found, and what was expected.
        """
        address = self.address
        if self.root_certificates is None and self.private_key is None:
            if not is_loopback(address.host):
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
            the address is none, the environment names a proxy that can't be used, the hospital's policy is damaged, or
            its folder is somebody else's or could be changed by others.
    """
    place.check_options()
    route = place.route()
    read_policy(place.state)
    counts_of(place.state)
    one_agreement.check_kept(place.state)
    if place.is_raw:
        read_tables(place.partition, PreparationOptions(), hospital=place.hospital)
    else:
        read_partition(place.partition, place.hospital)
    for path in (place.root_certificates, place.private_key):
        if path is not None:
            check_file(path)
    claim(place.state, STATE_FOLDER)
    taken = f"{place.state}: another process works for this hospital; end it, or name another --state"
    with locked(place.state / ".launched", taken):
        keep_policy(place.state)
        if place.private_key is None:  # only now: a mistake is told in one line
            say("warning: --insecure: nothing is encrypted, and nobody's identity is checked")
        _keep_running(place, route, say, until)


def _keep_running(place: HospitalPlace, route: Route, say: Callable[[str], None], until: Callable[[], bool]) -> None:
    home = place.state.absolute() / "flower"
    refused = home / "refused.txt"
    node = _supernode(place, route, home, refused)
    said = ""
    left = _Ledger(place.state / "egress" / f"{place.hospital}.jsonl")
    with ended_together([node]):
        say(
            f"hospital {place.hospital}: serving {route.server} (proxy: {route}); log in {node.log}; started again "
            f"whenever it ends, or after {LIMIT:g} s without a heartbeat that the server acknowledges while it answers"
        )
        say(f"hospital {place.hospital}: {place.state / FILE} says what a server may ask and learn")
        if not _answers(route):
            say(f"hospital {place.hospital}: nobody answers at {route.server} yet; trying again until someone does")
        while not until():
            status = node.keep()
            why = None
            if refused.exists():
                found = refused.read_text(encoding="utf-8", errors="replace").strip()
                why = f"the server's code was refused: {found}; install its version"
                refused.unlink()
            elif status is not None:
                ended = node.last_words(reason)
                if ended in (None, _SIGNATURE):
                    ended = _refusal(place, route) or ended
                why = f"its SuperNode {node.last_end}{f': {ended}' if ended else ''}; trying again every {_DELAY:g} s"
            if why is not None and (why != said or not node.short_lives):
                said = why
                say(f"hospital {place.hospital}: {why}")
            for line in left.new_lines():
                said = ""
                say(f"hospital {place.hospital}: {line}")
            time.sleep(0.2)


def _supernode(place: HospitalPlace, route: Route, home: Path, refused: Path) -> Kept:
    """The hospital's SuperNode, not yet started.

    Args:
        refused: where a refusal of the server's code is told.
    """
    config: dict[str, str | int] = {
        "hospital-id": place.hospital,
        "raw" if place.is_raw else "partition": str(place.partition.absolute()),
        "minimum-count": place.minimum_count,
        "folder": str(place.state.absolute()),
    }
    heartbeat, polled = home / "heartbeat", home / "polled"
    command = flower_programs.command(flower_programs.SUPERNODE, heartbeat)
    command += ["--superlink", str(route.server)]
    if place.root_certificates is None or place.private_key is None:
        command.append("--insecure")
    else:
        command += ["--root-certificates", str(place.root_certificates.absolute())]
        command += ["--auth-supernode-private-key", str(place.private_key.absolute())]
    command += ["--host", "127.0.0.1", "--port", str(free_port())]
    command += ["--node-config", " ".join(f"{name}={toml_value(value)}" for name, value in config.items())]
    pinned_clientapp.install(home / "bin")
    flower_programs.install(home / "bin", polled)
    told = {pinned_clientapp.REFUSED: str(refused), pinned_clientapp.AT_WORK: str(home / "at-work")}
    environment = flower_environment(home, home / "bin") | told
    signs = [
        Signs(
            "no heartbeat that the server acknowledged",
            touched(heartbeat),
            excused=lambda: not route.serves(place.root_certificates),
        ),
        Signs("its SuperExec did not ask for work", touched(polled)),
    ]
    return Kept(
        "supernode", command, route.environment(environment), place.state / "supernode.log", delay=_DELAY, signs=signs
    )


def _answers(route: Route) -> bool:
    try:
        route.connect(5.0).close()
    except OSError:
        return False
    return True


def _refusal(place: HospitalPlace, route: Route) -> str | None:
    """Why the server refuses the hospital's signature, where it tells enough to say so."""
    if place.root_certificates is None or place.private_key is None:
        return None
    told = ServerAnswer()
    with suppress(OSError):
        told.ask(route, ssl.create_default_context(cafile=str(place.root_certificates)), 5.0)
    if told.clock_is_off():
        return f"the server refuses this machine's signatures: its clock is {told.ahead:+.0f} s off; set it (NTP)"
    if told.facts is not None and fingerprint(public_key(place.private_key)) not in told.facts["keys"]:
        return "this server does not know the hospital's key: send key.pub to its operator (`tempt server register`)"
    return None


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
        return [_told(line) for line in whole.splitlines()]


def _told(line: bytes) -> str:
    try:
        return _in_words(parsed(line.decode()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return "answered something: its line in the ledger is damaged"


def _in_words(entry: Mapping[str, Any]) -> str:
    numbered = entry["kind"] == "pretrain" and entry["round"]
    kind = f"round {entry['round']}" if numbered else str(entry["kind"]).replace("_", " ")
    error = str(entry.get("texts", {}).get("error", ""))
    if error.startswith("refused by policy"):
        return f"{kind}: {error}"
    if error:
        return f"could not answer {kind}: {error}; supernode.log says more"
    if numbered and not entry["arrays"]:
        if "score-sum" in entry["numbers"]:  # it comes with the next round's number
            return f"answered with the score of round {entry['round'] - 1}"
        return f"answered {kind} without an update or a score: too few records by its policy"
    return f"answered {kind}: {len(entry['arrays'])} arrays, {entry['bytes'] / 1e6:.1f} MB"


def reason(line: str) -> str | None:
    """In plain words, what a line of the SuperNode's log says went wrong."""
    return next((words for pattern, words in _REASONS if re.search(pattern, line)), None)
