"""Who reaches a port of Flower's on the loopback gets nowhere without a secret, which is on no command line."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from flwr.cli.auth_plugin.oidc_cli_plugin import OidcCliPlugin
from flwr.proto.control_pb2 import ListRunsRequest, RefreshAuthTokensRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.auth import create_superexec_auth_metadata, derive_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.credential_store import FileCredentialStore
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.superexec.executor import ExecutionSpec
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from flwr.supernode import main as supernode
from flwr.supernode.nodestate import NodeStateFactory

from hospital_client import guarded_flower as hospital
from server import guarded_flower as server
from server import operator_login
from shared_model import hidden_token
from shared_model.supervision import flower_environment

TOKEN = "0123456789abcdef" * 4
SECRET = b"a secret"
PATHS = [path for _, path in PROTOBUF_REQUEST_TYPES]
RUNTIME = [*(path for path in PATHS if path.startswith("/v1/runtime/")), "/v1/runtime/responses"]
LOGIN = {"/v1/control/get-login-details", "/v1/control/get-auth-tokens", "/v1/control/refresh-auth-tokens"}
CONTROL = [path for path in PATHS if path.startswith("/v1/control/") and path not in LOGIN]
ACQUIRE = ("/v1/runtime/acquire-task", "/flwr.proto.Runtime/AcquireTask")


@pytest.fixture(scope="module")
def superlink() -> FastAPI:
    nothing = dict.fromkeys(("event_log_plugin", "fleet_event_log_plugin", "artifact_provider", "certificates"))
    nothing |= dict.fromkeys(("ssl_ca_certfile", "ssl_certfile", "ssl_keyfile"))
    nothing |= dict.fromkeys(("health_server_address", "fleet_api_address"))
    config = SuperLinkLifespanConfig(  # type: ignore[arg-type]
        **nothing,
        control_address="",
        host="127.0.0.1",
        port=0,
        insecure=True,
        superexec_auth_secret=SECRET,
        authn_plugin=server.OperatorAlone(TOKEN),
        enable_event_log=False,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        simulation=False,
        database=":flwr-in-memory:",
        isolation="process",
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


@pytest.fixture(scope="module")
def node() -> FastAPI:
    """A hospital's SuperNode, as its launch makes it; Flower gives no secret here."""
    state = NodeStateFactory(ObjectStoreFactory())
    return hospital._guarded(supernode.create_app, SECRET, state_factory=state, superexec_auth_secret=None)


def post(app: FastAPI, path: str, content: bytes = b"", headers: Mapping[str, Any] | None = None) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1") as client:
            given = {"Content-Type": PROTOBUF_MEDIA_TYPE} | dict(headers or {})
            return await client.post(path, content=content, headers=given)

    return asyncio.run(ask())


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "sent",
    [
        {},
        bearer(""),
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "0"),
        {"Authorization": b"Bearer \xe9"},
        {"Authorization": f"Basic {TOKEN}"},
    ],
    ids=["nothing", "an empty one", "a shorter one", "a longer one", "no ASCII", "another scheme"],
)
def test_control_side_takes_no_call_without_the_operators_token(superlink: FastAPI, sent: dict[str, str]) -> None:
    assert len(CONTROL) > 30
    assert {path: status for path in CONTROL if (status := post(superlink, path, b"", sent).status_code) != 401} == {}


def test_control_side_takes_a_call_with_the_operators_token(superlink: FastAPI) -> None:
    content = ListRunsRequest().SerializeToString()
    assert post(superlink, "/v1/control/list-runs", content, bearer(TOKEN)).status_code == 200


def test_login_of_flower_gives_nobody_a_token(superlink: FastAPI) -> None:
    for path in LOGIN - {"/v1/control/refresh-auth-tokens"}:
        assert post(superlink, path).content == b""
    content = RefreshAuthTokensRequest(refresh_token="none").SerializeToString()
    assert post(superlink, "/v1/control/refresh-auth-tokens", content).status_code == 401


