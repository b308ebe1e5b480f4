"""Flower's own command on a clean checkout: `flwr run .`, with no dependency installed and nothing fetched."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_model.files import read_json
from sim.cli import run as tempt
from tests.sim import consortium
from tests.sim.consortium import ROOT, assigned


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A folder of its own for everything of Flower's, and a free port for the SuperLink that `flwr` starts."""
    home = tmp_path / "flower home"
    home.mkdir()
    (home / "config.toml").write_text('[superlink]\ndefault = "local"\n[superlink.local]\naddress = ":local:"\n')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folder = str(Path(sys.executable).parent)
    yield os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # whatever would fetch something finds nobody there
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "UV_INDEX_URL": "http://127.0.0.1:9/",
    }
    for path in Path("/proc").glob("[0-9]*/environ"):  # the SuperLink goes on when `flwr run` ends
        try:
            if f"FLWR_HOME={home}".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGTERM)
        except (OSError, ValueError):
            continue


@pytest.mark.slow
def test_flwr_run_gives_the_results_of_the_inprocess_engine(tmp_path: Path, environment: dict[str, str]) -> None:
    checkout = tmp_path / "a checkout"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    data = consortium.write_dataset(tmp_path / "dataset", consortium.make_dataset())
    out = tmp_path / "flower"
    sets = " ".join(part for part in assigned() if part != "--set")
    config = f'data="{data}" out="{out}" hospitals={len(consortium.SIZES)} models="tempt" set="{sets}"'
    nodes = f"num-supernodes={len(consortium.SIZES)}"
    command = ["flwr", "run", ".", "--federation-config", nodes, "--run-config", config, "--stream"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    until = time.monotonic() + 60
    while not (out / "results.json").exists() and time.monotonic() < until:
        time.sleep(0.2)
    assert (out / "results.json").exists(), done.stdout + done.stderr

    fixed = ["--data", str(data), "--out", str(tmp_path / "ours"), "--models", "tempt", "--jobs", "1"]
    assert tempt(["simulate", "federated", *fixed, *assigned()]) == 0
    found, expected = (read_json(run / "results.json")["models"]["tempt"] for run in (out, tmp_path / "ours"))
    for metric, summary in expected["summary"].items():
        assert found["summary"][metric]["mean"] == pytest.approx(summary["mean"], abs=1e-6)
