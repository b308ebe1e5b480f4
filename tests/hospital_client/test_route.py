"""The way to the server is one: what `check` says is what `launch` and its SuperNode take, through a proxy or not."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from hospital_client import check
from hospital_client.launch import HospitalPlace, _refusal, launch
from hospital_client.route import ProxyRefused, Route
from shared_model.addresses import Address
from shared_model.errors import TemptError
from shared_model.proxies import Proxy
from tests.hospital_client.test_check import Front, front, keys, place, wrong  # noqa: F401

SERVER = "tempt.example.org"
"""A name that nobody but the proxy knows."""


class ConnectProxy:
    """A proxy of the loopback that connects whatever is asked for to one port of the loopback.

    Args:
        login: what a request must hold; else 407 is answered.
    """

    def __init__(self, login: str = "") -> None:
        self.port, self.to, self._login = 0, 0, login
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (more := client.recv(4096)):
                    return
                head += more
            self.asked.append(head.decode().splitlines()[0])
            if self._login and self._login.encode() not in head:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self.to)) as server:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                self._start(_pump, server, client)
                _pump(client, server)

    def end(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while more := source.recv(65536):
            target.sendall(more)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def proxy(front: Front) -> Iterator[ConnectProxy]:  # noqa: F811
    found = ConnectProxy(login="Basic bWU6c2VjcmV0")
    found.to = front.port
    yield found
    found.end()


def test_check_goes_through_the_proxy_that_launch_goes_through(
    place: HospitalPlace,  # noqa: F811
    proxy: ConnectProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from server.keys import make_keys

    make_keys(tmp_path / "named", [SERVER], [3])
    there = replace(place, superlink=f"{SERVER}:8443")
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{proxy.port}")
    found = {finding.what: finding for finding in check.look(there)}
    assert found["proxy"].found == f"through http://127.0.0.1:{proxy.port}"
    assert found["name"].found == "127.0.0.1 is 127.0.0.1", "the server's name is the proxy's to look up"
    assert found["port"].found == f"{SERVER}:8443 answers"
    assert "lacks the address" in found["certificate"].mend, "it is the server's, and has localhost alone"
    assert set(proxy.asked) == {f"CONNECT {SERVER}:8443 HTTP/1.1"}
    assert not any("secret" in str(finding) for finding in found.values())

    environment = there.route().environment(dict(os.environ))
    for name in [*os.environ]:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    proxy.asked.clear()
    context = ssl.create_default_context(cafile=str(place.root_certificates))
    context.check_hostname = False
    with httpx.Client(verify=context) as client:  # as SuperNode's
        assert client.get(f"https://{SERVER}:8443/facts.json").status_code == 200
    assert proxy.asked == [f"CONNECT {SERVER}:8443 HTTP/1.1"]


def test_the_loopback_and_what_no_proxy_names_are_reached_directly(
    place: HospitalPlace,  # noqa: F811
    proxy: ConnectProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    found = {finding.what: finding for finding in check.look(place)}
    assert found["proxy"].found == "none for 127.0.0.1"
    assert all(finding.well for finding in found.values())
    assert proxy.asked == []
    monkeypatch.setenv("no_proxy", SERVER)
    assert str(replace(place, superlink=f"{SERVER}:8443").route()) == f"none for {SERVER}"


@pytest.mark.parametrize(
    ("login", "words", "mend"),
    [
        ("", "answers 'HTTP/1.1 407 Proxy Authentication Required'", f"add {SERVER} to no_proxy"),
        ("me:wrong@", "answers 'HTTP/1.1 407 Proxy Authentication Required'", f"add {SERVER} to no_proxy"),
    ],
)
def test_a_proxy_that_does_not_let_us_through_is_named_without_its_login(
    place: HospitalPlace,  # noqa: F811
    proxy: ConnectProxy,
    monkeypatch: pytest.MonkeyPatch,
    login: str,
    words: str,
    mend: str,
) -> None:
    monkeypatch.setenv("https_proxy", f"http://{login}127.0.0.1:{proxy.port}")
    found = wrong(replace(place, superlink=f"{SERVER}:8443"))
    assert found["port"].found == f"http://127.0.0.1:{proxy.port} {words}"
    assert mend in found["port"].mend and "wrong" not in found["port"].mend
    assert found["clock"].skipped


def test_a_proxy_that_is_not_there_is_told_from_a_server_that_is_not(
    place: HospitalPlace,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    found = wrong(replace(place, superlink=f"{SERVER}:8443"))
    assert found["port"].found == "http://127.0.0.1:9: Connection refused"


def test_a_proxy_of_another_kind_ends_launch_before_anything_starts(
    place: HospitalPlace,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("all_proxy", "socks5://me:secret@127.0.0.1:9")
    there = replace(place, superlink=f"{SERVER}:8443")
    for does in (lambda: launch(there, print), lambda: list(check.look(there))):
        with pytest.raises(TemptError, match=r"^all_proxy: names a proxy of the kind socks5://") as caught:
            does()
        assert "secret" not in str(caught.value)
    assert not place.state.exists()


def test_what_a_proxy_answers_is_printable_and_not_waited_for_without_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        route = Route(Address(SERVER, 8443), Proxy(Address("127.0.0.1", listener.getsockname()[1])))

        def answer() -> None:
            with listener.accept()[0] as client:
                client.recv(4096)
                with suppress(OSError):
                    client.sendall(b"\x1b[2J" + b"x" * 200_000)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ProxyRefused) as caught:
            route.connect(5.0)
        thread.join()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_ipv6_is_reached_in_brackets(place: HospitalPlace, keys: Path) -> None:  # noqa: F811
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        there = replace(place, superlink=f"[::1]:{listener.getsockname()[1]}")
        listener.close()
        found = wrong(there)
    assert "refused" in found["port"].found and "[::1]:" in found["port"].found
    bare = replace(there, root_certificates=None, private_key=None)
    bare.check_options()
    with pytest.raises(TemptError, match="expects a server on the loopback"):
        replace(bare, superlink="[2001:db8::1]:8443").check_options()


@pytest.mark.parametrize(
    ("ahead", "strange", "words"),
    [(-60.0, False, "its clock is +6"), (0.0, True, "does not know the hospital's key"), (0.0, False, None)],
)
def test_a_refused_signature_is_the_clocks_fault_only_where_the_clock_is_off(
    place: HospitalPlace,  # noqa: F811
    front: Front,  # noqa: F811
    ahead: float,
    strange: bool,
    words: str | None,
) -> None:
    front.ahead = ahead
    if strange:  # another server than before
        front.facts = None if front.facts is None else front.facts | {"keys": [], "bindings": []}
    found = _refusal(place, place.route())
    assert found is None if words is None else found is not None and words in found


def test_a_server_that_has_gone_can_not_be_asked_why_it_refused(place: HospitalPlace) -> None:  # noqa: F811
    assert _refusal(place, Route(Address("127.0.0.1", 9), None)) is None


def test_a_server_serves_while_the_superlink_is_behind_its_front(place: HospitalPlace, front: Front) -> None:  # noqa: F811
    assert place.route().serves(place.root_certificates)
    assert not Route(Address("127.0.0.1", 9), None).serves(place.root_certificates)
    front.away = True
    assert not place.route().serves(place.root_certificates)
