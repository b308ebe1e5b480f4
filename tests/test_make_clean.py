"""`make clean` removes the environment that `make setup` made, and no other."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.sim.consortium import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.mark.parametrize(("mark", "removed"), [(None, False), (".tempt", True), ("installed-in", True)])
def test_make_clean_removes_the_environment_that_make_setup_marked(
    mark: str | None, removed: bool, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (".venv", "build", "dist", ".mypy_cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    if mark is not None:
        (tmp_path / ".venv" / mark).write_text("")
    done = subprocess.run(["make", "clean"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (tmp_path / ".venv" / "mine.txt").exists() != removed
    assert (tmp_path / "build" / "mine.txt").exists() and (tmp_path / "dist" / "mine.txt").exists()
    assert (tmp_path / ".mypy_cache").exists() != removed
    assert done.returncode == (0 if removed else 2)
    assert removed or done.stderr.startswith("error: .venv: make setup did not make it;")
