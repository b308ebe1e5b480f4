"""Who may take part in a deployment, and what its operator and everybody else is told of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from server.control import Control
from server.front import FrontPlace, front_configuration
from server.keys import make_keys
from server.launch import ServerPlace, launch
from server.network import Network, facts_file, own_folder, status_table
from server.told import STATUS, StatusFile, read_status
from shared_model.errors import TemptError
from shared_model.files import locked
from sim.cli import run as tempt
from tests.sim import consortium


class Switchboard(Control):
    """A SuperLink's control side that remembers what it was asked."""

    asked: list[tuple[str, str]]
    has: dict[str, bytes]

    def register(self, public: Path, hospital: int) -> str | None:
        if public.read_bytes() in self.has.values():
            return None
        self.asked.append(("register", str(hospital)))
        self.has[str(1000 + len(self.asked))] = public.read_bytes()
        return str(1000 + len(self.asked))

    def unregister(self, node: str) -> None:
        assert node in self.nodes(), "Flower refuses it twice"
        self.asked.append(("unregister", node))

    def answers(self) -> bool:
        return True

    def nodes(self) -> dict[str, str]:
        gone = [node for what, node in self.asked if what == "unregister"]
        states = ["online", "offline", "registered"]
        return {node: state for node, state in zip(self.has, states, strict=False) if node not in gone}


@pytest.fixture
def network(tmp_path: Path) -> Network:
    make_keys(tmp_path / "keys", [], [5, 7])
    own = own_folder(tmp_path / "run")
    own.mkdir()
    control = Switchboard(own / "flower", "127.0.0.1:1", tmp_path / "keys" / "ca.pem")
    object.__setattr__(control, "asked", [])
    object.__setattr__(control, "has", {})
    control.connect()
    return Network(own, control)


def public(network: Network, hospital: int) -> Path:
    return network.own.parent / "keys" / "hospitals" / str(hospital) / "key.pub"


def asked(network: Network) -> list[tuple[str, str]]:
    assert isinstance(network.control, Switchboard)
    return network.control.asked


def test_a_key_is_bound_to_one_hospital_and_a_hospital_to_one_key(network: Network) -> None:
    assert network.register(public(network, 5), 5)
    assert not network.register(public(network, 5), 5), "the second time nothing is to do"
    with pytest.raises(TemptError, match="this key is hospital 5's"):
        network.register(public(network, 5), 7)
    with pytest.raises(TemptError, match="hospital 5 has another key; --replace"):
        network.register(public(network, 7), 5)
    assert asked(network) == [("register", "5")]
    assert network.register(public(network, 7), 5, replace=True)
    assert asked(network)[1:] == [("unregister", "1001"), ("register", "5")]
    assert list(network.registered()) == ["5"]


