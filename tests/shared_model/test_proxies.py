"""Which proxy a hospital's way to its server goes through: one rule, and nobody's password is printed."""

from __future__ import annotations

import os

import httpx
import pytest

from shared_model.addresses import Address
from shared_model.errors import TemptError
from shared_model.proxies import Proxy, proxy_for, without_proxies


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"https_proxy": "http://proxy:3128"}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128/"}, "http://proxy:3128"),
        ({"https_proxy": "http://one:1", "HTTPS_PROXY": "http://two:2"}, "http://one:1"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://two:2"}, None),
        ({"https_proxy": "proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "http://proxy"}, "http://proxy:80"),
        ({"https_proxy": "http://[::1]:3128"}, "http://[::1]:3128"),
        ({"http_proxy": "http://proxy:3128"}, None),
        ({"ALL_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"all_proxy": "socks5://other:1", "https_proxy": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "*"}, None),
        ({"https_proxy": "http://proxy:3128", "NO_PROXY": "other, .example.org"}, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "tempt.example.org"}, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "EXAMPLE.org"}, None),
        (
            {"https_proxy": "http://proxy:3128", "no_proxy": "t.example.org,ample.org,tempt,10.0.0.0/8"},
            "http://proxy:3128",
        ),
        ({"ALL_PROXY": "socks5://other:1", "no_proxy": "example.org"}, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "*.example.org,x:1"}, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "tempt.example.org:8443"}, None),
    ],
)
def test_a_name_is_reached_as_its_variables_say(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], proxy: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = proxy_for("tempt.example.org")
    assert (None if found is None else str(found)) == proxy


@pytest.mark.parametrize(
    ("names", "host", "direct"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2", "10.1.2.3", False),
        ("2.3", "10.1.2.3", False),
        ("[2001:db8::0:1]", "2001:db8::1", True),
        ("2001:db8::/32", "2001:db8::1", True),
        ("", "127.0.0.1", True),
        ("", "127.0.0.9", True),
        ("", "localhost", True),
        ("", "::1", True),
        ("[2001:db8::7]:8443", "2001:db8::7", True),
        ("[2001:db8::7]:8443", "2001:db8::8", False),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("", "::ffff:127.0.0.1", True),
    ],
)
def test_an_address_is_reached_directly_where_no_proxy_names_it_and_the_loopback_always(
    monkeypatch: pytest.MonkeyPatch, names: str, host: str, direct: bool
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", names)
    assert (proxy_for(host) is None) == direct


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("https_proxy", "socks5://me:secret@proxy:1080", "of the kind socks5://"),
        ("ALL_PROXY", "socks5h://me:secret@proxy", "of the kind socks5h://"),
        ("HTTPS_PROXY", "https://me:secret@proxy:3128", "of the kind https://"),
        ("https_proxy", "http://me:secret@proxy:port", "holds no URL"),
        ("https_proxy", "http://me:secret@[proxy:1", "holds no URL"),
        ("https_proxy", "http://me:secret@:3128", "is empty"),
        ("https_proxy", "http://me:secret@proxy:0", "holds no URL"),
        ("https_proxy", "http://me:secret@0x7f000001:3128", "expected a name"),
    ],
)
def test_a_proxy_that_can_not_be_used_is_one_line_without_its_password(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(TemptError, match=f"^{variable}.*{words}") as caught:
        proxy_for("tempt.example.org")
    assert "secret" not in str(caught.value)
    assert proxy_for("127.0.0.1") is None


def test_a_login_is_sent_and_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://me:s%40cret@proxy:3128")
    proxy = proxy_for("tempt.example.org")
    assert proxy is not None and "cret" not in f"{proxy} {proxy!r}"
    assert proxy.headers() == {"Proxy-Authorization": "Basic bWU6c0BjcmV0"}  # me:s@cret
    assert proxy.environment()["https_proxy"] == "http://me:s%40cret@proxy:3128"


@pytest.mark.parametrize("proxy", [None, Proxy(Address("192.0.2.1", 3128))])
def test_a_process_goes_the_way_that_it_is_given(monkeypatch: pytest.MonkeyPatch, proxy: Proxy | None) -> None:
    told = {
        "http_proxy": "http://h:1",
        "HTTPS_PROXY": "http://h:2",
        "ALL_PROXY": "http://h:3",
        "no_proxy": "x",
        "A": "a",
    }
    environment = without_proxies(told) | ({} if proxy is None else proxy.environment())
    assert environment["A"] == "a"
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with httpx.Client() as client:  # Flower's

        def way(url: str) -> bool:
            return client._transport_for_url(httpx.URL(url)) is not client._transport

        assert way("https://tempt.example.org:8443") == (proxy is not None)
        assert not any(way(f"http://{host}:9094") for host in ("127.0.0.1", "localhost", "[::1]"))
        assert not way("http://tempt.example.org")
