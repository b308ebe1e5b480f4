"""The operator's login at the SuperLink: a token that only who may read the server's folder has.

Flower's control side takes code and stops runs, and listens where every user of the machine reaches it. Its commands
send the token that they find beside their configuration; the SuperLink, which `guarded_flower` starts, takes no call
without it.
"""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import ssl
from collections.abc import Mapping
from pathlib import Path

from shared_model.files import write_private

_TOKEN, _CREDENTIALS, _SECRET = "operator.token", "credentials.yaml", "superexec.secret"
_SECONDS = 30.0
_KEYS = "flower.account-auth.{address}.{name}"


def renew(home: Path, address: str) -> None:
    """Make a new token: the SuperLink that is started next knows it, and Flower's commands send it.

    Args:
        home: Flower's folder, FLWR_HOME.
        address: the SuperLink's, as Flower's commands are told it.
    """
    token = secrets.token_hex(32)
    write_private(home / _TOKEN, token)
    # as `flwr login` leaves it: YAML, which JSON is, with values in base64
    content = {"authn-type": "oidc", "oidc-access-token": token, "oidc-refresh-token": "none"}
    kept = {
        _KEYS.format(address=address, name=name): base64.b64encode(value.encode()).decode()
        for name, value in content.items()
    }
    write_private(home / _CREDENTIALS, json.dumps(kept))


def token_of(environment: Mapping[str, str]) -> str:
    """The token that a SuperLink with this environment is to ask for."""
    return (Path(environment["FLWR_HOME"]) / _TOKEN).read_text(encoding="utf-8")


def new_secret(home: Path) -> Path:
    """A secret between SuperLink and SuperExec, where no operator's keys have one."""
    write_private(home / _SECRET, secrets.token_hex(32))
    return home / _SECRET


def refuses_strangers(address: str, certificates: Path | None) -> bool:
    """Whether a SuperLink that answers takes no call of its control side without the token.

    Args:
        certificates: the CA's, by which it is known; None: it speaks without TLS.
    """
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_SECONDS)
    if certificates is not None:
        context = ssl.create_default_context(cafile=str(certificates))
        connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=_SECONDS, context=context)
    try:
        connection.request("POST", "/v1/control/list-runs", headers={"Content-Type": "application/x-protobuf"})
        return connection.getresponse().status == http.client.UNAUTHORIZED
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
