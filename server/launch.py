"""The server of a deployment: SuperLink, SuperExec and the front kept running, one run of the app watched to its end.

Hospitals reach the front alone, which passes `/v1/fleet/` and nothing else: whoever reaches the rest of Flower's port
may submit code and stop runs. SuperLink and SuperExec listen on the loopback.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.keys import CA, CERTIFICATE, KEY, SECRET
from server.run_config import RUN_CONFIG
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.files import read_json, write_text
from shared_model.results import RESULTS
from shared_model.supervision import Kept, ended_together, flower_environment, free_port

ENDED = "ended.json"
_READY_SECONDS = 120.0
_ASK_SECONDS = 15.0  # asking Flower costs a process and two seconds of it
_LOST_RUNS = 5  # a ServerApp that died is started again so often
_CONNECTION = "tempt"


@dataclass(frozen=True)
class ServerPlace:
    """Where a deployment's server is.

    Attributes:
        keys: what `tempt server keys` made, or an operator's own under the same names.
        run: the run directory; `run/server` holds Flower's database, its folder and the logs.
        host, port: where hospitals reach the front.
    """

    keys: Path
    run: Path
    host: str
    port: int

    @property
    def own(self) -> Path:
        return self.run.parent / f"{self.run.name}.server"


def launch(place: ServerPlace, run_config: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Run one federation to its end, whatever process is killed on the way; the content of `results.json`.

    Raises:
        TooFewHospitals: the run ended below its quorum.
        TemptError: the keys are incomplete, a program is missing, or the run ended by a user's mistake.
    """
    _check(place)
    link = free_port()
    home, logs = place.own / "flower", place.own / "logs"
    environment = flower_environment(home)
    _write_connection(home, place.keys, link)
    given = {"out": str(place.run.absolute()), "status-file": str((place.own / ENDED).absolute())}
    app = _app_folder(place.own / "app", RUN_CONFIG | dict(run_config) | given)
    kept = _processes(place, link, environment, logs)
    with ended_together(kept):
        _until(lambda: _answers(link, place.keys), kept, "the SuperLink answers")
        for public in sorted((place.keys / "hospitals").glob("*/key.pub")):
            _register(public, environment)
        say(f"hospitals reach the server at {place.host}:{place.port}; waiting for {run_config['hospitals']}")
        for attempt in range(_LOST_RUNS):
            (place.own / ENDED).unlink(missing_ok=True)
            run = _submit(app, environment)
            status = _watch(run, environment, kept, place.own / ENDED)
            ended = read_json(place.own / ENDED) if (place.own / ENDED).exists() else None
            if ended is not None and ended["status"] == 0:
                return read_json(place.run / RESULTS)
            if ended is not None:
                kind = TooFewHospitals if ended["status"] == TooFewHospitals.status else TemptError
                raise kind(str(ended["error"]))
            say(f"the run was lost ({status}); it goes on from its last round ({attempt + 1} of {_LOST_RUNS})")
    raise TemptError(f"{place.own / 'logs'}: the run was lost {_LOST_RUNS} times; the logs say why")


def _check(place: ServerPlace) -> None:
    for name in (CA, CERTIFICATE, KEY, SECRET):
        if not (place.keys / name).is_file():
            raise TemptError(f"{place.keys}: has no {name}; make it with `tempt server keys`")
    if shutil.which("nginx") is None:
        raise TemptError("nginx is not installed; it is the front that hospitals reach (apt install nginx-light)")


def _program(name: str) -> str:
    """A program of Flower's that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def _processes(place: ServerPlace, link: int, environment: Mapping[str, str], logs: Path) -> list[Kept]:
    keys = place.keys.absolute()
    secret = ["--superexec-auth-secret-file", str(keys / SECRET)]
    superlink = [_program("flower-superlink"), "--host", "127.0.0.1", "--port", str(link)]
    superlink += ["--ssl-ca-certfile", str(keys / CA), "--ssl-certfile", str(keys / CERTIFICATE)]
    superlink += ["--ssl-keyfile", str(keys / KEY), "--enable-supernode-auth", "--isolation", "process"]
    superlink += ["--database", str((place.own / "superlink.db").absolute()), *secret]
    superlink += ["--disable-runtime-dependency-installation"]
    superexec = [_program("flower-superexec"), "--runtime-api-address", f"127.0.0.1:{link}"]
    superexec += ["--root-certificates", str(keys / CA), *secret]
    configuration = place.own / "front.conf"
    write_text(configuration, front_configuration(place, link))
    front = ["nginx", "-p", str(place.own.absolute()), "-c", str(configuration.absolute()), "-g", "daemon off;"]
    return [
        Kept("superlink", superlink, environment, logs / "superlink.log"),
        Kept("superexec", superexec, environment, logs / "superexec.log"),
        Kept("front", front, environment, logs / "front.log"),
    ]


def front_configuration(place: ServerPlace, link: int) -> str:
    """nginx's: TLS on both sides, `/v1/fleet/` alone."""
    own, keys = place.own.absolute(), place.keys.absolute()
    quoted = {name: str(path).replace('"', '\\"') for name, path in (("own", own), ("keys", keys))}
    return f"""worker_processes 1;
pid "{quoted["own"]}/front.pid";
error_log "{quoted["own"]}/logs/front-errors.log";
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path "{quoted["own"]}/front-body";
  proxy_temp_path "{quoted["own"]}/front-proxy";
  fastcgi_temp_path "{quoted["own"]}/front-unused";
  uwsgi_temp_path "{quoted["own"]}/front-unused";
  scgi_temp_path "{quoted["own"]}/front-unused";
  server {{
    listen {place.host}:{place.port} ssl;
    ssl_certificate "{quoted["keys"]}/{CERTIFICATE}";
    ssl_certificate_key "{quoted["keys"]}/{KEY}";
    ssl_protocols TLSv1.2 TLSv1.3;
    client_max_body_size 64m;
    location /v1/fleet/ {{
      proxy_pass https://127.0.0.1:{link};
      proxy_ssl_trusted_certificate "{quoted["keys"]}/{CA}";
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
      proxy_http_version 1.1;
      proxy_read_timeout 300s;
      proxy_request_buffering off;
    }}
    location / {{ return 403; }}
  }}
}}
"""


