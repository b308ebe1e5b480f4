"""Each process of a network stopped for good: whoever keeps it sees that, says so and starts it again."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.server.processes import Network
from tests.sim.consortium import ROOT

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx, the server's front, is not installed"),
]
HOSPITALS = (3, 8)
IMPATIENT = ROOT / "tests" / "server" / "impatient"
SILENT = "showed no sign of life for 20 s"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    found = Network(tmp_path / "a network", HOSPITALS)
    yield found
    found.end()
    assert found.pids("flower-super") == [] and found.pids("nginx") == [], "nothing is left, stopped or not"


def test_stopped_processes_are_started_again_and_hospitals_take_part_by_themselves(network: Network) -> None:
    # more rounds than pass in it, and no more than a hospital's policy accepts
    network.server(len(HOSPITALS), "--set", "pretraining.patience=1000", epochs=1000, timeout=100, path=IMPATIENT)
    for hospital in HOSPITALS:
        network.hospital(hospital, path=IMPATIENT)

    def stop(*words: str) -> None:
        network.wait(lambda: bool(network.pids(*words)), " ".join(words))
        found = network.pids(*words)
        workers = [child for pid in found for child in children(pid)] if words[0] == "nginx: master" else []
        for pid in [*found, *workers]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def all_take_part() -> None:
        """Wait for a round of both that begins from now on."""
        began = network.rounds()
        network.wait(
            lambda: (
                any(row["hospitals"] == len(HOSPITALS) for row in network.rows()[began + 1 :]) or not network.running()
            ),
            "a round of both hospitals",
        )
        assert network.running(), network.said("server")

    network.wait(lambda: network.rounds() > 0 or not network.running(), "a first round")
    stop("nginx: master")
    stop("hospital_client.flower_programs", "flower-supernode", "hospital-3")
    stop("hospital_client.flower_programs", "flower-superexec --", "hospital-8")
    network.wait(
        lambda: (
            (SILENT in network.said("hospital-3") and SILENT in network.said("hospital-8")) or not network.running()
        ),
        "both hospitals",
    )
    all_take_part()
    assert f"front {SILENT} (its page of facts did not come" in network.said("server")
    for hospital in HOSPITALS:  # a missing heartbeat was the front's fault
        assert f"its SuperNode {SILENT} (its SuperExec did not ask for work)" in network.said(f"hospital-{hospital}")

    stop("hospital_client.pinned_clientapp", "hospital-8")
    stop("flower-superexec", "superexec.secret")  # alone: the loss of a run, next, has it started again by itself
    network.wait(lambda: network.told(f"superexec {SILENT} (it did not ask for work)"), "the SuperExec")
    stop("flower-superlink")
    network.wait(lambda: network.told(f"superlink {SILENT} (its page of health did not come)"), "the SuperLink")
    all_take_part()

    stop("flwr-serverapp")
    network.wait(lambda: network.told("the run was lost"), "the loss of the run")
    all_take_part()
    assert "superlink ended" not in network.said("server"), "nothing else was killed"


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found
