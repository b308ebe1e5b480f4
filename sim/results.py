"""From what each fit measured to `results.json` and the table of a run (Section 4.1.4, Table 3)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from shared_model.errors import TemptError
from shared_model.files import read_json, write_json
from shared_model.fitting import PRETRAINING
from shared_model.metrics import METRICS, hospital_mean, record_mean
from sim.methods import adapts, method
from sim.units import FitUnit

RESULTS = "results.json"


def write_results(
    run: Path,
    about: Mapping[str, Any],
    done: Mapping[FitUnit, Mapping[str, Any]],
    models: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Write `results.json` and return its content."""
    content = {"format": 1, **about, "models": {name: _model(name, done, seeds) for name in models}}
    if "tempt" in models and len(seeds) > 1:
        for name in models:
            if name != "tempt":
                test = _t_test(content["models"]["tempt"], content["models"][name])
                content["models"][name]["paired_t_test_of_tempt"] = test
    write_json(run / RESULTS, content)
    return content


def _model(name: str, done: Mapping[FitUnit, Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    by_seed = {str(seed): _seed(name, seed, done) for seed in seeds}
    means = [seed["hospital_mean"] for seed in by_seed.values()]
    summary = {metric: _summary([mean[metric] for mean in means]) for metric in METRICS}
    return {"seeds": by_seed, "summary": summary}


def _seed(name: str, seed: int, done: Mapping[FitUnit, Mapping[str, Any]]) -> dict[str, Any]:
    mine = {unit: result for unit, result in done.items() if (unit.model, unit.seed) == (name, seed)}
    fits = [result for unit, result in mine.items() if not unit.trial]
    hospitals = {hospital: values for fit in fits for hospital, values in fit["hospitals"].items()}
    seconds = {
        "tuning" if adapts(name) else "training": round(sum(result["seconds"]["fit"] for result in mine.values()), 3),
        "evaluation": round(sum(fit["seconds"]["evaluation"] for fit in fits), 3),
    }
    if adapts(name):
        fits_before = [result for unit, result in done.items() if (unit.model, unit.seed) == (PRETRAINING, seed)]
        seconds = {"pretraining": round(sum(fit["seconds"]["fit"] for fit in fits_before), 3)} | seconds
    content: dict[str, Any] = {
        "hospitals": dict(sorted(hospitals.items(), key=lambda item: int(item[0]))),
        "hospital_mean": hospital_mean(hospitals),
        "record_mean": record_mean(hospitals),
        "seconds": seconds,
    }
    without = sorted(int(fit["hospital"]) for fit in fits if "selected" in fit)
    if without:
        content["last_epoch_for_want_of_validation_records"] = without
    return content


def _summary(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def _t_test(tempt: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float | None]:
    """Two-sided p of a paired t-test over seeds, None where all differences are the same."""
    found = {}
    for metric in METRICS:
        pairs = [
            (tempt["seeds"][seed]["hospital_mean"][metric], values["hospital_mean"][metric])
            for seed, values in other["seeds"].items()
        ]
        same = len({round(a - b, 15) for a, b in pairs}) == 1
        p = None if same else float(ttest_rel([a for a, _ in pairs], [b for _, b in pairs]).pvalue)
        found[metric] = p
    return found


def rows_beside(runs: Sequence[Path], split_digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """The results of other runs, to be shown beside a run with these splits.

    Raises:
        TemptError: a directory has no results, or they stand on other records or other seeds.
    """
    found = []
    for run in runs:
        content = read_json(run / RESULTS)
        theirs = content.get("dataset", {}).get("split_digests", {})
        if theirs != split_digests:
            seeds = ", ".join(theirs) or "none"
            raise TemptError(
                f"--beside {run}: stands on other records or seeds (its seeds: {seeds}); "
                "make it from the same --data with the same --seeds"
            )
        found.append(content)
    return found


def table(content: Mapping[str, Any], beside: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """The run's table, 79 columns: each metric's mean, the paper's beside it, deviations over seeds below.

    Args:
        beside: other runs' results on the same splits, whose rows come first.
    """
    seeds = len(next(iter(content["models"].values()))["seeds"])
    lines = [
        f"{'':24}{'PRAUC':^16}{'Jaccard':^16}{'F1':^16}{'p':>7}",
        f"{'Model':24}" + f"{'ours':>8}{'paper':>8}" * 3 + f"{'PRAUC':>7}",
        "-" * 79,
    ]
    for run in [*beside, content]:
        if beside:
            lines.append(f"{run['mode']}:")
        # rows that adapt no encoder are the same in every mode
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
    cells = "".join(f"{o['mean']:8.4f}{_or_dash(t[0]):>8}" for o, t in zip(ours, theirs, strict=True))
    compared = tempt is not None and seeds > 1 and not (itself and name == "tempt")
    p = _t_test(tempt, model)["prauc"] if tempt is not None and compared else None
    lines = [f"{method(name).TITLE:24}{cells}{_p(p):>7}"]
    if seeds > 1:
        pairs = zip(ours, theirs, strict=True)
        lines.append(f"{'':24}" + "".join(f"{'±' + format(o['std'], '.4f'):>8}{_deviation(t[1]):>8}" for o, t in pairs))
    return lines


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _deviation(value: float | None) -> str:
    return "" if value is None else f"±{value:.4f}"


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
