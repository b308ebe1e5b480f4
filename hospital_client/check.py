"""A look before a hospital's launch: what would stop it, found out one by one, each with what to mend."""

from __future__ import annotations

import email.utils
import http.client
import importlib.metadata
import json
import os
import shutil
import socket
import ssl
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hospital_client.eicu_tables import read_tables
from hospital_client.launch import STATE_FOLDER, HospitalPlace
from hospital_client.partition import read_partition
from hospital_client.preparation_options import PreparationOptions
from shared_model.errors import TemptError, printable
from shared_model.node_keys import binding, fingerprint, public_key
from shared_model.own_folder import check_folder
from shared_model.shipped_code import code_digest

_SECONDS = 10.0
_FREE_BYTES = 2 * 10**9
_AHEAD, _BEHIND = 5.0, 300.0
"""Seconds by which a hospital's clock may be ahead of the server's or behind it (Flower refuses signatures beyond)."""


class Finding(NamedTuple):
    """What a look found, and what to do where all is not well."""

    what: str
    well: bool
    found: str
    mend: str = ""


class _Trouble(Exception):
    """What was found, and what mends it."""

    def __init__(self, found: str, mend: str) -> None:
        super().__init__(found)
        self.found, self.mend = found, mend


@dataclass
class _Server:
    """What the server told, as far as it was reached."""

    ahead: float | None = None
    facts: dict[str, Any] | None = None


def look(place: HospitalPlace) -> Iterator[Finding]:
    """Look at everything that a launch needs; nothing is written but a file that is deleted at once.

    Raises:
        TemptError: the options are none that a hospital can be launched with.
    """
    place.check_options()
    server, reached = _Server(), True
    looks: list[tuple[str, bool, Callable[[], str]]] = [
        ("name", False, lambda: _name(place)),
        ("port", True, lambda: _port(place)),
        ("certificate", True, lambda: _certificate(place, server)),
        ("clock", True, lambda: _clock(server)),
        ("key", False, lambda: _key(place, server)),
        ("versions", True, lambda: _versions(server)),
        ("code", True, lambda: _code(server)),
        ("records", False, lambda: _records(place, server)),
        ("disk", False, lambda: _disk(place.state)),
        ("write access", False, lambda: _writes(place.state)),
    ]
    for what, needs_server, one in looks:
        if needs_server and not reached:
            yield Finding(what, False, "not looked at, as the server was not reached")
            continue
        try:
            yield Finding(what, True, one())
        except _Trouble as trouble:
            reached = reached and what not in ("name", "port", "certificate")
            yield Finding(what, False, trouble.found, trouble.mend)
        except TemptError as error:
            yield Finding(what, False, str(error))


def _name(place: HospitalPlace) -> str:
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _Trouble(
            f"{place.host} has no address ({error.strerror})", "check --superlink and this machine's DNS"
        ) from None
    return f"{place.host} is {found[0][4][0]}"


def _port(place: HospitalPlace) -> str:
    try:
        with socket.create_connection((place.host, place.port), timeout=_SECONDS):
            return f"{place.superlink} answers"
    except OSError as error:
        why = error.strerror or "no answer in time"
        raise _Trouble(
            f"{place.superlink}: {why}", "is the server running, and its port open in the firewall?"
        ) from None


def _certificate(place: HospitalPlace, server: _Server) -> str:
    """Also fetches what the server tells everybody."""
    connection: http.client.HTTPConnection
    if place.root_certificates is None:
        connection = http.client.HTTPConnection(place.host, place.port, timeout=_SECONDS)
        return _ask(connection, server) or "none: --insecure"
    try:
        context = ssl.create_default_context(cafile=str(place.root_certificates))
    except OSError as error:
        why = "holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise _Trouble(
            f"{place.root_certificates}: {why}", "give the CA's certificate that the operator sent"
        ) from None
    connection = http.client.HTTPSConnection(place.host, place.port, timeout=_SECONDS, context=context)
    try:
        connection.connect()
        ends = dict(connection.sock.getpeercert() or {}).get("notAfter", "")
        days = (ssl.cert_time_to_seconds(str(ends)) - time.time()) / 86400
        _ask(connection, server)
    except ssl.SSLCertVerificationError as error:
        mends = {
            62: "the certificate lacks the address in --superlink; the operator makes one with it (--hosts)",
            64: "the certificate lacks the address in --superlink; the operator makes one with it (--hosts)",
            10: "it has expired: the operator renews it; or this machine's clock is wrong",
            9: "it is not valid yet: is this machine's clock right?",
        }
        other = "--root-certificates is not the CA of this server's certificate; ask the operator for ca.pem"
        raise _Trouble(error.verify_message or "not trusted", mends.get(error.verify_code, other)) from None
    except OSError as error:
        raise _Trouble(f"no TLS there ({error.strerror or error})", "is this the front's port?") from None
    return f"of this CA, valid for {days:.0f} days more"


