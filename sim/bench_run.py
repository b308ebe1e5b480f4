"""A whole run of the command for the bench: the seconds of its stages, and the memory that its processes hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def whole_run(epochs: int) -> dict[str, Any]:
    """Seconds of each stage, wall time and peak memory of `tempt simulate centralized` on its own made-up records."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "sim.cli", "simulate", "centralized", "--out", str(run), "--device", "cpu"]
        for stage in ("pretraining", "tuning", "training"):
            command += ["--set", f"{stage}.epochs={epochs}", "--set", f"{stage}.least_steps=0"]
        began, peak = time.perf_counter(), 0
        with (Path(folder) / "said").open("w+") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said)
            try:
                while process.poll() is None:
                    peak = max(peak, _memory_of_family(process.pid))
                    time.sleep(0.25)
            finally:
                process.kill()  # its workers end with it
            wall = time.perf_counter() - began
            if process.returncode != 0:
                said.seek(0)
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said.read()}")
        models = json.loads((run / "results.json").read_text())["models"]
    seconds = {name: content["seeds"]["42"]["seconds"] for name, content in models.items()}
    return {"epochs": epochs, "wall_seconds": wall, "peak_memory_bytes": peak or None, "seconds": seconds}


def stage_lines(run: dict[str, Any]) -> Iterator[str]:
    """The lines that tell of a whole run."""
    memory = run["peak_memory_bytes"]
    yield f"tempt simulate centralized, small made-up consortium, {run['epochs']} epochs at most:"
    yield f"{run['wall_seconds']:.1f} s, peak memory {f'{memory / 2**30:.2f} GiB' if memory else 'unknown'}"
    yield "seconds, processes added up  pretraining  tuning or training  evaluation"
    for name, seconds in run["seconds"].items():
        pretraining = f"{seconds['pretraining']:.1f}" if "pretraining" in seconds else "-"
        fit = seconds.get("tuning", seconds.get("training", 0.0))
        yield f"  {name:<25}{pretraining:>13}{fit:>20.1f}{seconds['evaluation']:>12.1f}"


def _memory_of_family(process: int) -> int:
    """Bytes that a process and its children hold together; 0 where the system does not tell.

    What several of them share counts once, taken as the most that one shares.
    """
    own, shared = 0, 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if process in (parent, int(folder.name)):
                pages, common = map(int, (folder / "statm").read_text().split()[1:3])
                own, shared = own + pages - common, max(shared, common)
        except (OSError, IndexError, ValueError):
            continue
    return (own + shared) * os.sysconf("SC_PAGE_SIZE") if own else 0
