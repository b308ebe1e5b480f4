"""The server of a deployment: SuperLink, SuperExec and the front kept running, one run of the app watched to its end.

Hospitals reach the front alone, which passes `/v1/fleet/` and nothing else: whoever reaches the rest of Flower's port
may submit code and stop runs. SuperLink and SuperExec listen on the loopback.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.control import Control, program
from server.front import FrontPlace, check_keys
from server.keys import CA, CERTIFICATE, KEY, SECRET
from server.network import Network, facts_file, own_folder
from server.run_config import RUN_CONFIG
from server.told import STATUS
from shared_model import run_directory
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.files import locked, private_directory, read_json, write_text
from shared_model.results import RESULTS
from shared_model.shipped_code import CLIENT_APP, SERVER_APP, shipped_files
from shared_model.supervision import Kept, ended_together, free_port
from shared_model.vocabulary import read_vocabulary

_READY_SECONDS = 120.0
_ASK_SECONDS = 15.0  # asking Flower costs a process and two seconds of it
_SHORT_LIVES = 10  # of a process that is kept running, in a row
_LOST_RUNS = 5  # a ServerApp that died is started again so often
_LOOPBACK = ("127.0.0.1", "localhost")
Say = Callable[[str], None]


@dataclass(frozen=True)
class ServerPlace:
    """Where a deployment's server is.

    Attributes:
        keys: what `tempt server keys` made, or an operator's own under the same names; None: without TLS and keys.
        run: the run directory; `<run>.server` beside it holds Flower's database, its folder and the logs.
        host, port: where hospitals reach the front; without one here, where the SuperLink listens.
        front: whether it runs here, or elsewhere by `tempt server front`.
    """

    keys: Path | None
    run: Path
    host: str
    port: int
    front: bool = True

    @property
    def own(self) -> Path:
        return own_folder(self.run)

    def control(self) -> Control:
        """The SuperLink's, at an address that this machine's own processes reach."""
        host = "127.0.0.1" if self.front or self.host == "0.0.0.0" else self.host
        port = free_port() if self.front else self.port
        return Control(self.own / "flower", f"{host}:{port}", None if self.keys is None else self.keys / CA)


def launch(place: ServerPlace, run_config: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Run one federation to its end, whatever process is killed on the way; the content of `results.json`.

    Args:
        run_config: the run's, without `out` and `status-file`; `vocabulary` names a directory, or is empty.

    Raises:
        TooFewHospitals: the run ended below its quorum.
        TemptError: the keys are incomplete, a program is missing, or the run ended by a user's mistake.
    """
    if place.keys is not None:
        check_keys(place.keys, CA, CERTIFICATE, KEY, SECRET)
    elif place.host not in _LOOPBACK or place.front:
        raise TemptError(f"--insecure --host {place.host}: without TLS and keys expected the loopback, 127.0.0.1")
    from server.run_options import config_of  # it needs Flower

    asked = config_of(RUN_CONFIG | dict(run_config), None)  # a mistake is told before anything starts
    given = str(run_config["vocabulary"])
    digest = read_vocabulary(Path(given) / "vocabulary.json").digest if given else None
    private_directory(place.own)
    with locked(place.own / ".lock", f"{place.own}: another server is at work there; wait for it or end it"):
        is_finished = (place.run / RESULTS).is_file()
        if (place.run / run_directory.CONFIG).is_file():
            _compare(place.run, asked, digest, is_finished=is_finished)
        if is_finished:
            say(f"{place.run}: this run is finished; for another one name another --out")
            return read_json(place.run / RESULTS)
        _check_free(place)
        return _launch(place, run_config, digest, say)


def _compare(run: Path, asked: Mapping[str, Any], vocabulary: str | None, *, is_finished: bool) -> None:
    """Refuse a run of other options, before anything starts.

    Args:
        vocabulary: the digest of the one that is given; None: the run's own, which its hospitals agreed on.
    """
    kept: Mapping[str, Any] = read_json(run / run_directory.CONFIG).get("dataset") or {}
    dataset = asked["dataset"] | {"vocabulary": vocabulary if vocabulary is not None else kept.get("vocabulary")}
    compare = run_directory.compare_finished if is_finished else run_directory.compare
    compare(run, {**asked, "dataset": dataset})


def _launch(place: ServerPlace, run_config: Mapping[str, Any], vocabulary: str | None, say: Say) -> dict[str, Any]:
    network = Network(place.own, place.control())
    control, status = network.control, place.own / STATUS
    control.connect()
    network.publish(vocabulary)
    given = {"out": str(place.run.absolute()), "status-file": str(status.absolute())}
    app = _app_folder(place.own / "app", RUN_CONFIG | dict(run_config) | given)
    inner, front = _processes(place, control), _front(place, control)
    outer = [front.process()] if front is not None else []
    kept = [*inner, *outer]
    with ended_together(kept):
        say(f"waiting up to {_READY_SECONDS:g} s until the SuperLink answers; its log: {inner[0].log}")
        _until(control.answers, inner, "the SuperLink answers", say)
        if place.keys is not None:
            for public in sorted((place.keys / "hospitals").glob("*/key.pub")):
                network.register(public, int(public.parent.name))
            network.publish(vocabulary)
        if front is not None:  # only now, so that it knows every key from the first
            front.configure()
            _until(lambda: _listens(place), kept, "the front listens", say)
        say(f"hospitals reach the server at {place.host}:{place.port}; waiting for {run_config['hospitals']}")

        def keep() -> None:
            for process in kept:
                _keep(process, say)
            if front is not None:
                front.renew(outer[0])

        for attempt in range(_LOST_RUNS):
            status.unlink(missing_ok=True)
            last = _watch(control, control.submit(app), keep, status, say)
            ended = read_json(status)["ended"] if status.exists() else None
            if ended is not None and ended["status"] == 0:
                return read_json(place.run / RESULTS)
            if ended is not None:
                kind = TooFewHospitals if ended["status"] == TooFewHospitals.status else TemptError
                raise kind(str(ended["error"]))
            say(f"the run was lost ({last}); it goes on from its last round ({attempt + 1} of {_LOST_RUNS})")
    raise TemptError(f"{place.own / 'logs'}: the run was lost {_LOST_RUNS} times; the logs say why")


