"""Federated pretraining on one machine: the server's phases over hospitals that each see their own partition alone.

The tuning of each hospital, its evaluation and the files are those of the centralized run; only who holds the records
and who averages differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from hospital_client.app import Place
from server import exchange, rounds, tuning
from server.federation_settings import FederationSettings
from server.validation import Arrays
from shared_model import checkpoint
from shared_model.batching import TokenRows
from shared_model.errors import TooFewHospitals
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.pretraining import PretrainingNetwork
from shared_model.randomness import WHOLE_CONSORTIUM, generator
from shared_model.records import Dataset
from shared_model.settings import Settings
from sim.centralized import History, Request, about_of, label_of, plan_of
from sim.display import Display
from sim.engines import play
from sim.results import write_results
from sim.units import FitUnit, Plan


def simulate(
    request: Request,
    federation: FederationSettings,
    directory: Path,
    dataset: Dataset,
    display: Display,
    *,
    engine: str = "inprocess",
    ray_address: str | None = None,
) -> dict[str, Any]:
    """Do every phase of a run directory that is not done yet, and return the content of `results.json`.

    Raises:
        TooFewHospitals: a round or the tuning ended below the quorum.
        TemptError: the run directory holds a damaged file.
    """
    plan = plan_of(request, directory, dataset)
    history = History(request.run / "history.jsonl")
    done: dict[FitUnit, dict[str, Any]] = {}
    hospitals = dataset.records.hospitals
    display.begin(len(request.seeds) * (1 + len(hospitals)), 0)
    run, data = request.run.absolute(), directory.absolute()  # workers may be elsewhere
    places = [Place(data, hospital, run, request.device) for hospital in hospitals]
    about: dict[str, Any] = {}

    def work(grid: Grid) -> None:
        for seed in request.seeds:
            about[str(seed)] = _seed(grid, request, federation, plan, seed, dataset, history, done, display)

    play(engine, places, work, jobs=request.jobs, ray_address=ray_address)
    history.rewrite(done)
    head = about_of(request, dataset) | {"federation": federation.model_dump() | {"seeds": about}}
    return write_results(request.run, head, done, request.models, request.seeds)


def _seed(
    grid: Grid,
    request: Request,
    federation: FederationSettings,
    plan: Plan,
    seed: int,
    dataset: Dataset,
    history: History,
    done: dict[FitUnit, dict[str, Any]],
    display: Display,
) -> dict[str, Any]:
    """One seed's pretraining and tuning; `done` gets its fits. What is returned stands in `results.json`."""
    unit = FitUnit(plan, PRETRAINING, seed, WHOLE_CONSORTIUM)
    work = exchange.Plan(_experiment(request, federation, dataset), seed, request.settings, federation)
    hospitals = exchange.greet(grid, work, dataset.vocabulary.digest, expected=len(dataset.records.hospitals))
    result = unit.files.read()
    if result is None:

        def on_round(row: dict[str, Any]) -> None:
            history.append(unit, row)
            display.epoch(f"federated {label_of(unit)}", row)

        initial = initial_tensors(request.settings, dataset, seed)
        result = rounds.pretrain(grid, work, hospitals, initial, unit.files, on_round)
    done[unit] = result
    display.advance(f"federated {label_of(unit)}")
    tensors, _ = checkpoint.load(unit.files.tensors)
    shared = {name: tensor.numpy() for name, tensor in tensors.items()}
    numbers, without = tuning.tune(
        grid, work, hospitals, shared, request.models, save_scores=request.save_scores, on_hospital=display.advance
    )
    if len(numbers) < federation.quorum * len(hospitals):
        name, why = next(iter(without.items()))
        raise TooFewHospitals(f"tuning: {len(numbers)} of {len(hospitals)} hospitals; hospital {name}: {why}")
    for model in request.models:
        for hospital in numbers:
            files = FitFiles.of(request.run, seed, model, hospital)
            done[FitUnit(plan, model, seed, hospital)] = files.read() or {}
    sent = [part["bytes_to_hospital"] + part["bytes_from_hospital"] for part in result["hospitals"].values()]
    return {
        "rounds": result["rounds"],
        "best_round": result["best_epoch"],
        "megabytes_a_hospital": round(sum(sent) / len(sent) / 1e6, 3),
        "hospitals": result["hospitals"],
        "not_tuned": {str(hospital): why for hospital, why in without.items()},
    }


def initial_tensors(settings: Settings, dataset: Dataset, seed: int) -> Arrays:
    """The first shared tensors: those that the centralized run of the seed begins with."""
    # Algorithm 1, line 1
    rows = TokenRows(len(dataset.vocabulary.diagnoses), len(dataset.vocabulary.procedures))
    draws = generator(torch.device("cpu"), seed, f"{PRETRAINING}/initial", WHOLE_CONSORTIUM)
    network = PretrainingNetwork(settings.encoder, rows, draws, settings.pretraining.output_bias)
    return {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}


def _experiment(request: Request, federation: FederationSettings, dataset: Dataset) -> str:
    """Names the run by what its rounds depend on, so that no other run's kept state is gone on with."""
    parts = [request.settings.model_dump(mode="json"), federation.model_dump(mode="json"), dataset.digest]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def rounds_table(content: Mapping[str, Any]) -> list[str]:
    """What the federation took, a line a seed."""
    lines = [f"{'Seed':>6}{'Rounds':>8}{'Best':>6}{'MB a hospital':>15}{'Rejected':>10}{'Missed':>8}"]
    for seed, about in content["federation"]["seeds"].items():
        parts: Sequence[Mapping[str, Any]] = list(about["hospitals"].values())
        rejected, missed = sum(len(part["rejected"]) for part in parts), sum(part["missed"] for part in parts)
        megabytes = about["megabytes_a_hospital"]
        lines.append(
            f"{seed:>6}{about['rounds']:>8}{about['best_round']:>6}{megabytes:>15.1f}{rejected:>10}{missed:>8}"
        )
    return lines
