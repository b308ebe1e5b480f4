"""`make setup` and `make demo` with programs that only tell how they were called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Stands for Python, pip, uv and nvidia-smi alike
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
case "$(basename "$0") $*" in
*' -m venv .venv') mkdir -p .venv/bin; for p in python uv tempt; do cp "$FAKE" .venv/bin/$p; done ;;
*' config list'*) printf '%s\\n' "$PIP_SAYS" ;;
*' --dry-run'*) exec $PROBE ;;
'uv '*) exec $UV ;;
nvidia-smi*) exec $DRIVER ;;
*' --group dev '*) printf 'Collecting pandas==3\\nnoise\\n  Downloading pandas.whl (12.3 MB)\\n'; exec $PIP_ENDS ;;
'tempt '*'--resume') exit "$RESUME" ;;
esac
exit 0
"""


class Clone:
    """A folder with the Makefile, and programs that do nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder / "a clone", folder / "log"
        self.folder.mkdir()
        for name in ("Makefile", "constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder)
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("python3.11", "nvidia-smi"):
            (self.programs / name).write_text(FAKE)
            (self.programs / name).chmod(0o755)
        self.settings = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "LOG": str(self.log),
            "FAKE": str(self.programs / "python3.11"),
            "PIP_SAYS": "global.extra-index-url='https://more.example/simple'",
            "PROBE": "true",
            "UV": "true",
            "DRIVER": "false",
            "PIP_ENDS": "true",
            "RESUME": "0",
        }

    def make(self, *words: str, **settings: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """What `make` printed, and the calls of programs that install or run something."""
        self.log.write_text("")
        command = ["make", "PYTHON=python3.11", *words]
        own = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "UV_", "PIP_", "TORCH"))}
        done = subprocess.run(
            command, cwd=self.folder, env=own | self.settings | settings, capture_output=True, text=True, check=False
        )
        return done, [line for line in self.log.read_text().splitlines() if "install" in line or "simulate" in line]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def torch_calls(calls: list[str]) -> list[str]:
    return [line for line in calls if TORCH in line]


UV = f"uv pip install --python .venv/bin/python --no-deps --torch-backend {{}} {{}}{TORCH}"
PIP = f"python -m pip --disable-pip-version-check --no-input install --constraint constraints.txt {TORCH}"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [UV.format("cpu", "--dry-run "), UV.format("cpu", "")]),
        ({"DRIVER": "true"}, [UV.format("auto", "--dry-run "), UV.format("auto", "")]),
        ({"PROBE": "false"}, [UV.format("cpu", "--dry-run "), PIP]),
        ({"UV": "false"}, [UV.format("cpu", "--dry-run "), UV.format("cpu", ""), PIP]),
        ({"PIP_SAYS": "global.index-url='https://mirror.example/simple'"}, [PIP]),
        ({"PIP_SAYS": ":env:.no-index='1'"}, [PIP]),
        ({"UV_TORCH_BACKEND": "cu126"}, [UV.format("cu126", "--dry-run "), UV.format("cu126", "")]),
    ],
    ids=["cpu", "driver", "no answer", "uv fails", "mirror", "no index", "user's"],
)
def test_torch_is_the_build_for_the_machine_else_what_pip_finds(
    clone: Clone, settings: dict[str, str], expected: list[str]
) -> None:
    """On a machine without a GPU it was 5.8 GB of packages for CUDA."""
    if Path("/proc/driver/nvidia/version").exists() and settings.get("DRIVER") != "true":
        pytest.skip("this machine has a driver")
    done, calls = clone.make("setup", **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert torch_calls(calls) == expected
    assert (clone.folder / ".venv" / "installed-in").read_text().strip() == str(clone.folder.resolve())


def test_torch_of_a_named_index_is_pips_alone(clone: Clone) -> None:
    done, calls = clone.make("setup", "TORCH_INDEX=https://index.example/cpu")
    assert done.returncode == 0
    prefix = "python -m pip --disable-pip-version-check --no-input install --index-url https://index.example/cpu"
    assert torch_calls(calls) == [f"{prefix} {TORCH}"]
    assert "torch, from https://index.example/cpu:" in done.stdout


def test_setup_says_what_it_installs_as_it_goes(clone: Clone) -> None:
    """It was silent for minutes."""
    done, _ = clone.make("setup")
    assert done.stdout.splitlines()[-6:] == [
        "torch for this machine (CPUs, as it has no NVIDIA driver), from PyTorch's index:",
        "The other packages of constraints.txt:",
        "  Collecting pandas==3",
        "  Downloading pandas.whl (12.3 MB)",
        "note: this path has a blank, which servers of Flower (tempt server launch, flwr run) do not take",
        "Done: .venv/bin/tempt --help",
    ]


def test_setup_that_fails_halfway_ends_with_an_error_and_begins_anew_the_next_time(clone: Clone) -> None:
    done, _ = clone.make("setup", PIP_ENDS="false")
    assert done.returncode == 2 and "Done" not in done.stdout
    assert not (clone.folder / ".venv" / "installed-in").exists()
    (clone.folder / ".venv" / "half").write_text("a package")
    done, calls = clone.make("setup")
    assert (done.returncode, done.stderr) == (0, "") and torch_calls(calls)
    assert sorted(path.name for path in (clone.folder / ".venv").iterdir()) == [".tempt", "bin", "installed-in"]
    assert clone.make("setup")[1] == []


def test_setup_that_is_interrupted_while_it_deletes_still_knows_that_it_is_unfinished(clone: Clone) -> None:
    clone.make("setup", PIP_ENDS="false")
    script = '#!/bin/sh\ncase "$*" in *bin*) kill -INT $PPID; exit 1 ;; esac\nexec /bin/rm "$@"\n'
    (clone.programs / "rm").write_text(script)
    (clone.programs / "rm").chmod(0o755)
    assert clone.make("setup")[0].returncode != 0
    assert (clone.folder / ".venv" / "unfinished").exists()


def test_setup_in_a_folder_that_was_moved_begins_anew(clone: Clone) -> None:
    assert clone.make("setup")[0].returncode == 0
    (clone.folder / ".venv" / "old").write_text("of another folder")
    (clone.folder / ".venv" / "installed-in").write_text("/elsewhere\n")
    assert clone.make("setup")[0].returncode == 0
    assert sorted(path.name for path in (clone.folder / ".venv").iterdir()) == [".tempt", "bin", "installed-in"]


def test_setup_leaves_an_environment_of_the_users_own(clone: Clone) -> None:
    (clone.folder / ".venv").mkdir()
    (clone.folder / ".venv" / "mine").write_text("mine")
    assert clone.make("setup")[0].returncode == 0
    assert (clone.folder / ".venv" / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("there", "resume", "expected", "status"),
    [
        ([], "0", ["--force"], 0),
        (["config.json"], "0", ["--resume"], 0),
        (["config.json"], "2", ["--resume", "--force"], 0),
        (["config.json"], "130", ["--resume"], 2),
        (["config.json", "results.json"], "0", ["--force"], 0),
    ],
    ids=["new", "unfinished", "of another version", "interrupted again", "finished"],
)
def test_demo_goes_on_where_it_was_interrupted(
    clone: Clone, there: list[str], resume: str, expected: list[str], status: int
) -> None:
    """A second `make demo` deleted what the first had done."""
    assert clone.make("setup")[0].returncode == 0
    for name in there:
        (clone.folder / "runs" / "demo").mkdir(parents=True, exist_ok=True)
        (clone.folder / "runs" / "demo" / name).write_text("{}")
    done, calls = clone.make("demo", RESUME=resume)
    assert done.returncode == status
    assert calls == [f"tempt simulate centralized --out runs/demo {option}" for option in expected]