def _write_connection(home: Path, keys: Path, link: int) -> None:
    certificates = json.dumps(str((keys / CA).absolute()))
    text = f'[superlink]\ndefault = "{_CONNECTION}"\n[superlink.{_CONNECTION}]\n'
    write_text(home / "config.toml", f'{text}address = "127.0.0.1:{link}"\nroot-certificates = {certificates}\n')


def _app_folder(folder: Path, run_config: Mapping[str, Any]) -> Path:
    """The app as Flower ships it: this installation's packages, and nothing of `sim`."""
    shutil.rmtree(folder, ignore_errors=True)
    for package in ("server", "hospital_client", "shared_model"):
        found = importlib.util.find_spec(package)
        assert found is not None and found.origin is not None
        source = Path(found.origin).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    lines = [f"{name} = {json.dumps(value)}" for name, value in run_config.items()]
    text = """[project]
name = "tempt"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "tempt"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "hospital_client.app:app"
[tool.flwr.app.config]
"""
    write_text(folder / "pyproject.toml", text + "\n".join(lines) + "\n")
    return folder


def _answers(link: int, keys: Path) -> bool:
    try:
        context = ssl.create_default_context(cafile=str(keys / CA))
        with urllib.request.urlopen(f"https://127.0.0.1:{link}/health", context=context, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _until(condition: Callable[[], bool], kept: Sequence[Kept], what: str) -> None:
    until = time.monotonic() + _READY_SECONDS
    while not condition():
        for process in kept:
            process.keep()
        if time.monotonic() > until:
            raise TemptError(f"waited {_READY_SECONDS:g} s until {what}; {kept[0].log} says why")
        time.sleep(0.2)
    for process in kept:
        process.keep()


def _flwr(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [_program("flwr"), *arguments]
    return subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=120, check=False)


def _register(public: Path, environment: Mapping[str, str]) -> None:
    """Bind a hospital's key to its name; the server believes this name alone."""
    name = f"hospital-{public.parent.name}"
    done = _flwr(
        ["supernode", "register", str(public.absolute()), _CONNECTION, "--name", name, "--format", "json"], environment
    )
    if done.returncode and "already in use" not in done.stdout + done.stderr:
        raise TemptError(f"{public}: could not be registered: {' '.join((done.stdout + done.stderr).split())[-300:]}")


def _submit(app: Path, environment: Mapping[str, str]) -> str:
    done = _flwr(["run", str(app), _CONNECTION, "--format", "json"], environment)
    try:
        return str(json.loads(done.stdout[done.stdout.index("{") :])["run-id"])
    except (ValueError, KeyError):
        raise TemptError(
            f"the run could not be submitted: {' '.join((done.stdout + done.stderr).split())[-300:]}"
        ) from None


def _watch(run: str, environment: Mapping[str, str], kept: Sequence[Kept], ended: Path) -> str:
    """Keep the processes running until the app says that it has ended, or Flower that the run has; its last status."""
    asked = time.monotonic()
    while True:
        for process in kept:
            process.keep()
        if ended.exists():
            return "finished"
        if time.monotonic() - asked >= _ASK_SECONDS:
            asked = time.monotonic()
            done = _flwr(["list", _CONNECTION, "--run-id", run, "--format", "json"], environment)
            try:
                (found,) = json.loads(done.stdout[done.stdout.index("{") :])["runs"]
                if str(found["status"]).startswith("finished"):
                    return str(found["status"])
            except (ValueError, KeyError):
                pass  # the SuperLink is being started again
        time.sleep(0.3)
