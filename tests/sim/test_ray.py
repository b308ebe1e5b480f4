"""Federations on Ray, one that the command starts and one that was there before."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_model.files import read_json
from shared_model.supervision import free_port
from sim.cli import run as tempt
from tests.sim import consortium
from tests.sim.consortium import assigned, environment
from tests.sim.test_federated import apart, arguments

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("federated") / "run"
    assert tempt(arguments("federated", data, out, "--save-scores")) == 0
    return out


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of one machine."""
    folder = tempfile.mkdtemp(prefix="ray-")  # its sockets' paths must be short
    address = f"127.0.0.1:{free_port()}"
    ray = str(Path(sys.executable).with_name("ray"))
    options = ["--block", f"--port={address.rpartition(':')[2]}", "--num-cpus=2", "--include-dashboard=false"]
    head = subprocess.Popen(
        [ray, "start", "--head", "--node-ip-address=127.0.0.1", *options, f"--temp-dir={folder}"],
        env=environment() | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert head.stdout is not None
        said = []
        for line in head.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise AssertionError("".join(said))
        yield address
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.communicate(timeout=60)
        shutil.rmtree(folder)


def assert_same_results(run: Path, reference: Path) -> None:
    assert apart(reference, run) < 1e-6
    found, expected = (read_json(which / "results.json")["models"] for which in (run, reference))
    for model in expected:
        for metric, summary in expected[model]["summary"].items():
            assert found[model]["summary"][metric]["mean"] == pytest.approx(summary["mean"], abs=1e-6)


def test_ray_gives_the_same_results(data: Path, federated: Path, tmp_path: Path) -> None:
    done = consortium.call(*arguments("federated", data, tmp_path / "ray", "--save-scores", "--engine", "ray"))
    assert done.returncode == 0, done.stderr
    assert_same_results(tmp_path / "ray", federated)
    assert "WARNING" not in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_ray_cluster_that_is_there_gives_the_same_results(
    data: Path, federated: Path, tmp_path: Path, cluster: str
) -> None:
    more = ["--save-scores", "--engine", "ray", "--ray-address", cluster]
    done = consortium.call(*arguments("federated", data, tmp_path / "ray", *more))
    assert done.returncode == 0, done.stderr
    assert_same_results(tmp_path / "ray", federated)


def test_a_cluster_of_ours_takes_nobody_without_its_token() -> None:
    """Another process of this machine, or of the network, would run code in it."""
    stranger = "import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1]).get_all_node_info(timeout=30)"
    program = f"""
import os, subprocess, sys
from sim.engines import check_engine
check_engine("ray", None)
import ray
address = ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR").address_info["gcs_address"]
for without in (["RAY_AUTH_MODE", "RAY_AUTH_TOKEN"], []):
    given = {{name: value for name, value in os.environ.items() if name not in without}}
    done = subprocess.run([sys.executable, "-c", {stranger!r}, address], env=given, capture_output=True, text=True)
    print(done.returncode, "InvalidAuthToken" in done.stderr)
"""
    variables = environment() | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n")[:-1] == ["1 True", "0 False"], done.stdout + done.stderr


def test_a_mistake_in_a_ray_federation_is_one_line(data: Path, tmp_path: Path) -> None:
    """Every hospital diverges: the quorum is missed, which has an exit status of its own."""
    more = ["--engine", "ray"]
    sets = assigned({"pretraining.temperature": "1e-300"})
    options = ["simulate", "federated", "--data", str(data), "--out", str(tmp_path / "run"), *sets, *more]
    done = consortium.call(*options)
    assert done.returncode == 3, done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("error: round 1: the updates of 0 of 4 hospitals"), done.stderr
    assert "Traceback" not in done.stderr.replace("hospital could not answer", "")
