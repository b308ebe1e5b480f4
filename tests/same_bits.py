"""Holds the working tree's results to those of a commit, bit for bit, on this machine.

    python -m tests.same_bits COMMIT [--keep DIRECTORY] [--only SCENARIO ...]

Runs small federations and simulations with the code of the commit, checked out beside, and with the working tree's, and
compares tensors of checkpoints, test scores, metrics and histories; seconds, commands and versions may differ. A
scenario that either of both refuses is told so. Exit status 0: all of them are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent


def _simulated(
    mode: str, *more: str, models: str = "finetune-freeze,tempt", **settings: str | int | float
) -> list[str]:
    """The words of a short simulation; a setting's stage and field stand with two underscores between."""
    short: dict[str, str | int | float] = {"pretraining__epochs": 3, "tuning__epochs": 2, "training__epochs": 2}
    short |= {f"{stage}__least_steps": 0 for stage in ("pretraining", "tuning", "training")}
    assigned = [f"{name.replace('__', '.')}={value}" for name, value in (short | settings).items()]
    chosen = ["--models", models] if models else []
    return [mode, *chosen, *(word for text in assigned for word in ("--set", text)), *more]


def _federated(*more: str) -> list[str]:
    return _simulated("federated", "--rounds", "3", *more, models="tempt")


SCENARIOS: dict[str, list[str]] = {
    "centralized": _simulated("centralized", "--seeds", "42,43", "--jobs", "2", models=""),
    "centralized, resumed": _simulated("centralized"),
    "local": _simulated("local"),
    "early stop": _simulated("centralized", pretraining__epochs=30, pretraining__patience=1),
    "common": _simulated("centralized", tuning__selection="common"),
    "released": _simulated("centralized", "--preset", "released"),
    "fedavg": _federated(),
    "fedavg, resumed": _federated("--local-optimizer", "keep"),
    "fedprox": _federated("--strategy", "fedprox", "--strategy-option", "proximal_mu=0.1"),
    "fedadam": _federated("--strategy", "fedadam"),
    "scaffold": _federated("--strategy", "scaffold", "--local-optimizer", "keep"),
    "krum": _federated("--strategy", "krum"),
    "half of the hospitals": _federated("--fraction", "0.5", "--transport", "bfloat16", "--changed-rows"),
}
"""By name, what is given to `tempt simulate`; a resumed one is killed on its way."""


def main() -> int:
    """Compare, and print a line a scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(SCENARIOS),
        metavar="SCENARIO",
        help=f"of {', '.join(SCENARIOS)}; all of them by default",
    )
    parser.add_argument("--keep", type=Path, help="keep the runs here; those of the commit that are there are used")
    options = parser.parse_args()
    different = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        before = Path(scratch) / "before"
        _git("worktree", "add", "--detach", str(before), options.commit)
        try:
            for name in options.only:
                differences = _differences(
                    _facts(name, before, folder / "before"), _facts(name, ROOT, folder / "after")
                )
                different += bool(differences)
                print(f"{name:<24}{'the same' if not differences else '; '.join(differences[:3])}", flush=True)
        finally:
            _git("worktree", "remove", "--force", str(before))
    return 1 if different else 0


def _facts(name: str, tree: Path, folder: Path) -> dict[str, str]:
    """A digest of each part of what a scenario leaves; runs it unless the older code's are there."""
    facts = folder / f"{name}.json"
    if tree != ROOT and facts.exists():
        found: dict[str, str] = json.loads(facts.read_text())
        return found
    folder.mkdir(parents=True, exist_ok=True)
    data, run = folder / "dataset", folder / name
    if not data.exists():
        _tempt(tree, "synth", str(folder / "raw"), "--profile", "small", "--hospitals", "5")
        _tempt(tree, "prepare", str(folder / "raw"), str(data), "--min-records", "50")
    options = ["simulate", *SCENARIOS[name], "--data", str(data), "--out", str(run), "--save-scores", "--device", "cpu"]
    shutil.rmtree(run, ignore_errors=True)
    if name.endswith("resumed"):
        _kill_on_its_way(tree, options, run)
        _tempt(tree, *options, "--resume")
    else:
        _tempt(tree, *options)
    found = dict(_digests(run)) | _records(data)
    facts.write_text(json.dumps(found, indent=1))
    return found


def _tempt(tree: Path, *options: str) -> None:
    done = subprocess.run(
        _command(options), cwd=tree, env=_environment(tree), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{tree}: tempt {' '.join(options)}: status {done.returncode}: {done.stderr[-500:]}")


def _command(options: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "sim.cli", *options]


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree)}


def _kill_on_its_way(tree: Path, options: Sequence[str], run: Path) -> None:
    """End the command by SIGKILL once its history has two lines: it has been at work, and is not done."""
    history = run / "history.jsonl"
    with subprocess.Popen(
        _command(options), cwd=tree, env=_environment(tree), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        while process.poll() is None:
            with suppress(OSError):
                if history.read_text().count("\n") >= 2:
                    break
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _digests(run: Path) -> Mapping[str, str]:
    found = {}
    results = json.loads((run / "results.json").read_text())
    found["results"] = _digest(_numbers(results["models"]))
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    found["history"] = _digest(sorted(json.dumps(_numbers(line), sort_keys=True) for line in lines))
    for path in sorted(run.glob("checkpoints/**/*.safetensors")):
        digest = hashlib.sha256()
        with safe_open(path, "pt") as tensors:  # type: ignore[no-untyped-call]
            for name in sorted(tensors.keys()):
                digest.update(name.encode() + tensors.get_tensor(name).contiguous().numpy().tobytes())
        found[str(path.relative_to(run))] = digest.hexdigest()
    for path in sorted(run.glob("scores/**/*.parquet")):
        found[str(path.relative_to(run))] = _digest(pq.read_table(path).to_pydict())
    return found


def _records(data: Path) -> dict[str, str]:
    tables = {path.parent.name: pq.read_table(path).to_pydict() for path in sorted(data.glob("hospitals/*/*.parquet"))}
    return {"records": _digest(tables), "vocabulary": _digest(json.loads((data / "vocabulary.json").read_text()))}


def _numbers(tree: Any) -> Any:
    """Without what a clock told."""
    if isinstance(tree, dict):
        return {key: _numbers(value) for key, value in tree.items() if "seconds" not in key}
    return tree


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {'is missing' if name not in after else 'is new' if name not in before else 'differs'}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _git(*words: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
