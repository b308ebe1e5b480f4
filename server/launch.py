"""The server of a deployment: SuperLink, SuperExec and the front kept running, one run of the app watched to its end.

Hospitals reach the front alone, which passes `/v1/fleet/` and nothing else: whoever reaches the rest of Flower's port
may submit code and stop runs. SuperLink and SuperExec listen on the loopback.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.control import Control, program
from server.front import FrontPlace, check_keys
from server.keys import CA, CERTIFICATE, KEY, SECRET
from server.run_config import RUN_CONFIG
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.files import read_json, write_text
from shared_model.results import RESULTS
from shared_model.supervision import Kept, ended_together, free_port

ENDED = "ended.json"
_READY_SECONDS = 120.0
_ASK_SECONDS = 15.0  # asking Flower costs a process and two seconds of it
_LOST_RUNS = 5  # a ServerApp that died is started again so often


@dataclass(frozen=True)
class ServerPlace:
    """Where a deployment's server is.

    Attributes:
        keys: what `tempt server keys` made, or an operator's own under the same names.
        run: the run directory; `<run>.server` beside it holds Flower's database, its folder and the logs.
        host, port: where hospitals reach the front; without one here, where the SuperLink listens for it.
        front: whether it runs here, or elsewhere by `tempt server front`.
    """

    keys: Path
    run: Path
    host: str
    port: int
    front: bool = True

    @property
    def own(self) -> Path:
        return self.run.parent / f"{self.run.name}.server"

    def link(self) -> str:
        """The SuperLink's address for this machine's own processes."""
        if self.front:
            return f"127.0.0.1:{free_port()}"
        return f"{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    @property
    def facts(self) -> Path:
        """What everybody may read."""
        return self.own / "told" / "facts.json"


def launch(place: ServerPlace, run_config: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Run one federation to its end, whatever process is killed on the way; the content of `results.json`.

    Raises:
        TooFewHospitals: the run ended below its quorum.
        TemptError: the keys are incomplete, a program is missing, or the run ended by a user's mistake.
    """
    check_keys(place.keys, CA, CERTIFICATE, KEY, SECRET)
    control = Control(place.own / "flower", place.keys, place.link())
    control.connect()
    given = {"out": str(place.run.absolute()), "status-file": str((place.own / ENDED).absolute())}
    app = _app_folder(place.own / "app", RUN_CONFIG | dict(run_config) | given)
    kept = _processes(place, control)
    with ended_together(kept):
        _until(control.answers, kept, "the SuperLink answers")
        for public in sorted((place.keys / "hospitals").glob("*/key.pub")):
            control.register(public, int(public.parent.name))
        say(f"hospitals reach the server at {place.host}:{place.port}; waiting for {run_config['hospitals']}")
        for attempt in range(_LOST_RUNS):
            (place.own / ENDED).unlink(missing_ok=True)
            status = _watch(control, control.submit(app), kept, place.own / ENDED)
            ended = read_json(place.own / ENDED) if (place.own / ENDED).exists() else None
            if ended is not None and ended["status"] == 0:
                return read_json(place.run / RESULTS)
            if ended is not None:
                kind = TooFewHospitals if ended["status"] == TooFewHospitals.status else TemptError
                raise kind(str(ended["error"]))
            say(f"the run was lost ({status}); it goes on from its last round ({attempt + 1} of {_LOST_RUNS})")
    raise TemptError(f"{place.own / 'logs'}: the run was lost {_LOST_RUNS} times; the logs say why")


def _processes(place: ServerPlace, control: Control) -> list[Kept]:
    keys, logs, environment = place.keys.absolute(), place.own / "logs", control.environment
    secret = ["--superexec-auth-secret-file", str(keys / SECRET)]
    host, port = ("127.0.0.1", control.address.rpartition(":")[2]) if place.front else (place.host, str(place.port))
    superlink = [program("flower-superlink"), "--host", host, "--port", port]
    superlink += ["--ssl-ca-certfile", str(keys / CA), "--ssl-certfile", str(keys / CERTIFICATE)]
    superlink += ["--ssl-keyfile", str(keys / KEY), "--enable-supernode-auth", "--isolation", "process"]
    superlink += ["--database", str((place.own / "superlink.db").absolute()), *secret]
    superlink += ["--disable-runtime-dependency-installation"]
    superexec = [program("flower-superexec"), "--runtime-api-address", control.address]
    superexec += ["--root-certificates", str(keys / CA), *secret]
    kept = [
        Kept("superlink", superlink, environment, logs / "superlink.log"),
        Kept("superexec", superexec, environment, logs / "superexec.log"),
    ]
    if place.front:
        front = FrontPlace(place.keys, place.own, place.facts, place.host, place.port, control.address)
        kept.append(front.process())
    return kept


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


def _watch(control: Control, run: str, kept: Sequence[Kept], ended: Path) -> str:
    """Keep the processes running until the app says that it has ended, or Flower that the run has; its last status."""
    asked = time.monotonic()
    while True:
        for process in kept:
            process.keep()
        if ended.exists():
            return "finished"
        if time.monotonic() - asked >= _ASK_SECONDS:
            asked = time.monotonic()
            status = control.status_of(run)  # None: the SuperLink is being started again
            if status is not None and status.startswith("finished"):
                return status
        time.sleep(0.3)
