"""A host is a name in ASCII, an IPv4 or an IPv6 address, in one form; all else is one line."""

from __future__ import annotations

import pytest

from shared_model.addresses import Address, address_of, host_of, is_loopback
from shared_model.errors import TemptError


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("tempt.Example.org", "tempt.example.org"),
        ("server_1", "server_1"),
        ("0x7f.example", "0x7f.example"),
        ("0xen", "0xen"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("10.0.0.9", "10.0.0.9"),
        ("::", "::"),
        ("[2001:DB8:0:0::1]", "2001:db8::1"),
    ],
)
def test_a_host_has_one_form(text: str, host: str) -> None:
    assert host_of(text, "--host") == host


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("a b", "has a blank"),
        ("a\tb", "has a blank"),
        ("bücher.example", "A-label"),
        ("пример", "A-label"),
        ("https://tempt.example.org", "a URL"),
        ("10.0.0.0/8", "a network"),
        ("tempt.example.org:8443", "has a port"),
        ("[::1]:8443", "has a port"),
        ("tempt.example.org.", "expected a name"),
        (".example.org", "expected a name"),
        ("a..b", "expected a name"),
        ("-a", "expected a name"),
        ("*.example.org", "expected a name"),
        ("300.1.1.1", "expected a name"),
        ("010.0.0.1", "expected a name"),
        ("10.0.0", "expected a name"),
        ("127.1", "expected a name"),
        ("0x7f000001", "expected a name"),
        ("127.0.0.0X1", "expected a name"),
        ("1.0x", "expected a name"),
        ("fe80::1%eth0", "without a zone"),
        ("::g", "expected a name"),
        ("x" * 64, "expected a name"),
        ("x." * 127 + "x", "expected a name"),
        ("a\x1b[2J", "expected a name"),
    ],
)
def test_what_is_no_host_is_one_line(text: str, words: str) -> None:
    if text == "x." * 127 + "x":
        text += "x"  # 256 characters
    with pytest.raises(TemptError, match=f"^--host .*{words}") as caught:
        host_of(text, "--host")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("server:8443", Address("server", 8443)),
        ("127.0.0.1:1", Address("127.0.0.1", 1)),
        ("[0::1]:8443", Address("::1", 8443)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: Address) -> None:
    assert address_of(text, "--superlink") == address
    assert address_of(str(address), "--superlink") == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "server", "server:", ":8443", "server:0", "server:70000", "server:x", "server:٣", "a b:1"),
        *("::1:8443", "[::1]", "[::1:8443", "https://server:8443", "https://server", "bücher:1", "10.0.0.0/8:1"),
    ],
)
def test_what_is_no_address_is_one_line(text: str) -> None:
    with pytest.raises(TemptError, match=r"^--superlink .*expected HOST:PORT"):
        address_of(text, "--superlink")


def test_the_loopback_is_known_in_each_of_its_forms() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.9.1", "localhost", "::1"))
    assert not any(is_loopback(host) for host in ("::", "0.0.0.0", "10.0.0.1", "localhost.example", "fe80::1"))
