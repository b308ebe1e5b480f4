"""A look before a hospital's launch: what would stop it, found out one by one, each with what to mend."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import ssl
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hospital_client import admission, one_agreement
from hospital_client.eicu_tables import read_tables
from hospital_client.launch import STATE_FOLDER, HospitalPlace
from hospital_client.partition import read_partition
from hospital_client.preparation_options import PreparationOptions
from hospital_client.route import ProxyRefused, Route, ServerAnswer
from shared_model.errors import TemptError, printable
from shared_model.node_keys import binding, fingerprint, public_key
from shared_model.own_folder import check_folder
from shared_model.shipped_code import code_digest

_SECONDS = 10.0
_FREE_BYTES = 2 * 10**9


class Finding(NamedTuple):
    """What a look found, and what to do where all is not well; one that was skipped found nothing."""

    what: str
    well: bool
    found: str
    mend: str = ""
    skipped: bool = False


class _Trouble(Exception):
    """What was found, and what mends it."""

    def __init__(self, found: str, mend: str) -> None:
        super().__init__(found)
        self.found, self.mend = found, mend


def look(place: HospitalPlace) -> Iterator[Finding]:
    """Look at everything that a launch needs; nothing is written but a file that is deleted at once.

    Raises:
        TemptError: the options are none that a hospital can be launched with.
    """
    place.check_options()
    route, server, reached = place.route(), ServerAnswer(), True
    looks: list[tuple[str, bool, Callable[[], str]]] = [
        ("proxy", False, lambda: str(route)),
        ("name", False, lambda: _name(route)),
        ("port", True, lambda: _port(route)),
        ("certificate", True, lambda: _certificate(place, route, server)),
        ("clock", True, lambda: _clock(server)),
        ("key", False, lambda: _key(place, server)),
        ("versions", True, lambda: _versions(server)),
        ("code", True, lambda: _code(server)),
        ("policy", False, lambda: admission.summary(place.state)),
        ("records", False, lambda: _records(place, server)),
        ("disk", False, lambda: _disk(place.state)),
        ("write access", False, lambda: _writes(place.state)),
    ]
    for what, needs_server, one in looks:
        if needs_server and not reached:
            yield Finding(what, False, "not looked at, as the server was not reached", skipped=True)
            continue
        try:
            yield Finding(what, True, one())
        except _Trouble as trouble:
            reached = reached and what not in ("name", "port", "certificate")
            yield Finding(what, False, trouble.found, trouble.mend)
        except TemptError as error:
            yield Finding(what, False, str(error))


def _name(route: Route) -> str:
    asked, option = route.server, "--superlink"
    if route.proxy is not None:  # which looks the server's name up by itself
        asked, option = route.proxy.address, "the proxy's variable"
    try:
        found = socket.getaddrinfo(asked.host, asked.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _Trouble(
            f"{asked.host} has no address ({error.strerror})", f"check {option} and this machine's DNS"
        ) from None
    return f"{asked.host} is {found[0][4][0]}"


def _port(route: Route) -> str:
    try:
        route.connect(_SECONDS).close()
    except ProxyRefused as error:
        raise _Trouble(
            str(error), f"may this machine go through it to {route.server}? else add {route.server.host} to no_proxy"
        ) from None
    except OSError as error:
        why = error.strerror or "no answer in time"
        mend = "is the server running, and its port open in the firewall?"
        if route.proxy is not None:
            mend = f"is that the proxy? else correct its variable, or add {route.server.host} to no_proxy"
        raise _Trouble(f"{route.proxy or route.server}: {why}", mend) from None
    return f"{route.server} answers"


def _certificate(place: HospitalPlace, route: Route, server: ServerAnswer) -> str:
    """Also fetches what the server tells everybody."""
    if place.root_certificates is None:
        server.ask(route, None, _SECONDS)
        if server.status == 400:
            raise _Trouble("it speaks TLS", "leave --insecure out; give --root-certificates and --private-key")
        return "none: --insecure"
    try:
        context = ssl.create_default_context(cafile=str(place.root_certificates))
    except OSError as error:
        why = "holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise _Trouble(
            f"{place.root_certificates}: {why}", "give the CA's certificate that the operator sent"
        ) from None
    try:
        with context.wrap_socket(route.connect(_SECONDS), server_hostname=route.server.host) as socket_:
            ends = dict(socket_.getpeercert() or {}).get("notAfter", "")
        days = (ssl.cert_time_to_seconds(str(ends)) - time.time()) / 86400
        server.ask(route, context, _SECONDS)
    except ssl.SSLCertVerificationError as error:
        mends = {
            62: "the certificate lacks the address in --superlink; the operator makes one with it (--hosts)",
            64: "the certificate lacks the address in --superlink; the operator makes one with it (--hosts)",
            10: "it has expired: the operator renews it; or this machine's clock is wrong",
            9: "it is not valid yet: is this machine's clock right?",
        }
        other = "--root-certificates is not the CA of this server's certificate; ask the operator for ca.pem"
        raise _Trouble(error.verify_message or "not trusted", mends.get(error.verify_code, other)) from None
    except TimeoutError:
        found = f"{route.server} takes connections and does not answer within {_SECONDS:g} s"
        raise _Trouble(found, "the server's front hangs: tell its operator") from None
    except OSError as error:
        raise _Trouble(f"no TLS there ({error.strerror or error})", "is this the front's port?") from None
    return f"of this CA, valid for {days:.0f} days more"


def _clock(server: ServerAnswer) -> str:
    if server.ahead is None:
        return "the server told no time"
    if server.clock_is_off():
        way = "ahead of" if server.ahead > 0 else "behind"
        found = f"{abs(server.ahead):.0f} s {way} the server's"
        raise _Trouble(found, "set the clock (NTP); signatures of other times are refused")
    return f"within {max(1.0, abs(server.ahead)):.0f} s of the server's"


def _key(place: HospitalPlace, server: ServerAnswer) -> str:
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


def _versions(server: ServerAnswer) -> str:
    if server.facts is None:
        return "the server told none"
    own = {name: importlib.metadata.version(name) for name in ("tempt", "flwr", "torch")}
    told = dict(server.facts.get("versions", {}))
    theirs = {name: printable(told.get(name, version), 40) for name, version in own.items()}
    for name, version in own.items():
        if theirs[name].split("+")[0] != version.split("+")[0]:
            raise _Trouble(f"{name} {version} here, {theirs[name]} at the server", f"install {name} {theirs[name]}")
    return ", ".join(f"{name} {version}" for name, version in own.items())


def _code(server: ServerAnswer) -> str:
    if server.facts is None:
        return "the server told none"
    own, theirs = code_digest(), printable(server.facts.get("code", ""), 64)
    if own != theirs:
        raise _Trouble(
            f"{own[:12]} here, {theirs[:12]} at the server; its code would be refused", "install the server's version"
        )
    return f"{own[:12]}, the server's"


def _records(place: HospitalPlace, server: ServerAnswer) -> str:
    if place.is_raw:
        one_agreement.check_kept(place.state)
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
