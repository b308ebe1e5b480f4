"""`tempt hospital check` finds what would stop a hospital, with what to mend, and looks at the rest all the same."""

from __future__ import annotations

import http.server
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hospital_client import check
from hospital_client.check import Finding, look
from hospital_client.launch import HospitalPlace
from server.keys import make_keys
from server.network import Network
from shared_model.errors import TemptError
from shared_model.files import write_json
from shared_model.node_keys import binding, fingerprint, public_key, read_public
from sim.cli import run as tempt
from tests.sim import consortium


@dataclass
class Front:
    """What a front tells."""

    facts: dict[str, Any] | None
    ahead: float = 0.0  # of its clock
    port: int = 0
    away: bool = False  # the SuperLink behind it
    keys: Path = field(default_factory=Path)


class _Handler(http.server.BaseHTTPRequestHandler):
    front: ClassVar[Front]

    def do_GET(self) -> None:
        body = json.dumps(self.front.facts).encode()
        told = self.front.facts is not None and self.path == "/facts.json"
        self.send_response_only(200 if told else 502 if self.front.away else 403)
        self.send_header("Date", formatdate(time.time() + self.front.ahead, usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("keys") / "keys"
    make_keys(place, ["localhost"], [3, 8])
    return place


@pytest.fixture
def front(keys: Path, tmp_path: Path) -> Iterator[Front]:
    network = Network(tmp_path / "net", None)  # type: ignore[arg-type]
    public = (keys / "hospitals" / "8" / "key.pub").read_bytes()
    (tmp_path / "net").mkdir()
    write_json(
        tmp_path / "net" / "registered.json",
        {"8": {"node": "1", "key": fingerprint(public), "binding": binding(8, public)}},
    )
    network.publish(consortium.VOCABULARY.digest)
    front = Front(json.loads((tmp_path / "net" / "told" / "facts.json").read_text()), keys=keys)
    server = http.server.HTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"front": front}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "server.pem", keys / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    front.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield front
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def place(front: Front, tmp_path: Path) -> HospitalPlace:
    data = consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    key = front.keys / "hospitals" / "8" / "key"
    return HospitalPlace(f"127.0.0.1:{front.port}", data, 8, tmp_path / "a state", front.keys / "ca.pem", key)


def wrong(place: HospitalPlace) -> dict[str, Finding]:
    return {finding.what: finding for finding in look(place) if not finding.well}


def test_where_all_is_well_nothing_is_to_mend_and_nothing_is_written(place: HospitalPlace) -> None:
    before = consortium.tree(place.partition.parent)
    found = list(look(place))
    assert [finding for finding in found if not finding.well or finding.mend] == []
    assert {finding.what: finding for finding in found}["key"].found.endswith(", registered")
    assert consortium.tree(place.partition.parent) == before


def test_a_name_that_is_none_stops_what_needs_the_server_and_no_more(place: HospitalPlace) -> None:
    found = wrong(replace(place, superlink="no-such-host.invalid:8443"))
    assert "has no address" in found["name"].found and found["name"].mend
    assert {what for what, finding in found.items() if finding.skipped} == {
        *("port", "certificate", "clock", "versions", "code"),
    }
    assert "records" not in found and "disk" not in found


def test_a_port_where_nobody_listens(place: HospitalPlace) -> None:
    found = wrong(replace(place, superlink="127.0.0.1:9"))
    assert "refused" in found["port"].found and "firewall" in found["port"].mend


def test_a_certificate_of_another_ca_and_one_without_the_address(place: HospitalPlace, tmp_path: Path) -> None:
    make_keys(tmp_path / "others", [], [3])
    found = wrong(replace(place, root_certificates=tmp_path / "others" / "ca.pem"))
    assert "not the CA" in found["certificate"].mend and "versions" in found
    assert "holds no certificate" in wrong(replace(place, root_certificates=place.private_key))["certificate"].found
    address = place.superlink.replace("127.0.0.1", "127.0.0.2")
    with pytest.MonkeyPatch.context() as patched:
        connect = check.socket.create_connection
        patched.setattr(check.socket, "create_connection", lambda at, *a, **k: connect(("127.0.0.1", at[1]), *a, **k))
        assert "--hosts" in wrong(replace(place, superlink=address))["certificate"].mend


def test_a_port_that_speaks_no_tls(place: HospitalPlace, front: Front) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"front": front}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    found = wrong(replace(place, superlink=f"127.0.0.1:{server.server_port}"))
    server.shutdown()
    thread.join()
    server.server_close()
    assert "no TLS there" in found["certificate"].found


