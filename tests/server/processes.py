"""A federation of real processes over TLS with node keys, in one folder, for tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from hospital_client.app import HospitalConfig
from server import exchange, rounds
from server.federation import Federation
from server.federation_settings import FederationSettings
from shared_model.files import read_json
from sim.cli import run as tempt
from sim.inprocess_grid import InProcessGrid
from tests.hospital_client.policies import FEW_RECORDS, write_policy
from tests.server.federations import Clock
from tests.sim import consortium
from tests.sim.consortium import assigned, command, environment

PATIENCE = 900.0  # seconds for what takes one or two minutes on idle cores


class Network:
    """Keys, partitions and processes of a federation in one folder."""

    def __init__(self, root: Path, hospitals: Sequence[int]) -> None:
        self.root, self.keys, self.run = root, root / "the keys", root / "the run"
        self.data = consortium.write_dataset(root / "dataset", consortium.make_dataset())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.processes: dict[str, subprocess.Popen[str]] = {}
        ids = ",".join(map(str, hospitals))
        assert tempt(["server", "keys", str(self.keys), "--hospitals", ids]) == 0

    def start(self, name: str, *arguments: str | Path, path: Path | None = None) -> None:
        found = environment()
        if path is not None:
            found["PYTHONPATH"] = f"{path}{os.pathsep}{found['PYTHONPATH']}"
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command(*arguments), stdout=log, stderr=log, env=found, text=True, start_new_session=True
            )

    def server(
        self,
        hospitals: int,
        *more: str,
        epochs: int = 3,
        timeout: int = 180,
        agree: bool = False,
        path: Path | None = None,
    ) -> None:
        sets = assigned({"pretraining.epochs": str(epochs)})
        places = ["--keys", self.keys, "--out", self.run, "--port", str(self.port)]
        places += [] if agree else ["--vocabulary", self.data]
        fixed = ["--hospitals", str(hospitals), "--timeout", str(timeout)]
        self.start("server", "server", "launch", *places, *fixed, *sets, *more, path=path)

    def options(
        self,
        hospital: int,
        key: Path | None = None,
        ca: Path | None = None,
        data: Path | None = None,
        raw: Path | None = None,
    ) -> list[str | Path]:
        records = ["--raw", raw] if raw is not None else ["--partition", self.data if data is None else data]
        return [
            *("--superlink", f"127.0.0.1:{self.port}", *records),
            *("--hospital-id", str(hospital), "--root-certificates", self.keys / "ca.pem" if ca is None else ca),
            *("--private-key", self.key(hospital) if key is None else key),
        ]

    def key(self, hospital: int) -> Path:
        return self.keys / "hospitals" / str(hospital) / "key"

    def hospital(self, hospital: int, *, name: str = "", path: Path | None = None, **options: Path) -> None:
        """Launch one.

        Args:
            path: where its processes find Python modules first.
        """
        name = name or f"hospital-{hospital}"
        arguments = self.options(hospital, **options)
        arguments += ["--minimum-count", "1"] if "raw" in options else []
        many = f"most_rounds = 1000000\n{FEW_RECORDS}"  # a quick machine does many while a test waits
        state = write_policy(self.root / name, many)
        self.start(name, "hospital", "launch", *arguments, "--state", state, path=path)

    def running(self, name: str = "server") -> bool:
        return self.processes[name].poll() is None

    def told(self, words: str) -> bool:
        """Whether the server has said so, or has ended."""
        return words in self.said("server") or not self.running()

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
        """Processes of this network whose command line and environment have all of these words."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                line += (path.parent / "environ").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
            except OSError:
                continue
            if str(self.root) in line and all(word in line for word in words):
                found.append(int(path.parent.name))
        return found

    def kill(self, *words: str, by: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to every process with these words in its command line or environment; how many there were."""
        found = self.pids(*words)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, by)
        return len(found)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "history.jsonl").read_text().splitlines()]

    def parts(self) -> dict[str, dict[str, Any]]:
        """What became of each hospital's part, as the results tell it."""
        seeds = read_json(self.run / "results.json")["federation"]["seeds"]
        found: dict[str, dict[str, Any]] = seeds["42"]["hospitals"]
        return found

    def end(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(30)


class Dropping(InProcessGrid):
    """The in-process Grid, which loses what hospitals reply in given rounds."""

    def __init__(self, places: Mapping[int, HospitalConfig], dropped: Mapping[int, Sequence[int]]) -> None:
        super().__init__(places, None)
        self._dropped = {(hospital, str(number)) for hospital, numbers in dropped.items() for number in numbers}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = super().pull_messages(message_ids)
        return [r for r in found if (r.metadata.src_node_id, r.metadata.group_id) not in self._dropped]


def simulated(
    data: Path,
    run: Path,
    hospitals: Sequence[int],
    *,
    epochs: int,
    dropped: Mapping[int, Sequence[int]],
    quorum: float = 0.5,
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """The same federation in this process without these rounds' replies: test metrics by hospital, and rounds."""
    grid = Dropping({h: HospitalConfig(data, h, run) for h in hospitals}, dropped)
    settings, vocabulary = consortium.settings(pretraining__epochs=str(epochs)), consortium.VOCABULARY
    federation = FederationSettings(timeout=3600.0, quorum=quorum)
    whole = Federation(run, vocabulary, settings, federation, ("tempt",), False, len(hospitals), 1)
    rows: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patched:
        clock = Clock()
        patched.setattr(exchange, "time", clock)
        patched.setattr(rounds, "time", clock)
        results, _ = whole.seed(grid, 42, on_round=lambda fit, row: rows.append(row), on_done=lambda label: None)
    found = {str(fit.hospital): r["hospitals"][str(fit.hospital)] for fit, r in results.items() if fit.hospital}
    return found, rows


def assert_same(
    network: Network, expected: tuple[Mapping[str, Mapping[str, float]], Sequence[Mapping[str, Any]]]
) -> None:
    """A network's rounds and test metrics are those of a simulation, up to what the number of threads rounds."""
    metrics, rows = expected
    found = read_json(network.run / "results.json")["models"]["tempt"]["seeds"]["42"]["hospitals"]
    assert found.keys() == metrics.keys()
    for hospital, measured in metrics.items():
        for name, value in measured.items():
            assert found[hospital][name] == pytest.approx(value, abs=1e-5), (hospital, name)
    assert [row["epoch"] for row in network.rows()] == [row["epoch"] for row in rows]
    for row, other in zip(network.rows(), rows, strict=True):
        for name in ("loss", "score", "hospitals"):
            assert row[name] == pytest.approx(other[name], abs=1e-5), (row, other)
