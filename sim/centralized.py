"""The paper's set-up, one place holds every hospital's records (Algorithm 1, the rows of Table 3), and its opposite.

In the mode "local" nothing leaves a hospital: each pretrains its own encoder. It is what federation must beat.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared_model.errors import TemptError
from shared_model.files import write_text
from shared_model.fitting import pretraining_fit
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.records import Dataset
from shared_model.results import AnyFit, Fit, write_results
from shared_model.run_directory import versions
from shared_model.settings import Settings
from shared_model.shipped_code import code_files
from sim.listener import Listener
from sim.methods import method, needs
from sim.request import Resolved
from sim.units import FitUnit, RunPlan, fit_unit
from sim.workers import run_units


def config_of(asked: Resolved, dataset: Dataset, sources: Mapping[str, str]) -> dict[str, Any]:
    """The content of `config.json`; `sources` are the raw tables' digests, if the run prepared its own dataset."""
    request = asked.request
    return {
        "format": 1,
        "mode": request.mode,
        "data": "" if request.data is None else str(request.data),
        "dataset": {
            "digest": dataset.digest,
            "vocabulary": dataset.vocabulary.digest,
            "sources": dict(sources),
            "preparation": None if asked.preparation is None else asked.preparation.model_dump(),
        },
        "preset": request.preset,
        "settings": asked.settings.model_dump(mode="json"),
        "models": list(asked.models),
        "seeds": list(request.seeds),
        "hospitals": None if asked.hospitals is None else list(asked.hospitals),
        "device": asked.device,
        "threads": request.threads,
        "save_scores": request.save_scores,
        "command": list(request.command),
        "versions": versions(),
        "code": code_files("sim"),
    }


def check_settings(settings: Settings, mode: str) -> None:
    """Refuse settings that a mode does not follow.

    Raises:
        TemptError: the mode does not follow one of them.
    """
    if mode == "local" and settings.tuning.selection == "common":
        raise TemptError(
            "tuning.selection=common: is one epoch by the mean over hospitals, and in this mode each is by itself; "
            "use tuning.selection=hospital"
        )


def restricted(dataset: Dataset, hospitals: Sequence[int] | None) -> Dataset:
    """The dataset with the records of some hospitals only.

    Raises:
        TemptError: it lacks one of them.
    """
    if hospitals is None:
        return dataset
    missing = sorted(set(hospitals) - set(dataset.records.hospitals))
    if missing:
        raise TemptError(
            f"--hospitals: the dataset has no hospital {missing[0]}; it has {some(dataset.records.hospitals)}"
        )
    return dataset.of_hospitals(hospitals)


def simulate(asked: Resolved, dataset: Dataset, listener: Listener) -> dict[str, Any]:
    """Do every fit of a run directory that is not done yet, and return the content of `results.json`.

    Args:
        dataset: of the run, restricted to its hospitals.

    Raises:
        TemptError: the run directory holds a damaged file.
    """
    seeds = asked.request.seeds
    plan = plan_of(asked, dataset)
    units = [unit for seed in seeds for unit in _units(plan, asked.models, seed, dataset.records.hospitals)]
    done: dict[FitUnit, dict[str, Any]] = {unit: result for unit in units if (result := unit.files.read()) is not None}
    history = History(asked.run / "history.jsonl")
    history.rewrite(done)

    def on_event(unit: FitUnit, row: dict[str, Any]) -> None:
        history.append(unit, row)
        listener.epoch(label_of(unit), row)

    def on_done(unit: FitUnit, result: dict[str, Any]) -> None:
        done[unit] = result
        listener.advance(label_of(unit))

    def run(wanted: list[FitUnit]) -> None:
        run_units(wanted, fit_unit, jobs=asked.jobs, done=set(done), on_event=on_event, on_done=on_done)

    trials = []
    if asked.settings.tuning.selection == "common":
        trials = [replace(unit, trial=True) for unit in units if unit.is_tuned]
        done.update({trial: result for trial in trials if (result := trial.files.read()) is not None})
    listener.begin(len(units) + len(trials), len(done))
    needed = {unit.needs for unit in done}
    run([unit for unit in units if unit in needed and unit not in done])
    for unit in [unit for unit in done if not _stands(unit, done)]:
        del done[unit]
    if trials:
        units = _with_common_epochs(units, trials, done, run)
    run(units)
    history.rewrite(done)
    final = {unit: done[unit] for unit in [*units, *trials]}
    rows = {name: needs(name) for name in asked.models}
    return write_results(asked.run, about_of(asked, dataset), final, rows, seeds)


def _stands(unit: FitUnit, done: Mapping[FitUnit, Mapping[str, Any]]) -> bool:
    """Whether a fit is of the pretraining that there is now; one of an earlier version does not say."""
    digest = done[unit.needs]["digest"] if unit.needs is not None and "stands_on" in done[unit] else None
    return digest is None or digest == done[unit]["stands_on"]