@pytest.mark.parametrize("replace", [False, True])
def test_registration_that_was_killed_before_it_was_written_down_is_gone_on_with(
    network: Network, replace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    new = public(network, 7 if replace else 5)
    if replace:
        assert network.register(public(network, 5), 5)
    with monkeypatch.context() as patched:
        patched.setattr("server.network.write_json", killed)
        with pytest.raises(Killed):
            network.register(new, 5, replace=replace)
    before = list(asked(network))
    assert network.register(new, 5, replace=replace)
    assert asked(network) == before, "nothing is asked of Flower twice"
    assert [found["node"] for found in network.registered().values()] == list(network.control.nodes())


def test_registration_beside_another_is_refused(network: Network) -> None:
    with locked(network.own / ".registering", "taken"), pytest.raises(TemptError, match="another command registers"):
        network.register(public(network, 5), 5)
    assert network.registered() == {}


def test_a_file_that_is_no_public_key_is_a_mistake_that_changes_nothing(network: Network, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "none", tmp_path / "text", public(network, 5).with_name("key")):
        with pytest.raises(TemptError, match=str(path)):
            network.register(path, 5)
    assert asked(network) == [] and network.registered() == {}


def test_everybody_may_read_versions_digests_and_fingerprints_alone(network: Network) -> None:
    network.register(public(network, 5), 5)
    network.publish("d" * 64)
    facts = json.loads(facts_file(network.own).read_text())
    assert facts.keys() == {"versions", "code", "vocabulary", "keys", "bindings"} and facts["vocabulary"] == "d" * 64
    assert len(facts["keys"]) == 1 and facts["keys"][0].startswith("SHA256:")
    place = FrontPlace(network.own.parent / "keys", network.own, facts_file(network.own), "127.0.0.1", 1, "x:2")
    before = front_configuration(place)
    assert "return 200 '{" in before and facts["keys"][0] in before
    network.register(public(network, 7), 7)
    network.republish()
    assert front_configuration(place) != before
    facts_file(network.own).unlink()
    assert "return 404;" in front_configuration(place)


def test_what_nginx_would_read_as_its_own_is_told_as_it_is(network: Network) -> None:
    path = facts_file(network.own)
    path.parent.mkdir()
    path.write_text(json.dumps({"odd": "a'b\\c$host\"d"}))
    place = FrontPlace(network.own.parent / "keys", network.own, path, "127.0.0.1", 1, "x:2")
    (line,) = (line for line in front_configuration(place).splitlines() if "return 200" in line)
    quoted = line.strip().removeprefix("return 200 '").removesuffix("';")
    assert "$" not in quoted
    plain = quoted.replace("\\'", "'").replace("\\\\", "\\")  # as nginx reads it
    assert json.loads(plain) == {"odd": "a'b\\c$host\"d"}


def test_status_tells_state_rounds_and_the_last_rejection(network: Network) -> None:
    network.register(public(network, 5), 5)
    network.register(public(network, 7), 7)
    told = StatusFile(network.own / STATUS)
    told.say("round 3: waiting up to 60 s for the replies of 2 hospitals")
    told.hospitals({5: {"node": 1001, "records": 30, "last_round": 2, "missed": 1, "rejected": ["round 1: NaN"]}})
    running, rows, lines, _ = network.status()
    assert running and lines == ["round 3: waiting up to 60 s for the replies of 2 hospitals"]
    assert [line.split() for line in status_table(rows)[1:]] == [
        ["5", "online", "30", "2", "1", "1"],
        ["round", "1:", "NaN"],
        ["7", "offline", "-", "-", "-", "-"],
    ]


def test_status_tells_no_state_where_flower_tells_none(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.register(public(network, 5), 5)
    told = StatusFile(network.own / STATUS)
    told.hospitals({5: {"node": 77, "records": 30, "last_round": 2, "missed": 0, "rejected": []}})
    _, rows, _, _ = network.status()
    assert rows["5"]["state"] == "offline", "the node of a SuperNode before"

    def ends_meanwhile(control: Control) -> dict[str, str]:
        told.ended(0)
        raise TemptError("the SuperLink does not tell its nodes")

    monkeypatch.setattr(Switchboard, "nodes", ends_meanwhile)
    running, rows, _, ended = network.status()
    assert running and rows["5"]["state"] == "-" and ended == {"status": 0, "error": ""}
    monkeypatch.setattr(Switchboard, "answers", lambda control: False)
    assert network.status()[:2] == (False, {"5": rows["5"]})


def test_a_key_is_not_replaced_while_flower_does_not_tell_whether_the_older_one_is_in(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.register(public(network, 5), 5)
    before = asked(network).copy(), network.registered()
    monkeypatch.setattr(Control, "_flwr", lambda *a, **k: subprocess.CompletedProcess([], 1, "", "no answer"))
    monkeypatch.setattr(Switchboard, "nodes", Control.nodes)
    with pytest.raises(TemptError, match="does not tell its nodes; try again: no answer"):
        network.register(public(network, 7), 5, replace=True)
    assert (asked(network), network.registered()) == before


def test_lines_beyond_the_last_hundreds_are_dropped_and_counted(tmp_path: Path) -> None:
    told = StatusFile(tmp_path / STATUS)
    for number in range(250):
        told.say(str(number))
    content = json.loads((tmp_path / STATUS).read_text())
    assert content["lines_before"] == 50 and content["lines"][0] == "50" and content["lines"][-1] == "249"


@pytest.mark.parametrize("verb", [["status"], ["register", "key.pub", "--hospital-id", "5"]])
def test_without_a_server_there_is_nothing_to_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    assert tempt(["server", verb[0], str(tmp_path / "run"), *verb[1:]]) == 2
    assert "no server was launched with --out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_servers_do_not_work_in_one_folder(network: Network, tmp_path: Path) -> None:
    data = consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    place = ServerPlace(tmp_path / "keys", tmp_path / "run", "127.0.0.1", 8443)
    with locked(network.own / ".lock", "taken"), pytest.raises(TemptError, match="another server is at work"):
        launch(place, {"vocabulary": str(data), "hospitals": 1}, print)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--insecure", "--host", "0.0.0.0"], "expected the loopback"),
        (["--insecure", "--keys", "keys"], "expected --keys DIR, or --insecure"),
        ([], "expected --keys DIR, or --insecure"),
    ],
)
def test_without_tls_the_server_stays_on_the_loopback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    data = consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    places = ["--vocabulary", str(data), "--out", str(tmp_path / "run"), "--hospitals", "1"]
    assert tempt(["server", "launch", *places, *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run.server").exists()


def test_the_largest_numbers_that_flower_and_hospitals_have_are_read_again(tmp_path: Path) -> None:
    told = StatusFile(tmp_path / STATUS)
    told.hospitals({2**63 - 1: {"node": 2**64 - 1, "records": 30, "last_round": 2, "missed": 0, "rejected": []}})
    assert read_status(tmp_path / STATUS)["hospitals"][str(2**63 - 1)]["node"] == 2**64 - 1
