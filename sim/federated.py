"""Federated pretraining on one machine: the server's phases over hospitals that each see their own partition alone.

The tuning of each hospital, its evaluation and the files are those of the centralized run; only who holds the records
and who averages differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.serverapp import Grid

from hospital_client.app import HospitalConfig
from server.federation import Federation
from server.federation_settings import FederationSettings
from server.rounds import rounds_of
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.records import Dataset
from shared_model.results import FitName, write_results
from sim.centralized import History, about_of
from sim.engines import play
from sim.listener import Listener
from sim.methods import needs
from sim.request import Resolved


def simulate(asked: Resolved, federation: FederationSettings, dataset: Dataset, listener: Listener) -> dict[str, Any]:
    """Do every phase of a run directory that is not done yet, and return the content of `results.json`.

    Raises:
        TooFewHospitals: a round or the tuning ended below the quorum.
        TemptError: the run directory holds a damaged file.
    """
    request = asked.request
    history = History(asked.run / "history.jsonl")
    done: dict[FitName, dict[str, Any]] = {}
    about: dict[str, Any] = {}
    hospitals = dataset.records.hospitals
    run, data = asked.run.absolute(), asked.dataset.absolute()  # workers may be elsewhere
    whole = Federation(
        run=run,
        vocabulary=dataset.vocabulary,
        settings=asked.settings,
        federation=federation,
        models=asked.models,
        save_scores=request.save_scores,
        expected=len(hospitals),
        least=len(hospitals),
        data_digest=dataset.digest,
    )

    def on_round(fit: FitName, row: dict[str, Any]) -> None:
        history.append(fit, row)
        listener.epoch(f"federated pretraining, seed {fit.seed}", row)

    def work(grid: Grid) -> None:
        for seed in request.seeds:
            results, about[str(seed)] = whole.seed(grid, seed, on_round=on_round, on_done=listener.advance)
            done.update(results)

    kept = {}  # of runs that ended before: the rounds and fits that stand
    for seed in request.seeds:
        for model in (PRETRAINING, *asked.models):
            for hospital in [WHOLE_CONSORTIUM] if model == PRETRAINING else hospitals:
                files = FitFiles.of(run, seed, model, hospital)
                rows = files.read() or ({"history": rounds_of(files)} if model == PRETRAINING else None)
                if rows is not None:
                    kept[FitName(model, seed, hospital)] = rows
    history.rewrite(kept)
    listener.begin(len(request.seeds) * (1 + len(hospitals)), 0)
    play(
        request.engine,
        [HospitalConfig(data, hospital, run, asked.device, request.threads) for hospital in hospitals],
        work,
        asked.jobs,
        request.ray_address,
    )
    for fit in done:  # the same numbers, and the epochs, which a hospital does not tell
        done[fit] = FitFiles.of(run, fit.seed, fit.model, fit.hospital).read() or done[fit]
    history.rewrite(done)
    head = about_of(asked, dataset) | {"federation": federation.model_dump() | {"seeds": about}}
    return write_results(asked.run, head, done, {name: needs(name) for name in asked.models}, request.seeds)


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
