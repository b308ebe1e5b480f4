"""A hospital runs the code that is installed there, and no other."""

from __future__ import annotations

import io
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab

from hospital_client import pinned_clientapp
from hospital_client.pinned_clientapp import OtherCode, check_code, unpacked, work_alone
from server.launch import _app_folder
from server.run_config import RUN_CONFIG
from shared_model.shipped_code import code_digest, shipped_files
from tests.sim.consortium import ROOT

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
        ({"a\x1b]0;b\n.py": b""}, r"it holds a\x1b]0;b\n.py"),
        (
            {"pyproject.toml": b"[tool.flwr.app.components]\nclientapp = 'os:system'\nserverapp = 'x:y'"},
            "its ClientApp is os:system",
        ),
    ],
)
def test_other_code_is_refused_by_name(app: bytes, files: dict[str, bytes | None], words: str) -> None:
    with pytest.raises(OtherCode, match=re.escape(words)):
        check_code(changed(app, files))


@pytest.mark.parametrize("left", ["half a file", "a file less", "a file more", "nothing"])
def test_folder_that_a_killed_process_or_another_version_left_is_unpacked_anew(
    app: bytes, tmp_path: Path, left: str
) -> None:
    def unpack() -> Path:
        return Path(install_from_fab(app, tmp_path, skip_prompt=True))

    found = unpack()
    half = found / "hospital_client" / "app.py"
    whole = half.read_bytes()
    if left == "half a file":
        half.write_bytes(whole[: len(whole) // 2])
    elif left == "a file less":
        half.unlink()
    elif left == "a file more":
        (found / "torch.py").write_text("")
    (half.parent / "__pycache__").mkdir()
    (half.parent / "__pycache__" / "app.cpython-311.pyc").write_bytes(b"made by Python")
    assert unpacked(app, unpack) == found
    assert half.read_bytes() == whole and not (found / "torch.py").exists()
    assert (half.parent / "__pycache__").exists() == (left == "nothing")


def test_folder_that_is_never_what_was_shipped_is_refused(app: bytes, tmp_path: Path) -> None:
    def unpack() -> Path:
        (tmp_path / "app").mkdir()
        return tmp_path / "app"

    with pytest.raises(OtherCode, match="is not what was unpacked there"):
        unpacked(app, unpack)


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


def test_one_process_works_for_a_hospital_and_a_stopped_one_is_ended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "at-work"
    code = f"""
import pathlib, time
from hospital_client.pinned_clientapp import work_alone
work_alone(pathlib.Path({str(path)!r}))
print("at work", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as older:
        assert older.stdout is not None and older.stdout.readline() == "at work\n"
        older.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(pinned_clientapp, "_LEAVES_WITHIN", 0.2)
        descriptor = work_alone(path)
        assert older.wait(60) == -signal.SIGKILL
        assert path.read_text() == str(os.getpid())
        monkeypatch.setattr(pinned_clientapp, "_LEAVES_WITHIN", 600.0)
        monkeypatch.setattr(pinned_clientapp, "_ENDS_WITHIN", 0.2)
        with pytest.raises(TimeoutError, match="can't be ended"):  # and nobody was killed: this process is at work
            work_alone(path)
        os.close(descriptor)


def test_one_that_has_answered_has_time_to_leave(tmp_path: Path) -> None:
    path = tmp_path / "at-work"
    first = work_alone(path)
    leaving = threading.Timer(0.3, os.close, [first])
    leaving.start()
    os.close(work_alone(path))
    leaving.join()