@pytest.mark.parametrize(("ahead", "words"), [(-60.0, "s ahead of"), (900.0, "s behind")])
def test_a_clock_that_is_off(place: HospitalPlace, front: Front, ahead: float, words: str) -> None:
    front.ahead = ahead
    found = wrong(place)
    assert list(found) == ["clock"] and words in found["clock"].found and "NTP" in found["clock"].mend


def test_a_key_that_the_server_does_not_know_is_readable_by_others_or_is_none(
    place: HospitalPlace, front: Front, tmp_path: Path
) -> None:
    found = wrong(replace(place, private_key=front.keys / "hospitals" / "3" / "key"))
    assert "the server does not know SHA256:" in found["key"].found and "tempt server register" in found["key"].mend
    assert place.private_key is not None
    loose = tmp_path / "loose"
    loose.write_bytes(place.private_key.read_bytes())
    loose.chmod(0o644)
    assert "chmod 600" in wrong(replace(place, private_key=loose))["key"].mend
    assert "OpenSSH" in wrong(replace(place, private_key=front.keys / "ca.key"))["key"].found
    assert "no such file" in wrong(replace(place, private_key=tmp_path / "none"))["key"].found


@pytest.mark.parametrize(
    ("change", "what", "words"),
    [
        ({"versions": {"flwr": "1.40.0"}}, "versions", "at the server"),
        ({"code": "f" * 64}, "code", "ffffffffffff at the server"),
        ({"versions": {"flwr": "\x1b[2J\n" * 9}}, "versions", r"flwr 1.41.0 here, \x1b[2J\n\x1b[2J\n"),
        ({"code": "\x1b[2J\n" * 9}, "code", r"here, \x1b[2J\n\x1 at the server"),
        ({"vocabulary": "\x1b[2J\n"}, "records", r"the network's \x1b[2J\n"),
        ({"vocabulary": "e" * 64}, "records", "the network's eeeeeeeeeeee"),
    ],
)
def test_what_differs_from_the_server(
    place: HospitalPlace, front: Front, change: dict[str, Any], what: str, words: str
) -> None:
    assert front.facts is not None
    front.facts |= change
    found = wrong(place)
    assert list(found) == [what] and words in found[what].found and found[what].mend
    assert (found[what].found + found[what].mend).isprintable()


def test_a_front_that_tells_nothing_stops_nothing(place: HospitalPlace, front: Front) -> None:
    front.facts = None
    assert wrong(place) == {}


def test_a_key_that_is_registered_for_another_hospital(place: HospitalPlace) -> None:
    found = wrong(replace(place, hospital=3))
    assert list(found) == ["key"] and "is registered for another hospital than 3" in found["key"].found


def test_a_port_that_speaks_tls_where_none_is_expected(place: HospitalPlace) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # as nginx does
            self.send_error(400, "The plain HTTP request was sent to HTTPS port")

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        bare = replace(place, superlink=f"127.0.0.1:{server.server_port}", root_certificates=None, private_key=None)
        found = wrong(bare)
        server.shutdown()
        thread.join()
    assert "it speaks TLS" in found["certificate"].found and "leave --insecure out" in found["certificate"].mend


