"""The one rule for proxies: a server's own processes and every loopback use none; a hospital's way to its server may.

That way goes through what `https_proxy`, else `all_proxy`, names, unless `no_proxy` names the server. Lower case is
read before upper case, as everywhere.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from shared_model.addresses import Address, host_of, is_loopback, plain_address
from shared_model.errors import TemptError

_LOOPBACK = "127.0.0.1,localhost,::1"


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy that is asked to CONNECT; printed without its user's name and password."""

    address: Address
    login: str = field(default="", repr=False)
    """NAME:PASSWORD as in its URL; empty for none."""

    def __str__(self) -> str:
        return f"http://{self.address}"

    def environment(self) -> dict[str, str]:
        """The variables by which a process uses it for all but the loopback."""
        login = f"{self.login}@" if self.login else ""
        return {"https_proxy": f"http://{login}{self.address}", "no_proxy": _LOOPBACK}

    def headers(self) -> dict[str, str]:
        """What a CONNECT says beside the address."""
        if not self.login:
            return {}
        login = urllib.parse.unquote(self.login).encode()
        return {"Proxy-Authorization": f"Basic {base64.b64encode(login).decode()}"}


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that uses no proxy, whatever it is told."""
    kept = {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}
    return kept | {"no_proxy": "*"}


def proxy_for(host: str) -> Proxy | None:
    """The proxy of this process's environment for TLS to a host, by the rule above.

    Raises:
        TemptError: it is of a kind that a SuperNode can't use, or its URL is none.
    """
    told = urllib.request.getproxies_environment()
    name = next((name for name in ("https", "all") if told.get(name)), None)
    if name is None or is_loopback(host) or _is_named(host, told.get("no", "")):
        return None
    variable = next((v for v in (f"{name}_proxy", f"{name}_PROXY".upper()) if os.environ.get(v)), f"{name}_proxy")
    text = told[name] if "://" in told[name] else f"http://{told[name]}"
    way_out = f"expected http://HOST:PORT, or {host} among no_proxy"
    try:
        parts = urllib.parse.urlsplit(text)
        login, _, _ = parts.netloc.rpartition("@")
        scheme, found, port = parts.scheme, parts.hostname or "", 80 if parts.port is None else parts.port
        if not port:
            raise ValueError("no port has the number 0")
    except ValueError:
        raise TemptError(f"{variable}: holds no URL of a proxy; {way_out}") from None
    if scheme != "http":
        raise TemptError(f"{variable}: names a proxy of the kind {scheme}://; {way_out}")
    return Proxy(Address(host_of(found, variable), port), login)


def _is_named(host: str, names: str) -> bool:
    """Whether `no_proxy` names it: itself, a domain that it is in, a network, or everything."""
    try:
        address = plain_address(host)
    except ValueError:
        address = None
    for entry in names.replace(" ", ",").split(","):
        if entry == "*":
            return True
        name = entry.partition("]")[0][1:] if entry.startswith("[") else entry  # a port says nothing
        name = name.partition(":")[0] if name.count(":") == 1 else name
        name = name.lower().removeprefix("*").strip(".")
        if address is None:
            if name and (host == name or host.endswith(f".{name}")):
                return True
            continue
        with suppress(ValueError):  # a name
            if address in ipaddress.ip_network(name, strict=False):
                return True
    return False
