"""What `tempt server keys` makes is what Flower, nginx and strict clients accept, and nobody else can read."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

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
