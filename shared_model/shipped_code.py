"""The code that a server ships to hospitals: this installation's packages, and their digest."""

from __future__ import annotations

import hashlib
import importlib.util
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
    files = {}
    for name in PACKAGES:
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
