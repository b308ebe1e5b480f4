"""The image is built and `docker-compose.yml` runs for real with podman: a federation through pretraining and tuning.

One of its hospitals is killed in between. Nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_model.files import read_json
from sim.deploy_folder import make_folder
from tests.containers.podman import BASE_IMAGE, Podman, Unavailable, run, set_up
from tests.sim import consortium
from tests.sim.consortium import ROOT, assigned

pytestmark = pytest.mark.containers
IMAGE = "localhost/tempt-test"
SIZES = {3: 63, 8: 59, 21: 57}  # enough to validate and test under the default policy
HOSPITALS = tuple(SIZES)
SERVICES = ("server", "front", "hospital-1", "hospital-2", "hospital-3")
KILLED, OTHER = "hospital-2", "hospital-3"
PATIENCE = 1800.0  # seconds for what takes two or three minutes on idle cores

CONFINED = """
import errno, os
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
print(os.getuid(), int(status["CapEff"], 16), int(status["CapBnd"], 16), int(status["NoNewPrivs"]))
for place in ("/", "/etc", "/opt/tempt", "/usr/bin"):
    try:
        open(os.path.join(place, "written"), "w")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
REACHED = """
import errno, socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
        print("reached")
    except socket.gaierror:
        print("no such name")
    except OSError as error:
        print(errno.errorcode.get(error.errno, "no answer"))
"""


