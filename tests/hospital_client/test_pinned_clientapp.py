"""A hospital runs the code that is installed there, and no other."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from hospital_client import pinned_clientapp
from hospital_client.pinned_clientapp import OtherCode, check_code
from server.launch import _app_folder
from server.run_config import RUN_CONFIG
from shared_model.shipped_code import code_digest, shipped_files

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's packing


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What `tempt server launch` ships, as Flower packs it."""
    return bytes(build_fab_from_disk(_app_folder(tmp_path_factory.mktemp("app") / "app", RUN_CONFIG)))


def changed(fab: bytes, files: dict[str, bytes | None]) -> bytes:
    """The archive with some of its files replaced, added, or (None) left out."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(fab)) as old, zipfile.ZipFile(content, "w") as new:
        kept = {name: old.read(name) for name in old.namelist()}
        for name, data in (kept | files).items():
            if data is not None:
                new.writestr(name, data)
    return content.getvalue()


def test_our_own_code_is_run(app: bytes) -> None:
    check_code(app)
    with zipfile.ZipFile(io.BytesIO(app)) as archive:
        assert {"hospital_client/app.py", "shared_model/encoder.py", "pyproject.toml"} <= set(archive.namelist())
        assert not any(name.startswith("sim/") for name in archive.namelist())


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"hospital_client/app.py": b"import os"}, "its hospital_client/app.py is not the one installed here"),
        ({"sitecustomize.py": b""}, "it holds sitecustomize.py"),
        ({"torch/__init__.py": b""}, "it holds torch/__init__.py"),
        ({"hospital_client/app.pyc": b""}, "it holds hospital_client/app.pyc"),
        ({"../outside.py": b""}, "it holds ../outside.py"),
        ({"a\x1b]0;b\n.py": b""}, "it holds a?]0;b?.py"),
        (
            {"pyproject.toml": b"[tool.flwr.app.components]\nclientapp = 'os:system'\nserverapp = 'x:y'"},
            "its ClientApp is os:system",
        ),
    ],
)
def test_other_code_is_refused_by_name(app: bytes, files: dict[str, bytes | None], words: str) -> None:
    with pytest.raises(OtherCode, match=re.escape(words)):
        check_code(changed(app, files))


def test_the_digest_is_of_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before, files = code_digest(), shipped_files()
    assert "hospital_client/pinned_clientapp.py" in files and len(before) == 64
    for name in ("server/app.py", "shared_model/__init__.py"):
        monkeypatch.setattr("shared_model.shipped_code.shipped_files", lambda name=name: files | {name: b"#"})
        assert code_digest() != before


def test_the_command_on_the_path_is_this_module(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    pinned_clientapp.install(folder)
    command = folder / "flwr-clientapp"
    assert stat.S_IMODE(os.stat(command).st_mode) == 0o700
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "--token" in done.stdout, done.stderr
    assert "hospital_client.pinned_clientapp" in command.read_text()
