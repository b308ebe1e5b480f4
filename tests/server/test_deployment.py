"""A federation of real processes over TLS with node keys: SuperLink, SuperExec, front, and a SuperNode a hospital.

Each federation here takes a minute or two, as every message starts a process; faults are grouped in one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared_model.files import read_json
from sim.cli import run as tempt
from tests.server.raw_consortium import RawConsortium, make_tables
from tests.sim import consortium
from tests.sim.consortium import assigned, command, environment

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx, the server's front, is not installed"),
]
HOSPITALS = (3, 8)
PATIENCE = 400.0  # seconds for what takes one or two minutes on idle cores


class Network:
    """Keys, partitions and processes of a federation in one folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.keys, self.run = root, root / "the keys", root / "the run"
        self.data = consortium.write_dataset(root / "dataset", consortium.make_dataset())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.processes: dict[str, subprocess.Popen[str]] = {}
        ids = ",".join(map(str, HOSPITALS))
        assert tempt(["server", "keys", str(self.keys), "--hospitals", ids]) == 0

    def start(self, name: str, *arguments: str | Path) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command(*arguments), stdout=log, stderr=log, env=environment(), text=True, start_new_session=True
            )

    def server(self, *more: str, agree: bool = False) -> None:
        sets = assigned({"pretraining.epochs": "3"})
        places = ["--keys", self.keys, "--out", self.run, "--port", str(self.port)]
        places += [] if agree else ["--vocabulary", self.data]
        fixed = ["--hospitals", str(len(HOSPITALS)), "--timeout", "180"]
        self.start("server", "server", "launch", *places, *fixed, *sets, *more)

    def hospital(
        self, hospital: int, *, key: int | None = None, ca: Path | None = None, raw: Path | None = None
    ) -> None:
        key = hospital if key is None else key
        name = f"hospital-{hospital}-{key}"
        self.start(
            name,
            *("hospital", "launch", "--superlink", f"127.0.0.1:{self.port}"),
            *(("--partition", self.data) if raw is None else ("--raw", raw)),
            *("--hospital-id", str(hospital), "--state", self.root / name),
            *("--root-certificates", self.keys / "ca.pem" if ca is None else ca),
            *("--private-key", self.keys / "hospitals" / str(key) / "key"),
        )

    def said(self, name: str) -> str:
        path = self.root / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, f"{what}\n" + "\n".join(self.said(name) for name in self.processes)
            time.sleep(0.2)

    def rounds(self) -> int:
        path = self.run / "history.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def pids(self, *words: str) -> list[int]:
        """Processes of this network whose command line has all of these words."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                own = str(self.root) in (path.parent / "environ").read_bytes().decode(errors="replace") + line
            except OSError:
                continue
            if own and all(word in line for word in words):
                found.append(int(path.parent.name))
        return found

    def end(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(30)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    found = Network(tmp_path / "a network")
    yield found
    found.end()
    assert found.pids("flower-super") == [] and found.pids("nginx") == [], "nothing is left"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same federation in one process."""
    root = tmp_path_factory.mktemp("simulated")
    data = consortium.write_dataset(root / "dataset", consortium.make_dataset())
    chosen = ["--hospitals", ",".join(map(str, HOSPITALS)), "--models", "tempt", "--jobs", "1"]
    sets = assigned({"pretraining.epochs": "3"})
    assert tempt(["simulate", "federated", "--data", str(data), "--out", str(root / "run"), *chosen, *sets]) == 0
    return root / "run"


def assert_same_results(run: Path, simulated: Path) -> None:
    found, expected = (read_json(place / "results.json")["models"]["tempt"] for place in (run, simulated))
    assert found["seeds"]["42"]["hospitals"].keys() == expected["seeds"]["42"]["hospitals"].keys()
    for metric, summary in expected["summary"].items():
        assert found["summary"][metric]["mean"] == pytest.approx(summary["mean"], abs=1e-6)