def _processes(place: ServerPlace, control: Control) -> list[Kept]:
    logs, environment = place.own / "logs", control.environment
    host, port = control.address.rsplit(":", 1)
    superlink = [program("flower-superlink"), "--host", host if place.front else place.host, "--port", port]
    superlink += ["--database", str((place.own / "superlink.db").absolute()), "--isolation", "process"]
    superlink += ["--disable-runtime-dependency-installation"]
    superexec = [program("flower-superexec"), "--runtime-api-address", control.address, *control.trust()]
    if place.keys is None:
        superlink.append("--insecure")
    else:
        keys = place.keys.absolute()
        secret = ["--superexec-auth-secret-file", str(keys / SECRET)]
        superlink += ["--ssl-ca-certfile", str(keys / CA), "--ssl-certfile", str(keys / CERTIFICATE)]
        superlink += ["--ssl-keyfile", str(keys / KEY), "--enable-supernode-auth", *secret]
        superexec += secret
    return [
        Kept("superlink", superlink, environment, logs / "superlink.log"),
        Kept("superexec", superexec, environment, logs / "superexec.log"),
    ]


def _front(place: ServerPlace, control: Control) -> FrontPlace | None:
    if not place.front or place.keys is None:
        return None
    return FrontPlace(place.keys, place.own, facts_file(place.own), place.host, place.port, control.address)


def _app_folder(folder: Path, run_config: Mapping[str, Any]) -> Path:
    """The app as Flower ships it: this installation's packages, and nothing of `sim`."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in shipped_files().items():
        private_directory((folder / name).parent)
        (folder / name).write_bytes(content)
    lines = [f"{name} = {json.dumps(value)}" for name, value in run_config.items()]
    text = f"""[project]
name = "tempt"
version = "0.1.0"
description = "Medication recommendation across hospitals (TEMPT)"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "tempt"
[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "{CLIENT_APP}"
[tool.flwr.app.config]
"""
    write_text(folder / "pyproject.toml", text + "\n".join(lines) + "\n")
    return folder


def _listens(place: ServerPlace) -> bool:
    try:
        with socket.create_connection(("127.0.0.1" if place.host == "0.0.0.0" else place.host, place.port), timeout=5):
            return True
    except OSError:
        return False


def _keep(process: Kept, say: Say) -> None:
    """Keep it running, and tell its ends.

    Raises:
        TemptError: it ends again and again, each time soon after its start.
    """
    status = process.keep()
    if status is None:
        return
    if process.short_lives >= _SHORT_LIVES:
        raise TemptError(f"{process.log}: {process.name} ended {process.short_lives} times in a row; the log says why")
    say(
        f"{process.name} ended (exit status {status}) and is started again; short lives in a row, at most "
        f"{_SHORT_LIVES}: {process.short_lives}"
    )


def _check_free(place: ServerPlace) -> None:
    """Refuse an address where another process listens, which hospitals would reach instead of the server."""
    try:
        family, *_, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TemptError(
            f"--host {place.host} --port {place.port}: can't listen there ({reason}); end what does, or name another"
        ) from None


def _until(condition: Callable[[], bool], kept: Sequence[Kept], what: str, say: Say) -> None:
    until = time.monotonic() + _READY_SECONDS
    for process in kept:
        _keep(process, say)
    while not condition():
        for process in kept:
            _keep(process, say)
        if time.monotonic() > until:
            raise TemptError(f"waited {_READY_SECONDS:g} s until {what}; {kept[-1].log} says why")
        time.sleep(0.2)


def _watch(control: Control, run: str, keep: Callable[[], None], status: Path, say: Say) -> str:
    """Keep the processes running until the app says that it has ended, or Flower that the run has; its last status."""
    asked, said = time.monotonic(), 0
    while True:
        keep()
        told = read_json(status) if status.exists() else {"lines_before": 0, "lines": [], "ended": None}
        for line in told["lines"][max(0, said - told["lines_before"]) :]:
            say(line)
        said = told["lines_before"] + len(told["lines"])
        if told["ended"] is not None:
            return "finished"
        if time.monotonic() - asked >= _ASK_SECONDS:
            asked = time.monotonic()
            found = control.status_of(run)  # None: the SuperLink is being started again
            if found is not None and found.startswith("finished"):
                return found
        time.sleep(0.3)
