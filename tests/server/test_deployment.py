"""A federation of real processes over TLS with node keys: SuperLink, SuperExec, front, and a SuperNode a hospital.

Each federation here takes a minute or two, as every message starts a process.
"""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_model.files import read_json, write_json
from sim.cli import run as tempt
from tests.hospital_client.policies import write_policy
from tests.server.another_user import assert_shut
from tests.server.processes import Network, assert_same, simulated
from tests.server.raw_consortium import RawConsortium, make_tables
from tests.sim import consortium

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx, the server's front, is not installed"),
]
HOSPITALS = (3, 8)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    found = Network(tmp_path / "a network", [*HOSPITALS, 21])
    (found.keys / "hospitals" / "21" / "key.pub").rename(found.root / "21.pub")  # registered later, by hand
    yield found
    found.end()
    assert found.pids("flower-super") == [] and found.pids("nginx") == [], "nothing is left"


def test_a_network_gives_the_simulations_results_and_closes_its_doors(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network.server(len(HOSPITALS))
    network.wait(lambda: network.told("hospitals reach the server"), "the server")
    look = ["hospital", "check", *map(str, network.options(8)), "--state", str(tmp_path / "new")]
    capsys.readouterr()
    assert tempt(look) == 0, capsys.readouterr().out
    assert "WRONG" not in capsys.readouterr().out

    public = network.root / "21.pub"
    look_21 = ["hospital", "check", *map(str, network.options(21)), "--state", str(tmp_path / "new")]
    assert tempt(look_21) == 2 and "the server does not know SHA256:" in capsys.readouterr().out
    assert tempt(["server", "register", str(network.run), str(public), "--hospital-id", "21"]) == 0
    network.wait(lambda: tempt(look_21) == 0, "the front tells the key")
    registered = network.root / "the run.server" / "registered.json"
    before = read_json(registered)
    write_json(registered, {h: found for h, found in before.items() if h != "21"})  # as a kill leaves it
    assert tempt(["server", "register", str(network.run), str(public), "--hospital-id", "21"]) == 0
    assert read_json(registered) == before
    for hospital, said in ((21, "already"), (8, "this key is hospital 21's")):
        capsys.readouterr()
        status = tempt(["server", "register", str(network.run), str(public), "--hospital-id", str(hospital)])
        told = capsys.readouterr()
        assert status == (0 if hospital == 21 else 2) and said in told.out + told.err

    for hospital in HOSPITALS:
        network.hospital(hospital)
    assert tempt(["server", "keys", str(tmp_path / "others"), "--hospitals", "3"]) == 0
    others = tmp_path / "others" / "ca.pem"
    network.hospital(21, ca=others)  # which trusts another CA
    assert tempt(["hospital", "check", *map(str, network.options(8, ca=others)), "--state", str(tmp_path / "n")]) == 2
    assert "is not the CA of this server's certificate" in capsys.readouterr().out
    network.wait(lambda: network.told("round 1: loss"), "a first round")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        assert_shut(
            network.root, network.keys / "ca.pem", network.root / "the run.server" / "app", Path(place) / "home"
        )

    context = ssl.create_default_context(cafile=str(network.keys / "ca.pem"))
    for path in ("/v1/control/runs", "/v1/runtime/x", "/docs", "/openapi.json", "/health", "/"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"https://127.0.0.1:{network.port}{path}", context=context, timeout=10)
        assert refused.value.code == 403, path
    capsys.readouterr()
    assert tempt(["server", "status", str(network.run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The server runs."
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["3", "online", "34"], ["8", "online", "23"], ["21", "registered", "-"],
    ], lines  # fmt: skip

    network.wait(lambda: not network.running(), "the end")
    assert network.processes["server"].returncode == 0, network.said("server")
    assert "tempt: prauc" in network.said("server")
    assert_same(network, simulated(network.data, tmp_path / "run", HOSPITALS, epochs=3, dropped={}))
    assert "check --root-certificates" in network.said("hospital-21"), network.said("hospital-21")
    assert tempt(["server", "status", str(network.run)]) == 0
    assert "The run has ended well" in capsys.readouterr().out

    # with the server down, a hospital answers from its own folder; it holds nothing of the other's
    code, procedure = consortium.VOCABULARY.diagnoses[3], consortium.VOCABULARY.procedures[4]
    patient = ["--hospital", "8", "--diagnosis", code, "--procedure", procedure]
    assert tempt(["recommend", str(network.root / "hospital-8"), *patient]) == 0
    assert "DRUG" in capsys.readouterr().out
    assert not list((network.root / "hospital-8" / "checkpoints").rglob("3.safetensors"))

    began = time.monotonic()
    network.processes["hospital-8"].send_signal(signal.SIGTERM)
    assert network.processes["hospital-8"].wait(30) == 143
    assert time.monotonic() - began < 25, "ten seconds are promised, on idle cores"


def test_killed_server_processes_and_an_ended_server_cost_no_result(network: Network, tmp_path: Path) -> None:
    """kill -9 of the ServerApp, of the SuperExec and of the SuperLink, then SIGTERM and the same command again."""
    network.server(len(HOSPITALS), epochs=5)
    for hospital in HOSPITALS:
        network.hospital(hospital)
    killed = [("flwr-serverapp",), ("flower-superexec", "superexec.secret"), ("flower-superlink",)]
    for number, words in enumerate(killed, start=1):
        network.wait(lambda number=number: network.told(f"round {number}: loss"), "a round")  # type: ignore[misc]
        assert network.running() and network.kill(*words), words
    network.wait(lambda: network.told("round 4: loss"), "the last round but one")
    began = time.monotonic()
    network.processes["server"].send_signal(signal.SIGTERM)
    assert network.processes["server"].wait(30) == 143, network.said("server")
    assert time.monotonic() - began < 25, "ten seconds are promised, on idle cores"
    assert "the same command goes on" in network.said("server")
    assert network.pids("flower-super", "the run") == [] and network.pids("nginx", "the run") == []
    network.server(len(HOSPITALS), epochs=5)
    network.wait(lambda: not network.running(), "the end")
    assert network.processes["server"].returncode == 0, network.said("server")
    assert_same(network, simulated(network.data, tmp_path / "run", HOSPITALS, epochs=5, dropped={}))


def test_without_tls_on_the_loopback_it_runs_too_and_a_killed_launch_leaves_no_process(
    network: Network, tmp_path: Path
) -> None:
    sets = consortium.assigned({"pretraining.epochs": "1"})
    network.start(
        "server",
        *("server", "launch", "--insecure", "--vocabulary", network.data, "--out", network.run, *sets),
        *("--port", str(network.port), "--hospitals", "1", "--timeout", "180"),
    )
    network.start(
        "hospital-8",
        *("hospital", "launch", "--insecure", "--superlink", f"127.0.0.1:{network.port}", "--partition", network.data),
        *("--hospital-id", "8", "--state", write_policy(network.root / "hospital-8")),
    )
    network.wait(lambda: not network.running(), "the end")
    assert network.processes["server"].returncode == 0, network.said("server")
    assert "warning: --insecure" in network.said("server") and "warning: --insecure" in network.said("hospital-8")
    assert list(read_json(network.run / "results.json")["models"]["tempt"]["seeds"]["42"]["hospitals"]) == ["8"]

    assert network.pids("flower-supernode", "hospital-8")
    network.processes["hospital-8"].kill()
    network.wait(lambda: not network.pids("flower-supernode", "hospital-8"), "the guard")


def test_hospitals_with_raw_tables_agree_first_and_give_the_simulations_results(
    network: Network, tmp_path: Path
) -> None:
    raw = RawConsortium(tmp_path / "consortium", make_tables(4, {3: 61, 8: 47}))
    cut = ["--min-records", "10", "--top-medications", "9", "--top-procedures", "11"]
    assert tempt(["prepare", str(raw.all), str(tmp_path / "dataset"), *cut]) == 0
    fixed = ["--data", str(tmp_path / "dataset"), "--out", str(tmp_path / "run"), "--models", "tempt", "--jobs", "1"]
    assert tempt(["simulate", "federated", *fixed, *consortium.assigned({"pretraining.epochs": "3"})]) == 0

    network.server(len(HOSPITALS), "--minimum-count", "1", *cut, agree=True)
    for hospital in HOSPITALS:
        network.hospital(hospital, raw=raw.raw[hospital])
    network.wait(lambda: not network.running(), "the end")
    assert network.processes["server"].returncode == 0, network.said("server")
    assert (network.run / "vocabulary.json").read_bytes() == (tmp_path / "dataset" / "vocabulary.json").read_bytes()
    found, expected = (read_json(run / "results.json")["models"]["tempt"] for run in (network.run, tmp_path / "run"))
    assert found["seeds"]["42"]["hospitals"].keys() == expected["seeds"]["42"]["hospitals"].keys()
    for metric, summary in expected["summary"].items():
        assert found["summary"][metric]["mean"] == pytest.approx(summary["mean"], abs=1e-6)
    for hospital in HOSPITALS:
        ledger = network.root / f"hospital-{hospital}" / "egress" / f"{hospital}.jsonl"
        kinds = [json.loads(line)["kind"] for line in ledger.read_text().splitlines()]
        assert kinds[:3] == ["vocabulary_counts", "vocabulary_remaining", "hello"]
