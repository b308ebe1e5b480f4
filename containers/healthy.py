"""Exit status 0 if the service of this container is healthy; the health checks of docker-compose.yml call it.

server    the SuperLink answers, with a certificate of our CA
front     nginx answers with such a certificate, and refuses what is not the fleet's
hospital  its SuperNode has run for half a minute, as one that the server refuses does not, and the front answers; so a
          server that has ended leaves hospitals healthy
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from pathlib import Path

_LIVES_FOR = 30.0  # seconds; a SuperNode whose key or lease is refused ends within some seconds


def main(service: str) -> int:
    """Say what is wrong, if something is."""
    try:
        why = {"server": _server, "front": _front, "hospital": _hospital}[service]()
    except OSError as error:
        why = str(error)
    if why:
        print(why, file=sys.stderr)
    return 1 if why else 0


def _server() -> str:
    status = _status("localhost:9091", "/health")
    return "" if status == 200 else f"the SuperLink's /health answers with status {status}"


def _front(address: str = "localhost:8443") -> str:
    status = _status(address, "/")
    return "" if status == 403 else f"the front answers with status {status}, expected 403"


def _hospital() -> str:
    ages = [_age(path.parent) for path in Path("/proc").glob("[0-9]*/cmdline") if b"flower-supernode" in _read(path)]
    if not any(age >= _LIVES_FOR for age in ages):
        return f"no SuperNode has run for {_LIVES_FOR:g} s"
    return _front("front:8443")


def _status(address: str, path: str) -> int:
    context = ssl.create_default_context(cafile="/keys/ca.pem")
    connection = http.client.HTTPSConnection(address, context=context, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def _age(process: Path) -> float:
    """Seconds since a process began, 0 if it has ended."""
    fields = _read(process / "stat").rpartition(b")")[2].split()
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return 0.0
    up = float(Path("/proc/uptime").read_text().split()[0])
    return up - int(fields[19]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
