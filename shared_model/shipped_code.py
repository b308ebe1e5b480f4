"""The code that a server ships to hospitals: this installation's packages, and their digest."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("server", "hospital_client", "shared_model")
CLIENT_APP = "hospital_client.app:app"
SERVER_APP = "server.app:app"


def package_folder(name: str) -> Path:
    """Where a package is installed."""
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def shipped_files() -> dict[str, bytes]:
    """Every Python file of the packages, by its path in the app that is shipped."""
    return _files(PACKAGES)


def code_files(*more: str) -> dict[str, str]:
    """A digest of every Python file that a result depends on: those that are shipped, and of other packages.

    Args:
        more: packages that are not shipped, as a simulation's own.
    """
    found = _files((*PACKAGES, *more))
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in found.items()}


def _files(packages: Sequence[str]) -> dict[str, bytes]:
    files = {}
    for name in packages:
        folder = package_folder(name)
        for path in sorted(folder.rglob("*.py")):
            files[f"{name}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    return files


def code_digest() -> str:
    """SHA-256 of the packages' files: equal on two machines that hold the same code."""
    digest = hashlib.sha256()
    for name, content in shipped_files().items():
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()