def test_a_network_gives_the_simulations_results_and_closes_its_doors(
    network: Network, simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network.server()
    for hospital in HOSPITALS:
        network.hospital(hospital)
    assert tempt(["server", "keys", str(tmp_path / "others"), "--hospitals", "3"]) == 0
    network.hospital(21, key=3, ca=tmp_path / "others" / "ca.pem")  # whose CA is another one
    network.wait(lambda: network.rounds() > 0 or not running(network, "server"), "a first round")

    context = ssl.create_default_context(cafile=str(network.keys / "ca.pem"))
    for path in ("/v1/control/runs", "/v1/runtime/x", "/docs", "/openapi.json", "/health", "/"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"https://127.0.0.1:{network.port}{path}", context=context, timeout=10)
        assert refused.value.code == 403, path

    network.wait(lambda: not running(network, "server"), "the end")
    assert network.processes["server"].returncode == 0, network.said("server")
    assert "tempt: prauc" in network.said("server")
    assert_same_results(network.run, simulated)
    assert "check --root-certificates" in network.said("hospital-21-3"), network.said("hospital-21-3")

    # with the server down, a hospital answers from its own folder; it holds nothing of the other's
    code, procedure = consortium.VOCABULARY.diagnoses[3], consortium.VOCABULARY.procedures[4]
    patient = ["--hospital", "8", "--diagnosis", code, "--procedure", procedure]
    capsys.readouterr()
    assert tempt(["recommend", str(network.root / "hospital-8-8"), *patient]) == 0
    assert "DRUG" in capsys.readouterr().out
    assert not list((network.root / "hospital-8-8" / "checkpoints").rglob("3.safetensors"))

    began = time.monotonic()
    network.processes["hospital-8-8"].send_signal(signal.SIGTERM)
    assert network.processes["hospital-8-8"].wait(30) == 143
    assert time.monotonic() - began < 25, "ten seconds are promised, on idle cores"


def test_killed_server_processes_cost_no_result(network: Network, simulated: Path) -> None:
    """kill -9 of the ServerApp, of the SuperExec and of the SuperLink, each in another round."""
    network.server()
    for hospital in HOSPITALS:
        network.hospital(hospital)
    killed = [("flwr-serverapp",), ("flower-superexec", "superexec.secret"), ("flower-superlink",)]
    for number, words in enumerate(killed):

        def ready(number: int = number) -> bool:
            return network.rounds() > number or not running(network, "server")

        network.wait(ready, "a round")
        if not running(network, "server"):
            break
        for pid in network.pids(*words):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    network.wait(lambda: not running(network, "server"), "the end")
    assert network.processes["server"].returncode == 0, network.said("server")
    assert_same_results(network.run, simulated)
    rows = [json.loads(line) for line in (network.run / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_hospitals_with_raw_tables_agree_first_and_give_the_simulations_results(
    network: Network, tmp_path: Path
) -> None:
    raw = RawConsortium(tmp_path / "consortium", make_tables(4, {3: 61, 8: 47}))
    cut = ["--min-records", "10", "--top-medications", "9", "--top-procedures", "11"]
    assert tempt(["prepare", str(raw.all), str(tmp_path / "dataset"), *cut]) == 0
    fixed = ["--data", str(tmp_path / "dataset"), "--out", str(tmp_path / "run"), "--models", "tempt", "--jobs", "1"]
    assert tempt(["simulate", "federated", *fixed, *assigned({"pretraining.epochs": "3"})]) == 0

    network.server("--minimum-count", "1", *cut, agree=True)
    for hospital in HOSPITALS:
        network.hospital(hospital, raw=raw.raw[hospital])
    network.wait(lambda: not running(network, "server"), "the end")
    assert network.processes["server"].returncode == 0, network.said("server")
    assert (network.run / "vocabulary.json").read_bytes() == (tmp_path / "dataset" / "vocabulary.json").read_bytes()
    assert_same_results(network.run, tmp_path / "run")
    for hospital in HOSPITALS:
        ledger = network.root / f"hospital-{hospital}-{hospital}" / "egress" / f"{hospital}.jsonl"
        kinds = [json.loads(line)["kind"] for line in ledger.read_text().splitlines()]
        assert kinds[:3] == ["vocabulary_counts", "vocabulary_remaining", "hello"]


def running(network: Network, name: str) -> bool:
    return network.processes[name].poll() is None
