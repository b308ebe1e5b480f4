"""How a hospital reaches its server: directly or through a proxy; `check` and `launch` go the way that SuperNode goes.

What the server's front tells everybody on that way is read here, too.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import re
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shared_model.addresses import Address
from shared_model.errors import printable
from shared_model.proxies import Proxy, proxy_for, without_proxies

_MOST_HEAD, _MOST_BODY = 65536, 10**6  # bytes of a proxy's answer, and of the server's
_SECONDS = 5.0
_AHEAD, _BEHIND = 5.0, 300.0
"""Seconds by which a hospital's clock may be ahead of the server's or behind it (Flower refuses signatures beyond)."""
_AWAY = (502, 503, 504)  # what the front answers while the SuperLink is not there


class ProxyRefused(OSError):
    """The proxy does not let this machine through to the server."""


class Answer(NamedTuple):
    """An answer to a GET: its status, its date as it stands there, and its body."""

    status: int
    date: str
    body: bytes


@dataclass(frozen=True)
class Route:
    """The way to a server.

    Attributes:
        proxy: what TLS goes through; None: directly.
    """

    server: Address
    proxy: Proxy | None

    @classmethod
    def to(cls, server: Address) -> Route:
        """The way that this process's environment says.

        Raises:
            TemptError: it names a proxy that can't be used.
        """
        return cls(server, proxy_for(server.host))

    def __str__(self) -> str:
        return f"none for {self.server.host}" if self.proxy is None else f"through {self.proxy}"

    def environment(self, plain: dict[str, str]) -> dict[str, str]:
        """An environment by which a process goes this way to the server, and to the loopback directly."""
        if self.proxy is None:
            return without_proxies(plain)
        return without_proxies(plain) | self.proxy.environment()

    def connect(self, timeout: float) -> socket.socket:
        """A connection to the server.

        Raises:
            ProxyRefused: the proxy answers anything but a connection.
            OSError: nobody answers, or not in time.
        """
        if self.proxy is None:
            return socket.create_connection((self.server.host, self.server.port), timeout=timeout)
        found = socket.create_connection((self.proxy.address.host, self.proxy.address.port), timeout=timeout)
        try:
            lines = [f"CONNECT {self.server} HTTP/1.1", f"Host: {self.server}"]
            lines += [f"{name}: {value}" for name, value in self.proxy.headers().items()]
            found.sendall("\r\n".join([*lines, "", ""]).encode())
            head = b""
            while b"\r\n\r\n" not in head and len(head) < _MOST_HEAD and (more := found.recv(4096)):
                head += more
            answer = head.partition(b"\r\n")[0].decode("latin-1")
            if not re.match(r"HTTP/1\.[01] 2\d\d\b", answer):
                raise ProxyRefused(f"{self.proxy} answers '{printable(answer, 80)}'")
        except BaseException:
            found.close()
            raise
        return found

    def get(self, context: ssl.SSLContext | None, path: str, timeout: float) -> Answer:
        """The answer to a GET.

        Raises:
            OSError, http.client.HTTPException: there is none.
        """
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=timeout)
        connection.sock = self.connect(timeout)
        try:
            if context is not None:
                connection.sock = context.wrap_socket(connection.sock, server_hostname=self.server.host)
            connection.request("GET", path)
            reply = connection.getresponse()
            return Answer(reply.status, reply.headers["Date"], reply.read(_MOST_BODY))
        finally:
            connection.close()

    def serves(self, root_certificates: Path | None) -> bool:
        """Whether hospitals are answered: the front is there, and the SuperLink behind it."""
        try:
            context = None if root_certificates is None else ssl.create_default_context(cafile=str(root_certificates))
            return self.get(context, "/v1/fleet/", _SECONDS).status not in _AWAY
        except (OSError, http.client.HTTPException):
            return False


@dataclass
class ServerAnswer:
    """What a server told everybody, as far as it was reached.

    Attributes:
        ahead: seconds by which this machine's clock is ahead of the server's.
        facts: versions, digests and fingerprints of keys.
        status: of the answer to the request for them.
    """

    ahead: float | None = None
    facts: dict[str, Any] | None = None
    status: int = 0

    def clock_is_off(self) -> bool:
        """Whether signatures of this machine's time are refused, as far as the server's is known."""
        return self.ahead is not None and not -_BEHIND < self.ahead < _AHEAD

    def ask(self, route: Route, context: ssl.SSLContext | None, timeout: float) -> None:
        """Fetch it.

        Raises:
            OSError: there is no connection or no TLS.
        """
        try:
            answer = route.get(context, "/facts.json", timeout)
        except http.client.HTTPException:
            return
        self.status = answer.status
        with suppress(TypeError, ValueError):  # no time, or none that can be read
            self.ahead = time.time() - email.utils.parsedate_to_datetime(answer.date).timestamp()
        if answer.status == 200:
            with suppress(ValueError, RecursionError):
                facts = json.loads(answer.body)
                self.facts = facts if _are_facts(facts) else None


def _are_facts(found: object) -> bool:
    """Whether the server's facts are of the form that `tempt server launch` writes."""
    if not isinstance(found, dict):
        return False
    kinds = {"versions": dict, "code": str, "vocabulary": str | None, "keys": list, "bindings": list}
    return all(isinstance(found.get(name), kind) for name, kind in kinds.items())