class Network:
    """The compose file's project in one folder, under a name of its own."""

    def __init__(self, podman: Podman, folder: Path) -> None:
        self.podman, self.folder = podman, folder
        self.name = f"tempt-test-{secrets.token_hex(4)}"
        data = consortium.write_dataset(folder / "dataset", consortium.make_dataset(consortium.make_records(SIZES)))
        make_folder(folder / "deploy", data, HOSPITALS)
        options = ["--timeout", "600", *assigned({"pretraining.epochs": "5"})]
        self.environment = podman.environment | {
            "TEMPT_DEPLOY": str(folder / "deploy"),
            "TEMPT_IMAGE": IMAGE,
            "TEMPT_OPTIONS": " ".join(options),
            **{f"HOSPITAL_{number}": str(hospital) for number, hospital in enumerate(HOSPITALS, 1)},
        }

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("podman-compose")
        project = ("--project-name", self.name, "--file", ROOT / "docker-compose.yml")
        return run(program, *project, *arguments, environment=self.environment, check=check)

    def container(self, service: str) -> str:
        return f"{self.name}_{service}_1"

    def state(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.podman("inspect", self.container(service)).stdout)[0]
        return found

    def address(self, service: str) -> str:
        (network,) = self.state(service)["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def python(self, service: str, code: str, *arguments: str) -> list[str]:
        done = self.podman("exec", self.container(service), "python", "-c", code, *arguments)
        return done.stdout.split("\n")[:-1]

    def healthy(self, service: str) -> bool:
        return self.podman("healthcheck", "run", self.container(service), check=False).returncode == 0

    def rounds(self) -> int:
        read = self.podman("exec", self.container("server"), "cat", "/server/run/history.jsonl", check=False)
        return read.stdout.count("\n") if read.returncode == 0 else 0

    def runs(self, service: str) -> bool:
        return bool(self.state(service)["State"]["Running"])

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            late = time.monotonic() > until
            assert not late and self.state("server")["RestartCount"] == 0, f"{what} did not come\n{self.said()}"
            time.sleep(1.0)

    def said(self) -> str:
        """What every container said last, for a failure's message."""
        parts = []
        for service in SERVICES:
            logs = self.podman("logs", "--tail", "30", self.container(service), check=False)
            parts.append(f"== {service}\n{logs.stdout}{logs.stderr}")
        return "\n".join(parts)

    def left(self) -> list[str]:
        """Containers, volumes and networks that have the project's name."""
        listings = (
            ("ps", "--all", "--format", "{{.Names}}"),
            ("volume", "ls", "--quiet"),
            ("network", "ls", "--quiet"),
        )
        names = [name for listing in listings for name in self.podman(*listing).stdout.split()]
        return [name for name in names if self.name in name]

    def remove(self) -> None:
        """Take it down whatever state it is in."""
        self.compose("down", "--volumes", check=False)
        for name in self.left():
            for kind in ("container", "volume", "network"):
                self.podman(kind, "rm", "--force", name, check=False)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    """Podman, with the image built."""
    try:
        found = set_up(tmp_path_factory.mktemp("podman"))
    except Unavailable as why:
        pytest.skip(str(why))
    older = found("image", "inspect", "--format", "{{.Id}}", IMAGE, check=False).stdout.strip()
    arguments = [
        "--build-arg",
        f"BASE_IMAGE={BASE_IMAGE}",
        "--build-arg",
        f"TORCH_INDEX={os.environ.get('TORCH_INDEX', '')}",
    ]
    found("build", "--network", "host", *found.build_options, *arguments, "--tag", IMAGE, ROOT)
    if older and older != found("image", "inspect", "--format", "{{.Id}}", IMAGE).stdout.strip():
        found("rmi", older, check=False)  # what the new one shares with it stays, so that the next build is quick
    return found


@pytest.fixture
def network(podman: Podman, tmp_path: Path) -> Iterator[Network]:
    found = Network(podman, tmp_path)
    try:
        yield found
    finally:
        found.remove()


def test_a_federation_of_containers_outlives_a_killed_hospital(network: Network, tmp_path: Path) -> None:
    network.compose("up", "--detach", "--no-build")
    network.wait(lambda: network.healthy("server") and network.healthy("front"), "a healthy server and front")
    for service in SERVICES:
        assert_confined(network, service)
    assert_apart(network)

    network.wait(lambda: network.rounds() > 0 or not network.runs("server"), "the first round")
    assert network.runs("server"), network.said()
    network.podman("kill", "--signal", "KILL", network.container(KILLED))
    network.wait(lambda: not network.runs(KILLED), "the hospital's end")
    assert network.runs("server"), "it was killed while the federation ran"
    network.podman("start", network.container(KILLED))
    network.wait(lambda: network.healthy(KILLED), "the killed hospital's health")

    network.wait(lambda: not network.runs("server"), "the end of the federation")
    assert network.state("server")["State"]["ExitCode"] == 0, network.said()
    assert "tempt: prauc" in network.podman("logs", network.container("server")).stdout
    network.podman("cp", f"{network.container('server')}:/server/run", tmp_path / "run")
    assert_results(read_json(tmp_path / "run" / "results.json"), rounds=5)
    assert all(network.healthy(service) for service in SERVICES if service != "server"), network.said()

    network.compose("down", "--volumes")
    assert network.left() == []


def assert_confined(network: Network, service: str) -> None:
    """No root, no capability, no way to get one, and nothing of the image can be written."""
    found = network.python(service, CONFINED)
    assert found == ["10001 0 0 1", *["EROFS"] * 4], f"{service}: {found}"
    assert not network.state(service)["HostConfig"]["PortBindings"]


def assert_apart(network: Network) -> None:
    """A hospital reaches the front and nothing else, and holds no other hospital's records and keys."""
    server, other = f"{network.address('server')}:9091", f"{network.address(OTHER)}:80"
    found = network.python(KILLED, REACHED, "front:8443", "server:9091", f"{OTHER}:80", server, other, "192.0.2.1:443")
    assert found == ["reached", "no such name", "no such name", *["ENETUNREACH"] * 3]
    # the same addresses from where they can be reached
    assert network.python("front", REACHED, "server:9091", server, other) == ["reached", "reached", "ECONNREFUSED"]
    listing = "import os; print(*os.listdir('/partition/hospitals'), *sorted(os.listdir('/keys')))"
    assert network.python(KILLED, listing) == ["8 ca.pem key"]


def assert_results(results: dict[str, Any], *, rounds: int) -> None:
    """Every hospital has its metrics, or is named; the killed one's missed rounds are counted."""
    about = results["federation"]["seeds"]["42"]
    assert about["rounds"] == rounds and about["left_out"] == {}
    hospitals = results["models"]["tempt"]["seeds"]["42"]["hospitals"]
    killed = str(HOSPITALS[SERVICES.index(KILLED) - 2])
    assert {*hospitals, *about["not_tuned"]} == {str(hospital) for hospital in HOSPITALS}
    assert set(about["not_tuned"]) <= {killed}
    for hospital, part in about["hospitals"].items():
        if hospital != killed:
            assert (part["taken"], part["missed"], part["rejected"]) == ([*range(1, rounds + 1)], 0, []), hospital
            assert 0 < hospitals[hospital]["prauc"] <= 1
    part = about["hospitals"][killed]
    assert part["missed"] > 0 or len(part["taken"]) == rounds or killed in about["not_tuned"], part
