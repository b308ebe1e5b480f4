"""A hospital's key by which the server knows it: an EC key in OpenSSH's format, and its fingerprint."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared_model.errors import TemptError
from shared_model.files import check_file


def fingerprint(public: bytes) -> str:
    """Of a public key in OpenSSH's format, as `ssh-keygen -l` prints it.

    Raises:
        ValueError: it is no such key.
    """
    words = public.split()
    if len(words) < 2:
        raise ValueError("no public key in OpenSSH's format")
    digest = hashlib.sha256(base64.b64decode(words[1], validate=True)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def public_key(path: Path) -> bytes:
    """The public key of a private key's file, in OpenSSH's format.

    Raises:
        TemptError: the file can't be read, or holds no EC key in OpenSSH's format without a passphrase.
    """
    check_file(path)
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise TemptError(f"{path}: can't be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise TemptError(
            f"{path}: expected a private key in OpenSSH's format without a passphrase, as `tempt server keys` makes"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TemptError(f"{path}: is no EC key; make one with `ssh-keygen -t ecdsa -b 384 -N ''`")
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def binding(hospital: int, public: bytes) -> str:
    """What everybody may read of a hospital and its key: who has the public key, and nobody else, can compare it.

    Not of the key's fingerprint, which everybody may read as well: hospitals' ids are few enough to be tried out.
    """
    return hashlib.sha256(b"%d %s" % (hospital, public.split()[1])).hexdigest()


def read_public(path: Path) -> bytes:
    """A public EC key's file.

    Raises:
        TemptError: the file can't be read, or holds something else.
    """
    check_file(path)
    try:
        content = path.read_bytes()
        if isinstance(serialization.load_ssh_public_key(content), ec.EllipticCurvePublicKey):
            return content
    except OSError as error:
        raise TemptError(f"{path}: can't be read: {error.strerror}") from None
    except Exception:
        pass
    raise TemptError(f"{path}: expected a hospital's public EC key in OpenSSH's format (key.pub)")
