"""From what each fit measured to `results.json` and the table of a run (Section 4.1.4, Table 3)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from shared_model.files import write_json
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
                content["models"][name]["paired_t_test_of_tempt"] = _t_test(content["models"], name)
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


def _t_test(models: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """Two-sided p of a paired t-test over seeds, None where all differences are the same."""
    found = {}
    for metric in METRICS:
        pairs = [
            (models["tempt"]["seeds"][seed]["hospital_mean"][metric], values["hospital_mean"][metric])
            for seed, values in models[name]["seeds"].items()
        ]
        same = len({round(a - b, 15) for a, b in pairs}) == 1
        p = None if same else float(ttest_rel([a for a, _ in pairs], [b for _, b in pairs]).pvalue)
        found[metric] = p
    return found


def table(content: Mapping[str, Any]) -> list[str]:
    """The run's table, 79 columns: each metric's mean, the paper's beside it, deviations over seeds below."""
    seeds = len(next(iter(content["models"].values()))["seeds"])
    lines = [
        f"{'':24}{'PRAUC':^16}{'Jaccard':^16}{'F1':^16}{'p':>7}",
        f"{'Model':24}" + f"{'ours':>8}{'paper':>8}" * 3 + f"{'PRAUC':>7}",
        "-" * 79,
    ]
    for name, model in content["models"].items():
        paper = method(name).PAPER
        ours = [model["summary"][metric] for metric in METRICS]
        theirs = [paper.get(metric, (None, None)) for metric in METRICS]
        cells = "".join(f"{o['mean']:8.4f}{_or_dash(t[0]):>8}" for o, t in zip(ours, theirs, strict=True))
        p = model.get("paired_t_test_of_tempt", {}).get("prauc")
        lines.append(f"{method(name).TITLE:24}{cells}{_p(p):>7}")
        if seeds > 1:
            cells = "".join(
                f"{'±' + format(o['std'], '.4f'):>8}{_deviation(t[1]):>8}" for o, t in zip(ours, theirs, strict=True)
            )
            lines.append(f"{'':24}{cells}")
    lines.append("-" * 79)
    dataset = content["dataset"]
    lines.append(
        f"Means over {dataset['hospitals']} hospitals of their test records' means, over {seeds} "
        + ("seeds;" if seeds > 1 else "seed.")
    )
    if seeds > 1:
        lines.append("p: two-sided paired t-test of TEMPT's PRAUC against the row's over seeds.")
    return lines


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _deviation(value: float | None) -> str:
    return "" if value is None else f"±{value:.4f}"


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