def plan_of(asked: Resolved, dataset: Dataset) -> RunPlan:
    """What all units of a run have in common."""
    return RunPlan(
        run=asked.run,
        dataset=asked.dataset,
        settings=asked.settings,
        device=asked.device,
        threads=asked.request.threads,
        save_scores=asked.request.save_scores,
        hospitals=asked.hospitals,
        pretrains_locally=asked.request.mode == "local",
        digest=dataset.digest,
    )


def about_of(asked: Resolved, dataset: Dataset) -> dict[str, Any]:
    """The head of `results.json`."""
    return {
        "mode": asked.request.mode,
        "dataset": {
            "digest": dataset.digest,
            "split_digests": split_digests(dataset, asked.request.seeds),
            "records": len(dataset.records),
            "hospitals": len(dataset.records.hospitals),
        },
        "command": list(asked.request.command),
        "versions": versions(),
    }


def _units(plan: RunPlan, models: Sequence[str], seed: int, hospitals: Sequence[int]) -> list[FitUnit]:
    """Every fit of a seed, each pretraining once; fits on the whole consortium first, as they take longest."""
    pretraining = list(dict.fromkeys(pretraining_fit(needed) for name in models if (needed := needs(name)) is not None))
    whole = [name for name in models if method(name).SCOPE == "consortium"]
    by_hospital = [name for name in models if method(name).SCOPE == "hospital"]
    if plan.pretrains_locally:
        by_hospital = pretraining + by_hospital
    else:
        whole = pretraining + whole
    return [FitUnit(plan, name, seed, WHOLE_CONSORTIUM) for name in whole] + [
        FitUnit(plan, name, seed, hospital) for name in by_hospital for hospital in hospitals
    ]


def _with_common_epochs(
    units: list[FitUnit],
    trials: list[FitUnit],
    done: dict[FitUnit, dict[str, Any]],
    run: Callable[[list[FitUnit]], None],
) -> list[FitUnit]:
    """The units with one tuning epoch for all hospitals of a model and seed: the best by the mean of their scores."""
    run([unit for unit in units if not unit.is_tuned] + trials)
    scores: dict[tuple[str, int], list[list[float]]] = {}
    for trial in trials:
        rows = [row["score"] for row in done[trial]["history"]]
        if rows and None not in rows:  # a hospital without training or validation records has no say
            scores.setdefault((trial.model, trial.seed), []).append(rows)
    best = {
        key: max(range(min(map(len, curves))), key=lambda epoch: sum(curve[epoch] for curve in curves)) + 1
        for key, curves in scores.items()
    }
    chosen = [replace(unit, epochs=best.get((unit.model, unit.seed))) if unit.is_tuned else unit for unit in units]
    for unit, final in zip(units, chosen, strict=True):
        if unit in done:  # from before: its epochs came from the same trials
            done[final] = done.pop(unit)
    return chosen


class History:
    """`history.jsonl`: a line an epoch. It grows as epochs end, and is put in order when a run starts or ends."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, unit: Fit, row: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._line(unit, row))

    def rewrite(self, done: Mapping[AnyFit, Mapping[str, Any]]) -> None:
        order = sorted(done, key=lambda unit: (unit.seed, unit.model, unit.hospital, unit.trial))
        write_text(self._path, "".join(self._line(unit, row) for unit in order for row in done[unit]["history"]))

    @staticmethod
    def _line(unit: Fit, row: Mapping[str, Any]) -> str:
        whose = {"model": unit.model, "seed": unit.seed, "hospital": unit.hospital}
        return json.dumps(whose | ({"trial": True} if unit.trial else {}) | dict(row)) + "\n"


def split_digests(dataset: Dataset, seeds: Sequence[int]) -> dict[str, str]:
    """SHA-256 over which stay is in which part: equal digests mean the same train, validation and test records."""
    found = {}
    for seed in seeds:
        split = dataset.split(seed)
        parts = [[part.hospital.tolist(), part.stay.tolist()] for part in (split.train, split.validation, split.test)]
        found[str(seed)] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return found


def label_of(unit: FitUnit) -> str:
    """A fit as a reader of the progress knows it."""
    whose = "" if unit.hospital == WHOLE_CONSORTIUM else f" of hospital {unit.hospital}"
    return f"{unit.model}{whose}, seed {unit.seed}"


def some(hospitals: Sequence[int]) -> str:
    """A list of hospitals for a message, cut after a dozen."""
    shown = ", ".join(str(hospital) for hospital in hospitals[:12])
    return shown if len(hospitals) <= 12 else f"{shown} and {len(hospitals) - 12} more"