def _ask(connection: http.client.HTTPConnection, server: _Server) -> str:
    """Fetch the facts and the time; the empty text, as there is nothing to tell."""
    try:
        connection.request("GET", "/facts.json")
        reply = connection.getresponse()
        body = reply.read(10**6)
    except http.client.HTTPException:
        return ""
    finally:
        connection.close()
    if reply.status == 400 and not isinstance(connection, http.client.HTTPSConnection):
        raise _Trouble("it speaks TLS", "leave --insecure out; give --root-certificates and --private-key")
    with suppress(TypeError, ValueError):  # no time, or none that can be read
        server.ahead = time.time() - email.utils.parsedate_to_datetime(reply.headers["Date"]).timestamp()
    if reply.status == 200:
        with suppress(ValueError, RecursionError):
            facts = json.loads(body)
            server.facts = facts if _are_facts(facts) else None
    return ""


def _are_facts(found: object) -> bool:
    """Whether the server's facts are of the form that `tempt server launch` writes."""
    if not isinstance(found, dict):
        return False
    kinds = {"versions": dict, "code": str, "vocabulary": str | None, "keys": list, "bindings": list}
    return all(isinstance(found.get(name), kind) for name, kind in kinds.items())


def _clock(server: _Server) -> str:
    if server.ahead is None:
        return "the server told no time"
    if not -_BEHIND < server.ahead < _AHEAD:
        way = "ahead of" if server.ahead > 0 else "behind"
        found = f"{abs(server.ahead):.0f} s {way} the server's"
        raise _Trouble(found, "set the clock (NTP); signatures of other times are refused")
    return f"within {max(1.0, abs(server.ahead)):.0f} s of the server's"


def _key(place: HospitalPlace, server: _Server) -> str:
    if place.private_key is None:
        return "none: --insecure"
    public = public_key(place.private_key)
    mark = fingerprint(public)
    if stat.S_IMODE(os.stat(place.private_key).st_mode) & 0o077:
        raise _Trouble(f"{place.private_key} can be read by others", f"chmod 600 {place.private_key}")
    if server.facts is None:
        return f"{mark}; whether the server knows it was not told"
    if mark not in server.facts.get("keys", []):
        raise _Trouble(f"the server does not know {mark}", "send key.pub to the operator (`tempt server register`)")
    if binding(place.hospital, public) not in server.facts.get("bindings", []):
        raise _Trouble(
            f"{mark} is registered for another hospital than {place.hospital}",
            "give this hospital's own key, or correct --hospital-id",
        )
    return f"{mark}, registered"


def _versions(server: _Server) -> str:
    if server.facts is None:
        return "the server told none"
    own = {name: importlib.metadata.version(name) for name in ("tempt", "flwr", "torch")}
    told = dict(server.facts.get("versions", {}))
    theirs = {name: printable(told.get(name, version), 40) for name, version in own.items()}
    for name, version in own.items():
        if theirs[name].split("+")[0] != version.split("+")[0]:
            raise _Trouble(f"{name} {version} here, {theirs[name]} at the server", f"install {name} {theirs[name]}")
    return ", ".join(f"{name} {version}" for name, version in own.items())


def _code(server: _Server) -> str:
    if server.facts is None:
        return "the server told none"
    own, theirs = code_digest(), printable(server.facts.get("code", ""), 64)
    if own != theirs:
        raise _Trouble(
            f"{own[:12]} here, {theirs[:12]} at the server; its code would be refused", "install the server's version"
        )
    return f"{own[:12]}, the server's"


def _records(place: HospitalPlace, server: _Server) -> str:
    if place.is_raw:
        read_tables(place.partition, PreparationOptions(), hospital=place.hospital)
        return f"raw tables of hospital {place.hospital}; records follow once hospitals agree on a vocabulary"
    partition = read_partition(place.partition, place.hospital)
    told = None if server.facts is None else server.facts.get("vocabulary")
    agreed = None if told is None else printable(told, 64)
    own = partition.vocabulary.digest
    if agreed is not None and agreed != own:
        raise _Trouble(
            f"the vocabulary is {own[:12]}, the network's {agreed[:12]}",
            "prepare the records with the agreed vocabulary",
        )
    return f"{len(partition.records.hospital)} records of hospital {place.hospital}, vocabulary {own[:12]}"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _disk(state: Path) -> str:
    free = shutil.disk_usage(_existing(state)).free
    if free < _FREE_BYTES:
        raise _Trouble(f"{free / 1e9:.1f} GB free at {state}", f"make room: {_FREE_BYTES / 1e9:g} GB are expected")
    return f"{free / 1e9:.0f} GB free"


def _writes(state: Path) -> str:
    check_folder(state, STATE_FOLDER)
    place = _existing(state)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise _Trouble(
            f"{place}: {error.strerror}", "give this user the right to write there, or name another --state"
        ) from None
    return f"{state} can be written"
