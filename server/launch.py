"""The server of a deployment: SuperLink, SuperExec and the front kept running, one run of the app watched to its end.

Hospitals reach the front alone, which passes `/v1/fleet/` and nothing else: whoever reaches the rest of Flower's port
may submit code and stop runs. SuperLink and SuperExec listen on the loopback.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server import operator_login, superexec
from server.control import Control, guarded
from server.front import FrontPlace, check_keys, check_secrets
from server.keys import CA, CERTIFICATE, KEY, SECRET, check_named
from server.network import SERVER_FOLDER, Network, facts_file, own_folder
from server.run_config import RUN_CONFIG
from server.told import STATUS, read_status
from shared_model import run_directory
from shared_model.addresses import ALL, Address, address_of, host_of, is_loopback
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.file_forms import RunResults, read_form
from shared_model.files import MARK, locked, new_directory, private_directory, write_text
from shared_model.own_folder import claim
from shared_model.ownership import check_own
from shared_model.results import RESULTS
from shared_model.shipped_code import CLIENT_APP, PACKAGES, SERVER_APP, shipped_files
from shared_model.signs_of_life import LIMIT, Signs, touched
from shared_model.supervision import Kept, ended_together, free_port
from shared_model.toml_value import toml_value
from shared_model.vocabulary import read_vocabulary

_READY_SECONDS = 120.0
_ASK_SECONDS = 15.0  # asking Flower costs a process and two seconds of it
_SHORT_LIVES = 10  # of a process that is kept running, in a row
_LOST_RUNS = 5  # a ServerApp that died is started again so often
_APP, _PUBLISHER = "app", 'publisher = "tempt"'
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
        link = Address("127.0.0.1", free_port()) if self.front else Address(ALL.get(self.host, self.host), self.port)
        return Control(self.own / "flower", str(link), None if self.keys is None else self.keys / CA)


def launch(place: ServerPlace, run_config: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Run one federation to its end, whatever process is killed on the way; the content of `results.json`.

    Args:
        run_config: the run's, without `out` and `status-file`; `vocabulary` names a directory, or is empty.

    Raises:
        TooFewHospitals: the run ended below its quorum.
        TemptError: the keys are incomplete, a program is missing, a folder is somebody else's or could be changed by
            others, or the run ended by a user's mistake.
    """
    place = replace(place, host=host_of(place.host, "--host"))
    if place.keys is not None:
        check_keys(place.keys, CA, CERTIFICATE, KEY, SECRET)
        check_secrets(place.keys, KEY, SECRET)
        if not place.front:
            check_named(place.keys, ALL.get(place.host, place.host))
    elif not is_loopback(place.host) or place.front:
        raise TemptError(f"--insecure --host {place.host}: without TLS and keys expected the loopback, 127.0.0.1")
    from server.run_options import config_of  # it needs Flower

    asked = config_of(RUN_CONFIG | dict(run_config), None)  # a mistake is told before anything starts
    given = str(run_config["vocabulary"])
    digest = read_vocabulary(Path(given) / "vocabulary.json").digest if given else None
    is_begun = (place.run / run_directory.CONFIG).is_file()
    if not is_begun and place.run.exists() and not (place.run.is_dir() and not any(place.run.iterdir())):
        raise TemptError(f"{place.run}: is no run; expected a directory that is new or empty; name another --out")
    check_own(place.run)
    if is_begun:
        _compare(place.run, asked, digest)
    claim(place.own, SERVER_FOLDER)
    with locked(place.own / ".lock", f"{place.own}: another server is at work there; wait for it or end it"):
        if (place.run / RESULTS).is_file():
            say(f"{place.run}: this run is finished; for another one name another --out")
            return _results(place.run)
        _check_free(place)
        if place.keys is None:  # only now: a mistake is told in one line
            say("warning: --insecure: whoever reaches this port takes part and reads every update")
        return _launch(place, run_config, digest, say)


def few_keys(place: ServerPlace, registered: int, expected: int) -> str | None:
    """What to do where fewer hospitals have keys than are waited for; None where they are enough."""
    if registered >= expected:
        return None
    return (
        f"note: keys of {registered} hospitals are registered and {expected} are waited for; register others "
        f"meanwhile (tempt server register {place.run} KEY.PUB --hospital-id ID)"
    )


def _results(run: Path) -> dict[str, Any]:
    return read_form(run / RESULTS, RunResults, "delete it, and the same command writes it anew")


def _compare(run: Path, asked: Mapping[str, Any], vocabulary: str | None) -> None:
    """Refuse a run of other options, before anything is written or starts.

    Args:
        vocabulary: the digest of the one that is given; None: the run's own, which its hospitals agreed on.
    """
    kept = run_directory.config_of(run).get("dataset") or {}
    dataset = asked["dataset"] | {"vocabulary": vocabulary if vocabulary is not None else kept.get("vocabulary")}
    compare = run_directory.compare_finished if (run / RESULTS).is_file() else run_directory.compare
    compare(run, {**asked, "dataset": dataset})


