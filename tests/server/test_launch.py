"""What a deployment is started with, and how its processes are kept; no federation runs here."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.node_pb2 import NodeInfo

from hospital_client import egress
from hospital_client.app import HospitalConfig
from hospital_client.launch import HospitalPlace, _Ledger, _supernode, reason
from server import exchange, front
from server.control import Control
from server.federation_settings import FederationSettings
from server.front import FrontPlace, front_configuration, launch_front
from server.keys import make_keys
from server.launch import ServerPlace, _keep, _processes, few_keys, launch
from server.run_config import RUN_CONFIG
from server.run_options import options_of
from shared_model import run_directory
from shared_model.errors import TemptError
from shared_model.supervision import Kept, ended_together, flower_environment
from sim.cli import run as tempt
from sim.inprocess_grid import InProcessGrid
from tests.hospital_client.raw_tables import write_tables
from tests.sim import consortium
from tests.sim.consortium import ROOT


def test_options_of_a_deployment_are_those_of_flwr_run() -> None:
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"] == RUN_CONFIG
    assert {name: type(value) for name, value in app["config"].items()} == {n: type(v) for n, v in RUN_CONFIG.items()}


def test_fewer_keys_than_hospitals_are_told_with_what_to_do(tmp_path: Path) -> None:
    place = ServerPlace(tmp_path / "keys", tmp_path / "run", "127.0.0.1", 8443)
    assert few_keys(place, 3, 3) is None and few_keys(place, 4, 3) is None
    told = few_keys(place, 2, 3)
    assert told is not None and told.startswith("note: keys of 2 hospitals are registered and 3 are waited for; ")
    assert f"tempt server register {tmp_path / 'run'} KEY.PUB --hospital-id ID" in told


def test_the_front_passes_the_fleet_alone_and_verifies_the_superlink(tmp_path: Path) -> None:
    own = tmp_path / "run"
    text = front_configuration(
        FrontPlace(tmp_path / "the keys", own, own / "facts.json", "10.0.0.9", 8443, "127.0.0.1:9999")
    )
    assert "listen 10.0.0.9:8443 ssl;" in text
    assert text.count("proxy_pass") == 1 and "proxy_pass https://127.0.0.1:9999;" in text
    assert text.index("location /v1/fleet/ {") < text.index("proxy_pass") < text.index("location / { return 403; }")
    assert "proxy_ssl_verify on;" in text and f'"{tmp_path}/the keys/ca.pem"' in text


def test_the_front_asks_anew_when_the_superlinks_name_stands_for_another_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = FrontPlace(tmp_path / "keys", tmp_path, tmp_path / "facts.json", "127.0.0.1", 8443, "server:9091")
    place.configure()
    # no shell's trap: under nohup it would ignore what it is to wait for
    waits = "import signal, time; signal.signal(signal.SIGHUP, lambda *_: print('asked anew', flush=True))\n"
    waits += "print('ready', flush=True)\nwhile True: time.sleep(0.05)"
    kept = Kept("front", [sys.executable, "-S", "-c", waits], os.environ, tmp_path / "log")
    answers = iter([{"10.0.0.2"}, set()])  # a name server that knows nothing changes nothing
    monkeypatch.setattr(FrontPlace, "process", lambda self: kept)
    monkeypatch.setattr(front, "_ASK_SECONDS", 0.0)

    def said(word: str) -> bool:
        return kept.log.exists() and word in kept.log.read_text()

    monkeypatch.setattr(
        front, "_addresses", lambda link: next(answers, {"10.0.0.3"}) if said("ready") else {"10.0.0.2"}
    )
    deadline = time.monotonic() + 60
    launch_front(place, lambda line: None, until=lambda: said("asked") or time.monotonic() > deadline)
    assert kept.log.read_text().split("\n")[:-1] == ["ready", "asked anew"]
    assert kept.starts == 1


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("0.0.0.0", "listen 0.0.0.0:8443 ssl;"),
        ("::", "listen [::]:8443 ssl ipv6only=off;"),
        ("::1", "listen [::1]:8443 ssl;"),
        ("localhost", "listen localhost:8443 ssl;"),
    ],
)
def test_the_front_listens_at_addresses_of_both_kinds(tmp_path: Path, host: str, line: str) -> None:
    text = front_configuration(FrontPlace(tmp_path / "k", tmp_path, tmp_path / "f", host, 8443, "[::1]:9999"))
    assert f"    {line}\n" in text and "proxy_pass https://[::1]:9999;" in text


@pytest.mark.parametrize(
    ("host", "front", "link"),
    [
        ("::", True, "127.0.0.1:"),
        ("::", False, "[::1]:8443"),
        ("::1", False, "[::1]:8443"),
        ("0.0.0.0", False, "127.0.0.1:8443"),
        ("10.0.0.9", False, "10.0.0.9:8443"),
    ],
)
def test_the_superlink_is_reached_at_an_address_of_its_own_machine(
    tmp_path: Path, host: str, front: bool, link: str
) -> None:
    place = ServerPlace(tmp_path / "keys", tmp_path / "run", host, 8443, front)
    assert place.control().address.startswith(link)
    superlink, _ = _processes(place, place.control())
    options = superlink._command
    assert options[options.index("--host") + 1] == ("127.0.0.1" if front else host)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "https://x"], "--host https://x: a URL"),
        (["--host", "krankenhaus-süd"], "A-label"),
        (["--host", "10.0.0.0/8"], "a network"),
        (["--host", "a b"], "has a blank"),
        (["--host", ""], "blank"),
        (["--host", "::1", "--no-front"], "lacks ::1, by which the server's own processes reach it"),
    ],
)
def test_a_host_that_is_none_ends_launch_and_front_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    make_keys(tmp_path / "keys", [], [5])
    before = consortium.tree(tmp_path)
    fixed = ["--keys", str(tmp_path / "keys"), "--out", str(tmp_path / "run"), "--hospitals", "1"]
    assert tempt(["server", "launch", *fixed, *arguments]) == 2
    told = [capsys.readouterr().err]
    if "--no-front" not in arguments:
        fixed = ["--keys", str(tmp_path / "keys"), "--link", "server:9091", "--state", str(tmp_path / "front")]
        assert tempt(["server", "front", *fixed, *arguments]) == 2
        told.append(capsys.readouterr().err)
    for text in told:
        (line,) = text.splitlines()
        assert line.startswith("error: ") and words in line
    assert consortium.tree(tmp_path) == before


@pytest.mark.parametrize("link", ["server", "::1:9091", "https://server:9091", "süd:9091"])
def test_a_link_that_is_none_ends_the_front_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], link: str
) -> None:
    make_keys(tmp_path / "keys", [], [5])
    fixed = ["--keys", str(tmp_path / "keys"), "--state", str(tmp_path / "front"), "--link", link]
    assert tempt(["server", "front", *fixed]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --link {link}: ") and "expected HOST:PORT" in line
    assert not (tmp_path / "front").exists()


@pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="nginx is not installed")
@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_a_front_answers_with_the_facts_of_now_and_a_stopped_one_does_not(
    tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::", 0))
            port = free.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    make_keys(tmp_path / "keys", [], [5])
    place = FrontPlace(tmp_path / "keys", tmp_path / "own", tmp_path / "facts.json", host, port, "127.0.0.1:9")
    kept = place.process()

    def wait(answers: bool) -> None:
        until = time.monotonic() + 60
        while place.answers() != answers:
            assert time.monotonic() < until, kept.log.read_text()
            time.sleep(0.02)

    with ended_together([kept]):
        kept.keep()
        wait(answers=True)
        if host == "::":
            with socket.create_connection(("127.0.0.1", port), timeout=30):
                pass
        place.facts.write_text('{"versions": {}}')
        assert not place.answers(), "they are not told yet"
        place.renew(kept)
        wait(answers=True)
        assert kept.pid is not None
        os.killpg(kept.pid, signal.SIGSTOP)
        monkeypatch.setattr(front, "_ANSWER_SECONDS", 0.3)
        assert not place.answers(), "it takes the connection, as the system does that"


def test_the_loopback_is_never_asked_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    for name in ("http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        control = Control(tmp_path / "home", f"127.0.0.1:{server.server_port}", None)
        assert control.answers()
        server.shutdown()
        thread.join()
    assert not control.answers()
    found = {n: v for n, v in control.environment.items() if n.lower().endswith("_proxy")}
    assert found == {"no_proxy": "*"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[code: 2004] Failed to activate SuperNode.", "does not know this key"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "--root-certificates"),
        ("IP address mismatch, certificate is not valid for '10.0.0.9'.", "lacks the address"),
        ("httpx.HTTPStatusError: Client error '401 Unauthorized'", "another than before, or this machine's clock"),
        ("407 Proxy Authentication Required", "the proxy wants a name and a password"),
        ("_ssl.c:985: The handshake operation timed out", "takes connections and does not answer"),
        ("INFO : Starting Flower SuperNode", None),
    ],
)
def test_an_exit_is_told_in_plain_words(line: str, words: str | None) -> None:
    found = reason(line)
    assert found is None if words is None else found is not None and words in found


def test_a_key_registered_for_another_hospital_leaves_that_node_out(tmp_path: Path) -> None:
    class Named(InProcessGrid):
        def get_nodes(self) -> list[NodeInfo]:
            return [NodeInfo(node_id=1, name="hospital-3"), NodeInfo(node_id=2, name="hospital-21")]

    data = consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    grid = Named({1: HospitalConfig(data, 3, tmp_path), 2: HospitalConfig(data, 8, tmp_path)}, None)
    plan = exchange.SeedPlan("test", 42, consortium.settings(), FederationSettings(), consortium.VOCABULARY)
    hospitals, refused = exchange.greet(grid, plan)
    assert [h.hospital for h in hospitals] == [3]
    assert refused == {"node 2": "its key is hospital-21's, but it says that it is hospital 8"}


def test_a_kept_process_is_started_again_and_ended_with_its_children(tmp_path: Path) -> None:
    child = "import subprocess as s, time; print(s.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    kept = Kept("test", [sys.executable, "-c", child], os.environ, tmp_path / "logs" / "log", delay=0.0)

    def children() -> list[int]:
        text = kept.log.read_text() if kept.log.exists() else ""
        return [int(line) for line in text.split()]

    def wait(count: int) -> None:
        until = time.monotonic() + 60
        while len(children()) < count:
            kept.keep()
            assert time.monotonic() < until
            time.sleep(0.01)

    with ended_together([kept]):
        wait(1)
        assert kept.pid is not None
        os.kill(kept.pid, signal.SIGKILL)
        wait(2)
        assert kept.starts == 2
    until = time.monotonic() + 60
    while _runs(children()[1]):
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(children()[0], signal.SIGKILL)  # of the one that was killed: nobody could end it


def test_a_process_that_ends_at_each_start_ends_the_wait_for_it(tmp_path: Path) -> None:
    kept = Kept(
        "superlink", [sys.executable, "-S", "-c", "import sys; sys.exit(7)"], os.environ, tmp_path / "log", delay=0.0
    )
    said: list[str] = []
    until = time.monotonic() + 120
    why = f"{tmp_path}/log: superlink ended 10 times in a row"
    with pytest.raises(TemptError, match=why), ended_together([kept]):
        while time.monotonic() < until:
            _keep(kept, said.append)
    assert len(said) == 9
    assert said[2] == ("superlink ended (exit status 7) and is started again; short lives in a row, at most 10: 3")


def test_a_port_where_another_process_listens_is_refused_before_anything_starts(tmp_path: Path) -> None:
    consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        place = ServerPlace(None, tmp_path / "run", "127.0.0.1", port, front=False)
        with pytest.raises(TemptError, match=f"--port {port}: can't listen there"):
            launch(place, {"vocabulary": str(tmp_path / "data"), "hospitals": 1}, print)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_waited_for_again(tmp_path: Path) -> None:
    consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text('{"models": {}}')
    place, said = ServerPlace(None, tmp_path / "run", "127.0.0.1", 8443, front=False), list[str]()
    config = {"vocabulary": str(tmp_path / "data"), "hospitals": 2}
    settings, federation, models, seeds = options_of(RUN_CONFIG | config)
    about = {"settings": settings.model_dump(mode="json"), "federation": federation.model_dump(mode="json")}
    about |= {"models": list(models), "seeds": list(seeds), "versions": run_directory.versions()}
    (tmp_path / "run" / "config.json").write_text(json.dumps(about))
    assert launch(place, config, said.append) == {"models": {}}
    assert said == [f"{tmp_path}/run: this run is finished; for another one name another --out"]
    with pytest.raises(TemptError, match=r"the run has federation.rounds=None, this command 5"):
        launch(place, config | {"rounds": 5}, said.append)


def test_the_front_is_found_where_an_ordinary_users_path_does_not_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin" / "nginx").touch(0o755)
    make_keys(tmp_path / "keys", [], [5])
    monkeypatch.setenv("PATH", str(tmp_path))
    place = FrontPlace(tmp_path / "keys", tmp_path / "own", tmp_path / "facts.json", "127.0.0.1", 8443, "127.0.0.1:9")
    monkeypatch.setattr(front, "_SYSTEM", ())
    with pytest.raises(TemptError, match="nginx is not installed"):
        place.process()
    monkeypatch.setattr(front, "_SYSTEM", (str(tmp_path / "sbin"),))
    assert place.process().name == "front"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


SERVER = ["server", "launch", "--insecure", "--vocabulary", "d", "--out", "r", "--hospitals", "2"]
HOSPITAL = [
    *("hospital", "launch", "--superlink", "x:1", "--hospital-id", "3"),
    *("--state", "s", "--root-certificates", "ca.pem", "--private-key", "key"),
]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["server", "launch", "--keys", "none", "--vocabulary", "d", "--out", "r", "--hospitals", "2"],
            "has no ca.pem",
        ),
        (
            [
                *("server", "launch", "--keys", "k", "--out", "r", "--hospitals", "2"),
                *("--vocabulary", "d", "--min-records", "9"),
            ],
            "--min-records: is of an agreement",
        ),
        ([*SERVER, "--quorum", "7"], "--quorum=7"),
        ([*SERVER, "--strategy", "fedprox"], "give it, such as proximal_mu=0.01"),
        ([*SERVER, "--strategy", "fedadam", "--strategy-option", "eta"], "strategy-options 'eta': expected NAME=VALUE"),
        ([*SERVER, "--transport", "float16"], "--transport=float16"),
        ([*SERVER, "--models", "temptt"], "did you mean 'tempt'?"),
        ([*SERVER, "--seeds", "42,x"], "--seeds 42,x"),
        ([*SERVER, "--set", "tuning.epoch=5"], "did you mean 'tuning.epochs'?"),
        ([*HOSPITAL, "--partition", "none"], "none/dataset.json"),
        ([*HOSPITAL, "--raw", "none"], "none: no such directory"),
        ([*HOSPITAL, "--raw", "none", "--partition", "none"], "expected one of --partition"),
        (HOSPITAL, "expected one of --partition"),
        ([*HOSPITAL[:-4], "--insecure", "--partition", "none"], "--insecure expects a server on the loopback"),
    ],
)
def test_a_mistake_of_launch_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tempt(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert list(tmp_path.iterdir()) == []


def test_raw_tables_that_hold_other_hospitals_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_tables(tmp_path / "raw")
    assert tempt([*HOSPITAL, "--raw", str(raw)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{raw}/patient.csv: holds stays of hospital 11, 12, expected hospital 3's own alone" in line


def test_what_leaves_a_hospital_is_told_line_by_line(tmp_path: Path) -> None:
    ledger = tmp_path / "8.jsonl"
    ledger.write_text(json.dumps({"kind": "hello", "round": 0, "arrays": {}, "bytes": 0}) + "\n")
    left = _Ledger(ledger)
    assert left.new_lines() == [], "what left before is not told again"
    entry = json.dumps({"kind": "pretrain", "round": 3, "arrays": {"a": ["float32", [2]]}, "bytes": 11_700_000})
    with ledger.open("a") as file:
        file.write(entry[:20])
        file.flush()
        assert left.new_lines() == [], "half a line"
        file.write(entry[20:] + "\n")
    assert left.new_lines() == ["answered round 3: 1 arrays, 11.7 MB"]
    egress.record(ledger, "pretrain", 3, {}, {"score-sum": 1.0}, {})  # of the last round, which was the second
    assert left.new_lines() == ["answered with the score of round 2"]
    egress.record(ledger, "pretrain", 3, {}, {"num-examples": 0, "least-train": 5}, {})
    assert left.new_lines() == ["answered round 3 without an update or a score: too few records by its policy"]
    egress.record(ledger, "pretrain", 0, {}, {}, {"error": "ValueError at app.py:7"})
    assert left.new_lines() == ["could not answer pretrain: ValueError at app.py:7; supernode.log says more"]
    assert left.new_lines() == []


def test_flower_in_a_path_with_a_blank_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        origin = "/an environment/flwr/__init__.py"

    monkeypatch.setattr("importlib.util.find_spec", lambda name: Found())
    with pytest.raises(TemptError, match="can't be run from a path with a blank"):
        flower_environment(tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_supernode_is_started_for_the_address_in_its_one_form_and_by_the_way_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://another:1")
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:3128")
    place = HospitalPlace("[2001:DB8:0::1]:8443", tmp_path, 3, tmp_path / "state", tmp_path / "ca", tmp_path / "key")
    node = _supernode(place, place.route(), tmp_path / "state" / "flower", tmp_path / "refused")
    command, environment = node._command, node._environment
    assert command[command.index("--superlink") + 1] == "[2001:db8::1]:8443"
    assert not any("secret" in word for word in command), "everybody may read a command line"
    told = {name: value for name, value in environment.items() if name.lower().endswith("_proxy")}
    assert told == {"https_proxy": "http://me:secret@proxy:3128", "no_proxy": "127.0.0.1,localhost,::1"}
    found = shutil.which("flower-superexec", path=environment["PATH"])
    assert found == str(tmp_path / "state" / "flower" / "bin" / "flower-superexec")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, env=environment, timeout=120)
    assert version.stdout.startswith("Flower version: 1.41."), version.stderr


def test_a_finished_run_that_does_not_say_of_what_was_answered_for_any_options(tmp_path: Path) -> None:
    consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text('{"models": {}}')
    place = ServerPlace(None, tmp_path / "run", "127.0.0.1", 8443, front=False)
    with pytest.raises(TemptError, match="run: is no run; expected a directory that is new or empty"):
        launch(place, {"vocabulary": str(tmp_path / "data"), "hospitals": 2}, [].append)


@pytest.mark.parametrize("what", ["a folder of the user's", "a file"])
def test_a_place_that_is_taken_was_told_when_everything_had_started(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    if what == "a file":
        (tmp_path / "mine").write_text("mine")
    else:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis").write_text("mine")
    place = ServerPlace(None, tmp_path / "mine", "127.0.0.1", 8443, front=False)
    with pytest.raises(TemptError, match="expected a directory that is new or empty; name another --out"):
        launch(place, {"vocabulary": str(tmp_path / "data"), "hospitals": 1}, [].append)
    assert not (tmp_path / "mine.server").exists()
