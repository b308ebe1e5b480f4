"""The table of a run (Table 3), with the rows of other runs beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_model.errors import TemptError
from shared_model.file_forms import RunResultsBeside, read_form
from shared_model.files import check_file, real
from shared_model.metric_names import METRICS
from shared_model.results import RESULTS, t_test_of_tempt
from sim.methods import adapts, method


def check_named(out: Path, beside: Sequence[Path], *, force: bool) -> None:
    """Refuse runs that can't be shown beside the run in `out`, by their names alone.

    Raises:
        TemptError: one stands twice, under whatever name, is the run itself, or would be deleted by `force`.
    """
    named = {real(out): f"--out {out}"}
    for run in beside:
        if force and real(run).is_relative_to(real(out)):
            raise TemptError(f"--out {out} --force: would delete {run}, which --beside shows; name another --out")
        if real(run) in named:
            raise TemptError(f"--beside {run}: is the run of {named[real(run)]}; name each other run once")
        named[real(run)] = f"--beside {run}"


def read_beside(runs: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """The results of other runs.

    Raises:
        TemptError: one is missing, or not the results of a run.
    """
    for run in runs:
        check_file(run / RESULTS, "name the --out of a run that has ended")
    mend = "not the results of a run; name another, or make it again"
    return {run: read_form(run / RESULTS, RunResultsBeside, mend) for run in runs}


def check_beside(runs: Mapping[Path, Mapping[str, Any]], split_digests: Mapping[str, str]) -> None:
    """Refuse the results of other runs beside a run with these splits.

    Raises:
        TemptError: they stand on other records or other seeds.
    """
    for run, content in runs.items():
        theirs = content.get("dataset", {}).get("split_digests", {})
        if theirs != split_digests:
            seeds = ", ".join(theirs) or "none"
            raise TemptError(
                f"--beside {run}: stands on other records or seeds (its seeds: {seeds}); "
                "make it from the same --data with the same --seeds and --hospitals"
            )
        for name, model in content["models"].items():
            method(name)
            if model["seeds"].keys() != split_digests.keys():
                raise TemptError(f"--beside {run}: {name} lacks a seed's results; go on with that run with --resume")


def table(content: Mapping[str, Any], beside: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """The run's table, 79 columns: each metric's mean, the paper's beside it, deviations over seeds below.

    Args:
        beside: other runs' results on the same splits, whose rows come first.
    """
    seeds = len(next(iter(content["models"].values()))["seeds"])
    lines = [
        f"{'':24}" + "".join(f"{heading:^16}" for heading in METRICS.values()) + f"{'p':>7}",
        f"{'Model':24}" + f"{'ours':>8}{'paper':>8}" * len(METRICS) + f"{'PRAUC':>7}",
        "-" * 79,
    ]
    for run in [*beside, content]:
        if beside:
            lines.append(f"{run['mode']}:")
        # rows that adapt no pretraining are the same in every mode
        names = [name for name in run["models"] if adapts(name) or run is content or run is beside[0]]
        for name in names:
            lines += _rows(name, run["models"][name], content["models"].get("tempt"), itself=run is content)
    lines.append("-" * 79)
    dataset = content["dataset"]
    lines.append(
        f"Means over {dataset['hospitals']} hospitals of their test records' means, over {seeds} "
        + ("seeds;" if seeds > 1 else "seed.")
    )
    if seeds > 1:
        lines.append("p: two-sided paired t-test of TEMPT's PRAUC against the row's over seeds.")
    return lines


def _rows(name: str, model: Mapping[str, Any], tempt: Mapping[str, Any] | None, *, itself: bool) -> list[str]:
    """A model's line of means and, with several seeds, one of deviations."""
    paper, seeds = method(name).PAPER, len(model["seeds"])
    ours = [model["summary"][metric] for metric in METRICS]
    theirs = [paper.get(metric, (None, None)) for metric in METRICS]
    cells = "".join(f"{_or_dash(o['mean']):>8}{_or_dash(t[0]):>8}" for o, t in zip(ours, theirs, strict=True))
    compared = tempt is not None and seeds > 1 and not (itself and name == "tempt")
    p = t_test_of_tempt(tempt, model)["prauc"] if tempt is not None and compared else None
    lines = [f"{method(name).TITLE:24}{cells}{_p(p):>7}"]
    if seeds > 1:
        pairs = zip(ours, theirs, strict=True)
        lines.append(f"{'':24}" + "".join(f"{_deviation(o['std']):>8}{_deviation(t[1]):>8}" for o, t in pairs))
    return lines


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _deviation(value: float | None) -> str:
    return "" if value is None else f"±{value:.4f}"


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