def _launch(place: ServerPlace, run_config: Mapping[str, Any], vocabulary: str | None, say: Say) -> dict[str, Any]:
    network = Network(place.own, place.control())
    control, status = network.control, place.own / STATUS
    control.connect()
    network.publish(vocabulary)
    given = {"out": str(place.run.absolute()), "status-file": str(status.absolute())}
    app = _app_folder(place.own / "app", RUN_CONFIG | dict(run_config) | given)
    inner, front = _processes(place, control), _front(place, control)
    apps = inner[-1]  # SuperExec, which starts them
    outer = [front.process()] if front is not None else []
    kept = [*inner, *outer]
    with ended_together(kept):
        say(
            f"{', '.join(process.name for process in kept)}: kept running; each is killed and started again after "
            f"{LIMIT:g} s without a sign of life"
        )
        say(f"waiting up to {_READY_SECONDS:g} s until the SuperLink answers; its log: {inner[0].log}")
        _until(control.answers, inner, "the SuperLink answers", say)
        if not operator_login.refuses_strangers(control.address, control.certificates):
            raise TemptError(f"{inner[0].log}: the SuperLink does not ask for the operator's token; install flwr 1.41")
        if place.keys is not None:
            for public in sorted((place.keys / "hospitals").glob("*/key.pub")):
                network.register(public, int(public.parent.name))
            network.publish(vocabulary)
        if front is not None:  # only now, so that it knows every key from the first
            front.configure()
            _until(lambda: _listens(place), kept, "the front listens", say)
        say(f"hospitals reach the server at {Address(place.host, place.port)}; waiting for {run_config['hospitals']}")
        if place.keys is not None and (few := few_keys(place, len(network.registered()), run_config["hospitals"])):
            say(few)

        def keep() -> None:
            for process in kept:
                _keep(process, say)
            if front is not None:
                front.renew(outer[0])

        for attempt in range(_LOST_RUNS):
            _until(control.answers, kept, "the SuperLink answers", say)
            status.unlink(missing_ok=True)
            last = _watch(control, control.submit(app), keep, status, say)
            ended = read_status(status)["ended"] if status.exists() else None
            if ended is not None and ended["status"] == 0:
                return _results(place.run)
            if ended is not None:
                kind = TooFewHospitals if ended["status"] == TooFewHospitals.status else TemptError
                raise kind(str(ended["error"]))
            apps.restart()  # a ServerApp that Flower gave up, as it was stopped, would go on beside the next
            say(f"the run was lost ({last}); it goes on from its last round ({attempt + 1} of {_LOST_RUNS})")
    raise TemptError(f"{place.own / 'logs'}: the run was lost {_LOST_RUNS} times; the logs say why")


def _processes(place: ServerPlace, control: Control) -> list[Kept]:
    logs, environment = place.own / "logs", control.environment
    link, asked = address_of(control.address, "the SuperLink"), place.own / "flower" / "superexec-asked"
    host = link.host if place.front else place.host
    database = place.own / "superlink.db"
    database.touch(mode=0o600)
    for path in place.own.glob(f"{database.name}*"):  # what a release before has left, with its log
        path.chmod(0o600)
    superlink = [*guarded("flower-superlink"), "--host", host, "--port", str(link.port)]
    superlink += ["--database", str(database.absolute()), "--isolation", "process"]
    superlink += ["--disable-runtime-dependency-installation"]
    executor = [*superexec.command(asked), "--runtime-api-address", control.address, *control.trust()]
    if place.keys is None:
        superlink.append("--insecure")
        secret = operator_login.new_secret(control.home)
    else:
        keys = place.keys.absolute()
        secret = keys / SECRET
        superlink += ["--ssl-ca-certfile", str(keys / CA), "--ssl-certfile", str(keys / CERTIFICATE)]
        superlink += ["--ssl-keyfile", str(keys / KEY), "--enable-supernode-auth"]
    superlink += ["--superexec-auth-secret-file", str(secret.absolute())]
    executor += ["--superexec-auth-secret-file", str(secret.absolute())]
    answers = Signs("its page of health did not come", control.answers)
    # without the SuperLink it can't ask
    asks = Signs("it did not ask for work", touched(asked), excused=lambda: not control.answers())
    return [
        Kept("superlink", superlink, environment, logs / "superlink.log", signs=[answers]),
        Kept("superexec", executor, environment, logs / "superexec.log", signs=[asks], children_stay=True),
    ]


def _front(place: ServerPlace, control: Control) -> FrontPlace | None:
    if not place.front or place.keys is None:
        return None
    return FrontPlace(place.keys, place.own, facts_file(place.own), place.host, place.port, control.address)


def _app_folder(folder: Path, run_config: Mapping[str, Any]) -> Path:
    """The app as Flower ships it: this installation's packages, and nothing of `sim`.

    Raises:
        TemptError: what is there was not made here.
    """
    if folder.is_symlink():
        raise TemptError(f"{folder}: is a link; expected the folder that this command makes there, remove the link")
    if _is_unmarked_app(folder):
        write_text(folder / MARK, _APP)
    files = shipped_files()
    lines = [f"{name} = {toml_value(value)}" for name, value in run_config.items()]
    text = f"""[project]
name = "tempt"
version = "0.1.0"
description = "Medication recommendation across hospitals (TEMPT)"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
{_PUBLISHER}
[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "{CLIENT_APP}"
[tool.flwr.app.config]
"""
    with new_directory(folder, mark=_APP, force=True) as beside:
        for name, content in files.items():
            private_directory((beside / name).parent)
            (beside / name).write_bytes(content)
        write_text(beside / "pyproject.toml", text + "\n".join(lines) + "\n")
    return folder


def _is_unmarked_app(folder: Path) -> bool:
    """Whether a release that did not mark it has made it: our packages, a description of ours, and nothing else."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != {"pyproject.toml", *PACKAGES}:
        return False
    return _PUBLISHER in (folder / "pyproject.toml").read_text(encoding="utf-8", errors="replace")


def _listens(place: ServerPlace) -> bool:
    try:
        with socket.create_connection((ALL.get(place.host, place.host), place.port), timeout=5):
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
        f"{process.name} {process.last_end} and is started again; short lives in a row, at most "
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
        told = read_status(status) if status.exists() else {"lines_before": 0, "lines": [], "ended": None}
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
