"""Flower's own clients tell a hospital's signs of life, by the names that they have in the installed Flower."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient

from hospital_client import flower_programs, guarded_flower
from hospital_client.flower_programs import SUPEREXEC, SUPERNODE
from shared_model.supervision import flower_environment


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    changed: list[tuple[Any, str]] = [(FleetHttpClient, "SendNodeHeartbeat"), (RuntimeHttpClient, "AcquireTask")]
    changed += [(loop, "_pull_and_store_message"), (loop, "_push_messages")]
    for owner, name in changed:
        monkeypatch.setattr(owner, name, getattr(owner, name))


def test_a_heartbeat_that_the_server_acknowledged_is_supernodes_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = tmp_path / "heartbeat"
    assert flower_programs._told(SUPERNODE, signs) is guarded_flower.supernode
    replies = iter([SendNodeHeartbeatResponse(success=False), SendNodeHeartbeatResponse(success=True)])
    monkeypatch.setattr(ProtobufClient, "_unary_unary", lambda *a, **k: next(replies))
    with FleetHttpClient("http://127.0.0.1:9") as client:
        assert not client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success and not signs.exists()
        assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success and signs.exists()


def test_asking_for_work_is_superexecs_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signs = tmp_path / "polled"
    assert flower_programs._told(SUPEREXEC, signs) is guarded_flower.superexec
    monkeypatch.setattr(ProtobufClient, "_unary_unary", lambda *a, **k: AcquireTaskResponse())
    with RuntimeHttpClient("http://127.0.0.1:9") as client:
        client.AcquireTask(AcquireTaskRequest())
    assert signs.exists(), "also where there was none"


def test_the_program_has_flowers_name_and_options(tmp_path: Path) -> None:
    command = [*flower_programs.command(SUPERNODE, tmp_path / "heartbeat"), "--superlink"]
    assert any(word.endswith("/flower-supernode") for word in command)
    environment = flower_environment(tmp_path / "flower")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (
        done.returncode == 2 and "flower-supernode: error: argument --superlink: expected one argument" in done.stderr
    )