@pytest.mark.parametrize(
    "facts", [{"versions": [1]}, {"keys": 7}, {"code": None}, {"vocabulary": ["a"]}, {"versions": "flwr"}]
)
def test_facts_of_another_form_are_none(place: HospitalPlace, front: Front, facts: dict[str, Any]) -> None:
    assert front.facts is not None
    front.facts |= facts
    assert wrong(place) == {}


def test_records_disk_and_rights(place: HospitalPlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "has no hospital 9" in wrong(replace(place, hospital=9))["records"].found
    monkeypatch.setattr(check, "_FREE_BYTES", 10**18)
    assert "make room" in wrong(place)["disk"].mend
    monkeypatch.setattr(check.tempfile, "TemporaryFile", _refused)
    assert "the right to write" in wrong(place)["write access"].mend


def _refused(**options: Any) -> None:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("address", ["server", "server:", "server:0", "server:70000", "a b:1"])
def test_an_address_that_is_none_is_a_mistake(place: HospitalPlace, address: str) -> None:
    with pytest.raises(TemptError, match="expected HOST:PORT"):
        list(look(replace(place, superlink=address)))


def test_the_command_prints_a_line_each_and_ends_with_2_where_something_is_wrong(
    place: HospitalPlace, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--superlink", place.superlink, "--partition", str(place.partition), "--state", str(place.state)]
    options += ["--root-certificates", str(place.root_certificates), "--private-key", str(place.private_key)]
    assert tempt(["hospital", "check", *options, "--hospital-id", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["ok"] * 12 and lines[-1].startswith("Hospital 8 can be")
    assert tempt(["hospital", "check", *options, "--hospital-id", "8", "--minimum-count", "2"]) == 0, "as launch has it"
    capsys.readouterr()
    assert tempt(["hospital", "check", *options, "--hospital-id", "9"]) == 2
    assert "WRONG  records" in capsys.readouterr().out
    assert tempt(["hospital", "check", *options, "--hospital-id", "8", "--insecure"]) == 2
    assert "leave out --root-certificates" in capsys.readouterr().err


def test_what_was_not_looked_at_is_said_to_be_skipped_and_the_rest_is_looked_at(
    place: HospitalPlace, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--superlink", "127.0.0.1:9", "--partition", str(place.partition), "--state", str(place.state)]
    options += ["--root-certificates", str(place.root_certificates), "--private-key", str(place.private_key)]
    assert tempt(["hospital", "check", *options, "--hospital-id", "8"]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    how = {line[7:20].strip(): line[:7].strip() for line in lines}
    assert [what for what, found in how.items() if found == "WRONG"] == ["port"]
    assert [what for what, found in how.items() if found == "skipped"] == ["certificate", "clock", "versions", "code"]
    assert all(line[20] == " " and line[21] != " " for line in lines), "in columns"


def test_a_server_that_takes_connections_and_does_not_answer(
    place: HospitalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        found = wrong(replace(place, superlink=f"127.0.0.1:{frozen.getsockname()[1]}"))
    assert "does not answer within 0.3 s" in found["certificate"].found


def test_a_pipe_or_a_folder_in_the_place_of_a_key_was_waited_for_or_denied(
    place: HospitalPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (public_key, read_public):
        with pytest.raises(TemptError, match="pipe: expected a file, found something else"):
            read(tmp_path / "pipe")
    options = ["--superlink", place.superlink, "--partition", str(place.partition), "--hospital-id", "8"]
    options += ["--state", str(place.state)]
    for name, found in (("pipe", "something else"), ("folder", "a folder")):
        (tmp_path / "folder").mkdir(exist_ok=True)
        keys = ["--root-certificates", str(place.root_certificates), "--private-key", str(tmp_path / name)]
        assert tempt(["hospital", "launch", *options, *keys]) == 2
        assert (
            capsys.readouterr().err
            == f"error: {tmp_path / name}: expected a file, found {found}; move it away, or name a file\n"
        )
