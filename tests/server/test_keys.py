"""What `tempt server keys` makes is what Flower, nginx and strict clients accept, and nobody else can read."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.keys import check_named
from shared_model.errors import TemptError
from sim.cli import run as tempt


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    out = tmp_path / "the keys"
    assert tempt(["server", "keys", str(out), "--hospitals", "5,7", "--hosts", "tempt.example.org, 10.0.0.9"]) == 0
    return out


def test_the_servers_certificate_is_the_cas_and_names_every_address(keys: Path) -> None:
    ca, server = (x509.load_pem_x509_certificate((keys / name).read_bytes()) for name in ("ca.pem", "server.pem"))
    server.verify_directly_issued_by(ca)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "tempt.example.org"]
    addresses = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("10.0.0.9")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    identifier = server.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert identifier == ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    key = serialization.load_pem_private_key((keys / "server.key").read_bytes(), None)
    assert key.public_key() == server.public_key()
    assert (keys / "ca.pem").read_bytes().isascii()


def test_each_hospital_has_an_ec_key_of_its_own_in_opensshs_format(keys: Path) -> None:
    seen = set()
    for hospital in (5, 7):
        folder = keys / "hospitals" / str(hospital)
        key = serialization.load_ssh_private_key((folder / "key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        public = serialization.load_ssh_public_key((folder / "key.pub").read_bytes())
        assert key.public_key() == public
        seen.add((folder / "key.pub").read_bytes())
    assert len(seen) == 2


def test_what_is_private_is_for_its_owner_alone(keys: Path) -> None:
    private = [path for path in keys.rglob("*") if path.is_file() and path.suffix in (".key", ".secret", "")]
    assert {path.name for path in private} >= {"ca.key", "server.key", "superexec.secret", "key"}
    assert {path.stat().st_mode & 0o077 for path in private if path.name != ".tempt"} == {0}


@pytest.mark.parametrize("hospitals", ["", "5,5", "0", "five"])
def test_ids_that_are_none_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], hospitals: str) -> None:
    assert tempt(["server", "keys", str(tmp_path / "k"), "--hospitals", hospitals]) == 2
    assert capsys.readouterr().err.startswith(f"error: --hospitals {hospitals}: ")
    assert list(tmp_path.iterdir()) == []


def test_hosts_are_named_once_each_in_one_form(tmp_path: Path) -> None:
    hosts = "::1,[0:0::1],Tempt.Example.org,tempt.example.org,127.0.0.1,*.Wards.example.org,xn--bcher-kva.example"
    assert tempt(["server", "keys", str(tmp_path / "k"), "--hospitals", "5", "--hosts", hosts]) == 0
    server = x509.load_pem_x509_certificate((tmp_path / "k" / "server.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        *("localhost", "tempt.example.org", "*.wards.example.org", "xn--bcher-kva.example"),
    ]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(a) for a in ("127.0.0.1", "::1")]


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ("", "blank"),
        (" , ", "blank"),
        ("tempt.example.org,", "blank"),
        ("a,,b", "blank"),
        ("tempt example", "has a blank"),
        ("krankenhaus-süd.example", "A-label"),
        ("больница.example", "A-label"),
        ("*.süd.example", "A-label"),
        ("https://tempt.example.org", "a URL"),
        ("10.0.0.0/8", "a network"),
        ("2001:db8::/32", "a network"),
        ("tempt.example.org:8443", "has a port"),
        ("[::1]:8443", "has a port"),
        ("*", "expected a name"),
        ("*.org", "expected a name"),
        ("a.*.org", "expected a name"),
        ("tempt.example.org.", "expected a name"),
        ("0.0.0.0", "what hospitals reach it by"),
        ("::", "what hospitals reach it by"),
        ("localhost,10.0.0.256", "expected a name"),
    ],
)
def test_hosts_that_are_none_are_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hosts: str, words: str
) -> None:
    assert tempt(["server", "keys", str(tmp_path / "k"), "--hospitals", "5", "--hosts", hosts]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --hosts ") and words in line
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_without_the_servers_own_address_is_refused(tmp_path: Path, keys: Path) -> None:
    for host in ("127.0.0.1", "10.0.0.9", "tempt.example.org"):
        check_named(keys, host)
    for host in ("::1", "10.0.0.8"):
        with pytest.raises(TemptError, match=rf"server.pem: lacks {host}, by which"):
            check_named(keys, host)
    (tmp_path / "server.pem").write_text("no certificate")
    with pytest.raises(TemptError, match="holds no certificate in PEM"):
        check_named(tmp_path, "127.0.0.1")
    (tmp_path / "server.pem").write_bytes((keys / "ca.pem").read_bytes())  # names nothing
    with pytest.raises(TemptError, match=r"lacks 127\.0\.0\.1"):
        check_named(tmp_path, "127.0.0.1")
