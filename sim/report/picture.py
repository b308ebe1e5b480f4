"""A run's results as one picture: `python -m sim.report.picture RUN PICTURE.png`.

Left, each model's PRAUC with its deviation over seeds and the paper's beside it; right, what TEMPT gains over
Single-Train in each hospital, against the hospital's test records.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared_model.errors import TemptError
from shared_model.file_forms import RunResults, read_form
from shared_model.files import replacing
from shared_model.lines import say, tell
from shared_model.results import RESULTS
from sim.methods import method

_OURS, _PAPER, _GRID = "#1f5f8b", "#d08c2c", "#dddddd"


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Write the picture of a run's results as PNG.

    Args:
        content: of `results.json`.

    Raises:
        TemptError: matplotlib is not installed, or the file can't be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise TemptError("a picture needs matplotlib; install it with: pip install 'tempt[report]'") from None
    models = content["models"]
    if {"tempt", "single-train"} <= set(models):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_hospitals(right, models)
    else:
        figure = Figure(figsize=(6, 3.8), layout="constrained")
        left = figure.subplots()
    _draw_models(left, models)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=130)


def _draw_models(axes: Any, models: Mapping[str, Any]) -> None:
    names = list(models)
    for row, name in enumerate(names):
        prauc, paper = models[name]["summary"]["prauc"], method(name).PAPER.get("prauc")
        if prauc["mean"] is None:  # of a system without scores
            continue
        axes.errorbar(
            prauc["mean"],
            row,
            xerr=prauc["std"],
            fmt="o",
            color=_OURS,
            capsize=3,
            label="this run" if not row else None,
        )
        axes.annotate(
            f"{prauc['mean']:.3f}", (prauc["mean"], row), (0, 6), textcoords="offset points", ha="center", fontsize=8
        )
        if paper:
            axes.plot(paper[0], row, "D", color=_PAPER, markersize=5)
    axes.plot([], [], "D", color=_PAPER, markersize=5, label="the paper, on eICU")
    axes.set_yticks(range(len(names)), [method(name).TITLE for name in names])
    axes.set_ylim(-0.6, len(names) - 0.3)
    axes.set_xlabel("PRAUC, mean over hospitals")
    axes.grid(axis="x", color=_GRID)
    axes.set_axisbelow(True)
    axes.invert_yaxis()
    axes.legend(fontsize=8, loc="best")


def _draw_hospitals(axes: Any, models: Mapping[str, Any]) -> None:
    ours, alone = (_by_hospital(models[name]) for name in ("tempt", "single-train"))
    axes.axhline(0, color="#888888", linewidth=1)
    axes.scatter(
        [records for records, _ in ours], [a - b for (_, a), (_, b) in zip(ours, alone, strict=True)], s=14, color=_OURS
    )
    axes.set_xlabel("test records of the hospital")
    axes.set_ylabel("PRAUC of TEMPT minus Single-Train")
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)


def _by_hospital(model: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Each hospital's test records and PRAUC, means over seeds."""
    seeds = list(model["seeds"].values())
    return [
        tuple(sum(seed["hospitals"][hospital][key] for seed in seeds) / len(seeds) for key in ("records", "prauc"))
        for hospital in seeds[0]["hospitals"]
    ]


def main() -> None:
    """Draw the picture of the run named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m sim.report.picture", description="Draw a run's results.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("picture", type=Path, metavar="PICTURE.png")
    given = parser.parse_args()
    try:
        if not (given.run / RESULTS).is_file():
            raise TemptError(f"{given.run}: has no {RESULTS}; is it a run directory, and has the run ended?")
        draw(read_form(given.run / RESULTS, RunResults, "not the results of a run"), given.picture)
        tell(f"Wrote {given.picture}.")
    except TemptError as error:
        say(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
