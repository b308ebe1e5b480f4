"""Hospitals that die, hang, lie or are strangers, in federations of real processes: left out by name, no more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shared_model.records import Dataset
from sim.cli import run as tempt
from tests.server.processes import Network, assert_same, simulated
from tests.sim import consortium
from tests.sim.consortium import ROOT

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx, the server's front, is not installed"),
]
HOSPITALS = (3, 8, 21)
CLIENT_APP = "hospital_client.pinned_clientapp"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    found = Network(tmp_path / "a network", [*HOSPITALS, 34, 55])
    yield found
    found.end()
    assert found.pids("flower-super") == [] and found.pids("nginx") == [], "nothing is left"


def test_a_killed_hospital_and_one_that_hangs_come_back_and_strangers_do_not_come_in(
    network: Network, tmp_path: Path
) -> None:
    network.server(5, "--quorum", "0.2", epochs=6, timeout=120)  # two of three may be away at once
    for hospital in (3, 21):
        network.hospital(hospital)
    network.hospital(8, path=ROOT / "tests" / "server" / "hanging")
    other = replace(consortium.VOCABULARY, diagnoses=tuple(f"V{i:02}" for i in range(consortium.DIAGNOSES)))
    strange = Dataset(other, consortium.make_records(), split_by_patient=False)
    data = consortium.write_dataset(tmp_path / "another vocabulary", strange)
    network.hospital(34, data=data)
    network.hospital(8, name="claims-8", key=network.key(55))
    assert tempt(["server", "keys", str(tmp_path / "others"), "--hospitals", "3"]) == 0
    network.hospital(3, name="stranger", key=tmp_path / "others" / "hospitals" / "3" / "key")

    network.wait(lambda: network.told("round 1: waiting"), "round 1")
    network.wait(lambda: bool(network.pids(CLIENT_APP, "hospital-21")) or not network.running(), "work at hospital 21")
    assert network.kill("flower-supernode", "hospital-21")
    network.wait(lambda: not network.running(), "the end")
    said = network.said("server")
    assert network.processes["server"].returncode == 0, said

    assert "hospital 34's vocabulary has the digest" in said
    assert "its key is hospital-55's, but it says that it is hospital 8" in said
    assert "the server does not know this key (yet)" in network.said("stranger")
    parts = network.parts()
    assert sorted(map(int, parts)) == list(HOSPITALS)
    assert parts["3"]["taken"] == [1, 2, 3, 4, 5, 6]
    assert parts["8"]["taken"] == [1, 3, 4, 5, 6], parts
    # its work was ended, and it takes part again; on busy cores the word of that may come too late
    assert parts["8"]["missed"] + len(parts["8"]["rejected"]) == 1, parts
    assert all(reason.startswith("round 2: error 100: TimeIsOver at ") for reason in parts["8"]["rejected"]), parts
    assert "TimeIsOver at " in (network.root / "hospital-8" / "egress" / "8.jsonl").read_text()
    dropped = {int(h): sorted({1, 2, 3, 4, 5, 6} - set(part["taken"])) for h, part in parts.items()}
    assert dropped[21] and parts["21"]["missed"] == len(dropped[21]) and not parts["21"]["rejected"], parts
    assert max(parts["21"]["taken"]) > min(dropped[21]), "the one that was killed takes part again"
    expected = simulated(network.data, tmp_path / "run", HOSPITALS, epochs=6, dropped=dropped, quorum=0.2)
    assert_same(network, expected)


def test_every_faulty_update_is_rejected_by_name_and_the_rest_is_as_without_it(
    network: Network, tmp_path: Path
) -> None:
    network.server(3, epochs=7)
    for hospital in (3, 8):
        network.hospital(hospital)
    network.hospital(21, path=ROOT / "tests" / "server" / "faulty")
    network.wait(lambda: not network.running(), "the end")
    assert network.processes["server"].returncode == 0, network.said("server")
    parts = network.parts()
    words = ["NaN", "expected float32", "missing", "float64[7]", "norm", "1000000 training records, expected"]
    for number, (reason, word) in enumerate(zip(parts["21"]["rejected"], words, strict=True), start=1):
        assert reason.startswith(f"round {number}: ") and word in reason, reason
        assert f"round {number}: hospital 21 is left out: " in network.said("server")
    assert parts["21"]["taken"] == [7] and parts["21"]["missed"] == 0
    dropped = {21: range(1, 7)}
    assert_same(network, simulated(network.data, tmp_path / "run", HOSPITALS, epochs=7, dropped=dropped))


def test_below_the_quorum_it_waits_and_then_fails_with_its_own_status(network: Network) -> None:
    network.server(2, "--quorum", "1", timeout=60)
    for hospital in (3, 8):
        network.hospital(hospital)
    network.wait(lambda: network.told("round 1: waiting"), "round 1")
    network.processes["hospital-8"].kill()
    network.wait(lambda: not network.running(), "the end")
    said = network.said("server")
    assert network.processes["server"].returncode == 3, said
    assert "the updates of 1 of 2 hospitals could be taken, the quorum is 1" in said
    assert "waiting up to 60 s for others to come back" in said
    assert said.splitlines()[-1].startswith("error: round 1: "), said
    assert not (network.run / "results.json").exists()


def test_code_that_is_not_installed_at_a_hospital_does_not_run_there(network: Network, tmp_path: Path) -> None:
    other = tmp_path / "a hospital of another version"
    for package in ("hospital_client", "shared_model", "server", "sim"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "hospital_client" / "app.py").open("a", encoding="utf-8") as file:
        file.write("\n# a later version\n")
    network.server(2, "--quorum", "1", timeout=40)
    network.hospital(3)
    network.hospital(8, path=other)
    network.wait(lambda: not network.running(), "the end")
    assert network.processes["server"].returncode == 3, network.said("server")
    assert "its hospital_client/app.py is not the one installed here" in network.said("server")
    assert "the server's code was refused: its hospital_client/app.py" in network.said("hospital-8")
