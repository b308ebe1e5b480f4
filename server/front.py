"""The front that hospitals reach: nginx, with TLS on both sides, that passes Flower's fleet API and nothing else.

Whoever reaches the rest of Flower's port may submit code and stop runs, so nobody outside reaches it.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from server.keys import CA, CERTIFICATE, KEY
from shared_model.addresses import ALL, Address, address_of, host_of
from shared_model.errors import TemptError
from shared_model.files import private_directory, read_json, write_text
from shared_model.own_folder import FolderKind, claim
from shared_model.ownership import check_not_open, readable_by_others
from shared_model.signs_of_life import LIMIT, Signs
from shared_model.supervision import Kept, ended_together

FACTS = "facts.json"
"""The page on which the front tells versions and digests, for `tempt hospital check`."""
_ANSWER_SECONDS = 5.0
SCRATCH = ("front-body", "front-proxy", "front-unused")
"""nginx's, which it makes another user's where root starts it."""
_FOLDER = FolderKind(
    "front",
    "`tempt server front`",
    ("front.conf", "front.pid", "logs", *SCRATCH),
    ("front.conf", f"location = /{FACTS} "),
    SCRATCH,
)
_ASK_SECONDS = 5.0  # a container that was started again has another address


_SYSTEM = ("/usr/sbin", "/usr/local/sbin", "/sbin")  # where nginx is, and not on the path of an ordinary user


@dataclass(frozen=True)
class FrontPlace:
    """Where a front is.

    Attributes:
        keys: what `tempt server keys` made: the front needs the certificate, its key and the CA.
        own: a folder of its own for nginx's files and log.
        facts: a JSON file that everybody may read (`facts_of`); where there is none, nothing is told.
        host, port: where it listens.
        link: where the SuperLink is, host:port.
    """

    keys: Path
    own: Path
    facts: Path
    host: str
    port: int
    link: str

    def process(self) -> Kept:
        """nginx, not yet started, with its configuration written.

        Raises:
            TemptError: nginx is not installed, or the keys are incomplete.
        """
        nginx = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM]))
        if nginx is None:
            raise TemptError("nginx is not installed; it is the front that hospitals reach (apt install nginx-light)")
        check_keys(self.keys, CA, CERTIFICATE, KEY)
        private_directory(self.own)
        self.configure()
        own = self.own.absolute()
        command = [nginx, "-p", str(own), "-c", str(own / "front.conf"), "-g", "daemon off;"]
        signs = [Signs("its page of facts did not come, or not as it is now", self.answers)]
        return Kept("front", command, os.environ, self.own / "logs" / "front.log", signs=signs)

    def answers(self) -> bool:
        """Whether nginx tells the facts as they are now; a stopped one takes connections all the same."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # hospitals look at its certificate
        connection = http.client.HTTPSConnection(
            ALL.get(self.host, self.host), self.port, timeout=_ANSWER_SECONDS, context=context
        )
        try:
            connection.request("GET", f"/{FACTS}")
            reply = connection.getresponse()
            found = json.loads(reply.read()) if reply.status == 200 else None
            return bool(found == (read_json(self.facts) if self.facts.is_file() else None))
        except (OSError, ValueError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def configure(self) -> None:
        """Write nginx's configuration."""
        write_text(self._configuration, front_configuration(self))

    def renew(self, front: Kept) -> None:
        """Let nginx tell the facts as they are now."""
        if front.pid is not None and self._configuration.read_text(encoding="utf-8") != front_configuration(self):
            self.configure()
            os.kill(front.pid, signal.SIGHUP)

    @property
    def _configuration(self) -> Path:
        return self.own / "front.conf"


def launch_front(place: FrontPlace, say: Callable[[str], None], *, until: Callable[[], bool] = lambda: False) -> None:
    """Keep a front running by itself, where the SuperLink is on another machine or in another container.

    Args:
        until: asked now and then; True ends it.

    Raises:
        TemptError: nginx is not installed, the keys are incomplete, an address is none, or the folder is somebody
            else's or could be changed by others.
    """
    place = replace(place, host=host_of(place.host, "--host"), link=str(address_of(place.link, "--link")))
    claim(place.own, _FOLDER)
    front = place.process()
    addresses, asked = _addresses(place.link), time.monotonic()
    said: int | None = None
    with ended_together([front]):
        say(
            f"the front listens at {Address(place.host, place.port)} and passes {place.link}; log in {front.log}; "
            f"killed and started again after {LIMIT:g} s in which it does not answer"
        )
        while not until():
            status = front.keep()
            # not once a second while the SuperLink's name is not known
            if status is not None and (status != said or not front.short_lives):
                said = status
                say(f"nginx {front.last_end}; it is started again until it stays; {front.log} says why")
            if time.monotonic() - asked >= _ASK_SECONDS:
                asked, found = time.monotonic(), _addresses(place.link) or addresses
                if found != addresses and front.pid is not None:  # nginx asks for a name only when it is configured
                    addresses = found
                    os.kill(front.pid, signal.SIGHUP)
            place.renew(front)
            time.sleep(0.5)


def _addresses(link: str) -> frozenset[str]:
    """What the SuperLink's name stands for now: nginx asks only when it reads its configuration."""
    place = address_of(link, "--link")
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        return frozenset(str(one[4][0]) for one in found)
    except OSError:
        return frozenset()


def check_keys(keys: Path, *names: str) -> None:
    """Raises TemptError if a file that `tempt server keys` makes is missing, or others could put in another one."""
    for name in names:
        if not (keys / name).is_file():
            raise TemptError(f"{keys}: has no {name}; make it with `tempt server keys`")
    hospitals = sorted((keys / "hospitals").glob("*/key.pub"))
    folders = [keys, *({keys / "hospitals", *(key.parent for key in hospitals)} if hospitals else ())]
    check_not_open(*sorted(folders), *(keys / name for name in names), *hospitals)


def check_secrets(keys: Path, *names: str) -> None:
    """Raises TemptError if other users can read a file that only the server's own processes may know.

    A file of another user, as containers have their secrets, is that one's to close.
    """
    for name in names:
        if (keys / name).stat().st_uid == os.geteuid() and readable_by_others(keys / name):
            raise TemptError(f"{keys / name}: can be read by other users; chmod 600 {shlex.quote(str(keys / name))}")


def front_configuration(place: FrontPlace) -> str:
    """nginx's: `/v1/fleet/`, the facts, and 403 for the rest."""

    def quoted(path: Path) -> str:
        text = str(path.absolute()).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'

    own, keys = place.own, place.keys
    return f"""worker_processes 1;
pid {quoted(own / "front.pid")};
error_log {quoted(own / "logs" / "front-errors.log")};
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {quoted(own / "front-body")};
  proxy_temp_path {quoted(own / "front-proxy")};
  fastcgi_temp_path {quoted(own / "front-unused")};
  uwsgi_temp_path {quoted(own / "front-unused")};
  scgi_temp_path {quoted(own / "front-unused")};
  server {{
    listen {Address(place.host, place.port)} ssl{" ipv6only=off" if place.host == "::" else ""};
    ssl_certificate {quoted(keys / CERTIFICATE)};
    ssl_certificate_key {quoted(keys / KEY)};
    ssl_protocols TLSv1.2 TLSv1.3;
    client_max_body_size 64m;
    location /v1/fleet/ {{
      proxy_pass https://{place.link};
      proxy_ssl_trusted_certificate {quoted(keys / CA)};
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
      proxy_http_version 1.1;
      proxy_read_timeout 300s;
      proxy_request_buffering off;
    }}
    location = /{FACTS} {{
      default_type application/json;
      return {_answer(place.facts)};
    }}
    location / {{ return 403; }}
  }}
}}
"""


def _answer(facts: Path) -> str:
    """What stands after nginx's `return`: the workers that answer may not read our folders, so the text itself."""
    if not facts.is_file():
        return "404"
    text = json.dumps(read_json(facts)).replace("\\", "\\\\").replace("'", "\\'").replace("$", "\\\\u0024")
    return f"200 '{text}'"