@pytest.mark.parametrize("name", ["superlink", "node"])
def test_runtime_side_takes_no_call_without_a_secret(name: str, request: pytest.FixtureRequest) -> None:
    app = request.getfixturevalue(name)
    assert len(RUNTIME) > 15
    assert {path: status for path in RUNTIME if (status := post(app, path).status_code) != 401} == {}


@pytest.mark.parametrize(("secret", "status"), [(SECRET, 200), (b"another", 401)])
@pytest.mark.parametrize("name", ["superlink", "node"])
def test_runtime_side_gives_tasks_to_its_own_superexec(
    name: str, secret: bytes, status: int, request: pytest.FixtureRequest
) -> None:
    path, method = ACQUIRE
    asked = AcquireTaskRequest()
    headers = create_superexec_auth_metadata(auth_secret=derive_auth_secret(secret), method=method, request=asked)
    found = post(request.getfixturevalue(name), path, asked.SerializeToString(), headers)
    assert found.status_code == status


def test_flowers_commands_find_the_token_that_the_superlink_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator_login.renew(tmp_path, "127.0.0.1:9093")
    first = operator_login.token_of({"FLWR_HOME": str(tmp_path)})
    operator_login.renew(tmp_path, "127.0.0.1:9093")
    plugin = OidcCliPlugin("127.0.0.1:9093")
    plugin.store = FileCredentialStore(tmp_path / "credentials.yaml")
    plugin.load_tokens()
    assert plugin.access_token == operator_login.token_of({"FLWR_HOME": str(tmp_path)}) != first
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_task_gets_its_token_and_its_command_line_does_not_tell_it() -> None:
    program = """
import sys; from pathlib import Path
path = Path(sys.argv[sys.argv.index("--token-file") + 1])
print(path.is_file(), path.read_text(), Path("/proc/self/cmdline").read_text())
"""
    command = [sys.executable, "-S", "-c", program, "--address", "a", "--token", TOKEN, "--insecure"]
    told = hidden_token.popen(command, stdout=subprocess.PIPE).communicate(timeout=60)[0].decode()
    is_file, token, line = told.split(" ", 2)
    assert (is_file, token) == ("True", TOKEN)
    assert TOKEN not in line and line.rstrip().endswith("--insecure\0")


@pytest.mark.parametrize("guarded", [server, hospital], ids=["server", "hospital"])
def test_superexec_starts_a_task_without_its_token_on_the_command_line(
    guarded: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in flower_environment(tmp_path / "home", tmp_path).items():
        monkeypatch.setenv(name, value)
    executor = importlib.import_module("flwr.supercore.superexec.executor.subprocess_executor")
    monkeypatch.setattr(executor, "subprocess", executor.subprocess)
    cli = importlib.import_module("flwr.supercore.cli.flower_superexec")
    monkeypatch.setattr(cli, "flower_superexec", lambda: None)
    popen = hidden_token.popen
    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(hidden_token, "popen", lambda *given, **options: started.append(popen(*given, **options)))
    monkeypatch.setattr(sys, "argv", ["flower-superexec"])
    guarded.superexec()
    script = tmp_path / "flwr-clientapp"
    script.write_text('#!/bin/sh\necho "$*" > "$0.line"; cat "$4" > "$0.token"\n')
    script.chmod(0o700)
    spec = ExecutionSpec(TaskType.CLIENT_APP, "127.0.0.1:9", TOKEN, True, None, False, None, False, 1)
    executor.SubprocessExecutor().launch(spec)
    assert [process.wait(60) for process in started] == [0]
    assert (tmp_path / "flwr-clientapp.token").read_text() == TOKEN
    line = (tmp_path / "flwr-clientapp.line").read_text()
    assert line.startswith("--runtime-api-address 127.0.0.1:9 --token-file /dev/fd/") and TOKEN not in line


def test_a_token_that_could_not_be_hidden_starts_nothing() -> None:
    with pytest.raises(ValueError, match="expected the token as a word of its own"):
        hidden_token.popen([sys.executable, "-c", "pass", f"--token={TOKEN}"])
