"""A test network's certificates and keys: a CA, the server's certificate, and an EC key a hospital.

For a network of real hospitals the operator's own CA does this; what must be in a certificate is said here in code.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared_model.addresses import ALL, host_of
from shared_model.errors import TemptError
from shared_model.files import new_directory

MARK = "ca.pem"
CA, CERTIFICATE, KEY, SECRET = "ca.pem", "server.pem", "server.key", "superexec.secret"
_DAYS = 825
_README = """Keys and certificates of a TEMPT network, made by `tempt server keys`.

    ca.pem                 the CA that everybody trusts; give it to every hospital
    ca.key                 signs certificates; keep it off the network
    server.pem, server.key the server's certificate and its key; stay with the server
    superexec.secret       between the server's own processes; stays with the server
    hospitals/<id>/        key of hospital <id> (private: give it to that hospital alone, then delete it) and key.pub
"""


def make_keys(directory: Path, hosts: Sequence[str], hospitals: Sequence[int], *, force: bool = False) -> None:
    """Write a network's keys and certificates.

    Args:
        hosts: every name and address by which hospitals reach the server, `*.example.org` for names of a domain;
            127.0.0.1 and localhost are always there.

    Raises:
        TemptError: a host is none, or the place is taken or can't be written to.
    """
    hosts = [_host(host) for host in hosts]
    with new_directory(directory, mark=MARK, force=force) as place:
        ca_key, ca = _authority()
        key, certificate = _server(ca_key, ca, hosts)
        (place / CA).write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        _private(place / "ca.key", _pem(ca_key))
        (place / CERTIFICATE).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        _private(place / KEY, _pem(key))
        _private(place / SECRET, secrets.token_hex(32).encode())
        (place / "hospitals").mkdir(mode=0o700)
        for hospital in hospitals:
            folder = place / "hospitals" / str(hospital)
            folder.mkdir(mode=0o700)
            own = ec.generate_private_key(ec.SECP384R1())
            _private(
                folder / "key",
                own.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
                ),
            )
            public = own.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            (folder / "key.pub").write_bytes(public + b"\n")
        (place / "README.txt").write_text(_README, encoding="utf-8")


def check_named(keys: Path, host: str) -> None:
    """Refuse a certificate without the address by which the server's own processes reach the SuperLink.

    Raises:
        TemptError: the certificate names it not, or the file holds no certificate.
    """
    path = keys / CERTIFICATE
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return  # a name, which may stand there as one of a domain's
    named: list[ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    try:
        extensions = x509.load_pem_x509_certificate(path.read_bytes()).extensions
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        named = alternatives.get_values_for_type(x509.IPAddress)
    except ValueError as error:
        raise TemptError(f"{path}: holds no certificate in PEM ({error}); make one with `tempt server keys`") from None
    except x509.ExtensionNotFound:
        pass
    if address not in named:
        raise TemptError(f"{path}: lacks {host}, by which the server's own processes reach it; make one with --hosts")


def _host(text: str) -> str:
    """A host as a certificate names it; a domain's names have a star in the place of their first part."""
    if text.startswith("*.") and "." in text[2:]:
        return f"*.{host_of(text[2:], '--hosts')}"
    found = host_of(text, "--hosts")
    if found in ALL:
        raise TemptError(f"--hosts {found}: is where a server listens; expected what hospitals reach it by")
    return found


def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "TEMPT test CA")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = _begun(name, name, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return key, builder.sign(key, hashes.SHA384())


def _server(
    ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, hosts: Sequence[str]
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "TEMPT server")])
    # Clients look at these names alone; a certificate without the address that they use is refused
    names = [_general_name(host) for host in dict.fromkeys(["127.0.0.1", "localhost", *hosts])]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = _begun(name, ca.subject, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(issuer, critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return key, builder.sign(ca_key, hashes.SHA384())


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
