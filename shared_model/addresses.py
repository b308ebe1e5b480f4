"""Hosts and addresses as options name them: a name in ASCII, an IPv4 or an IPv6 address, and nothing beside it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from shared_model.errors import TemptError, printable

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(  # whose last label is no number: systems take 127.1 and 0x7f000001 for addresses
    rf"(?!.*(^|\.)([0-9]+|0x[0-9a-f]*)$)(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*", re.IGNORECASE
)
_PORT = re.compile(r"[0-9]{1,5}")
ALL = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a server that listens at every address is reached from its own machine."""


@dataclass(frozen=True)
class Address:
    """A host, in the form that `host_of` gives it, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def host_of(text: str, option: str) -> str:
    """A host in its one form: addresses without brackets and as short as they are, names in lower case.

    Args:
        option: names in the error what the text was given for.

    Raises:
        TemptError: it is none, but a URL, a network, a name in other letters, empty.

    >>> host_of("[0:0::1]", "--host"), host_of("Tempt.Example.org", "--host")
    ('::1', 'tempt.example.org')
    """
    try:
        return _host(text)
    except ValueError as error:
        raise TemptError(f"{option} {printable(text, 100)}: {error}") from None


def address_of(text: str, option: str) -> Address:
    """A host with its port, HOST:PORT; IPv6 in brackets.

    Raises:
        TemptError: it is none.

    >>> str(address_of("[::0001]:8443", "--superlink"))
    '[::1]:8443'
    """
    host, _, port = text.rpartition(":")
    try:
        if not host or not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
            raise ValueError("a URL" if "://" in text else "no host, or no port from 1 to 65535")
        if ":" in host and "://" not in host and not host.startswith("["):
            raise ValueError("IPv6 without brackets, as in [::1]:8443")
        return Address(_host(host), int(port))
    except ValueError as error:
        raise TemptError(f"{option} {printable(text, 100)}: {error}; expected HOST:PORT") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return plain_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def plain_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address; the IPv4 one where it stands for one, as ::ffff:127.0.0.1 does.

    Raises:
        ValueError: it is a name.
    """
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _host(text: str) -> str:
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") and ":" in text else text
    try:
        address = ipaddress.ip_address(inner)
    except ValueError:
        if _NAME.fullmatch(text):
            return text.lower()
        raise ValueError(_wrong(text)) from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        raise ValueError("expected an address without a zone (%)")
    return str(address)


def _wrong(text: str) -> str:
    if not text.strip():
        return "is empty; expected a name or an address"
    if "://" in text:
        return "a URL; expected its name or address alone"
    if "/" in text:
        return "a network or a path; expected one name or address"
    if any(character.isspace() for character in text):
        return "has a blank; expected a name or an address"
    if not text.isascii():
        return "has letters that are not ASCII; expected its A-label (xn--...)"
    if re.fullmatch(r"(\[.*\]|[^:]*):[0-9]*", text):
        return "has a port; expected a name or an address alone"
    return "expected a name (letters, digits, hyphens and dots between them) or an address"
