"""From what each fit measured to `results.json` (Section 4.1.4)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from scipy.stats import ttest_rel

from shared_model.files import write_json
from shared_model.fitting import pretraining_fit
from shared_model.metric_names import METRICS
from shared_model.metrics import hospital_mean, record_mean

RESULTS = "results.json"


@runtime_checkable
class Fit(Protocol):
    """Which fit a result is of."""

    @property
    def model(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def hospital(self) -> int: ...

    @property
    def trial(self) -> bool: ...


AnyFit = TypeVar("AnyFit", bound=Fit)


class FitName(NamedTuple):
    """A fit by name, for who has no files of it."""

    model: str
    seed: int
    hospital: int
    trial: bool = False


def write_results(
    run: Path,
    about: Mapping[str, Any],
    done: Mapping[AnyFit, Mapping[str, Any]],
    models: Mapping[str, str | None],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Write `results.json` and return its content.

    Args:
        models: the pretraining that each adapts, in the order of the table.
    """
    rows = {name: _model(name, needed, done, seeds) for name, needed in models.items()}
    content = {"format": 1, **about, "models": rows}
    if "tempt" in models and len(seeds) > 1:
        for name in models:
            if name != "tempt":
                test = t_test_of_tempt(content["models"]["tempt"], content["models"][name])
                content["models"][name]["paired_t_test_of_tempt"] = test
    write_json(run / RESULTS, content)
    return content


def _model(
    name: str, needed: str | None, done: Mapping[AnyFit, Mapping[str, Any]], seeds: Sequence[int]
) -> dict[str, Any]:
    by_seed = {str(seed): _seed(name, needed, seed, done) for seed in seeds}
    means = [seed["hospital_mean"] for seed in by_seed.values()]
    summary = {metric: _summary([m[metric] for m in means if m[metric] is not None]) for metric in METRICS}
    return {"seeds": by_seed, "summary": summary}


def _seed(name: str, needed: str | None, seed: int, done: Mapping[AnyFit, Mapping[str, Any]]) -> dict[str, Any]:
    mine = {unit: result for unit, result in done.items() if (unit.model, unit.seed) == (name, seed)}
    fits = [result for unit, result in mine.items() if not unit.trial]
    hospitals = {hospital: values for fit in fits for hospital, values in fit["hospitals"].items()}
    seconds = {
        "training" if needed is None else "tuning": round(sum(result["seconds"]["fit"] for result in mine.values()), 3),
        "evaluation": round(sum(fit["seconds"]["evaluation"] for fit in fits), 3),
    }
    if needed is not None:
        before = (pretraining_fit(needed), seed)
        fits_before = [result for unit, result in done.items() if (unit.model, unit.seed) == before]
        seconds = {"pretraining": round(sum(fit["seconds"]["fit"] for fit in fits_before), 3)} | seconds
    content: dict[str, Any] = {
        "hospitals": dict(sorted(hospitals.items(), key=lambda item: int(item[0]))),
        "hospital_mean": hospital_mean(hospitals) if hospitals else dict.fromkeys(METRICS),
        "record_mean": record_mean(hospitals) if hospitals else dict.fromkeys(METRICS),
        "seconds": seconds,
    }
    few = sorted(int(fit["hospital"]) for fit in fits if not fit["hospitals"])
    if few:
        content["too_few_test_records"] = few
        content["hospitals_measured"] = len(hospitals)
    without = sorted(int(fit["hospital"]) for fit in fits if "selected" in fit)
    if without:
        content["last_epoch_for_want_of_validation_records"] = without
    return content


def _summary(values: Sequence[float]) -> dict[str, float | None]:
    mean = statistics.fmean(values) if values else None
    return {"mean": mean, "std": statistics.stdev(values) if len(values) > 1 else None}


def hospitals_measured(model: Mapping[str, Any]) -> int:
    """How many hospitals' test metrics a model's means stand on; of several seeds, the fewest."""
    return min(
        len([hospital for hospital, values in seed["hospitals"].items() if values["records"]])
        for seed in model["seeds"].values()
    )


def t_test_of_tempt(tempt: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float | None]:
    """Two-sided p of a paired t-test over seeds, None where all differences are the same."""
    found = {}
    for metric in METRICS:
        pairs = [
            (tempt["seeds"][seed]["hospital_mean"][metric], values["hospital_mean"][metric])
            for seed, values in other["seeds"].items()
        ]
        pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
        same = len({round(a - b, 15) for a, b in pairs}) <= 1
        p = None if same else float(ttest_rel([a for a, _ in pairs], [b for _, b in pairs]).pvalue)
        found[metric] = p
    return found
